"""One point for each arm."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from composer_freezeout.compare.judging.curve import Curve
from composer_freezeout.compare.judging.score import BY_ACCURACY, Score
from composer_freezeout.compare.judging.verdict import ArmResult
from composer_freezeout.compare.report.figures.labels import label_points
from composer_freezeout.compare.report.figures.style import (
    HEIGHT,
    INK,
    MUTED,
    WIDTH,
    add_legend,
    marker_style,
    plain,
    short_label,
    styled,
    styles_of,
)
from composer_freezeout.results.stats import Summary

__all__ = ['Point', 'accuracy_against_cost', 'memory', 'savings']


@dataclass(frozen=True)
class Point:
    """One setting in a plot of accuracy against cost.

    Attributes:
        label (str): Its name; names of arms have colours of their own.
        cost (Summary): Training time by the comparison's clock, or FLOPs.
        accuracy (Summary): In ``[0, 1]``.
    """

    label: str
    cost: Summary
    accuracy: Summary


@styled
def accuracy_against_cost(
    points: Sequence[Point],
    curve: Curve | None,
    cost: str,
    title: str = '',
    size: tuple[float, float] = (WIDTH, HEIGHT),
    score: Score = BY_ACCURACY,
) -> Figure:
    """Draws means with standard deviations in both directions, and the baseline's curve with its interval.

    Args:
        points (Sequence[Point]): Arms or settings, at least one.
        curve (Curve, optional): Through the baselines.
        cost (str): What the costs are, with their unit.
        title (str): What was compared.
        size (tuple[float, float]): Of the figure, in inches.
        score (Score): What stands in the place of accuracy, if anything.

    Returns:
        Figure: The plot; names stand at the points.
    """
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.subplots()
    if curve is not None:
        _draw_curve(axes, curve, score)
    styles = styles_of([point.label for point in points])
    for point in points:
        axes.errorbar(
            point.cost.mean,
            point.accuracy.mean,
            xerr=point.cost.std or None,
            yerr=point.accuracy.std or None,
            zorder=3 if point.label == 'freezeout' else 2.5,
            alpha=0.9,
            **marker_style(styles[point.label]),
        )
    axes.set_xlabel(cost)
    axes.set_ylabel(f'{score.name} of the last evaluation{score.direction}')
    if score == BY_ACCURACY:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.margins(0.1, 0.1)
    axes.set_title(plain(title))
    add_legend(figure, axes)
    label_points(axes, [(p.cost.mean, p.accuracy.mean, p.label, styles[p.label][0]) for p in points])
    return figure


def _draw_curve(axes: Axes, curve: Curve, score: Score) -> None:
    ends = curve.whole.costs
    costs = np.linspace(ends[0], ends[-1], 60)
    band = curve.band(costs)
    axes.plot(
        costs, [score.quality(found.value) for found in band], color=INK, linewidth=1.6, label='baseline', zorder=1.5
    )
    if any(found.interval for found in band):
        sides = [map(score.quality, found.interval or (found.value, found.value)) for found in band]
        low, high = zip(*sides, strict=True)
        axes.fill_between(costs, low, high, color=INK, alpha=0.12, linewidth=0, label='its 95 % interval', zorder=1)


@styled
def savings(results: Sequence[ArmResult]) -> Figure:
    """Draws the share of training time that was saved against the share predicted from FLOPs.

    Args:
        results (Sequence[ArmResult]): Arms; those without a prediction are left out.

    Returns:
        Figure: The plot.
    """
    figure = Figure(figsize=(WIDTH, HEIGHT), layout='constrained')
    axes = figure.subplots()
    styles = styles_of([result.arm for result in results])
    ends = [0.0]
    for result in results:
        predicted, measured = result.predicted_saving, result.measured_saving
        if predicted is None or measured is None or result.time_ratio is None:
            continue
        ends += [predicted, measured]
        error = result.time_ratio.std or None
        axes.errorbar(predicted, measured, yerr=error, label=result.arm, **marker_style(styles[result.arm]))
    ends = [min(ends), max(ends)]
    axes.plot(ends, ends, color=MUTED, linewidth=1.2, linestyle='--', label='measured as predicted', zorder=1)
    axes.set_xlabel('time saved, predicted from FLOPs')
    axes.set_ylabel('time saved, measured')
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    add_legend(figure, axes)
    return figure


@styled
def memory(results: Sequence[ArmResult], device: str) -> Figure:
    """Draws the peak memory of each arm.

    Args:
        results (Sequence[ArmResult]): The arms.
        device (str): ``'gpu'`` if it is the memory of the device, anything else if it is that of the process.

    Returns:
        Figure: The plot.
    """
    figure = Figure(figsize=(WIDTH, 1.0 + 0.34 * len(results)), layout='constrained')
    axes = figure.subplots()
    styles = styles_of([result.arm for result in results])
    for position, result in enumerate(results):
        mean, std = result.memory.mean / 2**20, (result.memory.std or 0.0) / 2**20
        axes.errorbar(mean, position, xerr=std or None, **marker_style(styles[result.arm]))
    axes.set_yticks(range(len(results)), [short_label(result.arm) for result in results])
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set_xlabel(f'peak memory of the {"device" if device == "gpu" else "process"} in MiB')
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.ticklabel_format(axis='x', useOffset=False, style='plain')
    return figure
