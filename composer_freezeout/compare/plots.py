"""Plots of a comparison, as SVG that follows the reader's light or dark scheme and repeats to the byte.

Functions that draw return a figure, of which :func:`svg` makes the text of a file. The same matplotlib makes the same
bytes.
"""

import functools
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from composer_freezeout.compare.comparison import BASELINE, BASELINE_SHORT, ArmResult, Comparison, Run
from composer_freezeout.results.stats import Summary, pareto_front, summary

__all__ = [
    'Point',
    'accuracy_against_time',
    'learning_curves',
    'learning_rates',
    'memory',
    'savings',
    'step_times',
    'svg',
]

_P = ParamSpec('_P')
_T = TypeVar('_T')

# Colours of one meaning each, for which an SVG has variables. Others read well on light and on dark ground.
_INK, _PAPER, _MUTED, _GRID = '#1f2328', '#fffffe', '#59636e', '#d1d9e0'
_VARIABLES = {_INK: '--ink', _PAPER: '--paper', _MUTED: '--muted', _GRID: '--grid'}
_CSS = (
    f'svg{{--ink:{_INK};--paper:{_PAPER};--muted:{_MUTED};--grid:{_GRID}}}'
    '@media (prefers-color-scheme:dark){svg{--ink:#e6edf3;--paper:#161b22;--muted:#9aa4af;--grid:#30363d}}'
)
_DEPTH = LinearSegmentedColormap.from_list('depth', ['#3b82f6', '#a855f7', '#f97316'])
# Colour, marker, and whether the marker is filled.
_STYLES = {
    BASELINE: (_INK, 'o', True),
    BASELINE_SHORT: (_INK, 'o', False),
    'layer_freezing': ('#8957e5', '^', True),
    'layer_freezing_matched': ('#8957e5', '^', False),
    'freezeout': ('#d95926', 'D', True),
    'freezeout_unscaled': ('#d95926', 'D', False),
    'freezeout_squared': ('#1a9e8f', 's', True),
    'freezeout_squared_unscaled': ('#1a9e8f', 's', False),
    'freezeout_linear': ('#3b82f6', 'v', True),
    'freezeout_linear_unscaled': ('#3b82f6', 'v', False),
    'freezeout_const_time': ('#c4479b', 'P', True),
    'freezeout_cost_aware': ('#b8860b', 'd', True),
    'baseline_short_cost_aware': (_MUTED, 'o', False),
}
# Arms of other names, as in a sweep: four at a time differ in both colour and marker.
_OTHERS = [
    (colour, 'X*ph'[(index + shift) % 4], filled)
    for filled in (True, False)
    for shift in range(4)
    for index, colour in enumerate(('#a87900', '#6a8f1f', '#b35c44', '#5c7cb3'))
]
_SETTINGS: dict[Any, Any] = {
    'font.family': 'DejaVu Sans',
    'font.size': 10,
    'axes.titlesize': 11,
    'axes.titlelocation': 'left',
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'axes.axisbelow': True,
    'grid.color': _GRID,
    'grid.linewidth': 0.7,
    'legend.frameon': False,
    'legend.fontsize': 9,
    'svg.fonttype': 'path',
    'figure.facecolor': _PAPER,
    'axes.facecolor': _PAPER,
    'savefig.facecolor': _PAPER,
    'text.color': _INK,
    'axes.labelcolor': _INK,
    'axes.edgecolor': _MUTED,
    'xtick.color': _MUTED,
    'ytick.color': _MUTED,
    'xtick.labelcolor': _INK,
    'ytick.labelcolor': _INK,
}
_WIDTH, _HEIGHT = 7.5, 5.6


def _styled(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Runs a function with the settings of this module, whatever the user's are."""

    @functools.wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_SETTINGS)
            return function(*args, **kwargs)

    return wrapper


@_styled
def svg(figure: Figure, title: str) -> str:
    """A figure as a file: with the title for those who cannot see it, and without date and version.

    Args:
        figure (Figure): The figure.
        title (str): What it shows.

    Returns:
        str: An SVG document.
    """
    # Ids are made from the salt, so that several figures can stand in one document.
    matplotlib.rcParams['svg.hashsalt'] = title
    stream = io.StringIO()
    figure.savefig(stream, format='svg', metadata={'Date': None, 'Creator': None, 'Title': title})
    text = stream.getvalue()
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f'var({variable}, {colour})')
    return text.replace('<style type="text/css">', f'<style type="text/css">{_CSS}', 1)


# ---------------------------------------------------------------------------------------------------------------------
# One point for each arm
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """One setting in a plot of accuracy against time.

    Attributes:
        label (str): Its name; names of arms have colours of their own.
        seconds (Summary): Training time.
        accuracy (Summary): In ``[0, 1]``.
    """

    label: str
    seconds: Summary
    accuracy: Summary


@_styled
def accuracy_against_time(points: Sequence[Point], line: Sequence[str] = (), title: str = '') -> Figure:
    """Draws means with standard deviations in both directions, and the Pareto front of the means.

    Args:
        points (Sequence[Point]): The settings, at least one.
        line (Sequence[str]): Labels of points to connect, by rising time: the baselines of several lengths.
        title (str): What was compared.

    Returns:
        Figure: The plot.
    """
    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout='constrained')
    axes = figure.subplots()
    front = pareto_front([p.seconds.mean for p in points], [p.accuracy.mean for p in points])
    times, accuracies = ([getattr(points[i], name).mean for i in front] for name in ('seconds', 'accuracy'))
    # Broad, as it runs along the bars of the spread.
    axes.step(times, accuracies, where='post', color=_MUTED, linewidth=5, alpha=0.35, label='Pareto front', zorder=1.5)
    joined = sorted((p.seconds.mean, p.accuracy.mean) for p in points if p.label in set(line))
    if len(joined) > 1:
        xs, ys = [x for x, _ in joined], [y for _, y in joined]
        axes.plot(xs, ys, color=_INK, linewidth=1.2, linestyle='--', label='baselines', zorder=1.5)
    styles = _styles([point.label for point in points])
    for point in points:
        axes.errorbar(
            point.seconds.mean,
            point.accuracy.mean,
            xerr=point.seconds.std or None,
            yerr=point.accuracy.std or None,
            label=point.label,
            zorder=3 if point.label == 'freezeout' else 2.5,
            **_marker(styles[point.label]),
        )
    axes.set_xlabel('training time in seconds')
    axes.set_ylabel('accuracy of the last evaluation')
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_title(_plain(title))
    _legend(figure, axes)
    return figure


@_styled
def savings(results: Sequence[ArmResult]) -> Figure:
    """Draws the share of training time that was saved against the share predicted from FLOPs.

    Args:
        results (Sequence[ArmResult]): Arms; those without a prediction are left out.

    Returns:
        Figure: The plot.
    """
    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout='constrained')
    axes = figure.subplots()
    styles = _styles([result.arm for result in results])
    ends = [0.0]
    for result in results:
        predicted, measured = result.predicted_saving, result.measured_saving
        if predicted is None or measured is None:
            continue
        ends += [predicted, measured]
        error = result.time_ratio.std or None
        axes.errorbar(predicted, measured, yerr=error, label=result.arm, **_marker(styles[result.arm]))
    ends = [min(ends), max(ends)]
    axes.plot(ends, ends, color=_MUTED, linewidth=1.2, linestyle='--', label='measured as predicted', zorder=1)
    axes.set_xlabel('time saved, predicted from FLOPs')
    axes.set_ylabel('time saved, measured')
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    _legend(figure, axes)
    return figure


@_styled
def memory(results: Sequence[ArmResult], device: str) -> Figure:
    """Draws the peak memory of each arm.

    Args:
        results (Sequence[ArmResult]): The arms.
        device (str): ``'gpu'`` if it is the memory of the device, anything else if it is that of the process.

    Returns:
        Figure: The plot.
    """
    figure = Figure(figsize=(_WIDTH, 1.0 + 0.34 * len(results)), layout='constrained')
    axes = figure.subplots()
    styles = _styles([result.arm for result in results])
    for position, result in enumerate(results):
        mean, std = result.memory.mean / 2**20, (result.memory.std or 0.0) / 2**20
        axes.errorbar(mean, position, xerr=std or None, **_marker(styles[result.arm]))
    axes.set_yticks(range(len(results)), [_shortened(result.arm) for result in results])
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set_xlabel(f'peak memory of the {"device" if device == "gpu" else "process"} in MiB')
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.ticklabel_format(axis='x', useOffset=False, style='plain')
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# Over the course of training
# ---------------------------------------------------------------------------------------------------------------------


@_styled
def learning_curves(comparison: Comparison) -> Figure:
    """Draws accuracy over training time: means over the seeds at each evaluation, and their standard deviation.

    Args:
        comparison (Comparison): The runs.

    Returns:
        Figure: The plot.
    """
    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout='constrained')
    axes = figure.subplots()
    styles = _styles(comparison.arms)
    for arm in comparison.arms:
        curves = _aligned([curve for run in comparison.of(arm) if (curve := _curve(run))])
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
            markerfacecolor=colour if filled else _PAPER,
            markersize=6,
            label=arm,
        )
        low, high = ([s.mean + sign * (s.std or 0.0) for s in spread] for sign in (-1, 1))
        axes.fill_between(seconds, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.set_xlabel('training time in seconds')
    axes.set_ylabel('accuracy')
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlim(left=0)
    _legend(figure, axes)
    return figure


@_styled
def step_times(comparison: Comparison) -> Figure:
    """Draws the time of a step, relative to one with nothing frozen: over frozen units and over frozen parameters.

    Args:
        comparison (Comparison): The runs; those without segments are left out.

    Returns:
        Figure: The plot.
    """
    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout='constrained')
    by_units, by_parameters = figure.subplots(1, 2, sharey=True)
    styles = _styles(comparison.arms)
    for arm in comparison.arms:
        runs = comparison.of(arm)
        units = [point for run in runs for point in _step_times(run, _units_frozen)]
        parameters = [point for run in runs for point in _step_times(run, _share_frozen(run))]
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
    _legend(figure, by_parameters)
    return figure


@_styled
def learning_rates(record: Mapping[str, Any]) -> Figure:
    """Draws the learning rate of each unit over a FreezeOut run, and when each unit froze.

    Args:
        record (Mapping[str, Any]): Record of a run with FreezeOut.

    Returns:
        Figure: The plot.

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
    colours = [_DEPTH(index / max(1, len(units) - 1)) for index in range(len(units))]

    height = 3.4 + max(2.0, 0.19 * len(units))
    figure = Figure(figsize=(9, height), layout='constrained')
    rates, spans = figure.subplots(2, 1, sharex=True, height_ratios=[3.0, height - 3.4])
    for unit, colour in zip(units, colours, strict=True):
        # Several groups of a unit share its shape; one without a rate has left the optimizer.
        values = trace['lr'].get(unit['name'], [])
        rates.plot(progress[: len(values)], [rate or 0.0 for rate in values], color=colour, linewidth=1.2)
        rates.plot(unit['t_i'], 0, marker='o', color=colour, markersize=4, clip_on=False, zorder=3)
    rates.set_ylabel('learning rate')
    rates.set_ylim(bottom=0)
    rates.set_title(f'{_plain(record["run_name"])}: every unit anneals to zero, then freezes (●)')

    positions = range(len(units))
    spans.barh(positions, [unit['t_i'] for unit in units], color=colours, height=0.75)
    spans.set_yticks(positions, [_plain(unit['name'].removeprefix('module.')) for unit in units], fontsize=7)
    spans.set_ylim(len(units) - 0.4, -0.6)
    for position, unit in zip(positions, units, strict=True):
        if unit['frozen_at_batch'] is not None:
            label = f'{unit["t_i"]:.3f} (batch {unit["frozen_at_batch"]})'
            spans.text(unit['t_i'] + 0.006, position, label, va='center', fontsize=6.5, color=_MUTED)
    spans.set_ylabel('unit')
    spans.set_xlabel('progress of training')
    spans.set_xlim(0, 1)
    spans.xaxis.set_major_formatter(PercentFormatter(1.0))
    spans.grid(False)
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# Parts
# ---------------------------------------------------------------------------------------------------------------------


def _styles(labels: Sequence[str]) -> dict[str, tuple[str, str, bool]]:
    unknown = [label for label in labels if label not in _STYLES]
    return _STYLES | {label: _OTHERS[index % len(_OTHERS)] for index, label in enumerate(unknown)}


def _marker(style: tuple[str, str, bool]) -> dict[str, Any]:
    colour, marker, filled = style
    return {
        'color': colour,
        'marker': marker,
        'markersize': 7,
        'markerfacecolor': colour if filled else _PAPER,
        'markeredgewidth': 1.4,
        'linestyle': 'none',
        'elinewidth': 1.0,
        'capsize': 2.5,
    }


def _plain(text: str) -> str:
    # Dollar signs would start a formula.
    return text.replace('$', r'\$')


def _shortened(text: str, length: int = 40) -> str:
    return _plain(text if len(text) <= length else f'{text[: length - 1]}…')


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    # Without the bars, the markers can be told apart.
    handles = [handle[0] if isinstance(handle, ErrorbarContainer) else handle for handle in handles]
    shown = [_shortened(label) for label in labels]
    columns = max(1, min(len(shown), 96 // (max(map(len, shown)) + 7)))
    figure.legend(handles, shown, loc='outside lower left', ncols=columns)


def _curve(run: Run) -> list[tuple[float, float]]:
    """Training time and accuracy at each evaluation."""
    seconds, points = 0.0, []
    for row in run.record['epochs']:
        seconds += row['training_seconds']
        value = row['eval'].get('MulticlassAccuracy')
        if value is not None:
            points.append((seconds, value))
    return points


def _aligned(curves: Sequence[list[tuple[float, float]]]) -> list[list[tuple[float, float]]]:
    """Cuts curves to the same number of points, the last of which stays the last."""
    length = min(map(len, curves), default=0)
    return [[*curve[: length - 1], curve[-1]] for curve in curves] if length else []


def _units_frozen(segment: Mapping[str, Any]) -> int | None:
    return segment['units_frozen']


def _share_frozen(run: Run) -> Callable[[Mapping[str, Any]], float]:
    # What was frozen before the run doesn't count.
    trainable = [segment['trainable_parameters'] for segment in run.record.get('segments', ())]
    return lambda segment: 1 - segment['trainable_parameters'] / max(trainable)


def _step_times(run: Run, key: Callable[[Mapping[str, Any]], float | None]) -> list[tuple[float, float]]:
    """Seconds per batch for each value of a key, relative to the time before anything froze."""
    seconds: dict[float, float] = {}
    batches: dict[float, int] = {}
    for segment in run.record.get('segments', ()):
        x = key(segment)
        if x is not None and segment['batches']:
            seconds[x] = seconds.get(x, 0.0) + segment['seconds']
            batches[x] = batches.get(x, 0) + segment['batches']
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
        markerfacecolor=colour if filled else _PAPER,
        label=label,
    )
