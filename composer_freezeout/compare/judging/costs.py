"""What a run costs: its time by the comparison's clock, and FLOPs, which other processes do not change."""

from collections.abc import Mapping

from composer_freezeout.compare.arms.known import FREEZING
from composer_freezeout.compare.judging.clock import Clock
from composer_freezeout.compare.judging.curve import Run, Runs
from composer_freezeout.compare.judging.score import BY_ACCURACY, Score
from composer_freezeout.costs.saving import saving_over
from composer_freezeout.results.record import Record

__all__ = ['flops_of', 'runs_by_flops', 'runs_by_time', 'step_saving']


def flops_of(record: Record, baseline: Record) -> float | None:
    """FLOPs of training, as a share of those of the whole baseline.

    Args:
        record (Record): The run.
        baseline (Record): A run of the whole baseline.

    Returns:
        float, optional: Its batches times what freezing is predicted to leave of each; 1 for FreezeOut that trains
        longer by what it saves (``const_time``). In ``(0, ∞)``; None if nothing is predicted.
    """
    saving = step_saving(record, baseline)
    if saving is None:
        return None
    left = 1 - saving
    if any(entry.get('const_time') for entry in record.algorithms if entry.get('name') in FREEZING):
        return left
    return record.effective.total_batches / baseline.effective.total_batches * left


def step_saving(record: Record, baseline: Record) -> float | None:
    """Share of the FLOPs of the baseline's steps that freezing saves.

    Args:
        record (Record): The run.
        baseline (Record): A run of the baseline, which may itself have something frozen from the start.

    Returns:
        float, optional: Averaged over training, in ``(-∞, 1)``; None if nothing is predicted.
    """
    if record.predicted_saving is None or baseline.predicted_saving is None:
        return None
    return saving_over(record.predicted_saving, baseline.predicted_saving)


def runs_by_time(records: Mapping[int, Record], clock: Clock, score: Score = BY_ACCURACY) -> Runs:
    """Qualities and times by seed; runs without a quality are left out, and all if there are no times to compare."""
    if not clock.decides:
        return {}
    qualities = {seed: score.quality_of(record) for seed, record in records.items()}
    return {seed: Run(clock.seconds(records[seed]), q) for seed, q in qualities.items() if q is not None}


def runs_by_flops(records: Mapping[int, Record], baseline: Record, score: Score = BY_ACCURACY) -> Runs:
    """Qualities and FLOPs by seed; runs without a quality or a prediction are left out."""
    costs = {seed: (score.quality_of(record), flops_of(record, baseline)) for seed, record in records.items()}
    return {seed: Run(flops, q) for seed, (q, flops) in costs.items() if q is not None and flops is not None}
