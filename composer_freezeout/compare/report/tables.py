"""The tables of the report. A new column is a line of one of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from composer_freezeout.compare.judging.clock import Clock
from composer_freezeout.compare.judging.comparable import FinishedRun
from composer_freezeout.compare.judging.comparison import Comparison
from composer_freezeout.compare.judging.course import Reached, backward_share, frozen_at_end, frozen_share
from composer_freezeout.compare.judging.score import BY_ACCURACY, Score
from composer_freezeout.compare.judging.verdict import ArmResult
from composer_freezeout.compare.report.text import (
    NOTHING,
    gain_text,
    number_text,
    p_text,
    points_interval_text,
    points_text,
    score_text,
    seconds_text,
    summary_text,
)
from composer_freezeout.results.record import Git, Plugin, Record
from composer_freezeout.results.stats import Difference

__all__ = [
    'Column',
    'Grid',
    'Link',
    'engagement_grid',
    'environment_grid',
    'reached_grid',
    'results_grid',
    'runs_grid',
    'welch_grid',
]

Row = TypeVar('Row')


@dataclass(frozen=True)
class Link:
    """A cell that leads to a file.

    Attributes:
        text (str): What it says.
        target (str): The file, relative to the report, with slashes.
    """

    text: str
    target: str

    @property
    def url(self) -> str:
        """The target as it stands in a page."""
        return quote(self.target)


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column of a table.

    Attributes:
        heading (str): Its heading.
        cell (Callable): From a row's value to what stands in the cell.
        words (bool): Whether it holds words, which are aligned to the left; else numbers.
        optional (bool): Whether it is left out where no row has anything in it.
    """

    heading: str
    cell: Callable[[Row], str | Link]
    words: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Grid:
    """A table; the first column names its rows.

    Attributes:
        name (str): Its name.
        headings (Sequence[str]): Of the columns.
        rows (Sequence[Sequence[str | Link]]): The cells.
        numeric (Sequence[bool]): Whether each column holds numbers, which are aligned to the right.
    """

    name: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str | Link]]
    numeric: Sequence[bool]


def _grid(name: str, columns: Sequence[Column[Row]], values: Sequence[Row]) -> Grid:
    filled = [(column, [column.cell(value) for value in values]) for column in columns]
    kept = [(column, cells) for column, cells in filled if not column.optional or set(cells) - {NOTHING}]
    rows = list(zip(*(cells for _, cells in kept), strict=True))
    return Grid(name, [column.heading for column, _ in kept], rows, [not column.words for column, _ in kept])


def results_grid(results: Sequence[ArmResult], clock: Clock, score: Score = BY_ACCURACY) -> Grid:
    """What each arm has over the baseline in its own time, and what that comes from.

    Args:
        results (Sequence[ArmResult]): The arms.
        clock (Clock): What their times are compared by.
        score (Score): What else they are compared by.

    Returns:
        Grid: A row for each arm.
    """
    columns: list[Column[ArmResult]] = [
        Column('arm', lambda r: r.arm, words=True),
        Column(f'gain at equal {clock.time}, {score.gain_unit}', lambda r: gain_text(r.by_time, score), optional=True),
        Column('p (Holm)', lambda r: p_text(r.by_time.p_holm if r.by_time else None), optional=True),
        Column('verdict', lambda r: r.verdict or NOTHING, words=True, optional=True),
        Column(f'gain at equal FLOPs, {score.gain_unit}', lambda r: gain_text(r.by_flops, score), optional=True),
        Column('p (Holm), by FLOPs', lambda r: p_text(r.by_flops.p_holm if r.by_flops else None), optional=True),
        Column('runs', lambda r: str(r.seconds.n)),
        Column(f'{score.name}{score.unit}', lambda r: score_text(r.accuracy, score)),
        Column('training time, s', lambda r: seconds_text(r.seconds)),
        Column(
            'CPU time, s', lambda r: NOTHING if r.cpu_seconds is None else seconds_text(r.cpu_seconds), optional=True
        ),
        Column('saved, measured, %', lambda r: number_text(r.measured_saving, 1, 100)),
        Column('saved, predicted, %', lambda r: number_text(r.predicted_saving, 1, 100)),
        Column('FLOPs / baseline', lambda r: number_text(r.flops, 3), optional=True),
    ]
    return _grid('Gain at equal cost', columns, results)


def reached_grid(times: Sequence[Reached], clock: Clock) -> Grid:
    """When each arm reached the target accuracy.

    Args:
        times (Sequence[Reached]): Of the arms.
        clock (Clock): What their times are compared by.

    Returns:
        Grid: A row for each arm.
    """
    columns: list[Column[Reached]] = [
        Column('arm', lambda r: r.arm, words=True),
        Column(
            f'{clock.time} until it is reached, s', lambda r: seconds_text(r.seconds) if r.seconds else 'not reached'
        ),
        Column('runs that reach it', lambda r: f'{r.reached} of {r.runs}'),
    ]
    return _grid('Time to the target', columns, times)


def engagement_grid(results: Sequence[ArmResult], records: Mapping[str, Sequence[Record]]) -> Grid:
    """How much of each arm is frozen, on average over its training, and what that saves.

    Args:
        results (Sequence[ArmResult]): The arms.
        records (Mapping[str, Sequence[Record]]): Their runs.

    Returns:
        Grid: A row for each arm.
    """
    columns: list[Column[ArmResult]] = [
        Column('arm', lambda r: r.arm, words=True),
        Column('parameters frozen, mean over training, %', lambda r: number_text(frozen_share(records[r.arm]), 1, 100)),
        Column('parameters frozen at the end, %', lambda r: number_text(frozen_at_end(records[r.arm]), 1, 100)),
        Column(
            'backward FLOPs frozen, mean over training, %',
            lambda r: number_text(backward_share(records[r.arm]), 1, 100),
            optional=True,
        ),
        Column('FLOPs saved by freezing, predicted, %', lambda r: number_text(r.predicted_saving, 1, 100)),
        Column('peak memory, MiB', lambda r: summary_text(r.memory, 0, 2**-20)),
    ]
    return _grid('Engagement', columns, results)


def welch_grid(
    results: Sequence[ArmResult],
    against: str,
    key: Callable[[ArmResult], Difference | None],
    score: Score = BY_ACCURACY,
) -> Grid:
    """Differences in accuracy from one arm.

    Args:
        results (Sequence[ArmResult]): The arms.
        against (str): That arm.
        key (Callable): From an arm to its difference.
        score (Score): What it is a difference of.

    Returns:
        Grid: A row for each arm with a difference.
    """
    columns: list[Column[tuple[str, Difference]]] = [
        Column('arm', lambda row: row[0], words=True),
        Column(
            f'difference{", points" if score == BY_ACCURACY else score.unit}', lambda row: points_text(row[1], score)
        ),
        Column('95 % interval', lambda row: points_interval_text(row[1], score)),
        Column('t', lambda row: number_text(row[1].t, 2)),
        Column('degrees of freedom', lambda row: number_text(row[1].dof, 1)),
        Column('p', lambda row: p_text(row[1].p)),
    ]
    rows = [(r.arm, difference) for r in results if (difference := key(r)) is not None]
    return _grid(f'{score.title} less that of {against}', columns, rows)


def runs_grid(runs: Sequence[FinishedRun], score: Score = BY_ACCURACY) -> Grid:
    """Every run, with a link to its record.

    Args:
        runs (Sequence[FinishedRun]): The runs.
        score (Score): What they are compared by.

    Returns:
        Grid: A row for each.
    """
    columns: list[Column[FinishedRun]] = [
        Column('arm', lambda run: run.arm, words=True),
        Column('seed', lambda run: str(run.seed)),
        Column(f'{score.name}{score.unit}', lambda run: number_text(score.of(run.record), score.digits, score.factor)),
        Column('training time, s', lambda run: number_text(run.record.training_seconds, 2)),
        Column('CPU time, s', lambda run: number_text(run.record.training_cpu_seconds, 2), optional=True),
        Column('first batch, s', lambda run: number_text(run.record.first_batch_seconds, 2)),
        Column('waiting for data, %', lambda run: number_text(run.record.data_wait_share, 1, 100)),
        Column('batches', lambda run: str(run.record.effective.total_batches)),
        Column('started at', lambda run: run.record.started_at, words=True),
        Column('resumed at batch', lambda run: ', '.join(map(str, run.record.resumed_at_batch)) or NOTHING),
        Column('record', lambda run: Link(run.record.run_name, run.path), words=True),
    ]
    return _grid('Runs', columns, runs)


def environment_grid(comparison: Comparison) -> Grid:
    """Versions, hardware and code of all runs.

    Args:
        comparison (Comparison): The runs.

    Returns:
        Grid: A row for each fact, with the values that the runs have.
    """
    values: dict[str, dict[str, None]] = {}
    for run in comparison.runs:
        for key, value in _facts(run).items():
            values.setdefault(key, {})[NOTHING if value is None else str(value)] = None
    if comparison.workers is not None:
        company = '' if comparison.company is None else f': a step took {comparison.company:.2f} × as long as alone'
        values['runs side by side'] = {f'{comparison.workers}{company}': None}
    columns: list[Column[tuple[str, str]]] = [
        Column('', lambda row: row[0], words=True),
        Column('value', lambda row: row[1], words=True),
    ]
    return _grid('Environment', columns, [(key, ', '.join(found)) for key, found in values.items()])


def _facts(run: FinishedRun) -> dict[str, Any]:
    record = run.record
    facts = {f'version of {name}': version for name, version in sorted(record.versions.items())}
    facts |= {name.replace('_', ' '): _hardware(name, value) for name, value in sorted(record.hardware.items())}
    if record.openmp is not None:
        facts |= {f'OpenMP {name.replace("_", " ")}': value for name, value in record.openmp.model_dump().items()}
    effective = record.effective
    facts |= {f'plugin {plugin.module}': _plugin(plugin) for plugin in record.plugins}
    facts |= {'device': effective.device, 'precision': effective.precision, 'world size': effective.world_size}
    return facts | {'git commit': _commit(record.git)}


def _hardware(name: str, value: Any) -> Any:
    return f'{value} ({value / 2**30:.1f} GiB)' if name.endswith('_bytes') and isinstance(value, int) else value


def _plugin(plugin: Plugin) -> str:
    return plugin.distribution or f'SHA-256 {plugin.sha256 or "unknown"}'


def _commit(git: Git | None) -> str:
    return 'unknown' if git is None else f'{git.commit}{" with uncommitted changes" if git.dirty else ""}'
