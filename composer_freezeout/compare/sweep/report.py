"""The results of a sweep in Markdown, as a plot and as JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from composer_freezeout.compare.arms.known import BASELINE
from composer_freezeout.compare.sweep.line import LENGTHS, Judged, verdict
from composer_freezeout.results.files import write_json
from composer_freezeout.results.stats import Summary, summary

__all__ = ['PLOT', 'RESULT', 'TABLE', 'report', 'table']

RESULT, PLOT, TABLE = 'sweep.json', 'accuracy_time.svg', 'sweep.md'


def table(rows: Sequence[Mapping[str, Any]], judged: Mapping[str, Judged]) -> str:
    """The results in Markdown.

    Args:
        rows (Sequence[Mapping[str, Any]]): Of :func:`results`.
        judged (Mapping[str, Judged]): Of :func:`results`.

    Returns:
        str: A table, with its line breaks.
    """
    lines = [
        '| name | setting | n | accuracy % | training seconds | predicted saving % | points above the line | p |',
        '|---|---|---:|---:|---:|---:|---:|---:|',
    ]
    for row in rows:
        setting = ', '.join(f'{key}={json.dumps(value)}' for key, value in (row['setting'] or {}).items())
        found = judged.get(row['name'], Judged(None, None))
        cells = [
            row['name'],
            setting or '–',
            str(len(row['seeds'])),
            _spread(summary(row['accuracies']), 100, 2),
            _spread(summary(row['seconds']), 1, 1),
            f'{100 * row["predicted_saving"]:.1f}' if row['predicted_saving'] else '–',
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


def report(out: Path, result: Mapping[str, Any], judged: Mapping[str, Judged]) -> str:
    """Writes the results, and draws accuracy against training time.

    Args:
        out (Path): The folder.
        result (Mapping[str, Any]): What ``sweep.json`` says.
        judged (Mapping[str, Judged]): Of :func:`results`.

    Returns:
        str: The verdict.
    """
    from composer_freezeout.compare.report.figures.arms import Point, accuracy_against_time
    from composer_freezeout.compare.report.figures.style import svg

    rows, sentence = result['judged'], verdict(judged)
    write_json(out / RESULT, {**result, 'verdict': sentence})
    points = [Point(row['name'], summary(row['seconds']), summary(row['accuracies'])) for row in rows]
    line = [f'{BASELINE}-{percent}' for percent in LENGTHS]
    title = f'{result["family"]}: FreezeOut on judging seeds, and shortened baselines'
    (out / PLOT).write_text(svg(accuracy_against_time(points, line, title), title), encoding='utf-8')
    text = (
        f'# Settings of FreezeOut: {result["family"]}\n\n{sentence}\n\n![Accuracy against training time]({PLOT})\n\n'
        f'{table(rows, judged)}\n'
        f'{len(result["trials"])} settings were tried with the seeds {_listed(result["choosing_seeds"])}, for '
        'accuracy and predicted saving. Those that no other beat, and the default, were trained with the seeds '
        f'{_listed(result["judging_seeds"])}. Points above the line: accuracy less that of a baseline in the same '
        'mean training time, read off between the baselines of the same seed, with a 95 % confidence interval; p by a '
        f'paired t test, not corrected. Mean ± standard deviation.\n\n```\n{result["command"]}\n```\n'
    )
    (out / TABLE).write_text(text, encoding='utf-8')
    return sentence


def _listed(seeds: Sequence[int]) -> str:
    return f'{seeds[0]} to {seeds[-1]}' if len(seeds) > 1 else str(seeds[0])
