"""The plots that a report has, with what they are called."""

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from composer_freezeout.compare.arms.known import BASELINE, FREEZEOUT, SHORTENED
from composer_freezeout.compare.judging.comparison import Comparison
from composer_freezeout.compare.judging.verdict import ArmResult
from composer_freezeout.compare.report.figures.arms import Point, accuracy_against_time, memory, savings
from composer_freezeout.compare.report.figures.course import learning_curves, step_times
from composer_freezeout.compare.report.figures.learning_rates import learning_rates
from composer_freezeout.compare.report.figures.style import svg

__all__ = ['PLOTS', 'Plot', 'draw_plots']

_SPREAD = 'Mean and standard deviation over the seeds'


@dataclass(frozen=True)
class Plot:
    """A plot in a report.

    Attributes:
        file (str): Name of its file.
        title (str): What it shows.
        caption (str): What has to be known about it.
        svg (str): The drawing.
    """

    file: str
    title: str
    caption: str
    svg: str

    @property
    def data_uri(self) -> str:
        """The drawing, for a page that needs no other file."""
        return f'data:image/svg+xml;base64,{base64.b64encode(self.svg.encode()).decode()}'


# Title, caption and figure; None where there is nothing to draw.
_Drawn = tuple[str, str, Figure] | None


def draw_plots(comparison: Comparison, results: Sequence[ArmResult]) -> list[Plot]:
    """Draws the plots that a comparison has numbers for.

    Args:
        comparison (Comparison): The runs.
        results (Sequence[ArmResult]): Its arms.

    Returns:
        list[Plot]: In the order of the report.
    """
    return list(_drawn(comparison, results))


def _drawn(comparison: Comparison, results: Sequence[ArmResult]) -> Iterator[Plot]:
    for file, draw in _PLOTS.items():
        found = draw(comparison, results)
        if found is not None:
            title, caption, figure = found
            yield Plot(file, title, caption, svg(figure, title))


def _accuracy_time(comparison: Comparison, results: Sequence[ArmResult]) -> _Drawn:
    points = [Point(r.arm, r.time, r.accuracy) for r in results if r.accuracy is not None]
    if not points or not comparison.clock.decides:
        return None
    time = comparison.clock.training_time
    caption = f'{_SPREAD}. No arm lies above and left of the Pareto front.'
    return f'Accuracy against {time}', caption, accuracy_against_time(points, (BASELINE, *SHORTENED), time=time)


def _learning_curves(comparison: Comparison, results: Sequence[ArmResult]) -> _Drawn:
    if all(result.accuracy is None for result in results) or not comparison.clock.decides:
        return None
    title = f'Accuracy over {comparison.clock.training_time}'
    return title, f'{_SPREAD} at each evaluation.', learning_curves(comparison)


def _learning_rates(comparison: Comparison, results: Sequence[ArmResult]) -> _Drawn:
    run = next((run for run in comparison.of(FREEZEOUT) if run.record.units), None)
    if run is None:
        return None
    caption = f'Run of {FREEZEOUT} with seed {run.seed}; the rates are those that the optimizer used.'
    return 'Learning rates and freeze points of the units', caption, learning_rates(run.record)


def _savings(comparison: Comparison, results: Sequence[ArmResult]) -> _Drawn:
    if all(result.predicted_saving is None for result in results) or not comparison.clock.decides:
        return None
    time = comparison.clock.training_time
    caption = f'Share of the baseline’s {time}; on the dashed line the measurement is as predicted.'
    return 'Measured against predicted saving', caption, savings(results)


def _step_times(comparison: Comparison, results: Sequence[ArmResult]) -> _Drawn:
    if all(len(run.record.segments) < 2 for run in comparison.runs) or not comparison.clock.decides:
        return None
    caption = (
        'Time of a step relative to the same run with nothing frozen, the first batch left out: over frozen units '
        '(FreezeOut) and over the share of frozen parameters (all arms that freeze). Small dots are single runs.'
    )
    return 'Time of a step, as layers freeze', caption, step_times(comparison)


def _memory(comparison: Comparison, results: Sequence[ArmResult]) -> _Drawn:
    device = comparison.of(BASELINE)[0].record.effective.device
    of = 'memory that torch allocated on the device' if device == 'gpu' else 'resident memory of the whole process'
    return 'Peak memory', f'{_SPREAD}; {of}.', memory(results, device)


# In the order of the report.
_PLOTS: dict[str, Callable[[Comparison, Sequence[ArmResult]], _Drawn]] = {
    'accuracy_time.svg': _accuracy_time,
    'learning_curves.svg': _learning_curves,
    'learning_rates.svg': _learning_rates,
    'savings.svg': _savings,
    'step_times.svg': _step_times,
    'memory.svg': _memory,
}
PLOTS = tuple(_PLOTS)
