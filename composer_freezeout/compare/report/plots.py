"""The plots of the report."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from composer_freezeout.compare.arms.known import BASELINE, FREEZEOUT, SHORTENED
from composer_freezeout.compare.judging.comparison import Comparison
from composer_freezeout.compare.judging.verdict import ArmResult
from composer_freezeout.compare.report.figures.arms import Point, accuracy_against_time, memory, savings
from composer_freezeout.compare.report.figures.course import learning_curves, step_times
from composer_freezeout.compare.report.figures.learning_rates import learning_rates
from composer_freezeout.compare.report.figures.style import svg

__all__ = ['PLOTS', 'Plot', 'draw_plots', 'plot_learning_rates']


@dataclass(frozen=True)
class Plot:
    file: str
    title: str
    caption: str
    svg: str

    @property
    def data_uri(self) -> str:
        return f'data:image/svg+xml;base64,{base64.b64encode(self.svg.encode()).decode()}'


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


def draw_plots(comparison: Comparison, results: Sequence[ArmResult]) -> list[Plot]:
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
    return [Plot(file, title, caption, svg(figure, title)) for file, title, caption, figure in drawn]


PLOTS = (
    'accuracy_time.svg',
    'learning_curves.svg',
    'learning_rates.svg',
    'savings.svg',
    'step_times.svg',
    'memory.svg',
)
