"""One point for each arm."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from composer_freezeout.compare.judging.verdict import ArmResult
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
from composer_freezeout.results.stats import Summary, pareto_front

__all__ = ['Point', 'accuracy_against_time', 'memory', 'savings']


@dataclass(frozen=True)
class Point:
    """One setting in a plot of accuracy against time.

    Attributes:
        label (str): Its name; names of arms have colours of their own.
        seconds (Summary): Training time, by the comparison's clock.
        accuracy (Summary): In ``[0, 1]``.
    """

    label: str
    seconds: Summary
    accuracy: Summary


@styled
def accuracy_against_time(
    points: Sequence[Point], line: Sequence[str] = (), title: str = '', time: str = 'training time'
) -> Figure:
    """Draws means with standard deviations in both directions, and the Pareto front of the means.

    Args:
        points (Sequence[Point]): The settings, at least one.
        line (Sequence[str]): Labels of points to connect, by rising time: the baselines of several lengths.
        title (str): What was compared.
        time (str): What the times are.

    Returns:
        Figure: The plot.
    """
    figure = Figure(figsize=(WIDTH, HEIGHT), layout='constrained')
    axes = figure.subplots()
    front = pareto_front([p.seconds.mean for p in points], [p.accuracy.mean for p in points])
    times, accuracies = ([getattr(points[i], name).mean for i in front] for name in ('seconds', 'accuracy'))
    # Broad, as it runs along the bars of the spread.
    axes.step(times, accuracies, where='post', color=MUTED, linewidth=5, alpha=0.35, label='Pareto front', zorder=1.5)
    joined = sorted((p.seconds.mean, p.accuracy.mean) for p in points if p.label in set(line))
    if len(joined) > 1:
        xs, ys = [x for x, _ in joined], [y for _, y in joined]
        axes.plot(xs, ys, color=INK, linewidth=1.2, linestyle='--', label='baselines', zorder=1.5)
    styles = styles_of([point.label for point in points])
    for point in points:
        axes.errorbar(
            point.seconds.mean,
            point.accuracy.mean,
            xerr=point.seconds.std or None,
            yerr=point.accuracy.std or None,
            label=point.label,
            zorder=3 if point.label == 'freezeout' else 2.5,
            **marker_style(styles[point.label]),
        )
    axes.set_xlabel(f'{time} in seconds')
    axes.set_ylabel('accuracy of the last evaluation')
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_title(plain(title))
    add_legend(figure, axes)
    return figure


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
