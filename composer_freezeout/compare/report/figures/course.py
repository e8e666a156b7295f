"""Over the course of training."""

import statistics
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from composer_freezeout.compare.judging.clock import Clock
from composer_freezeout.compare.judging.comparable import FinishedRun
from composer_freezeout.compare.judging.comparison import Comparison
from composer_freezeout.compare.judging.course import backward_shares, course, frozen_shares
from composer_freezeout.compare.judging.score import BY_ACCURACY
from composer_freezeout.compare.report.figures.style import HEIGHT, PAPER, WIDTH, add_legend, styled, styles_of
from composer_freezeout.results.record import Segment
from composer_freezeout.results.stats import summary

__all__ = ['engagement', 'learning_curves', 'step_times']


@styled
def learning_curves(comparison: Comparison, arms: Sequence[str]) -> Figure:
    """Draws accuracy over training time: means over the seeds at each evaluation, and their standard deviation.

    Args:
        comparison (Comparison): The runs.
        arms (Sequence[str]): The arms to draw.

    Returns:
        Figure: The plot.
    """
    figure = Figure(figsize=(WIDTH, HEIGHT), layout='constrained')
    axes = figure.subplots()
    styles = styles_of(comparison.arms)
    for arm in arms:
        runs = comparison.of(arm)
        curves = _aligned([curve for run in runs if (curve := course(run.record, comparison.clock, comparison.score))])
        if not curves:
            continue
        colour, marker, filled = styles[arm]
        seconds = [statistics.fmean(x for x, _ in points) for points in zip(*curves, strict=True)]
        spread = [summary([y for _, y in points]) for points in zip(*curves, strict=True)]
        axes.plot(
            seconds,
            [s.mean for s in spread],
            color=colour,
            linewidth=1.5,
            linestyle='-' if filled else '--',
            marker=marker,
            markevery=[len(spread) - 1],
            markerfacecolor=colour if filled else PAPER,
            markersize=6,
            label=arm,
        )
        low, high = ([s.mean + sign * (s.std or 0.0) for s in spread] for sign in (-1, 1))
        axes.fill_between(seconds, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.set_xlabel(f'{comparison.clock.training_time} in seconds')
    axes.set_ylabel(f'{comparison.score.name}{comparison.score.direction}')
    if comparison.score == BY_ACCURACY:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlim(left=0)
    add_legend(figure, axes)
    return figure


@styled
def step_times(comparison: Comparison) -> Figure:
    """Draws the time of a step, relative to one with nothing frozen: over frozen units and over frozen parameters.

    Args:
        comparison (Comparison): The runs; those without segments are left out.

    Returns:
        Figure: The plot.
    """
    figure = Figure(figsize=(WIDTH, HEIGHT), layout='constrained')
    by_units, by_parameters = figure.subplots(1, 2, sharey=True)
    styles, clock = styles_of(comparison.arms), comparison.clock
    for arm in comparison.arms:
        runs = comparison.of(arm)
        units = [point for run in runs for point in _step_times(run, clock, _units_frozen)]
        parameters = [point for run in runs for point in _step_times(run, clock, _share_frozen(run))]
        for axes, points in ((by_units, units), (by_parameters, parameters)):
            if len({x for x, _ in points}) > 1:
                _curve_through(axes, points, styles[arm], arm)
    by_units.set_xlabel('frozen units')
    by_units.set_ylabel('time of a step (nothing frozen: 100%)')
    by_units.xaxis.set_major_locator(MaxNLocator(integer=True))
    by_units.yaxis.set_major_formatter(PercentFormatter(1.0))
    by_units.set_ylim(bottom=0)
    by_parameters.set_xlabel('frozen parameters')
    by_parameters.xaxis.set_major_formatter(PercentFormatter(1.0))
    # Arms without units are in the second panel only.
    add_legend(figure, by_parameters)
    return figure


@styled
def engagement(comparison: Comparison, arms: Sequence[str]) -> Figure:
    """Draws the shares of frozen parameters, and of backward FLOPs saved, over the first run of each arm.

    Args:
        comparison (Comparison): The runs.
        arms (Sequence[str]): The arms to draw.

    Returns:
        Figure: The plot.
    """
    records = {arm: comparison.of(arm)[0].record for arm in arms}
    panels = {'frozen parameters': {arm: frozen_shares(record) for arm, record in records.items()}}
    backward = {arm: points for arm, record in records.items() if (points := backward_shares(record))}
    panels |= {'backward FLOPs saved': backward} if backward else {}
    figure = Figure(figsize=(WIDTH, 0.8 * HEIGHT), layout='constrained')
    styles = styles_of(comparison.arms)
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (label, shares) in zip(row, panels.items(), strict=True):
        for arm, points in shares.items():
            colour, _, filled = styles[arm]
            places, values = [x for x, _ in points], [y for _, y in points]
            line = '-' if filled else '--'
            axes.step(places, values, where='post', color=colour, linewidth=1.5, linestyle=line, label=arm)
        axes.set_xlabel('progress of training')
        axes.set_ylabel(label)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
    add_legend(figure, row[0])
    return figure


def _aligned(curves: Sequence[list[tuple[float, float]]]) -> list[list[tuple[float, float]]]:
    """Cuts curves to the same number of points, the last of which stays the last."""
    length = min(map(len, curves), default=0)
    return [[*curve[: length - 1], curve[-1]] for curve in curves] if length else []


def _units_frozen(segment: Segment) -> int | None:
    return segment.units_frozen


def _share_frozen(run: FinishedRun) -> Callable[[Segment], float]:
    # What was frozen before the run doesn't count.
    trainable = [segment.trainable_parameters for segment in run.record.segments]
    return lambda segment: 1 - segment.trainable_parameters / max(trainable)


def _step_times(run: FinishedRun, clock: Clock, key: Callable[[Segment], float | None]) -> list[tuple[float, float]]:
    """Seconds per batch for each value of a key, relative to the time before anything froze."""
    seconds: dict[float, float] = {}
    batches: dict[float, int] = {}
    for segment in run.record.segments:
        x = key(segment)
        if x is not None and segment.batches:
            seconds[x] = seconds.get(x, 0.0) + clock.seconds(segment)
            batches[x] = batches.get(x, 0) + segment.batches
    if not seconds.get(0):
        return []
    whole = seconds[0] / batches[0]
    return [(x, seconds[x] / batches[x] / whole) for x in sorted(seconds)]


def _curve_through(axes: Axes, points: Sequence[tuple[float, float]], style: tuple[str, str, bool], label: str) -> None:
    colour, marker, filled = style
    places = sorted({x for x, _ in points})
    means = [statistics.fmean(y for at, y in points if at == x) for x in places]
    axes.scatter([x for x, _ in points], [y for _, y in points], s=7, color=colour, alpha=0.45, linewidths=0)
    axes.plot(
        places,
        means,
        color=colour,
        linewidth=1.3,
        linestyle='-' if filled else '--',
        marker=marker,
        markersize=4.5,
        markerfacecolor=colour if filled else PAPER,
        label=label,
    )
