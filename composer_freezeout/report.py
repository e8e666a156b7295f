"""Records of runs to what people look at: the table of a comparison and the plot of a run's learning rates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use('Agg')

import matplotlib.pyplot as plt
from matplotlib.ticker import PercentFormatter
from rich.markup import escape
from rich.table import Table

__all__ = ['Result', 'comparison_table', 'plot_learning_rates', 'results']

_ACCURACY = 'MulticlassAccuracy'


@dataclass(frozen=True)
class Result:
    """One arm of a comparison.

    Attributes:
        arm (str): Its name.
        accuracy (float, optional): Top-1 accuracy of the last evaluation, in ``[0, 1]``.
        training_seconds (float): Wall-clock of training, evaluation apart.
        measured_saving (float, optional): Share of the baseline's training time that it saved, in ``(-∞, 1)``.
        predicted_saving (float, optional): The same, predicted from FLOPs; None where there is no prediction.
    """

    arm: str
    accuracy: float | None
    training_seconds: float
    measured_saving: float | None
    predicted_saving: float | None


def results(records: Mapping[str, Mapping[str, Any]], baseline: str = 'baseline') -> list[Result]:
    """Compares records with the baseline's.

    Args:
        records (Mapping[str, Mapping[str, Any]]): Record of each arm by its name.
        baseline (str): Name of the arm without freezing.

    Returns:
        list[Result]: In the order of ``records``.

    Raises:
        ValueError: If there is no record of the baseline.
    """
    if baseline not in records:
        raise ValueError(f'no record of the arm {baseline!r} among {sorted(records)}; savings are relative to it')
    reference = records[baseline]['training_seconds']
    return [
        Result(
            arm=arm,
            accuracy=record['final'].get(_ACCURACY),
            training_seconds=record['training_seconds'],
            measured_saving=None if arm == baseline else 1 - record['training_seconds'] / reference,
            predicted_saving=record.get('predicted_saving') or None,
        )
        for arm, record in records.items()
    ]


def comparison_table(rows: Sequence[Result], title: str) -> Table:
    """A table for the terminal.

    Args:
        rows (Sequence[Result]): The arms.
        title (str): What was compared.

    Returns:
        Table: Accuracy, training time and saving of each arm.
    """
    table = Table(title=escape(title), title_justify='left', title_style='bold')
    table.add_column('arm', no_wrap=True)
    for heading in ('accuracy', 'training\nseconds', 'saved\n(measured)', 'saved\n(predicted\nfrom FLOPs)'):
        table.add_column(heading, justify='right')
    for row in rows:
        table.add_row(
            escape(row.arm),
            '–' if row.accuracy is None else f'{row.accuracy:.2%}',
            f'{row.training_seconds:.1f}',
            '–' if row.measured_saving is None else f'{row.measured_saving:.1%}',
            '–' if row.predicted_saving is None else f'{row.predicted_saving:.1%}',
        )
    return table


def plot_learning_rates(record: Mapping[str, Any], path: Path) -> None:
    """Draws the learning rate of each unit over a FreezeOut run, and when each unit froze.

    Args:
        record (Mapping[str, Any]): Record of a run with FreezeOut.
        path (Path): The PNG to write; its folder exists.

    Raises:
        ValueError: If the record has no units.
    """
    units, trace = record['units'], record['lr_trace']
    if not units:
        raise ValueError(
            f'the run {record["run_name"]!r} has no FreezeOut units to draw; give the record of a FreezeOut run'
        )
    total = record['effective']['total_batches']
    progress = [batch / total for batch in trace['batch']]
    colours = plt.get_cmap('viridis')([0.92 * index / max(1, len(units) - 1) for index in range(len(units))])

    height = 3.4 + max(2.0, 0.19 * len(units))
    figure, (rates, spans) = plt.subplots(
        2, 1, sharex=True, figsize=(9, height), height_ratios=[3.0, height - 3.4], layout='constrained'
    )
    for unit, colour in zip(units, colours, strict=True):
        # Several groups of a unit share its shape; one without a rate has left the optimizer.
        values = trace['lr'].get(unit['name'], [])
        rates.plot(progress[: len(values)], [rate or 0.0 for rate in values], color=colour, linewidth=1.2)
        rates.plot(unit['t_i'], 0, marker='o', color=colour, markersize=4, clip_on=False, zorder=3)
    rates.set_ylabel('learning rate')
    rates.set_ylim(bottom=0)
    rates.set_title(f'{record["run_name"]}: every unit anneals to zero, then freezes (●)', loc='left', fontsize=11)

    positions = range(len(units))
    spans.barh(positions, [unit['t_i'] for unit in units], color=colours, height=0.75)
    spans.set_yticks(positions, [unit['name'].removeprefix('module.') for unit in units], fontsize=7)
    spans.invert_yaxis()
    for position, unit in zip(positions, units, strict=True):
        if unit['frozen_at_batch'] is not None:
            label = f'{unit["t_i"]:.3f} (batch {unit["frozen_at_batch"]})'
            spans.text(unit['t_i'] + 0.006, position, label, va='center', fontsize=6.5, color='0.35')
    spans.set_ylabel('unit')
    spans.set_xlabel('progress of training')
    spans.set_xlim(0, 1)
    spans.xaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (rates, spans):
        axes.spines[['top', 'right']].set_visible(False)
    rates.grid(alpha=0.25)
    figure.savefig(path, dpi=150)
    plt.close(figure)
