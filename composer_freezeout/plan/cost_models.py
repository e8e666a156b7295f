"""The models of what a step costs, and what each of them predicts."""

from collections.abc import Sequence
from functools import partial

from composer_freezeout.algorithm.freezeout import FreezeOut
from composer_freezeout.costs.saving import (
    largest_saving,
    saving_by_t_0,
    solve_t_0,
)
from composer_freezeout.costs.seconds import StepProfile
from composer_freezeout.plan.plan import CostModel, Prediction

__all__ = []


def _prediction(
    name: CostModel,
    costs: Sequence[float],
    freezeout: FreezeOut,
    heads: int,
    target: float | None,
    profile: StepProfile | None,
) -> Prediction:
    times = partial(freezeout.freeze_times, len(costs), heads=heads)
    saving = saving_by_t_0(costs, times)
    t_0 = None
    if target is not None and target < largest_saving(saving):
        t_0 = solve_t_0(saving, target)
    return Prediction(
        model=name,
        meaning=_meaning(name, profile),
        saving=saving(freezeout.settings.t_0),
        largest=largest_saving(saving),
        t_0=t_0,
        first_freeze=None if t_0 is None else times(t_0)[0],
        step_costs=tuple(costs),
    )


def _meaning(name: CostModel, profile: StepProfile | None) -> str:
    where = 'GPU' if profile is not None and profile.device.type == 'cuda' else 'CPU'
    return {
        'paper': 'backward counted as one forward',
        'flops': 'both passes counted on this model',
        'seconds': f'steps measured on this {where}',
    }[name]
