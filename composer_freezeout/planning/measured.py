"""What the measured seconds of a run's steps say for its plan."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch

from composer_freezeout.costs.loading import Loading
from composer_freezeout.costs.saving import in_stages, interpolated, predicted_saving, with_loading
from composer_freezeout.costs.seconds import StepProfile
from composer_freezeout.method.allocation import measured_unit_costs
from composer_freezeout.method.schedule import freeze_times
from composer_freezeout.method.settings import Settings
from composer_freezeout.planning.content import CostAware, Measured

__all__ = ['cost_aware', 'how_measured', 'unit_seconds']


def cost_aware(
    profile: StepProfile, batch_size: int, settings: Settings, stages: Sequence[int], heads: int
) -> CostAware | None:
    """What freeze times would save that are shifted by the measured costs of the ``n`` units.

    Args:
        profile (StepProfile): The measured steps.
        batch_size (int): Samples of a step of the run, in ``[1, ∞)``.
        settings (Settings): Those of the run.
        stages (Sequence[int]): Numbers of frozen units that the run passes through, ascending from 0.
        heads (int): How many of the last units train to the end.

    Returns:
        CostAware, optional: None where freezing was not seen to save anything.
    """
    num_units = len(profile.unit_forward)
    seconds = interpolated({k: step.total for k, step in profile.scaled(batch_size).items()}, num_units)
    unit_costs = measured_unit_costs([1e3 * second for second in seconds])
    if not any(unit_costs):
        return None
    step_costs = in_stages(seconds, stages)
    times = partial(freeze_times, num_units, settings.t_0, settings.how_scale, heads=heads)
    return CostAware(
        unit_costs=tuple(unit_costs),
        measured_at_each=len(profile.steps) == num_units,
        cost_shift=settings.cost_shift,
        saving=predicted_saving(step_costs, times(unit_costs, settings.cost_shift)),
        paper_saving=predicted_saving(step_costs, times()),
    )


def how_measured(
    profile: StepProfile, batch_size: int, step_costs: Sequence[float], loading: Loading | None, times: Sequence[float]
) -> Measured:
    """How steps were measured, and what waiting for data does to the saving.

    Args:
        profile (StepProfile): The measured steps.
        batch_size (int): Samples of a step of the run, in ``[1, ∞)``.
        step_costs (Sequence[float]): Seconds of a step by number of units that are due.
        loading (Loading, optional): How fast batches come; None if it wasn't measured.
        times (Sequence[float]): Freeze times of the units.

    Returns:
        Measured: For people, and for ``plan.json``.
    """
    wait_share = saving = None
    if loading is not None:
        waiting = with_loading(step_costs, loading.seconds, loading.overlapped)
        wait_share = 1 - step_costs[0] / waiting[0]
        saving = predicted_saving(waiting, times)
    return Measured(
        device=torch.cuda.get_device_name() if profile.device.type == 'cuda' else 'CPU',
        precision=profile.precision,
        batch_size=profile.batch_size,
        repeats=profile.repeats,
        points=len(profile.steps),
        step_seconds=profile.scaled(batch_size)[0].total,
        load_seconds=None if loading is None else loading.seconds,
        wait_share=wait_share,
        saving_with_wait=saving,
    )


def unit_seconds(profile: StepProfile, batch_size: int) -> list[tuple[float, float]]:
    """Seconds of each unit in a step of the run.

    Args:
        profile (StepProfile): The measured steps.
        batch_size (int): Samples of a step of the run, in ``[1, ∞)``.

    Returns:
        list[tuple[float, float]]: Of its forward pass, and what freezing it takes off the rest.
    """
    steps = profile.scaled(batch_size)
    # A frozen unit still runs forward: the forward pass's differences would be noise.
    rest = interpolated({k: step.backward + step.optimizer for k, step in steps.items()}, len(profile.unit_forward))
    saved = [now - after for now, after in pairwise([*rest, 0.0])]
    scale = batch_size / profile.batch_size
    return [(scale * forward, backward) for forward, backward in zip(profile.unit_forward, saved, strict=True)]
