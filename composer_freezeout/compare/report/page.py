"""The report of a comparison in Markdown and in HTML.

It is a function of the manifest and the records alone, and regenerates to the byte.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from composer_freezeout.compare.arms.known import ARMS, BASELINE, BASELINE_SHORT, FREEZEOUT, SHORTENED
from composer_freezeout.compare.judging.clock import SAME_CORES, SAME_WORK
from composer_freezeout.compare.judging.comparison import Comparison
from composer_freezeout.compare.judging.verdict import EQUAL_TIME, ArmResult, arm_results
from composer_freezeout.compare.report.markup import HTML, MARKDOWN, templates
from composer_freezeout.compare.report.plots import PLOTS, Plot, draw_plots
from composer_freezeout.compare.report.sentences import conclude
from composer_freezeout.compare.report.tables import (
    Grid,
    environment_grid,
    results_grid,
    runs_grid,
    verdicts_grid,
    welch_grid,
)
from composer_freezeout.compare.report.text import counted, number_text
from composer_freezeout.results.files import write_text

__all__ = ['Section', 'outdated', 'render', 'write_report']


@dataclass(frozen=True)
class Section:
    """A section of the report, with whatever it has.

    Attributes:
        title (str): Its title.
        paragraphs (Sequence[str]): Text.
        items (Sequence[str]): A list.
        code (str): What stands as it is.
        grids (Sequence[Grid]): Tables.
        plots (Sequence[Plot]): Plots.
    """

    title: str
    paragraphs: Sequence[str] = ()
    items: Sequence[str] = ()
    code: str = ''
    grids: Sequence[Grid] = ()
    plots: Sequence[Plot] = ()


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


def _definitions(comparison: Comparison) -> list[str]:
    lines = [
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
        f'{number_text(EQUAL_TIME, 0, 100)} %. Everything else is undecided.',
        *(
            f'{short} is the same for {source}, and its control.'
            for short, source in SHORTENED.items()
            if short != BASELINE_SHORT and short in comparison.arms
        ),
    ]
    if any(run.record.training_cpu_seconds is not None for run in comparison.runs):
        lines.append(
            'CPU time is that of training, over all threads and data workers. Divided by wall-clock it is the number '
            'of cores that training had. If on a CPU that number differs between arms by more than '
            f'{number_text(SAME_CORES, 0, 100)} %, other processes held up some of them, and CPU times are compared in '
            'place of wall-clock. If CPU times of the same work, batches with nothing frozen, differ between arms '
            f'by more than {number_text(SAME_WORK, 0, 100)} %, or if waiting threads use CPU time, nothing is judged.'
        )
    return lines


def _sections(comparison: Comparison, results: Sequence[ArmResult]) -> list[Section]:
    welch = [
        welch_grid(results, BASELINE_SHORT, lambda result: result.versus_short),
        welch_grid(results, BASELINE, lambda result: result.versus_baseline),
    ]
    sections = [
        Section('Results', grids=[results_grid(results, comparison.clock)]),
        Section(
            'Differences in accuracy',
            grids=[grid for grid in (verdicts_grid(results, comparison.clock), *welch) if grid.rows],
        ),
        Section('Plots', plots=draw_plots(comparison, results)),
        Section('Runs', grids=[runs_grid(comparison.runs)]),
        Section('Not run', items=_not_run(comparison)),
        Section('Differences between the runs', items=comparison.differences),
        Section('Environment', grids=[environment_grid(comparison)]),
        Section('Command', code=comparison.command, paragraphs=_overrides(comparison)),
        Section('What the numbers mean', items=_definitions(comparison)),
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
    found = conclude(comparison, results)
    content = {
        'title': f'FreezeOut on {comparison.family}',
        'subtitle': f'{counted(len(comparison.arms), "arm")}, {counted(len(comparison.seeds), "seed")} '
        f'({", ".join(map(str, comparison.seeds))}), {counted(len(comparison.runs), "finished run")}',
        'verdict': found.verdict,
        'outcome': outcome.replace(' ', '-'),
        'remarks': found.remarks,
        'reservations': found.reservations,
        'sections': _sections(comparison, results),
    }
    environment = templates()
    files = {name: environment.get_template(f'{name}.jinja').render(content) for name in (MARKDOWN, HTML)}
    return files | {plot.file: plot.svg for section in content['sections'] for plot in section.plots}


def write_report(comparison: Comparison, folder: Path) -> list[Path]:
    """Writes a report, and removes plots of an earlier one that it no longer has.

    Args:
        comparison (Comparison): The runs.
        folder (Path): Folder of the comparison, where its links to the records start.

    Returns:
        list[Path]: The files, Markdown and HTML first.

    Raises:
        OSError: If a file cannot be written; the earlier one stays.
    """
    files = render(comparison)
    for name, text in files.items():
        write_text(folder / name, text)
    for name in PLOTS:
        if name not in files:
            (folder / name).unlink(missing_ok=True)
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
