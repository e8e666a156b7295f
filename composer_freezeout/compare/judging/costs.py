"""What a run costs: its time by the comparison's clock, and FLOPs, which other processes do not change."""

from collections.abc import Mapping

from composer_freezeout.compare.arms.known import FREEZING
from composer_freezeout.compare.judging.clock import Clock
from composer_freezeout.compare.judging.curve import Run, Runs
from composer_freezeout.results.record import Record

__all__ = ['flops_of', 'runs_by_flops', 'runs_by_time']


def flops_of(record: Record, baseline: Record) -> float | None:
    """FLOPs of training, as a share of those of the whole baseline.

    Args:
        record (Record): The run.
        baseline (Record): A run of the whole baseline.

    Returns:
        float, optional: Its batches times what freezing is predicted to leave of each; 1 for FreezeOut that trains
        longer by what it saves (``const_time``). In ``(0, ∞)``; None if nothing is predicted.
    """
    if record.predicted_saving is None:
        return None
    if any(entry.get('const_time') for entry in record.algorithms if entry.get('name') in FREEZING):
        return 1 - record.predicted_saving
    return record.effective.total_batches / baseline.effective.total_batches * (1 - record.predicted_saving)


def runs_by_time(records: Mapping[int, Record], clock: Clock) -> Runs:
    """Accuracies and times by seed; runs without an accuracy are left out, and all if there are no times to compare."""
    if not clock.decides:
        return {}
    return {seed: Run(clock.seconds(r), r.accuracy) for seed, r in records.items() if r.accuracy is not None}


def runs_by_flops(records: Mapping[int, Record], baseline: Record) -> Runs:
    """Accuracies and FLOPs by seed; runs without an accuracy or a prediction are left out."""
    costs = {seed: (record.accuracy, flops_of(record, baseline)) for seed, record in records.items()}
    return {seed: Run(flops, acc) for seed, (acc, flops) in costs.items() if acc is not None and flops is not None}
