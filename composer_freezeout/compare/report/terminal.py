"""The table in the terminal."""

import re
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from composer_freezeout.compare.judging.comparison import Comparison
from composer_freezeout.compare.judging.curve import Gain
from composer_freezeout.compare.judging.score import BY_ACCURACY, Score
from composer_freezeout.compare.judging.verdict import arm_results
from composer_freezeout.compare.report.text import (
    NOTHING,
    counted,
    number_text,
    points_interval_text,
    points_text,
    score_text,
    spread_text,
    summary_text,
)

__all__ = ['comparison_table']


def comparison_table(comparison: Comparison) -> Table:
    """A table for the terminal.

    Args:
        comparison (Comparison): The runs.

    Returns:
        Table: Gain at equal time with its interval, verdict, accuracy, training time and saving of each arm, with
            standard deviations where there are several runs.
    """
    results = arm_results(comparison)
    title = f'{comparison.family}, {counted(len(comparison.seeds), "seed")}'
    # Eighty columns hold the longest of the usual names.
    narrow: dict[str, Any] = {'box': SIMPLE_HEAD, 'show_edge': False, 'padding': 0}
    table = Table(title=escape(title), title_justify='left', title_style='bold', **narrow)
    table.add_column('arm', overflow='fold')
    score = comparison.score
    equal = 'time' if comparison.clock.decides else 'FLOPs'
    headings = [
        f'gain at\nequal {equal}' + ('\npoints' if score == BY_ACCURACY else ''),
        'verdict',
        'accuracy\n%' if score == BY_ACCURACY else _folded(f'{score.name}{score.direction}'),
        f'{"CPU" if comparison.clock.kind == "CPU" else "training"}\nseconds',
        'saved\nmeasured\n%',
        'predicted\n%',
    ]
    for heading in headings:
        table.add_column(heading, justify='right', no_wrap=True)
    for result in results:
        table.add_row(
            escape(result.arm),
            _gain(result.gain, score),
            (result.verdict or NOTHING).replace('not ', 'not\n'),
            _stacked(score_text(result.accuracy, score)),
            _stacked(summary_text(result.time, 1)),
            _stacked(spread_text(result.measured_saving, result.time_ratio.std if result.time_ratio else None, 1, 100)),
            number_text(result.predicted_saving, 1, 100),
        )
    return table


def _gain(gain: Gain | None, score: Score) -> str:
    if gain is None:
        return NOTHING
    if gain.outside is not None:
        return f'{"below" if gain.outside == "below" else "beyond"}\nthe curve'
    interval = gain.difference.interval if gain.difference else None
    text = points_text(gain.difference, score)
    return text if interval is None else f'{text}\n{points_interval_text(gain.difference, score)}'


def _folded(heading: str) -> str:
    # Names of metrics are those of classes.
    return re.sub(r'(?<=[a-z])(?=[A-Z])| (?=\()|(?<=er) ', '\n', heading)


def _stacked(text: str) -> str:
    # A terminal has height to spare, but not width.
    return text.replace(' ± ', '\n± ')
