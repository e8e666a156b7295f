"""What the numbers of a record have to reach."""

from dataclasses import dataclass

import numpy as np

from composer_freezeout.results.stats import CONFIDENCE
from composer_freezeout.step_time.result import Result

__all__ = ['Bar', 'bars', 'interval']


@dataclass(frozen=True)
class Bar:
    """A number and what it has to reach.

    Attributes:
        name (str): What it is.
        value (float, optional): None if this run cannot tell.
        interval (tuple[float, float], optional): Its 95 % interval; None for what has no spread, as counts.
        low (float): The least that it may be.
        high (float): The most that it may be.
        form (str): How numbers are written: a format with one place.
        note (str): What restricts it, or why there is no value.
    """

    name: str
    value: float | None
    interval: tuple[float, float] | None
    low: float
    high: float
    form: str
    note: str = ''

    @property
    def met(self) -> bool | None:
        """Whether the value is within the bar; None if there is none."""
        return None if self.value is None else self.low <= self.value <= self.high


def bars(result: Result) -> list[Bar]:
    """What has to be reached, as far as steps can tell.

    Args:
        result (Result): The record.

    Returns:
        list[Bar]: In the order of the summary.
    """
    every = [_before_freezing(result), _optimizer_calls(result), _share_kept(result), *_python_time(result)]
    return [*every, *_against_bound(result), *_memory(result), *_compiled(result), *_several_processes(result)]


def _before_freezing(result: Result) -> Bar:
    name = 'step before the first freeze, against Composer without an algorithm'
    if 0 not in result.measured:
        return Bar(name, None, None, 0, 1.01, '{:.3f}×', 'needs 0 among --stages')
    return _bar(name, result.step('freezeout') / result.step('composer'), 0, 1.01, '{:.3f}×')


def _optimizer_calls(result: Result) -> Bar:
    name = 'operators of the optimizer, against one group: the most at any number of frozen units'
    calls = {
        variant: [result.counts(variant, frozen)['optimizer_operators'] for frozen in result.measured]
        for variant in ('freezeout', 'loop')
    }
    worst = max(ours / theirs for ours, theirs in zip(calls['freezeout'], calls['loop'], strict=True))
    return Bar(name, worst, None, 0, 1.5, '{:.2f}×', f'{result.units} units')


def _share_kept(result: Result) -> Bar:
    name = 'seconds saved over a run, as a share of what the loop saves'
    if not result.ends:
        return Bar(name, None, None, 0.95, np.inf, '{:.1%}', _needs_ends(result))
    ours = result.step('composer') - result.mean_step('freezeout')
    theirs = result.step('loop') - result.mean_step('loop')
    return _bar(name, ours / theirs, 0.95, np.inf, '{:.1%}')


def _python_time(result: Result) -> list[Bar]:
    name = "FreezeOut's Python time per batch"
    alone = "the same with nothing computed in between, which empties a CPU's caches"
    note = f'{result.units} units; the interval is that of the quartiles'
    lines = []
    for line, key in ((name, 'algorithm_seconds'), (alone, 'algorithm_seconds_alone')):
        # Of all numbers of frozen units together: a process that loses its core for a moment would decide the largest.
        samples = 1e6 * np.concatenate([getattr(result.rows['freezeout', k], key) for k in result.measured])
        low, middle, high = map(float, np.quantile(samples, [0.25, 0.5, 0.75]))
        lines.append(Bar(line, middle, (low, high), 0, 100, '{:.0f} µs', note))
    return lines


def _against_bound(result: Result) -> list[Bar]:
    name = 'step with all but the head frozen, against inference with folded BatchNorm and the head'
    without = 'the same step without what Composer adds to the loop'
    counted = 'operators of that step without what Composer adds, against the inference graph'
    last = result.units - 1
    if not result.ends:
        return [Bar(line, None, None, 0, 1.05, '{:.3f}×', _needs_ends(result)) for line in (name, without, counted)]
    row = result.rows['bound', last]
    folded = f'{row.norms_folded} of {(row.norms_folded or 0) + (row.norms_unfolded or 0)} BatchNorms folded'
    ours, bound = result.step('freezeout', last), result.step('bound', last)
    added = result.step('composer') - result.step('loop')
    extra = _added_by_composer(result, 'operators')
    operators, graph = (result.counts(variant, last)['operators'] for variant in ('freezeout', 'bound'))
    note = f'{operators - extra} and {graph}; Composer adds {extra}'
    return [
        _bar(name, ours / bound, 0, 1.05, '{:.3f}×', folded),
        _bar(without, (ours - added) / bound, 0, 1.05, '{:.3f}×', f'{1e3 * added[0]:.2f} ms'),
        Bar(counted, (operators - extra) / graph, None, 0, 1.05, '{:.3f}×', note),
    ]


def _memory(result: Result) -> list[Bar]:
    bar = _at_half(result, 'peak memory', 'peak_memory_bytes')
    without = 'the same memory without what Composer adds to the loop'
    if 0 not in result.measured:
        return [bar, Bar(without, None, None, bar.low, bar.high, bar.form, 'needs 0 among --stages')]
    extra, half = _added_by_composer(result, 'peak_memory_bytes'), _half(result)
    ours, theirs = (result.counts(variant, half)['peak_memory_bytes'] for variant in ('freezeout', 'loop'))
    return [bar, Bar(without, (ours - extra) / theirs, None, bar.low, bar.high, bar.form, f'{extra / 1e6:.4g} MB')]


def _compiled(result: Result) -> list[Bar]:
    if result.record.settings.compile is None:
        return []
    # Imported here: torch takes seconds, and nothing else of a report needs it.
    from composer_freezeout.freezing.execution.compiled import DEFAULT_STAGES

    name = "share of eager execution's relative saving that is kept, compiled, where each unit freezes by itself"
    default = f'the same in {DEFAULT_STAGES} stages, as by default'
    return [
        _saving_kept(result, name, 'eager', 'eager'),
        _saving_kept(result, default, 'eager', 'eager', DEFAULT_STAGES),
    ]


def _several_processes(result: Result) -> list[Bar]:
    if result.processes == 1:
        return []
    name = f"share of one process's relative saving that is kept, {result.processes} processes"
    return [_saving_kept(result, name, 'one', 'one process'), _at_half(result, 'bytes all-reduced', 'bytes_allreduced')]


def _saving_kept(result: Result, name: str, option: str, other: str, max_stages: int | None = None) -> Bar:
    """The relative saving, as a share of that in the record that an option named."""
    saving = {'eager': result.record.eager_saving, 'one': result.record.one_saving}[option]
    note = _why_no_share(result, option, saving)
    if note is not None:
        return Bar(name, None, None, 0.95, np.inf, '{:.1%}', note)
    return _bar(name, result.saving('freezeout', max_stages) / saving, 0.95, np.inf, '{:.1%}', f'{other}: {saving:.1%}')


def _why_no_share(result: Result, option: str, saving: float | None) -> str | None:
    if saving is None:
        return f'needs --{option}'
    if saving <= 0:
        return f'nothing was saved in the record of --{option}'
    return None if result.ends else _needs_ends(result)


def _at_half(result: Result, what: str, key: str) -> Bar:
    """Bytes that were counted, against the loop's."""
    half = _half(result)
    ours, theirs = (result.counts(variant, half)[key] for variant in ('freezeout', 'loop'))
    note = f'{half} of {result.units} units frozen; {ours / 1e6:.4g} MB and {theirs / 1e6:.4g} MB'
    name = f'{what} with half the units frozen, against the loop'
    return Bar(name, ours / theirs, None, 0.98, 1.02, '{:.4f}×', note)


def _added_by_composer(result: Result, key: str) -> int:
    """What Composer adds to a count of the loop, with nothing frozen in either."""
    return result.counts('composer', 0)[key] - result.counts('loop', 0)[key]


def _half(result: Result) -> int:
    return min(result.measured, key=lambda frozen: abs(frozen - result.units / 2))


def _needs_ends(result: Result) -> str:
    return f'needs 0 and {result.units - 1} among --stages'


def _bar(name: str, values: np.ndarray, low: float, high: float, form: str, note: str = '') -> Bar:
    return Bar(name, float(values[0]), interval(values), low, high, form, note)


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """The 95 % interval of what was drawn.

    Args:
        values (np.ndarray): Of the sample, then of what was drawn from it, shape ``(1 + resamples,)``.

    Returns:
        tuple[float, float], optional: Its ends; None of a single round, which says nothing of spread.
    """
    if np.all(values == values[0]):
        return None
    below, above = np.quantile(values[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(below), float(above)
