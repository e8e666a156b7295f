"""A comparison to what people read: the table in the terminal, and a report in Markdown and in HTML.

A report is a function of the manifest and the records alone: it regenerates to the byte.
"""

import base64
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from markupsafe import escape as markup_escape
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from composer_freezeout.compare.comparison import (
    ARMS,
    BASELINE,
    BASELINE_SHORT,
    COST_AWARE,
    EQUAL_TIME,
    FREEZEOUT,
    SHORTENED,
    ArmResult,
    Comparison,
    accuracy,
    arm_results,
    best_in_the_same_time,
)
from composer_freezeout.compare.plots import (
    Point,
    accuracy_against_time,
    learning_curves,
    learning_rates,
    memory,
    savings,
    step_times,
    svg,
)
from composer_freezeout.results.stats import CONFIDENCE, Difference, Summary

__all__ = [
    'HTML',
    'MARKDOWN',
    'comparison_table',
    'conclusion',
    'outdated',
    'plot_learning_rates',
    'render',
    'write_report',
]

MARKDOWN, HTML = 'report.md', 'report.html'

_NOTHING = '–'


# ---------------------------------------------------------------------------------------------------------------------
# Numbers to text
# ---------------------------------------------------------------------------------------------------------------------


def _number(value: float | None, digits: int, factor: float = 1.0, sign: bool = False) -> str:
    if value is None:
        return _NOTHING
    text = f'{value * factor:{"+" if sign else ""}.{digits}f}'
    # No minus before what rounds to zero, and the sign that mathematics has for the others.
    if not text.strip('+-0.'):
        text = text.lstrip('+-')
    return text.replace('-', '−')


def _spread(mean: float | None, std: float | None, digits: int, factor: float = 1.0) -> str:
    text = _number(mean, digits, factor)
    return text if mean is None or std is None else f'{text} ± {_number(std, digits, factor)}'


def _summary(value: Summary | None, digits: int, factor: float = 1.0) -> str:
    return _NOTHING if value is None else _spread(value.mean, value.std, digits, factor)


def _seconds(value: Summary) -> str:
    return _summary(value, 2 if value.mean < 10 else 1)


def _interval(value: tuple[float, float] | None, digits: int, factor: float = 1.0, sign: bool = False) -> str:
    return _NOTHING if value is None else ' to '.join(_number(end, digits, factor, sign) for end in value)


def _p(value: float | None) -> str:
    return _NOTHING if value is None else '< 0.001' if value < 0.001 else f'{value:.3f}'


def _points(difference: Difference | None) -> str:
    return _number(difference.value if difference else None, 2, 100, sign=True)


def _counted(n: int, noun: str) -> str:
    return f'{n} {noun}{"" if n == 1 else "s"}'


# ---------------------------------------------------------------------------------------------------------------------
# What it comes to
# ---------------------------------------------------------------------------------------------------------------------


def conclusion(comparison: Comparison) -> list[str]:
    """What the numbers say, and what has to be known about them.

    Args:
        comparison (Comparison): The runs.

    Returns:
        list[str]: The verdict on ``freezeout`` in one sentence, that on the cost-aware one beside it, the best arm that
        freezes, then reservations.
    """
    results = arm_results(comparison)
    return [_verdict(results), *_cost_aware(results), *_best(results), *_reservations(comparison)]


def _verdict(results: Sequence[ArmResult]) -> str:
    result = next((result for result in results if result.arm == FREEZEOUT), None)
    if result is None:
        return f'No verdict: {FREEZEOUT} has no finished run.'
    return _judged(result, results)


def _cost_aware(results: Sequence[ArmResult]) -> list[str]:
    return [
        f'With freeze times shifted by measured costs, which is not the paper’s FreezeOut: {_judged(result, results)}'
        for result in results
        if result.arm == COST_AWARE
    ]


def _best(results: Sequence[ArmResult]) -> list[str]:
    best = best_in_the_same_time(results)
    reference = BASELINE_SHORT if any(result.arm == BASELINE_SHORT for result in results) else BASELINE
    if best is None:
        return [f'No arm that freezes took as little time as {reference}.']
    if sum(result.freezes for result in results) < 2:
        return []
    rule = f'{best.arm} has the highest mean accuracy of the arms that freeze and took no more time than {reference}'
    if best.arm in (FREEZEOUT, COST_AWARE):  # which have been judged
        return [f'{rule}.']
    return [f'{rule}. {_judged(best, results)}']


def _judged(result: ArmResult, results: Sequence[ArmResult]) -> str:
    head = f'Undecided whether {result.arm} pays' if result.verdict == 'undecided' else f'{result.arm} {result.verdict}'
    saved = result.measured_saving or 0.0
    times = [f'{_number(abs(saved), 1, 100)} % {"less" if saved >= 0 else "more"} training time than {BASELINE}']
    if result.control != BASELINE:
        times.append(f'{_number(result.control_time_ratio, 3)} times that of {result.control}')
    time = f'it took {", ".join(times)}'
    difference = result.difference
    if difference is None:
        return f'{head}: there are no two accuracies to compare; {time}.'
    n = {other.arm: other.accuracy.n for other in results if other.accuracy is not None}
    both = n[result.arm], n[result.control or '']
    runs = 'one run each' if both == (1, 1) else f'{both[0]} and {_counted(both[1], "run")}'
    if difference.interval is None:
        spread = f'{runs}, {"too few for an interval" if min(both) == 1 else "without any spread"}'
    else:
        p = f'p {_equals(difference.p)}'
        if result.arm != FREEZEOUT:
            arms = sum(other.p_holm is not None for other in results)
            p += f', {_p(result.p_holm)} after Holm’s correction for {_counted(arms, "arm")}'
        spread = f'95 % interval {_interval(difference.interval, 2, 100, sign=True)}, {p}, {runs}'
    reason = _reason(result)
    return f'{head}: its accuracy is {_compared(difference)} {result.control}’s ({spread}){reason}; {time}.'


def _compared(difference: Difference) -> str:
    points = _number(abs(difference.value), 2, 100)
    return f'{points} points {"higher" if difference.value >= 0 else "lower"} than'


def _equals(p: float | None) -> str:
    text = _p(p)
    return text if text.startswith('<') else f'= {text}'


def _reason(result: ArmResult) -> str:
    """Why a difference with an interval decides nothing."""
    difference, ratio = result.difference, result.control_time_ratio
    if result.verdict != 'undecided' or difference is None or difference.interval is None or ratio is None:
        return ''
    low, high = difference.interval
    if low <= 0 <= high:
        return ', and the interval includes zero'
    if result.arm != FREEZEOUT and result.p_holm is not None and result.p_holm >= 1 - CONFIDENCE:
        return ', which is not enough with so many arms compared'
    return f', but in {"more" if ratio > 1 else "less"} time'


def _reservations(comparison: Comparison) -> list[str]:
    notes = []
    if len(comparison.seeds) == 1:
        notes.append('One seed is a demonstration, not a measurement: nothing here has a spread.')
    if comparison.scale < 1:
        notes.append(
            f'Reduced scale: epochs and batches per epoch × {comparison.scale:g}. A short run has less to spare than '
            'the full one; the numbers are not those of the full recipe.'
        )
    if comparison.differences:
        notes.append(
            f'The runs are not comparable ({_counted(len(comparison.differences), "difference")}, listed in the '
            'report): they differ in more than the arm and the seed.'
        )
    if comparison.failures:
        notes.append(f'{_counted(len(comparison.failures), "run")} failed and {_are(comparison.failures)} left out.')
    if comparison.missing:
        notes.append(f'{_counted(len(comparison.missing), "run")} {_are(comparison.missing)} not there (yet).')
    return notes


def _are(items: Sequence[object]) -> str:
    return 'is' if len(items) == 1 else 'are'


def comparison_table(comparison: Comparison) -> Table:
    """A table for the terminal.

    Args:
        comparison (Comparison): The runs.

    Returns:
        Table: Accuracy, training time and saving of each arm, with standard deviations and p-values where there are
            several runs.
    """
    results = arm_results(comparison)
    title = f'{comparison.family}, {_counted(len(comparison.seeds), "seed")}'
    # Eighty columns hold the longest of the usual names.
    narrow: dict[str, Any] = {'box': SIMPLE_HEAD, 'show_edge': False, 'padding': 0}
    table = Table(title=escape(title), title_justify='left', title_style='bold', **narrow)
    table.add_column('arm', overflow='fold')
    short = any(result.arm == BASELINE_SHORT for result in results)
    references = [('baseline', 'versus_baseline'), *([('short', 'versus_short')] if short else [])]
    headings = ['accuracy\n%', 'training\nseconds', 'saved\nmeasured\n%', 'saved\npredicted\n%']
    for heading in (*headings, *(f'against\n{name}\npoints' for name, _ in references)):
        table.add_column(heading, justify='right', no_wrap=True)
    for result in results:
        table.add_row(
            escape(result.arm),
            _stacked(_summary(result.accuracy, 2, 100)),
            _stacked(_summary(result.seconds, 1)),
            _stacked(_spread(result.measured_saving, result.time_ratio.std, 1, 100)),
            _number(result.predicted_saving, 1, 100),
            *(_terminal_difference(getattr(result, attribute)) for _, attribute in references),
        )
    return table


def _stacked(text: str) -> str:
    # A terminal has height to spare, but not width.
    return text.replace(' ± ', '\n± ')


def _terminal_difference(difference: Difference | None) -> str:
    text = _points(difference)
    return text if difference is None or difference.p is None else f'{text}\np {_p(difference.p)}'


# ---------------------------------------------------------------------------------------------------------------------
# Tables and plots of the report
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Link:
    text: str
    target: str

    @property
    def url(self) -> str:
        return quote(self.target)


@dataclass(frozen=True)
class _Grid:
    """A table; the first column names its rows."""

    name: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str | _Link]]
    words: frozenset[int] = frozenset({0})

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds numbers, which are aligned to the right."""
        return [column not in self.words for column in range(len(self.headings))]


@dataclass(frozen=True)
class _Plot:
    file: str
    title: str
    caption: str
    svg: str

    @property
    def data_uri(self) -> str:
        return f'data:image/svg+xml;base64,{base64.b64encode(self.svg.encode()).decode()}'


@dataclass(frozen=True)
class _Section:
    title: str
    paragraphs: Sequence[str] = ()
    items: Sequence[str] = ()
    code: str = ''
    grids: Sequence[_Grid] = ()
    plots: Sequence[_Plot] = field(default=())


def _results_grid(results: Sequence[ArmResult]) -> _Grid:
    headings = (
        'arm',
        'runs',
        'accuracy, %',
        '95 % interval',
        'training time, s',
        'time / baseline',
        'saved, measured, %',
        'saved, predicted, %',
        'peak memory, MiB',
    )
    rows = [
        (
            r.arm,
            str(r.seconds.n),
            _summary(r.accuracy, 2, 100),
            _interval(r.accuracy.interval if r.accuracy else None, 2, 100),
            _seconds(r.seconds),
            _NOTHING if r.arm == BASELINE else _spread(r.time_ratio.value, r.time_ratio.std, 3),
            _number(r.measured_saving, 1, 100),
            _number(r.predicted_saving, 1, 100),
            _summary(r.memory, 0, 2**-20),
        )
        for r in results
    ]
    return _Grid('Results', headings, rows)


def _verdicts_grid(results: Sequence[ArmResult]) -> _Grid:
    headings = (
        'arm',
        'control',
        'time / control',
        'accuracy − control’s, points',
        '95 % interval',
        'p',
        'p (Holm)',
        'verdict',
    )
    rows = [
        (
            r.arm,
            r.control or _NOTHING,
            _number(r.control_time_ratio, 3),
            _points(r.difference),
            _interval(r.difference.interval if r.difference else None, 2, 100, sign=True),
            _p(r.difference.p if r.difference else None),
            _p(r.p_holm),
            r.verdict or _NOTHING,
        )
        for r in results
        if r.freezes
    ]
    return _Grid('Arms that freeze, against their controls', headings, rows, frozenset({0, 1, 7}))


def _welch_grid(results: Sequence[ArmResult], against: str, key: Callable[[ArmResult], Difference | None]) -> _Grid:
    headings = ('arm', 'difference, points', '95 % interval', 't', 'degrees of freedom', 'p')
    rows = [
        (
            r.arm,
            _points(difference),
            _interval(difference.interval, 2, 100, sign=True),
            _number(difference.t, 2),
            _number(difference.dof, 1),
            _p(difference.p),
        )
        for r in results
        if (difference := key(r)) is not None
    ]
    return _Grid(f'Accuracy less that of {against}', headings, rows)


def _runs_grid(comparison: Comparison) -> _Grid:
    headings = (
        'arm',
        'seed',
        'accuracy, %',
        'training time, s',
        'first batch, s',
        'waiting for data, %',
        'batches',
        'started at',
        'resumed at batch',
        'record',
    )
    rows = [
        (
            run.arm,
            str(run.seed),
            _number(accuracy(run), 2, 100),
            _number(run.record['training_seconds'], 2),
            _number(run.record.get('first_batch_seconds'), 2),
            _number(run.record['data_wait_share'], 1, 100),
            str(run.record['effective']['total_batches']),
            run.record['started_at'],
            ', '.join(map(str, run.record['resumed_at_batch'])) or _NOTHING,
            _Link(run.record['run_name'], run.path),
        )
        for run in comparison.runs
    ]
    return _Grid('Runs', headings, rows, frozenset({0, 7, 9}))


def _environment_grid(comparison: Comparison) -> _Grid:
    values: dict[str, dict[str, None]] = {}
    for run in comparison.runs:
        record = run.record
        facts = {f'version of {name}': version for name, version in sorted(record['versions'].items())}
        facts |= {name.replace('_', ' '): _hardware(name, value) for name, value in sorted(record['hardware'].items())}
        facts |= {key.replace('_', ' '): record['effective'][key] for key in ('device', 'precision', 'world_size')}
        facts['git commit'] = _commit(record['git'])
        for key, value in facts.items():
            values.setdefault(key, {})[_NOTHING if value is None else str(value)] = None
    return _Grid(
        'Environment', ('', 'value'), [(key, ', '.join(found)) for key, found in values.items()], frozenset({0, 1})
    )


def _hardware(name: str, value: Any) -> Any:
    return f'{value} ({value / 2**30:.1f} GiB)' if name.endswith('_bytes') and isinstance(value, int) else value


def _commit(git: Mapping[str, Any] | None) -> str:
    if git is None:
        return 'unknown'
    return f'{git.get("commit")}{" with uncommitted changes" if git.get("dirty") else ""}'


def plot_learning_rates(record: Mapping[str, Any], path: Path) -> None:
    """Draws the learning rate of each unit over a FreezeOut run, and when each unit froze.

    Args:
        record (Mapping[str, Any]): Record of a run with FreezeOut.
        path (Path): The file to write, ``.svg`` or ``.png``; its folder exists.

    Raises:
        ValueError: If the record has no units.
    """
    figure = learning_rates(record)
    if path.suffix == '.svg':
        path.write_text(svg(figure, f'Learning rates of {record["run_name"]}'), encoding='utf-8', newline='\n')
    else:
        figure.savefig(path, dpi=150, metadata={'Software': None})


def _plots(comparison: Comparison, results: Sequence[ArmResult]) -> list[_Plot]:
    points = [Point(r.arm, r.seconds, r.accuracy) for r in results if r.accuracy is not None]
    device = comparison.of(BASELINE)[0].record['effective']['device']
    stepwise = any(len(run.record.get('segments', ())) > 1 for run in comparison.runs)
    freezeout = next((run for run in comparison.of(FREEZEOUT) if run.record['units']), None)
    spread = 'mean and standard deviation over the seeds'
    drawn: list[tuple[str, str, str, Figure]] = []
    if points:
        drawn += [
            (
                'accuracy_time.svg',
                'Accuracy against training time',
                f'{spread.capitalize()}. No arm lies above and left of the Pareto front.',
                accuracy_against_time(points, (BASELINE, *SHORTENED)),
            ),
            (
                'learning_curves.svg',
                'Accuracy over training time',
                f'{spread.capitalize()} at each evaluation.',
                learning_curves(comparison),
            ),
        ]
    if freezeout:
        caption = f'Run of {FREEZEOUT} with seed {freezeout.seed}; the rates are those that the optimizer used.'
        figure = learning_rates(freezeout.record)
        drawn.append(('learning_rates.svg', 'Learning rates and freeze points of the units', caption, figure))
    if any(r.predicted_saving is not None for r in results):
        caption = 'Share of the baseline’s training time; on the dashed line the measurement is as predicted.'
        drawn.append(('savings.svg', 'Measured against predicted saving', caption, savings(results)))
    if stepwise:
        caption = (
            'Time of a step relative to the same run with nothing frozen, the first batch left out: over frozen units '
            '(FreezeOut) and over the share of frozen parameters (all arms that freeze). Small dots are single runs.'
        )
        drawn.append(('step_times.svg', 'Time of a step, as layers freeze', caption, step_times(comparison)))
    of = 'memory that torch allocated on the device' if device == 'gpu' else 'resident memory of the whole process'
    drawn.append(('memory.svg', 'Peak memory', f'{spread.capitalize()}; {of}.', memory(results, device)))
    return [_Plot(file, title, caption, svg(figure, title)) for file, title, caption, figure in drawn]


PLOTS = (
    'accuracy_time.svg',
    'learning_curves.svg',
    'learning_rates.svg',
    'savings.svg',
    'step_times.svg',
    'memory.svg',
)


# ---------------------------------------------------------------------------------------------------------------------
# The report
# ---------------------------------------------------------------------------------------------------------------------


def _not_run(comparison: Comparison) -> list[str]:
    lines = [
        f'{failure.arm}, seed {failure.seed}: failed with exit code {failure.exit_code}: {failure.message}'
        for failure in comparison.failures
    ]
    lines += [f'{arm}, seed {seed}: no record' for arm, seed in comparison.missing]
    absent = [arm for arm in ARMS if arm not in comparison.arms]
    if absent:
        lines.append(f'Arms of a full comparison that are not part of this one: {", ".join(absent)}.')
    return lines


def _definitions(arms: Sequence[str]) -> list[str]:
    return [
        'Accuracy is that of the last evaluation, never the best one.',
        'Training time runs from the start of fit to its end without evaluations; the first batch is included.',
        'Mean ± sample standard deviation over the seeds; 95 % intervals of means by Student’s t.',
        'The spread of a ratio: the relative variances of the two samples added.',
        'Differences of accuracy by Welch’s test, which does not take variances to be equal. p is not corrected; '
        'p (Holm) is, for the number of arms that freeze.',
        f'{BASELINE_SHORT} is the baseline with its schedule compressed into the training time of {FREEZEOUT}.',
        f'The control of an arm is the slowest of {BASELINE} and {BASELINE_SHORT} that took no more time than the arm, '
        f'or the quickest if the arm took less than both; that of {FREEZEOUT} is {BASELINE_SHORT}.',
        'An arm pays if its accuracy is higher than its control’s and it took no more time. It does not pay if its '
        'accuracy is lower and the control took no more time. Higher and lower mean p < 0.05, by p (Holm) for all arms '
        f'but {FREEZEOUT}, which was singled out beforehand. Mean times count as equal up to '
        f'{_number(EQUAL_TIME, 0, 100)} %. Everything else is undecided.',
        *(
            f'{short} is the same for {source}, and its control.'
            for short, source in SHORTENED.items()
            if short != BASELINE_SHORT and short in arms
        ),
    ]


def _sections(comparison: Comparison, results: Sequence[ArmResult]) -> list[_Section]:
    welch = [
        _welch_grid(results, BASELINE_SHORT, lambda result: result.versus_short),
        _welch_grid(results, BASELINE, lambda result: result.versus_baseline),
    ]
    sections = [
        _Section('Results', grids=[_results_grid(results)]),
        _Section('Differences in accuracy', grids=[grid for grid in (_verdicts_grid(results), *welch) if grid.rows]),
        _Section('Plots', plots=_plots(comparison, results)),
        _Section('Runs', grids=[_runs_grid(comparison)]),
        _Section('Not run', items=_not_run(comparison)),
        _Section('Differences between the runs', items=comparison.differences),
        _Section('Environment', grids=[_environment_grid(comparison)]),
        _Section('Command', code=comparison.command, paragraphs=_overrides(comparison)),
        _Section('What the numbers mean', items=_definitions(comparison.arms)),
    ]
    return [s for s in sections if s.paragraphs or s.items or s.code or s.grids or s.plots]


def _overrides(comparison: Comparison) -> list[str]:
    return [f'Laid over every configuration: {", ".join(comparison.overrides)}'] if comparison.overrides else []


def render(comparison: Comparison) -> dict[str, str]:
    """Makes all files of a report.

    Args:
        comparison (Comparison): The runs.

    Returns:
        dict[str, str]: Text of each file by its name: Markdown, HTML that needs no other file, and plots.
    """
    results = arm_results(comparison)
    outcome = next((result.verdict for result in results if result.arm == FREEZEOUT), None) or 'undecided'
    verdict, *remarks = [_verdict(results), *_cost_aware(results), *_best(results)]
    content = {
        'title': f'FreezeOut on {comparison.family}',
        'subtitle': f'{_counted(len(comparison.arms), "arm")}, {_counted(len(comparison.seeds), "seed")} '
        f'({", ".join(map(str, comparison.seeds))}), {_counted(len(comparison.runs), "finished run")}',
        'verdict': verdict,
        'outcome': outcome.replace(' ', '-'),
        'remarks': remarks,
        'reservations': _reservations(comparison),
        'sections': _sections(comparison, results),
    }
    environment = _environment()
    files = {name: environment.get_template(f'{name}.jinja').render(content) for name in (MARKDOWN, HTML)}
    return files | {plot.file: plot.svg for section in content['sections'] for plot in section.plots}


def write_report(comparison: Comparison, folder: Path) -> list[Path]:
    """Writes a report, and removes plots of an earlier one that it no longer has.

    Args:
        comparison (Comparison): The runs.
        folder (Path): Folder of the comparison, where its links to the records start.

    Returns:
        list[Path]: The files, Markdown and HTML first.
    """
    files = render(comparison)
    for name in PLOTS:
        if name not in files:
            (folder / name).unlink(missing_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding='utf-8', newline='\n')
    return [folder / name for name in files]


def outdated(comparison: Comparison, folder: Path) -> list[Path]:
    """Files that :func:`write_report` would change.

    Args:
        comparison (Comparison): The runs.
        folder (Path): Folder of the comparison.

    Returns:
        list[Path]: Missing, different and superfluous files.
    """
    files = render(comparison)
    stale = [folder / name for name in PLOTS if name not in files and (folder / name).exists()]
    return stale + [
        path
        for name, text in files.items()
        if not (path := folder / name).exists() or path.read_bytes() != text.encode('utf-8')
    ]


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader('composer_freezeout'),
        autoescape=lambda name: name is not None and name.startswith(HTML),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters['md'] = _markdown
    environment.filters['indented'] = _indented
    environment.filters['breakable'] = _breakable
    environment.tests['link'] = lambda value: isinstance(value, _Link)
    return environment


def _markdown(text: str) -> str:
    """Text as Markdown that shows it as it is."""
    text = ' '.join(text.split())
    text = text.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')
    # Within a word an underscore means nothing.
    return re.sub(r'[\\`*\[\]#|~!$]|(?<!\w)_|_(?!\w)', r'\\\g<0>', text)


def _breakable(text: str) -> Markup:
    """Text that may be broken after its underscores."""
    return markup_escape(text).replace('_', Markup('_<wbr>'))


def _indented(lines: str | Iterable[str]) -> str:
    """A block of code, whatever stands in it."""
    lines = lines.splitlines() if isinstance(lines, str) else lines
    return '\n'.join(f'    {line}' for line in lines)
