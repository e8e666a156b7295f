"""The results of a sweep in Markdown, as a plot and as JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from composer_freezeout.compare.judging.clock import WALL, Clock
from composer_freezeout.compare.sweep.line import Judged, verdict
from composer_freezeout.compare.sweep.results import LENGTHS, Row, baseline_name
from composer_freezeout.results.files import write_json, write_text
from composer_freezeout.results.stats import Summary, summary

__all__ = ['PLOT', 'RESULT', 'TABLE', 'report', 'table']

RESULT, PLOT, TABLE = 'sweep.json', 'accuracy_time.svg', 'sweep.md'


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
        f'| name | setting | n | accuracy % | {seconds} | predicted saving % | points above the line | p |',
        '|---|---|---:|---:|---:|---:|---:|---:|',
    ]
    for row in rows:
        setting = ', '.join(f'{key}={json.dumps(value)}' for key, value in (row.setting or {}).items())
        found = row.judged or Judged(None, None)
        cells = [
            row.name,
            setting or '–',
            str(len(row.seeds)),
            _spread(summary(row.accuracies), 100, 2),
            _spread(summary(row.seconds), 1, 1),
            f'{100 * row.predicted_saving:.1f}' if row.predicted_saving else '–',
            _difference(found.difference),
            '–' if found.p is None else f'{found.p:.3f}',
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def _spread(found: Summary, factor: float, digits: int) -> str:
    mean = f'{factor * found.mean:.{digits}f}'
    return mean if found.std is None else f'{mean} ± {factor * found.std:.{digits}f}'


def _difference(found: Summary | None) -> str:
    if found is None:
        return '–'
    low_high = '' if found.interval is None else ' [{:+.2f}, {:+.2f}]'.format(*(100 * end for end in found.interval))
    return f'{100 * found.mean:+.2f}{low_high}'


def report(out: Path, result: Mapping[str, Any], rows: Sequence[Row], clock: Clock) -> str:
    """Writes the results, and draws accuracy against training time.

    Args:
        out (Path): The folder.
        result (Mapping[str, Any]): What ``sweep.json`` says, but for the rows and the verdict.
        rows (Sequence[Row]): Settings and baselines.
        clock (Clock): What their times are compared by.

    Returns:
        str: The verdict.

    Raises:
        OSError: If a file cannot be written.
    """
    from composer_freezeout.compare.report.figures.arms import Point, accuracy_against_time
    from composer_freezeout.compare.report.figures.style import svg

    sentence = verdict({row.name: row.judged for row in rows if row.judged is not None}, clock)
    if clock.kind == 'CPU':
        sentence = f'{sentence} {clock.note}'
    write_json(out / RESULT, {**result, 'judged': [row.as_json() for row in rows], 'verdict': sentence})
    points = [Point(row.name, summary(row.seconds), summary(row.accuracies)) for row in rows]
    title = f'{result["family"]}: FreezeOut on judging seeds, and shortened baselines'
    figure = accuracy_against_time(points, list(map(baseline_name, LENGTHS)), title, clock.training_time)
    write_text(out / PLOT, svg(figure, title))
    write_text(out / TABLE, _page(result, sentence, table(rows, clock), clock))
    return sentence


def _page(result: Mapping[str, Any], sentence: str, grid: str, clock: Clock) -> str:
    return (
        f'# Settings of FreezeOut: {result["family"]}\n\n{sentence}\n\n![Accuracy against training time]({PLOT})\n\n'
        f'{grid}\n'
        f'{len(result["trials"])} settings were tried with the seeds {_listed(result["choosing_seeds"])}, for '
        'accuracy and predicted saving. Those that no other beat, and the default, were trained with the seeds '
        f'{_listed(result["judging_seeds"])}. Points above the line: accuracy less that of a baseline in the same '
        f'mean {clock.training_time}, read off between the baselines of the same seed, with a 95 % confidence '
        'interval; p by a paired t test, not corrected. Mean ± standard deviation.\n\n'
        f'```\n{result["command"]}\n```\n'
    )


def _listed(seeds: Sequence[int]) -> str:
    return f'{seeds[0]} to {seeds[-1]}' if len(seeds) > 1 else str(seeds[0])
