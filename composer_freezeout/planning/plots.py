"""Figures of a plan: the learning rates that each schedule would have, and what is frozen when."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from composer_freezeout.method.schedule import freeze_times, lr_factor
from composer_freezeout.planning.content import CostModel, PlanContent

__all__ = ['STYLES', 'draw_frozen', 'figure_of', 'plot_frozen', 'plot_schedules']

# How each cost model is drawn: its label and colour.
STYLES: dict[CostModel, tuple[str, str]] = {
    'paper': ("a step's cost saved, as the paper estimates", 'tab:orange'),
    'flops': ("a step's FLOPs saved", 'tab:blue'),
    'seconds': ("a step's seconds saved, measured", 'tab:green'),
}
_POINTS = 400
# Without it PNGs name the version of matplotlib, and differ where the picture doesn't.
_METADATA = {'Software': None}


def plot_schedules(plan: PlanContent) -> bytes:
    """Draws the paper's figure 1 for this model: each unit's learning rate, for each scale, unscaled and scaled.

    Args:
        plan (PlanContent): The plan; its ``t_0`` and warm-up are those of all panels.

    Returns:
        bytes: A PNG.
    """
    scales = ['linear', 'squared', 'cubic'] if plan.how_scale == 'squared' else ['linear', 'cubic']
    colours = _colours(len(plan.units))
    figure = Figure(figsize=(10, 0.6 + 3.1 * len(scales)), layout='constrained')
    rows = figure.subplots(len(scales), 2, sharex=True, squeeze=False)
    for how_scale, row in zip(scales, rows, strict=True):
        times = freeze_times(len(plan.units), plan.t_0, how_scale, plan.unit_costs, plan.cost_shift, plan.heads)
        for scale_lr, axes in zip((False, True), row, strict=True):
            _draw_schedule(axes, plan, times, colours, scale_lr)
            planned = (how_scale, scale_lr) == (plan.how_scale, plan.scale_lr)
            name = f'{how_scale}, {"scaled" if scale_lr else "unscaled"}{" (planned)" if planned else ""}'
            axes.set_title(
                f'{name}: units freeze from {times[0]:.0%} on',
                loc='left',
                fontsize=10,
                fontweight='bold' if planned else 'normal',
            )
    for axes in rows[-1]:
        axes.set_xlabel('progress of training')
    for axes in rows[:, 0]:
        axes.set_ylabel('learning rate\n(times the base rate)')
    _unit_colourbar(figure, rows, plan)
    title = f'{plan.run_name}: learning rate of each unit with t_0 = {plan.t_0:g}; it freezes at ●'
    figure.suptitle(title, fontsize=12)
    return _png(figure)


def _draw_schedule(
    axes: Any, plan: PlanContent, times: Sequence[float], colours: Sequence[Any], scale_lr: bool
) -> None:
    warmup = plan.warmup if plan.warmup < times[0] else 0.0
    for t_i, colour in zip(times, colours, strict=True):
        # Each curve ends where its unit freezes, and bends where the warm-up ends.
        progress = sorted({*(t_i * point / _POINTS for point in range(_POINTS + 1)), warmup})
        rates = [lr_factor(t, t_i, scale_lr, warmup, plan.anneal) for t in progress]
        axes.plot(progress, rates, color=colour, linewidth=1.1)
    axes.scatter(times, [0.0] * len(times), color=colours, s=14, clip_on=False, zorder=3)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    _finish(axes)


def plot_frozen(plan: PlanContent) -> bytes:
    """Draws what is frozen over the run: share of the parameters, and the share of a step that each model saves.

    Args:
        plan (PlanContent): The plan.

    Returns:
        bytes: A PNG.
    """
    figure = Figure(figsize=(9, 4.2), layout='constrained')
    draw_frozen(plan, figure.subplots())
    return _png(figure)


def figure_of(plan: PlanContent) -> Figure:
    """Draws the learning rate of each unit, as planned, and below what is frozen.

    Args:
        plan (PlanContent): The plan.

    Returns:
        Figure: Of two parts.
    """
    figure = Figure(figsize=(9, 7.4), layout='constrained')
    upper, lower = figure.subplots(2, 1, sharex=True)
    times = [unit.t_i for unit in plan.units]
    _draw_schedule(upper, plan, times, _colours(len(times)), plan.scale_lr)
    upper.set_ylabel('learning rate\n(times the base rate)')
    upper.set_title('learning rate of each unit; it freezes at ●', loc='left', fontsize=11)
    _unit_colourbar(figure, upper, plan)
    draw_frozen(plan, lower)
    return figure


def draw_frozen(plan: PlanContent, axes: Axes) -> None:
    """Draws what is frozen over the run, and the share of a step that each model saves.

    Args:
        plan (PlanContent): The plan.
        axes (Axes): Where.
    """
    moments = [0.0, *(unit.freezes_at for unit in plan.units[:-1]), 1.0]
    parameters = [unit.parameters for unit in plan.units]
    frozen = [sum(parameters[:k]) / sum(parameters) for k in range(len(plan.units))]
    axes.stairs(frozen, moments, fill=True, color='0.88', label='parameters frozen')
    for prediction in plan.predictions:
        meaning, colour = STYLES[prediction.model]
        saved = [1 - cost / prediction.step_costs[0] for cost in prediction.step_costs]
        label = f'{meaning}: {prediction.saving:.1%} of the run'
        moments_due = [0.0, *(unit.t_i for unit in plan.units[:-1]), 1.0]
        axes.stairs(saved, moments_due, baseline=None, color=colour, linewidth=1.6, label=label)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel('progress of training')
    axes.set_ylabel('share frozen of the parameters,\nor saved of a step')
    stages = '' if plan.stages == len(plan.units) - 1 else f', in {plan.stages} stages'
    title = f'{plan.run_name}: {len(plan.units)} units, {plan.how_scale}, t_0 = {plan.t_0:g}{stages}'
    axes.set_title(title, loc='left', fontsize=11)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(loc='upper left', frameon=False, fontsize=9)
    _finish(axes)


def _colours(num_units: int) -> list[Any]:
    # Up to 0.92: the lightest yellow can't be seen on white.
    return list(colormaps['viridis']([0.92 * index / max(1, num_units - 1) for index in range(num_units)]))


def _unit_colourbar(figure: Figure, rows: Any, plan: PlanContent) -> None:
    last = len(plan.units) - 1
    colours = ListedColormap(_colours(len(plan.units)))
    bar = figure.colorbar(ScalarMappable(Normalize(-0.5, last + 0.5), colours), ax=rows, pad=0.02, aspect=40)
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    bar.ax.invert_yaxis()
    bar.set_label(f'unit, from {plan.units[0].name} (0) to {plan.units[-1].name} ({last})')


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format='png', dpi=150, metadata=_METADATA)
    return content.getvalue()


def _finish(axes: Any) -> None:
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(alpha=0.25)
