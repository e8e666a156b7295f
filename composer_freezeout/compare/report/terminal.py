"""The table in the terminal."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from composer_freezeout.compare.arms.known import BASELINE_SHORT
from composer_freezeout.compare.judging.comparison import Comparison
from composer_freezeout.compare.judging.verdict import arm_results
from composer_freezeout.compare.report.text import counted, number_text, p_text, points_text, spread_text, summary_text
from composer_freezeout.results.stats import Difference

__all__ = ['comparison_table']


def comparison_table(comparison: Comparison) -> Table:
    """A table for the terminal.

    Args:
        comparison (Comparison): The runs.

    Returns:
        Table: Accuracy, training time and saving of each arm, with standard deviations and p-values where there are
            several runs.
    """
    results = arm_results(comparison)
    title = f'{comparison.family}, {counted(len(comparison.seeds), "seed")}'
    # Eighty columns hold the longest of the usual names.
    narrow: dict[str, Any] = {'box': SIMPLE_HEAD, 'show_edge': False, 'padding': 0}
    table = Table(title=escape(title), title_justify='left', title_style='bold', **narrow)
    table.add_column('arm', overflow='fold')
    short = any(result.arm == BASELINE_SHORT for result in results)
    references = [('baseline', 'versus_baseline'), *([('short', 'versus_short')] if short else [])]
    headings = [
        'accuracy\n%',
        f'{"CPU" if comparison.clock.kind == "CPU" else "training"}\nseconds',
        'saved\nmeasured\n%',
        'saved\npredicted\n%',
    ]
    for heading in (*headings, *(f'against\n{name}\npoints' for name, _ in references)):
        table.add_column(heading, justify='right', no_wrap=True)
    for result in results:
        table.add_row(
            escape(result.arm),
            _stacked(summary_text(result.accuracy, 2, 100)),
            _stacked(summary_text(result.time, 1)),
            _stacked(spread_text(result.measured_saving, result.time_ratio.std if result.time_ratio else None, 1, 100)),
            number_text(result.predicted_saving, 1, 100),
            *(_terminal_difference(getattr(result, attribute)) for _, attribute in references),
        )
    return table


def _stacked(text: str) -> str:
    # A terminal has height to spare, but not width.
    return text.replace(' ± ', '\n± ')


def _terminal_difference(difference: Difference | None) -> str:
    text = points_text(difference)
    return text if difference is None or difference.p is None else f'{text}\np {p_text(difference.p)}'
