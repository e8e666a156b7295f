"""What was measured of a run, for its plan."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch

from composer_freezeout.algorithm.freezeout import FreezeOut
from composer_freezeout.costs.loading import Loading
from composer_freezeout.costs.saving import (
    interpolated,
    predicted_saving,
    with_loading,
)
from composer_freezeout.costs.seconds import StepProfile
from composer_freezeout.method.allocation import measured_unit_costs
from composer_freezeout.method.schedule import freeze_times
from composer_freezeout.plan.plan import CostAware, Measured
from composer_freezeout.run.config import (
    RunConfig,
)

__all__ = []


def _cost_aware(
    seconds: Sequence[float], step_costs: Sequence[float], measured_at_each: bool, freezeout: FreezeOut, heads: int
) -> CostAware | None:
    unit_costs = measured_unit_costs([1e3 * second for second in seconds])
    if not any(unit_costs):
        return None
    times = partial(freeze_times, len(seconds), freezeout.settings.t_0, freezeout.settings.how_scale, heads=heads)
    return CostAware(
        unit_costs=tuple(unit_costs),
        measured_at_each=measured_at_each,
        cost_shift=freezeout.settings.cost_shift,
        saving=predicted_saving(step_costs, times(unit_costs, freezeout.settings.cost_shift)),
        paper_saving=predicted_saving(step_costs, times()),
    )


def _measured(
    profile: StepProfile, config: RunConfig, costs: Sequence[float], loading: Loading | None, times: Sequence[float]
) -> Measured:
    wait_share = saving = None
    if loading is not None:
        waiting = with_loading(costs, loading.seconds, loading.overlapped)
        wait_share = 1 - costs[0] / waiting[0]
        saving = predicted_saving(waiting, times)
    return Measured(
        device=torch.cuda.get_device_name() if profile.device.type == 'cuda' else 'CPU',
        precision=profile.precision,
        batch_size=profile.batch_size,
        repeats=profile.repeats,
        points=len(profile.steps),
        step_seconds=profile.scaled(config.train_data.batch_size)[0].total,
        load_seconds=None if loading is None else loading.seconds,
        wait_share=wait_share,
        saving_with_wait=saving,
    )


def _unit_seconds(
    profile: StepProfile | None, batch_size: int, num_units: int
) -> Sequence[tuple[float | None, float | None]]:
    """Seconds of each unit in a step of the run: of its forward pass, and what freezing it takes off the rest."""
    if profile is None:
        return [(None, None)] * num_units
    steps = profile.scaled(batch_size)
    # A frozen unit still runs forward: the forward pass's differences would be noise.
    rest = interpolated({count: step.backward + step.optimizer for count, step in steps.items()}, num_units)
    saved = [now - after for now, after in pairwise([*rest, 0.0])]
    scale = batch_size / profile.batch_size
    return [(scale * forward, backward) for forward, backward in zip(profile.unit_forward, saved, strict=True)]
