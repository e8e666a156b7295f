"""The summary and the plot of a record of step times.

Made from the record alone, and the same to the byte each time, given the same version of matplotlib.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use('Agg')

import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from composer_freezeout.results.files import write_bytes, write_text
from composer_freezeout.step_time.bars import Bar, bars, interval
from composer_freezeout.step_time.result import Result

__all__ = ['PLOT', 'SUMMARY', 'side_by_side', 'summary', 'write_report']

SUMMARY, PLOT = 'step_time.md', 'step_time.png'
# Without it PNGs name the version of matplotlib, and differ where the picture doesn't.
_METADATA = {'Software': None}
_STYLES = {
    'loop': ('PyTorch loop', 'tab:blue', '-', 'o'),
    'bound': ('PyTorch loop, prefix as inference graph', 'tab:green', '-', 's'),
    'freezeout': ('Composer, FreezeOut', 'tab:red', '-', 'o'),
    'layer_freezing': ('Composer, LayerFreezing at the same share', 'tab:purple', '--', '^'),
    'composer': ('Composer, nothing frozen', '0.35', ':', ''),
}
_COUNTS = {
    'operators': 'operators outside of the optimizer',
    'optimizer_operators': 'operators of the optimizer',
    'convolution_backwards': 'backward passes of convolutions',
    'autograd_nodes': 'autograd nodes',
    'saved_bytes': 'MB saved for backward',
    'bytes_allreduced': 'MB all-reduced',
    'peak_memory_bytes': 'peak memory (MB)',
    'kernel_launches': 'kernel launches',
    'freezeout_synchronizations': 'times that FreezeOut waits for the GPU',
    'graphs': 'graphs compiled',
}


def summary(result: Result) -> str:
    """The summary as Markdown.

    Args:
        result (Result): The record.

    Returns:
        str: The content of a file.
    """
    settings = result.record.settings
    layout = ', channels_last' if settings.channels_last else ''
    compiled = f', compiled ({settings.compile})' if settings.compile else ''
    processes = f'{result.processes} processes, each with ' if result.processes > 1 else ''
    title = (
        f'{settings.model}, {processes}batches of {settings.batch_size} images of {settings.image_size}², '
        f'{settings.precision}{layout}{compiled}'
    )
    sections = [
        f'# Step time: {title}',
        _environment(result),
        f'![Step time by number of frozen units]({PLOT})',
        '## Bars\n\n' + _bar_table(result),
        '## Milliseconds of a step\n\n' + _step_table(result),
        *([f'## Over a run\n\n{_run_table(result)}'] if result.ends else []),
        '## Counts\n\n' + _count_table(result),
        _notes(result),
    ]
    return '\n\n'.join(sections) + '\n'


def side_by_side(results: Sequence[Result]) -> str:
    """The bars of several records as one table in Markdown.

    Args:
        results (Sequence[Result]): The records, at least one.

    Returns:
        str: A row for each bar, a column for each record.
    """
    columns = [{bar.name: bar for bar in bars(result)} for result in results]
    limits = {name: _limits(bar) for column in columns for name, bar in column.items()}
    lines = [f'| | bar | {" | ".join(map(_heading, results))} |', '|---' * (2 + len(results)) + '|']
    for name, limit in limits.items():
        cells = [_cell(column[name]) if name in column else '' for column in columns]
        lines.append(f'| {name} | {limit} | {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def _heading(result: Result) -> str:
    settings = result.record.settings
    compiled = ', compiled' if settings.compile else ''
    processes = f', {result.processes} processes' if result.processes > 1 else ''
    return f'{settings.model}, {settings.batch_size} × {settings.image_size}²{compiled}{processes}'


def _cell(bar: Bar) -> str:
    if bar.value is None:
        return 'not measured'
    spread = f' ({" to ".join(bar.form.format(end) for end in bar.interval)})' if bar.interval else ''
    return f'{bar.form.format(bar.value)}{spread}{"" if bar.met else ", **not met**"}'


def _limits(bar: Bar) -> str:
    limits = [
        *([f'≥ {bar.form.format(bar.low)}'] if bar.low else []),
        *([f'≤ {bar.form.format(bar.high)}'] if np.isfinite(bar.high) else []),
    ]
    return ', '.join(limits)


def _environment(result: Result) -> str:
    environment, settings = result.record.environment, result.record.settings
    hardware, versions, git = environment.hardware, environment.versions, environment.git
    each = ' each' if result.processes > 1 else ''
    threads = f'{hardware.threads} thread{"s" if hardware.threads > 1 else ""}{each}'
    device = hardware.gpu if result.on_gpu else f'{hardware.cpu}, {threads}'
    code = f'commit {git.commit[:10]}{" with changes" if git.dirty else ""}' if git else 'no repository'
    restarts, rounds, steps = result.record.rows[0].shape
    anew = f', made anew {restarts} times' if restarts > 1 else ''
    times = restarts * rounds
    return (
        f'{device}; torch {versions.torch}, Composer {versions.composer}; {code}. {times} '
        f'round{"s" if times > 1 else ""} of {steps} steps{anew}, for each variant and number of frozen units, of '
        f'{result.units} units, in random order; optimizer: {settings.optimizer}.\n\n'
        f'```\n{result.record.command}\n```'
    )


def _bar_table(result: Result) -> str:
    lines = ['| | value | 95 % interval | bar | | |', '|---|---|---|---|---|---|']
    for bar in bars(result):
        value = 'not measured' if bar.value is None else bar.form.format(bar.value)
        spread = ' to '.join(bar.form.format(end) for end in bar.interval or ())
        lines.append(f'| {bar.name} | {value} | {spread} | {_limits(bar)} | {_verdict(bar)} | {bar.note} |')
    return '\n'.join(lines)


def _verdict(bar: Bar) -> str:
    if bar.met is None:
        return ''
    low, high = bar.interval or (np.nan, np.nan)
    within = any(low < limit < high for limit in (bar.low, bar.high))
    return f'{"met" if bar.met else "not met"}{", within the spread" if within else ""}'


def _step_table(result: Result) -> str:
    variants = [variant for variant in _STYLES if (variant, result.measured[-1]) in result.rows]
    lines = [
        f'| units frozen | {" | ".join(variants)} |',
        '|---' * (1 + len(variants)) + '|',
    ]
    for frozen in result.measured:
        cells = [_milliseconds(result.seconds[variant, frozen]) for variant in variants]
        lines.append(f'| {frozen} | {" | ".join(cells)} |')
    composer = _milliseconds(result.seconds['composer', 0])
    return '\n'.join(lines) + f'\n\nMedian (quartiles). `composer`, with nothing frozen: {composer}.'


def _milliseconds(seconds: np.ndarray) -> str:
    low, middle, high = 1e3 * np.quantile(seconds, [0.25, 0.5, 0.75])
    return f'{middle:.2f} ({low:.2f} to {high:.2f})'


def _run_table(result: Result) -> str:
    lines = ['| | saved | 95 % interval | milliseconds saved of a step |', '|---|---|---|---|']
    for variant in ('loop', 'bound', 'freezeout', 'layer_freezing'):
        saving = result.saving(variant)
        whole = result.step('loop' if variant in ('loop', 'bound') else 'composer')
        spread = ' to '.join(f'{end:.1%}' for end in interval(saving) or ())
        saved = 1e3 * float((whole - result.mean_step(variant))[0])
        lines.append(f'| {variant} | {saving[0]:.1%} | {spread} | {saved:.2f} |')
    return '\n'.join(lines) + (
        '\n\nSteps weighted as the default schedule passes through them, on straight lines between the measured ones; '
        'against the loop, or Composer, with nothing frozen.'
    )


def _count_table(result: Result) -> str:
    known = [key for key in _COUNTS if key in result.record.rows[0].counts]
    lines = [
        f'| units frozen | variant | {" | ".join(_COUNTS[key] for key in known)} |',
        '|---' * (2 + len(known)) + '|',
    ]
    for frozen in result.measured:
        for variant in _STYLES:
            if (variant, frozen) not in result.rows:
                continue
            counts = result.counts(variant, frozen)
            cells = [f'{counts[key] / 1e6:.2f}' if 'bytes' in key else str(counts[key]) for key in known]
            lines.append(f'| {frozen} | {variant} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def _notes(result: Result) -> str:
    last = result.measured[-1]
    bound, layers = result.rows['bound', last], result.rows['layer_freezing', last]
    unfolded = f', {bound.norms_unfolded} are not: no convolution is directly before them'
    lines = [
        'Operators are counted in eager execution, those of the optimizer with one that handles a group in multi-tensor'
        ' calls, as on a GPU.',
        f'With {last} units frozen, {bound.norms_folded} BatchNorms of `bound` are folded into a convolution'
        f'{unfolded if bound.norms_unfolded else ""}; `layer_freezing` has {layers.layers_frozen} layers frozen.',
    ]
    if result.record.memory_kept:
        lines.append('The C library was told to keep freed memory.')
    if result.processes > 1:
        lines.append(
            'Times are those of the first process. All-reduced bytes are those of gradients; the statistics that DDP'
            ' broadcasts are not among them.'
        )
    if result.record.settings.compile is not None:
        lines.append(f'{result.record.graphs_while_timed} graphs were compiled during timed rounds.')
    return '\n\n'.join(lines)


# --- plot


def _plot(result: Result) -> bytes:
    figure, axes = plt.subplots(figsize=(9, 4.8), layout='constrained')
    for variant, (label, colour, line, marker) in _STYLES.items():
        if variant == 'composer':
            low, middle, high = 1e3 * np.quantile(result.seconds[variant, 0], [0.25, 0.5, 0.75])
            axes.axhline(middle, color=colour, linestyle=line, label=label)
            axes.axhspan(low, high, color=colour, alpha=0.1, linewidth=0)
            continue
        low, middle, high = np.transpose(
            [1e3 * np.quantile(result.seconds[variant, frozen], [0.25, 0.5, 0.75]) for frozen in result.measured]
        )
        axes.plot(result.measured, middle, color=colour, linestyle=line, marker=marker, markersize=4, label=label)
        axes.fill_between(result.measured, low, high, color=colour, alpha=0.15, linewidth=0)
    settings = result.record.settings
    axes.set_title(
        f'{settings.model}, batches of {settings.batch_size}, {settings.image_size}² pixels, '
        f'{settings.precision}{", compiled" if settings.compile else ""}, {settings.device}',
        loc='left',
        fontsize=11,
    )
    axes.set_xlabel(f'units frozen, of {result.units}')
    axes.set_ylabel('milliseconds of a step\n(median, quartiles shaded)')
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(loc='lower left', frameon=False, fontsize=9)
    content = io.BytesIO()
    figure.savefig(content, format='png', dpi=150, metadata=_METADATA)
    plt.close(figure)
    return content.getvalue()


def write_report(result: Result, folder: Path) -> list[Path]:
    """Writes the summary and the plot.

    Args:
        result (Result): The record.
        folder (Path): Where to; it exists.

    Returns:
        list[Path]: The files.

    Raises:
        OSError: If one cannot be written; names it, and leaves the old one.
    """
    write_text(folder / SUMMARY, summary(result))
    write_bytes(folder / PLOT, _plot(result))
    return [folder / SUMMARY, folder / PLOT]
