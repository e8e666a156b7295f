"""The models of what a step costs, and what each of them predicts.

A further model is an entry of :data:`COST_MODELS`; its name also stands in ``CostModel`` of
:mod:`composer_freezeout.planning.content` and, with a label and a colour, in :mod:`composer_freezeout.planning.plots`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from composer_freezeout.algorithm.freezeout import FreezeOut
from composer_freezeout.costs.flops import UnitFlops
from composer_freezeout.costs.saving import (
    in_stages,
    interpolated,
    largest_saving,
    paper_costs,
    saving_by_t_0,
    solve_t_0,
)
from composer_freezeout.costs.seconds import StepSeconds
from composer_freezeout.planning.content import CostModel, Prediction

__all__ = ['COST_MODELS', 'Counted', 'predict', 'step_costs']


@dataclass(frozen=True)
class Counted:
    """What is known of a run's steps.

    Attributes:
        units (Sequence[UnitFlops]): FLOPs of each of the ``n`` units, per sample.
        steps (Sequence[int]): FLOPs of a step with ``k`` units frozen, per sample, for ``k`` from 0 to ``n - 1``.
        seconds (dict[int, StepSeconds], optional): A step of the run's batch size by number of frozen units, 0 and
            ``n - 1`` among them; None if nothing was measured.
        device (str): Name of where that was, for people.
    """

    units: Sequence[UnitFlops]
    steps: Sequence[int]
    seconds: dict[int, StepSeconds] | None
    device: str


def _paper(counted: Counted) -> Sequence[float]:
    return paper_costs([unit.forward for unit in counted.units])


def _flops(counted: Counted) -> Sequence[float]:
    return counted.steps


def _seconds(counted: Counted) -> Sequence[float] | None:
    if counted.seconds is None:
        return None
    return interpolated({count: step.total for count, step in counted.seconds.items()}, len(counted.units))


# Of each: what it means, and what a step costs with k units frozen, for k from 0 to n - 1; None where it can't tell.
COST_MODELS: dict[CostModel, tuple[str, Callable[[Counted], Sequence[float] | None]]] = {
    'paper': ('backward counted as one forward', _paper),
    'flops': ('both passes counted on this model', _flops),
    'seconds': ('steps measured on this {device}', _seconds),
}


def step_costs(counted: Counted) -> dict[CostModel, Sequence[float]]:
    """What a step costs with ``k`` units frozen, by each model that can tell.

    Args:
        counted (Counted): What is known of the steps of ``n`` units.

    Returns:
        dict[str, Sequence[float]]: ``n`` costs each: FLOPs per sample, or seconds.
    """
    costs: dict[CostModel, Sequence[float]] = {}
    for name, (_, cost) in COST_MODELS.items():
        if (found := cost(counted)) is not None:
            costs[name] = found
    return costs


def predict(
    counted: Counted, freezeout: FreezeOut, stages: Sequence[int], heads: int, target: float | None
) -> tuple[Prediction, ...]:
    """What each model says of a run.

    Args:
        counted (Counted): What is known of its steps.
        freezeout (FreezeOut): The algorithm.
        stages (Sequence[int]): Numbers of frozen units that the run passes through, ascending from 0.
        heads (int): How many of the last units train to the end.
        target (float, optional): A saving, in ``(0, 1)``, to find ``t_0`` for.

    Returns:
        tuple[Prediction, ...]: One for each model that can tell.
    """
    return tuple(
        _predict(name, COST_MODELS[name][0].format(device=counted.device), costs, target, times, freezeout.settings.t_0)
        for name, found in step_costs(counted).items()
        for costs in [in_stages(found, stages)]
        for times in [partial(freezeout.freeze_times, len(costs), heads=heads)]
    )


def _predict(
    name: CostModel,
    meaning: str,
    costs: Sequence[float],
    target: float | None,
    times: Callable[[float], Sequence[float]],
    planned: float,
) -> Prediction:
    saving = saving_by_t_0(costs, times)
    t_0 = None
    if target is not None and target < largest_saving(saving):
        t_0 = solve_t_0(saving, target)
    return Prediction(
        model=name,
        meaning=meaning,
        saving=saving(planned),
        largest=largest_saving(saving),
        t_0=t_0,
        first_freeze=None if t_0 is None else times(t_0)[0],
        step_costs=tuple(costs),
    )
