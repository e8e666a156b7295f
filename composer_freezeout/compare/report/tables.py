"""The tables of the report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from composer_freezeout.compare.arms.known import BASELINE
from composer_freezeout.compare.judging.comparison import Comparison, accuracy
from composer_freezeout.compare.judging.verdict import ArmResult
from composer_freezeout.compare.report.text import (
    NOTHING,
    interval_text,
    number_text,
    p_text,
    points_text,
    seconds_text,
    spread_text,
    summary_text,
)
from composer_freezeout.results.stats import Difference

__all__ = ['Grid', 'Link', 'environment_grid', 'results_grid', 'runs_grid', 'verdicts_grid', 'welch_grid']


@dataclass(frozen=True)
class Link:
    text: str
    target: str

    @property
    def url(self) -> str:
        return quote(self.target)


@dataclass(frozen=True)
class Grid:
    """A table; the first column names its rows."""

    name: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str | Link]]
    words: frozenset[int] = frozenset({0})

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds numbers, which are aligned to the right."""
        return [column not in self.words for column in range(len(self.headings))]


def results_grid(results: Sequence[ArmResult]) -> Grid:
    headings = (
        'arm',
        'runs',
        'accuracy, %',
        '95 % interval',
        'training time, s',
        'time / baseline',
        'saved, measured, %',
        'saved, predicted, %',
        'peak memory, MiB',
    )
    rows = [
        (
            r.arm,
            str(r.seconds.n),
            summary_text(r.accuracy, 2, 100),
            interval_text(r.accuracy.interval if r.accuracy else None, 2, 100),
            seconds_text(r.seconds),
            NOTHING if r.arm == BASELINE else spread_text(r.time_ratio.value, r.time_ratio.std, 3),
            number_text(r.measured_saving, 1, 100),
            number_text(r.predicted_saving, 1, 100),
            summary_text(r.memory, 0, 2**-20),
        )
        for r in results
    ]
    return Grid('Results', headings, rows)


def verdicts_grid(results: Sequence[ArmResult]) -> Grid:
    headings = (
        'arm',
        'control',
        'time / control',
        'accuracy − control’s, points',
        '95 % interval',
        'p',
        'p (Holm)',
        'verdict',
    )
    rows = [
        (
            r.arm,
            r.control or NOTHING,
            number_text(r.control_time_ratio, 3),
            points_text(r.difference),
            interval_text(r.difference.interval if r.difference else None, 2, 100, sign=True),
            p_text(r.difference.p if r.difference else None),
            p_text(r.p_holm),
            r.verdict or NOTHING,
        )
        for r in results
        if r.freezes
    ]
    return Grid('Arms that freeze, against their controls', headings, rows, frozenset({0, 1, 7}))


def welch_grid(results: Sequence[ArmResult], against: str, key: Callable[[ArmResult], Difference | None]) -> Grid:
    headings = ('arm', 'difference, points', '95 % interval', 't', 'degrees of freedom', 'p')
    rows = [
        (
            r.arm,
            points_text(difference),
            interval_text(difference.interval, 2, 100, sign=True),
            number_text(difference.t, 2),
            number_text(difference.dof, 1),
            p_text(difference.p),
        )
        for r in results
        if (difference := key(r)) is not None
    ]
    return Grid(f'Accuracy less that of {against}', headings, rows)


def runs_grid(comparison: Comparison) -> Grid:
    headings = (
        'arm',
        'seed',
        'accuracy, %',
        'training time, s',
        'first batch, s',
        'waiting for data, %',
        'batches',
        'started at',
        'resumed at batch',
        'record',
    )
    rows = [
        (
            run.arm,
            str(run.seed),
            number_text(accuracy(run), 2, 100),
            number_text(run.record['training_seconds'], 2),
            number_text(run.record.get('first_batch_seconds'), 2),
            number_text(run.record['data_wait_share'], 1, 100),
            str(run.record['effective']['total_batches']),
            run.record['started_at'],
            ', '.join(map(str, run.record['resumed_at_batch'])) or NOTHING,
            Link(run.record['run_name'], run.path),
        )
        for run in comparison.runs
    ]
    return Grid('Runs', headings, rows, frozenset({0, 7, 9}))


def environment_grid(comparison: Comparison) -> Grid:
    values: dict[str, dict[str, None]] = {}
    for run in comparison.runs:
        record = run.record
        facts = {f'version of {name}': version for name, version in sorted(record['versions'].items())}
        facts |= {name.replace('_', ' '): _hardware(name, value) for name, value in sorted(record['hardware'].items())}
        facts |= {key.replace('_', ' '): record['effective'][key] for key in ('device', 'precision', 'world_size')}
        facts['git commit'] = _commit(record['git'])
        for key, value in facts.items():
            values.setdefault(key, {})[NOTHING if value is None else str(value)] = None
    return Grid(
        'Environment', ('', 'value'), [(key, ', '.join(found)) for key, found in values.items()], frozenset({0, 1})
    )


def _hardware(name: str, value: Any) -> Any:
    return f'{value} ({value / 2**30:.1f} GiB)' if name.endswith('_bytes') and isinstance(value, int) else value


def _commit(git: Mapping[str, Any] | None) -> str:
    if git is None:
        return 'unknown'
    return f'{git.get("commit")}{" with uncommitted changes" if git.get("dirty") else ""}'
