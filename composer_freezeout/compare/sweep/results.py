"""What the judging seeds say about settings and baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from composer_freezeout.compare.arms.known import BASELINE
from composer_freezeout.compare.judging.clock import Clock, choose_clock
from composer_freezeout.compare.sweep.line import Judged, above_the_line, p_value
from composer_freezeout.compare.sweep.settings import Setting, name_of
from composer_freezeout.results.record import Record
from composer_freezeout.results.stats import Summary, summary

__all__ = ['LENGTHS', 'Row', 'baseline_name', 'results']

# Of the baselines, in percent of the whole duration.
LENGTHS = (100, 90, 80, 70, 60)


@dataclass(frozen=True)
class Row:
    """A setting, or a baseline of some length.

    Attributes:
        name (str): Its name.
        setting (Mapping[str, Any], optional): Arguments of FreezeOut; None for a baseline.
        seeds (Sequence[int]): The seeds with a run, shape ``(n,)``.
        accuracies (Sequence[float]): In ``[0, 1]``, shape ``(n,)``.
        seconds (Sequence[float]): Training times, by the clock that they are compared by, shape ``(n,)``.
        predicted_saving (float, optional): Share of the FLOPs that is saved.
        judged (Judged, optional): How it compares with the baselines; None for a baseline.
    """

    name: str
    setting: Setting | None
    seeds: Sequence[int]
    accuracies: Sequence[float]
    seconds: Sequence[float]
    predicted_saving: float | None
    judged: Judged | None

    def as_json(self) -> dict[str, Any]:
        """The row as ``sweep.json`` has it."""
        content = asdict(self)
        del content['judged']
        if self.judged is not None:
            difference = self.judged.difference
            content |= {'difference': difference and asdict(difference), 'p': self.judged.p}
        return content


def baseline_name(percent: int) -> str:
    """Name of the baseline of some length."""
    return f'{BASELINE}-{percent}'


def results(settings: Sequence[Setting], records: Mapping[str, Mapping[int, Record]]) -> tuple[list[Row], Clock]:
    """What the judging seeds say.

    Args:
        settings (Sequence[Mapping[str, Any]]): The settings.
        records (Mapping[str, Mapping[int, Record]]): Of settings and baselines, by name and seed; runs without an
            accuracy are left out.

    Returns:
        tuple[list[Row], Clock]: A row for each that has a run, and what times are compared by.
    """
    by_name = {name_of(setting): setting for setting in settings}
    runs = {name: {seed: r for seed, r in sorted(of.items()) if r.accuracy is not None} for name, of in records.items()}
    clock = choose_clock({name: list(of.values()) for name, of in runs.items()})
    baselines = [runs[baseline_name(percent)] for percent in LENGTHS]
    rows = []
    for name, of in runs.items():
        if not of:
            continue
        judged = None
        if name in by_name:
            difference = _compared(of, baselines, clock) if clock.decides else None
            judged = Judged(difference, difference and p_value(difference))
        accuracies, seconds = [r.accuracy or 0.0 for r in of.values()], [clock.seconds(r) for r in of.values()]
        saving = next(iter(of.values())).predicted_saving
        rows.append(Row(name, by_name.get(name), list(of), accuracies, seconds, saving, judged))
    return rows, clock


def _compared(runs: Mapping[int, Record], baselines: Sequence[Mapping[int, Record]], clock: Clock) -> Summary | None:
    """A setting with the baselines, of the seeds that all of them have."""
    seeds = sorted(seed for seed in runs if all(seed in baseline for baseline in baselines))
    if not seeds:
        return None

    def mean_time(found: Mapping[int, Record]) -> float:
        return summary([clock.seconds(found[seed]) for seed in seeds]).mean

    return above_the_line(
        mean_time(runs),
        [runs[seed].accuracy or 0.0 for seed in seeds],
        [mean_time(baseline) for baseline in baselines],
        [[baseline[seed].accuracy or 0.0 for baseline in baselines] for seed in seeds],
    )
