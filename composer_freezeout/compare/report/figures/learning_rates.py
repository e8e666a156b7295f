"""The learning rates of a run."""

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from composer_freezeout.compare.report.figures.style import MUTED, plain, styled
from composer_freezeout.results.record import Record

__all__ = ['learning_rates']

_DEPTH = LinearSegmentedColormap.from_list('depth', ['#3b82f6', '#a855f7', '#f97316'])


@styled
def learning_rates(record: Record) -> Figure:
    """Draws the learning rate of each unit over a FreezeOut run, and when each unit froze.

    Args:
        record (Record): Record of a run with FreezeOut.

    Returns:
        Figure: The plot.

    Raises:
        ValueError: If the record has no units.
    """
    units, trace = record.units, record.lr_trace
    if not units:
        raise ValueError(
            f'the run {record.run_name!r} has no FreezeOut units to draw; give the record of a FreezeOut run'
        )
    total = record.last_batch
    progress = [batch / total for batch in trace.batch]
    colours = [_DEPTH(index / max(1, len(units) - 1)) for index in range(len(units))]

    height = 3.4 + max(2.0, 0.19 * len(units))
    figure = Figure(figsize=(9, height), layout='constrained')
    rates, spans = figure.subplots(2, 1, sharex=True, height_ratios=[3.0, height - 3.4])
    for unit, colour in zip(units, colours, strict=True):
        # Several groups of a unit share its shape; one without a rate has left the optimizer.
        values = trace.lr.get(unit.name, [])
        rates.plot(progress[: len(values)], [rate or 0.0 for rate in values], color=colour, linewidth=1.2)
        rates.plot(unit.t_i, 0, marker='o', color=colour, markersize=4, clip_on=False, zorder=3)
    rates.set_ylabel('learning rate')
    rates.set_ylim(bottom=0)
    rates.set_title(f'{plain(record.run_name)}: every unit anneals to zero, then freezes (●)')

    positions = range(len(units))
    spans.barh(positions, [unit.t_i for unit in units], color=colours, height=0.75)
    spans.set_yticks(positions, [plain(unit.name.removeprefix('module.')) for unit in units], fontsize=7)
    spans.set_ylim(len(units) - 0.4, -0.6)
    for position, unit in zip(positions, units, strict=True):
        if unit.frozen_at_batch is not None:
            label = f'{unit.t_i:.3f} (batch {unit.frozen_at_batch})'
            spans.text(unit.t_i + 0.006, position, label, va='center', fontsize=6.5, color=MUTED)
    spans.set_ylabel('unit')
    spans.set_xlabel('progress of training')
    spans.set_xlim(0, 1)
    spans.xaxis.set_major_formatter(PercentFormatter(1.0))
    spans.grid(False)
    return figure
