"""What the judging seeds say about settings and baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from composer_freezeout.compare.arms.known import BASELINE
from composer_freezeout.compare.judging.clock import Clock, choose_clock
from composer_freezeout.compare.judging.costs import runs_by_flops, runs_by_time
from composer_freezeout.compare.judging.curve import Baselines, Gain, Runs
from composer_freezeout.compare.judging.score import BY_ACCURACY, Score
from composer_freezeout.compare.judging.verdict import with_holm
from composer_freezeout.compare.sweep.settings import Setting, name_of
from composer_freezeout.results.record import Record

__all__ = ['Row', 'baseline_name', 'results']


@dataclass(frozen=True)
class Row:
    """A setting, or a baseline of some length.

    Attributes:
        name (str): Its name.
        setting (Mapping[str, Any], optional): Arguments of FreezeOut; None for a baseline.
        seeds (Sequence[int]): The seeds with a run, shape ``(n,)``.
        scores (Sequence[float]): Accuracies in ``[0, 1]``, or what else runs are compared by; shape ``(n,)``.
        seconds (Sequence[float]): Training times, by the clock that they are compared by, shape ``(n,)``.
        predicted_saving (float, optional): Share of the FLOPs that is saved, of those with nothing frozen.
        gain (Gain, optional): Quality less a baseline's in the same time, or with as many FLOPs if no times can be
            compared; None for a baseline, and without a seed that all have.
    """

    name: str
    setting: Setting | None
    seeds: Sequence[int]
    scores: Sequence[float]
    seconds: Sequence[float]
    predicted_saving: float | None
    gain: Gain | None

    def as_json(self) -> dict[str, Any]:
        """The row as ``sweep.json`` has it."""
        return asdict(self)


def baseline_name(percent: int) -> str:
    """Name of the baseline of some length."""
    return f'{BASELINE}-{percent}'


def results(
    settings: Sequence[Setting], records: Mapping[str, Mapping[int, Record]], score: Score = BY_ACCURACY
) -> tuple[list[Row], Clock]:
    """What the judging seeds say.

    Args:
        settings (Sequence[Mapping[str, Any]]): The settings.
        records (Mapping[str, Mapping[int, Record]]): Of settings and baselines, by name and seed; runs without a
            score are left out.
        score (Score): What runs are compared by.

    Returns:
        tuple[list[Row], Clock]: A row for each that has a run, and what times are compared by.
    """
    by_name = {name_of(setting): setting for setting in settings}
    scores = {
        name: {seed: v for seed, r in sorted(of.items()) if (v := score.of(r)) is not None}
        for name, of in records.items()
    }
    runs = {name: {seed: records[name][seed] for seed in of} for name, of in scores.items()}
    clock = choose_clock({name: list(of.values()) for name, of in runs.items()})
    by_cost = _by_cost(runs, clock, score)
    baselines = Baselines([found for name, found in by_cost.items() if name not in by_name])
    gains = with_holm({name: gain for name in by_name if (gain := baselines.gain(by_cost.get(name, {}))) is not None})
    rows = []
    for name, of in runs.items():
        if not of:
            continue
        seconds, saving = [clock.seconds(r) for r in of.values()], next(iter(of.values())).predicted_saving
        rows.append(Row(name, by_name.get(name), list(of), [*scores[name].values()], seconds, saving, gains.get(name)))
    return rows, clock


def _by_cost(runs: Mapping[str, Mapping[int, Record]], clock: Clock, score: Score) -> dict[str, Runs]:
    """Times by seed of each setting and baseline, or FLOPs if no times can be compared."""
    if clock.decides:
        return {name: runs_by_time(of, clock, score) for name, of in runs.items()}
    whole = next(iter(runs[baseline_name(100)].values()), None)
    return {name: runs_by_flops(of, whole, score) if whole else {} for name, of in runs.items()}
