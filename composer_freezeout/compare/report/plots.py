"""The plots that a report has, with what they are called."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

from matplotlib.figure import Figure

from composer_freezeout.compare.arms.known import BASELINE, FREEZEOUT, is_baseline
from composer_freezeout.compare.judging.comparison import Comparison
from composer_freezeout.compare.judging.score import BY_ACCURACY
from composer_freezeout.compare.judging.verdict import ArmResult, baselines_of, best_arm, runs_of
from composer_freezeout.compare.report.figures.arms import Point, accuracy_against_cost, memory, savings
from composer_freezeout.compare.report.figures.course import engagement, learning_curves, step_times
from composer_freezeout.compare.report.figures.learning_rates import learning_rates
from composer_freezeout.compare.report.figures.style import svg
from composer_freezeout.results.stats import summary

__all__ = ['FIRST', 'PLOTS', 'Plot', 'draw_plots']

_SPREAD = 'Mean and standard deviation over the seeds'


@dataclass(frozen=True)
class Plot:
    """A plot in a report.

    Attributes:
        file (str): Name of its file.
        title (str): What it shows.
        caption (str): What has to be known about it.
        svg (str): The drawing.
        narrow (str): The same for a narrow screen; empty if there is none.
    """

    file: str
    title: str
    caption: str
    svg: str
    narrow: str = ''

    @property
    def data_uri(self) -> str:
        """The drawing, for a page that needs no other file."""
        return _data_uri(self.svg)

    @property
    def narrow_uri(self) -> str:
        """The drawing for a narrow screen; empty if there is none."""
        return _data_uri(self.narrow) if self.narrow else ''


def _data_uri(text: str) -> str:
    return f'data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode()}'


class _Figure(NamedTuple):
    title: str
    caption: str
    figure: Figure
    narrow: Figure | None = None


# None where there is nothing to draw.
_Drawn: TypeAlias = _Figure | None
# In inches.
_WIDE, _NARROW = (9.0, 5.6), (4.6, 5.2)


def draw_plots(comparison: Comparison, results: Sequence[ArmResult]) -> dict[str, Plot]:
    """Draws the plots that a comparison has numbers for.

    Args:
        comparison (Comparison): The runs.
        results (Sequence[ArmResult]): Its arms.

    Returns:
        dict[str, Plot]: By the name of the file.
    """
    found = {}
    for file, draw in _PLOTS.items():
        if (drawn := draw(comparison, results)) is not None:
            title, caption, figure, narrow = drawn
            found[file] = Plot(file, title, caption, svg(figure, title), svg(narrow, title) if narrow else '')
    return found


def _accuracy_cost(comparison: Comparison, results: Sequence[ArmResult]) -> _Drawn:
    by, score = results[0].judged_by, comparison.score
    points = []
    for result in results:
        if runs := runs_of(comparison, result.arm, by):
            costs, qualities = zip(*runs.values(), strict=True)
            points.append(Point(result.arm, summary(costs), summary([*map(score.quality, qualities)])))
    if not points:
        return None
    curve = baselines_of(comparison, by).curve()
    what = comparison.clock.training_time if by == 'time' else 'FLOPs'
    unit = f'{what} in seconds' if by == 'time' else 'FLOPs, share of the whole baseline’s'
    side = 'above' if score.quality(1.0) > 0 else 'below'
    better = 'more accurate' if score == BY_ACCURACY else 'better'
    caption = (
        f'{_SPREAD}. The curve is the baseline, trained for several lengths, with the 95 % interval of its mean. An '
        f'arm {side} it is {better} than the baseline with the same {"time" if by == "time" else "FLOPs"}.'
    )
    title = f'{score.title} against {what}'
    figures = [accuracy_against_cost(points, curve, unit, size=size, score=score) for size in (_WIDE, _NARROW)]
    return _Figure(title, caption, *figures)


def _learning_curves(comparison: Comparison, results: Sequence[ArmResult], others: bool = False) -> _Drawn:
    few = _few(results)
    arms = [r.arm for r in results if r.accuracy is not None and (r.arm in few) != others]
    if not arms or not comparison.clock.decides:
        return None
    title = f'{comparison.score.title} over {comparison.clock.training_time}{", the other arms" if others else ""}'
    return _Figure(title, f'{_SPREAD} at each evaluation.', learning_curves(comparison, arms))


def _few(results: Sequence[ArmResult]) -> set[str]:
    """The arms that matter most: the whole baseline, its shortest length, FreezeOut, and the arm with the best gain."""
    lengths = [r for r in results if is_baseline(r.arm) and r.flops is not None]
    shortest = min(lengths, key=lambda r: r.flops or 0.0, default=None)
    best = best_arm(results)
    return {BASELINE, FREEZEOUT, *(r.arm for r in (shortest, best) if r is not None)}


def _engagement(comparison: Comparison, results: Sequence[ArmResult]) -> _Drawn:
    arms = [r.arm for r in results if r.freezes and comparison.of(r.arm)[0].record.segments]
    if not arms:
        return None
    caption = (
        'Share of the parameters that no longer train, and of the FLOPs of the backward pass that this saves where the '
        'records have it, in the run of each arm with its first seed.'
    )
    return _Figure('Frozen parameters over training', caption, engagement(comparison, arms))


def _learning_rates(comparison: Comparison, results: Sequence[ArmResult]) -> _Drawn:
    run = next((run for run in comparison.of(FREEZEOUT) if run.record.units), None)
    if run is None:
        return None
    caption = f'Run of {FREEZEOUT} with seed {run.seed}; the rates are those that the optimizer used.'
    return _Figure('Learning rates and freeze points of the units', caption, learning_rates(run.record))


def _savings(comparison: Comparison, results: Sequence[ArmResult]) -> _Drawn:
    if all(result.predicted_saving is None for result in results) or not comparison.clock.decides:
        return None
    time = comparison.clock.training_time
    caption = f'Share of the baseline’s {time}; on the dashed line the measurement is as predicted.'
    return _Figure('Measured against predicted saving', caption, savings(results))


def _step_times(comparison: Comparison, results: Sequence[ArmResult]) -> _Drawn:
    if all(len(run.record.segments) < 2 for run in comparison.runs) or not comparison.clock.decides:
        return None
    caption = (
        'Time of a step relative to the same run with nothing frozen, the first batch left out: over frozen units '
        '(FreezeOut) and over the share of frozen parameters (all arms that freeze). Small dots are single runs.'
    )
    return _Figure('Time of a step, as layers freeze', caption, step_times(comparison))


def _memory(comparison: Comparison, results: Sequence[ArmResult]) -> _Drawn:
    device = comparison.of(BASELINE)[0].record.effective.device
    of = 'memory that torch allocated on the device' if device == 'gpu' else 'resident memory of the whole process'
    return _Figure('Peak memory', f'{_SPREAD}; {of}.', memory(results, device))


# What a report begins with.
FIRST = 'accuracy_time.svg'
_PLOTS: dict[str, Callable[[Comparison, Sequence[ArmResult]], _Drawn]] = {
    FIRST: _accuracy_cost,
    'engagement.svg': _engagement,
    'learning_curves.svg': _learning_curves,
    'learning_curves_others.svg': partial(_learning_curves, others=True),
    'learning_rates.svg': _learning_rates,
    'savings.svg': _savings,
    'step_times.svg': _step_times,
    'memory.svg': _memory,
}
PLOTS = tuple(_PLOTS)
