"""The report of a comparison in Markdown and in HTML.

It is a function of the manifest and the records alone, and regenerates to the byte.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from composer_freezeout.compare.arms.known import BASELINE, FREEZEOUT, STATIC
from composer_freezeout.compare.judging.comparison import Comparison
from composer_freezeout.compare.judging.course import reached, target
from composer_freezeout.compare.judging.score import BY_ACCURACY
from composer_freezeout.compare.judging.verdict import ArmResult, arm_results
from composer_freezeout.compare.report.beginnings import beginnings
from composer_freezeout.compare.report.definitions import definitions, not_run
from composer_freezeout.compare.report.markup import HTML, MARKDOWN, templates
from composer_freezeout.compare.report.plots import FIRST, PLOTS, Plot, draw_plots
from composer_freezeout.compare.report.sentences import conclude
from composer_freezeout.compare.report.spreadsheet import SUMMARY, summary_csv
from composer_freezeout.compare.report.tables import (
    Grid,
    engagement_grid,
    environment_grid,
    reached_grid,
    results_grid,
    runs_grid,
    welch_grid,
)
from composer_freezeout.compare.report.text import counted, number_text
from composer_freezeout.results.files import write_text

__all__ = ['Section', 'outdated', 'render', 'write_report']


_STATIC = (
    'Seed by seed, by Student’s t, not corrected. The first layers of the static arm are frozen from the start, as '
    'many as are predicted to save what freezeout does. Other arms may cost something else.'
)


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
        folded (bool): Whether it is for few readers, and folded away where a page can.
    """

    title: str
    paragraphs: Sequence[str] = ()
    items: Sequence[str] = ()
    code: str = ''
    grids: Sequence[Grid] = ()
    plots: Sequence[Plot] = ()
    folded: bool = False

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it."""
        return not (self.paragraphs or self.items or self.code or self.grids or self.plots)


def _sections(comparison: Comparison, results: Sequence[ArmResult], plots: Mapping[str, Plot]) -> list[Section]:
    def drawn(*files: str) -> list[Plot]:
        return [plots[file] for file in files if file in plots]

    records = {result.arm: [run.record for run in comparison.of(result.arm)] for result in results}
    welch = welch_grid(results, BASELINE, lambda result: result.versus_baseline, comparison.score)
    versus_static = welch_grid(results, STATIC, lambda result: result.versus_static, comparison.score)
    static = [versus_static] if versus_static.rows else []
    sections = [
        Section('Gain at equal cost', grids=[results_grid(results, comparison.clock, comparison.score)]),
        Section('Differences from the static arm', paragraphs=[_STATIC] if static else [], grids=static),
        Section('What the runs began with', items=beginnings(comparison)),
        _time_to_target(comparison),
        Section('Engagement', grids=[engagement_grid(results, records)], plots=drawn('engagement.svg')),
        Section('Learning curves', plots=drawn('learning_curves.svg')),
        Section('Learning curves of the other arms', plots=drawn('learning_curves_others.svg'), folded=True),
        Section('Learning rates', plots=drawn('learning_rates.svg'), folded=True),
        Section('Times and memory', plots=drawn('savings.svg', 'step_times.svg', 'memory.svg'), folded=True),
        Section('Differences from the whole baseline', grids=[welch] if welch.rows else [], folded=True),
        Section('Not run', items=not_run(comparison)),
        Section('Differences between the runs', items=comparison.differences),
        Section('Runs', grids=[runs_grid(comparison.runs, comparison.score)], folded=True),
        Section('Environment', grids=[environment_grid(comparison)], folded=True),
        Section('Command', code=comparison.command, paragraphs=_overrides(comparison)),
        Section('What the numbers mean', items=definitions(comparison), folded=True),
    ]
    return [section for section in sections if not section.empty]


def _time_to_target(comparison: Comparison) -> Section:
    accuracy, score = target(comparison), comparison.score
    title = f'Time to a target {score.name}'
    if accuracy is None or not comparison.clock.decides:
        return Section(title)
    value = f'{number_text(accuracy, score.digits, score.factor)}{" %" if score == BY_ACCURACY else ""}'
    text = (
        f'The target is {value}, what the shortest baseline reaches at its end on average. '
        'The time is that until the first evaluation that has it, over the runs that reach it.'
    )
    return Section(
        title,
        paragraphs=[text],
        grids=[reached_grid(reached(comparison, accuracy), comparison.clock)],
    )


def _overrides(comparison: Comparison) -> list[str]:
    return [f'Laid over every configuration: {", ".join(comparison.overrides)}'] if comparison.overrides else []


def render(comparison: Comparison) -> dict[str, str]:
    """Makes all files of a report.

    Args:
        comparison (Comparison): The runs.

    Returns:
        dict[str, str]: Text of each file by its name: Markdown, HTML that needs no other file, numbers for a
        spreadsheet, and plots.
    """
    results = arm_results(comparison)
    outcome = next((result.verdict for result in results if result.arm == FREEZEOUT), None) or 'undecided'
    plots = draw_plots(comparison, results)
    content = {
        'title': f'FreezeOut on {comparison.family}',
        'subtitle': f'{counted(len(comparison.arms), "arm")}, {counted(len(comparison.seeds), "seed")} '
        f'({", ".join(map(str, comparison.seeds))}), {counted(len(comparison.runs), "finished run")}',
        'found': conclude(comparison, results),
        'outcome': outcome.replace(' ', '-'),
        'first': plots.get(FIRST),
        'sections': _sections(comparison, results, plots),
    }
    environment = templates()
    files = {name: environment.get_template(f'{name}.jinja').render(content) for name in (MARKDOWN, HTML)}
    return files | {SUMMARY: summary_csv(results, comparison.score)} | {name: plot.svg for name, plot in plots.items()}


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
