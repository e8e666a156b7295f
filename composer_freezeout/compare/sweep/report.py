"""The results of a sweep in Markdown, as a plot and as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from composer_freezeout.compare.judging.clock import WALL, Clock
from composer_freezeout.compare.judging.curve import Baselines, Curve, Run
from composer_freezeout.compare.sweep.results import LENGTHS, Row, baseline_name
from composer_freezeout.compare.sweep.settings import Setting
from composer_freezeout.compare.sweep.verdict import verdict
from composer_freezeout.results.files import write_json, write_text
from composer_freezeout.results.stats import Difference, Summary, summary

__all__ = ['FORMAT', 'PLOT', 'RESULT', 'TABLE', 'Search', 'Trial', 'report', 'table']

FORMAT = 1

RESULT, PLOT, TABLE = 'sweep.json', 'accuracy_time.svg', 'sweep.md'


@dataclass(frozen=True)
class Trial:
    """A setting that was tried.

    Attributes:
        setting (Mapping[str, Any]): Arguments of FreezeOut.
        accuracy (float): Its mean over the choosing seeds, in ``[0, 1]``.
        predicted_saving (float): Share of the FLOPs that it saves.
    """

    setting: Setting
    accuracy: float
    predicted_saving: float


@dataclass(frozen=True)
class Search:
    """What was searched, as ``sweep.json`` has it.

    Attributes:
        family (str): Name of the family of configurations.
        command (str): What was typed.
        identity (Mapping[str, Any]): What must be the same for a sweep to be gone on with.
        choosing_seeds (Sequence[int]): The seeds that settings were chosen by.
        judging_seeds (Sequence[int]): The seeds that they were judged by.
        trials (Sequence[Trial]): The settings that were tried.
    """

    family: str
    command: str
    identity: Mapping[str, Any]
    choosing_seeds: Sequence[int]
    judging_seeds: Sequence[int]
    trials: Sequence[Trial]


def table(rows: Sequence[Row], clock: Clock = WALL) -> str:
    """The results in Markdown.

    Args:
        rows (Sequence[Row]): Settings and baselines.
        clock (Clock): What their times are compared by.

    Returns:
        str: A table, with its line breaks.
    """
    seconds = 'CPU seconds' if clock.kind == 'CPU' else 'training seconds'
    lines = [
        f'| name | setting | n | accuracy % | {seconds} | predicted saving % | points at equal cost | p (Holm) |',
        '|---|---|---:|---:|---:|---:|---:|---:|',
    ]
    for row in rows:
        setting = ', '.join(f'{key}={json.dumps(value)}' for key, value in (row.setting or {}).items())
        cells = [
            row.name,
            setting or '–',
            str(len(row.seeds)),
            _spread(summary(row.accuracies), 100, 2),
            _spread(summary(row.seconds), 1, 1),
            f'{100 * row.predicted_saving:.1f}' if row.predicted_saving else '–',
            _difference(row.gain.difference if row.gain else None),
            '–' if row.gain is None or row.gain.p_holm is None else f'{row.gain.p_holm:.3f}',
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def _spread(found: Summary, factor: float, digits: int) -> str:
    mean = f'{factor * found.mean:.{digits}f}'
    return mean if found.std is None else f'{mean} ± {factor * found.std:.{digits}f}'


def _difference(found: Difference | None) -> str:
    if found is None:
        return '–'
    low_high = '' if found.interval is None else ' [{:+.2f}, {:+.2f}]'.format(*(100 * end for end in found.interval))
    return f'{100 * found.value:+.2f}{low_high}'


def report(out: Path, search: Search, rows: Sequence[Row], clock: Clock) -> str:
    """Writes the results, and draws accuracy against training time.

    Args:
        out (Path): The folder.
        search (Search): What was searched.
        rows (Sequence[Row]): Settings and baselines.
        clock (Clock): What their times are compared by.

    Returns:
        str: The verdict.

    Raises:
        OSError: If a file cannot be written.
    """
    from composer_freezeout.compare.report.figures.arms import Point, accuracy_against_cost
    from composer_freezeout.compare.report.figures.style import svg

    sentence = verdict({row.name: row.gain for row in rows if row.gain is not None}, clock)
    judged = [row.as_json() for row in rows]
    write_json(out / RESULT, {'format': FORMAT, **asdict(search), 'judged': judged, 'verdict': sentence})
    points = [Point(row.name, summary(row.seconds), summary(row.accuracies)) for row in rows]
    title = f'{search.family}: FreezeOut on judging seeds, and shortened baselines'
    curve = _curve(rows) if clock.decides else None
    figure = accuracy_against_cost(points, curve, f'{clock.training_time} in seconds', title)
    write_text(out / PLOT, svg(figure, title))
    write_text(out / TABLE, _page(search, sentence, table(rows, clock), clock))
    return sentence


def _curve(rows: Sequence[Row]) -> Curve | None:
    names = set(map(baseline_name, LENGTHS))
    columns = [zip(r.seeds, r.seconds, r.accuracies, strict=True) for r in rows if r.name in names]
    return Baselines([{seed: Run(*pair) for seed, *pair in column} for column in columns]).curve()


def _page(search: Search, sentence: str, grid: str, clock: Clock) -> str:
    return (
        f'# Settings of FreezeOut: {search.family}\n\n{sentence}\n\n![Accuracy against training time]({PLOT})\n\n'
        f'{grid}\n'
        f'{len(search.trials)} settings were tried with the seeds {_listed(search.choosing_seeds)}, for '
        'accuracy and predicted saving. Those that no other beat, and the default, were trained with the seeds '
        f'{_listed(search.judging_seeds)}. Points at equal cost: accuracy less that of a baseline in the same mean '
        f'{clock.training_time if clock.decides else "FLOPs"}, read off the curve through the baselines, with a 95 % '
        'confidence interval; p by Student’s t over the seeds, after Holm’s correction. Mean ± standard deviation.\n\n'
        f'```\n{search.command}\n```\n'
    )


def _listed(seeds: Sequence[int]) -> str:
    return f'{seeds[0]} to {seeds[-1]}' if len(seeds) > 1 else str(seeds[0])
