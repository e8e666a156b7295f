"""Draws the pictures of the README and of these pages, from the code and from committed records.

``python docs/pictures.py`` writes them to ``docs/pictures/``; the same matplotlib makes the same bytes.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from composer_freezeout.compare.judging.comparison import load
from composer_freezeout.compare.report.figures.style import INK, MUTED, STYLES, marker_style, styled, svg
from composer_freezeout.method.schedule import freeze_times, lr_factor
from composer_freezeout.step_time.result import Result, load_result

__all__ = ['PICTURES', 'draw', 'main']

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / 'benchmarks' / 'results'

_DEPTH = LinearSegmentedColormap.from_list('depth', ['#3b82f6', '#a855f7', '#f97316'])
_LAYER_FREEZING, _FREEZEOUT, _BOUND = STYLES['layer_freezing'][0], STYLES['freezeout'][0], '#1a9e8f'


@styled
def schedules() -> Figure:
    """The paper's figure 1 for the units of ResNet-20: learning rates for two scales, unscaled and scaled."""
    record = load_result(RESULTS / 'step_time-resnet20-cpu-2026-11-21').record
    names = [unit.name.removeprefix('module.') for unit in record.units]
    colours = [_DEPTH(index / (len(names) - 1)) for index in range(len(names))]
    figure = Figure(figsize=(9, 4.8), layout='constrained')
    panels, legend = figure.subfigures(1, 2, width_ratios=[7.4, 1.6], squeeze=False)[0]
    rows = panels.subplots(2, 2, sharex=True)
    for row, scale_lr in zip(rows, (False, True), strict=True):
        for axes, how_scale in zip(row, ('linear', 'cubic'), strict=True):
            _draw_schedule(axes, how_scale, scale_lr, colours)
        row[0].set_ylabel('learning rate, × base')
    for axes in rows[1]:
        axes.set_xlabel('progress of training')
    _list_layers(legend, names, colours)
    return figure


def _draw_schedule(axes: Axes, how_scale: str, scale_lr: bool, colours: list) -> None:
    for t_i, colour in zip(freeze_times(len(colours), 0.5, how_scale), colours, strict=True):
        progress = np.linspace(0, t_i, 40)
        axes.plot(progress, [lr_factor(t, t_i, scale_lr) for t in progress], color=colour, linewidth=1.2)
        axes.plot(t_i, 0, marker='o', color=colour, markersize=3.5, clip_on=False, zorder=3)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_title(f'{how_scale}, {"scaled" if scale_lr else "unscaled"}')


def _list_layers(figure: Figure, names: list[str], colours: list) -> None:
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(len(names), -1)
    axes.set_title('ResNet-20')
    for position, (name, colour) in enumerate(zip(names, colours, strict=True)):
        axes.plot([0, 0.14], [position, position], color=colour, linewidth=2.5)
        axes.text(0.2, position, name, va='center', fontsize=7.5)


@styled
def step_time() -> Figure:
    """The time of a step against the share of units that are frozen, for five networks."""
    networks = {
        'resnet20': 'ResNet-20, 128 × 32²',
        'resnet56': 'ResNet-56, 64 × 32²',
        'resnet50': 'ResNet-50, 16 × 64²',
        'densenet_bc': 'DenseNet-BC-76-12, 16 × 32²',
        'vit_small': 'transformer, 16 × 32²',
    }
    figure = Figure(figsize=(9, 5.4), layout='constrained')
    panels = figure.subplots(2, 3, sharex=True, sharey=True).flatten()
    for axes, (network, title) in zip(panels, networks.items(), strict=False):
        _draw_steps(axes, load_result(RESULTS / f'step_time-{network}-cpu-2026-11-21'))
        axes.set_title(title, fontsize=10)
    last = panels[len(networks)]
    last.set_axis_off()
    last.legend(*panels[0].get_legend_handles_labels(), loc='upper left', fontsize=9)
    for axes in panels[2:5]:
        axes.set_xlabel('units frozen')
        axes.tick_params(labelbottom=True)
    for axes in (panels[0], panels[3]):
        axes.set_ylabel('time of a step')
    return figure


def _draw_steps(axes: Axes, result: Result) -> None:
    whole = result.step('composer')[0]
    share = [frozen / (result.units - 1) for frozen in result.measured]
    lines = {
        'layer_freezing': ('LayerFreezing', _LAYER_FREEZING, '^', ':'),
        'freezeout': ('FreezeOut', _FREEZEOUT, 'D', '-'),
        'loop': ('a loop, frozen by hand', MUTED, '', '-'),
        'bound': ('the same with inference\nof what is frozen', _BOUND, '', '--'),
    }
    for variant, (label, colour, marker, line) in lines.items():
        steps = [result.step(variant, frozen)[0] / whole for frozen in result.measured]
        axes.plot(share, steps, color=colour, marker=marker, markersize=4, linestyle=line, linewidth=1.5, label=label)
    axes.axhline(1, color=INK, linewidth=0.8, label='Composer, nothing frozen')
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))


@styled
def accuracy_time() -> Figure:
    """Accuracy against training time, with the baseline in FreezeOut's time, which is the control."""
    comparison = load(RESULTS / 'resnet8_cifar10_jpeg-cpu-2026-11-21')
    shown = {
        'baseline': 'baseline',
        'baseline_short': "baseline in FreezeOut's time:\nthe control",
        'layer_freezing': 'LayerFreezing',
        'freezeout': 'FreezeOut',
        'freezeout_const_time': "FreezeOut, trained on\nfor the baseline's time",
    }
    figure = Figure(figsize=(9, 4.6), layout='constrained')
    axes = figure.subplots()
    means = {}
    for arm, label in shown.items():
        runs = comparison.of(arm)
        seconds = [run.record.training_seconds for run in runs]
        scores = [run.record.accuracy or 0.0 for run in runs]
        means[arm] = np.mean(seconds), np.mean(scores)
        style = marker_style(STYLES[arm])
        axes.plot(seconds, scores, color=style['color'], marker='.', markersize=5, linestyle='none', alpha=0.45)
        axes.errorbar(
            *means[arm], xerr=np.std(seconds, ddof=1), yerr=np.std(scores, ddof=1), label=label, zorder=3, **style
        )
    both = np.transpose([means['baseline_short'], means['baseline']])
    axes.plot(*both, color=INK, linestyle='--', linewidth=1.2, zorder=1.5, label='training for a shorter time')
    axes.set_xlabel('training time in seconds')
    axes.set_ylabel('accuracy')
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title('CIFAR-10 (JPEG), ResNet-8, 5 seeds, two CPU cores')
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        [getattr(handle, 'lines', [handle])[0] for handle in handles], labels, loc='outside right upper', labelspacing=1
    )
    return figure


PICTURES: dict[str, tuple[str, Callable[[], Figure]]] = {
    'schedules': ("Each unit's learning rate over the training of a ResNet-20, t_0 = 0.5", schedules),
    'step_time': ('Time of a training step, relative to one without freezing, against frozen units', step_time),
    'accuracy_time': ('Accuracy against training time, FreezeOut next to the baseline in the same time', accuracy_time),
}


def draw(name: str) -> str:
    """One of the pictures.

    Args:
        name (str): A key of :data:`PICTURES`.

    Returns:
        str: An SVG document, which follows its reader's light or dark scheme.
    """
    title, figure = PICTURES[name]
    return svg(figure(), title)


def main() -> None:
    """Writes all pictures."""
    for name in PICTURES:
        path = DOCS / 'pictures' / f'{name}.svg'
        path.write_text(draw(name), encoding='utf-8', newline='\n')
        print(path)


if __name__ == '__main__':
    main()
