"""Plans FreezeOut for the run that a YAML file describes: what freezes when, and what that saves.

Costs come from three models (:mod:`composer_freezeout.costs.saving`); the third is measured on this
machine. Nothing here says what freezing costs in accuracy.
"""

from collections.abc import Mapping, Sequence

from composer.models import ComposerModel
from composer.utils import reproducibility

from composer_freezeout.costs.flops import UnitFlops, step_flops_by_units_frozen, unit_flops
from composer_freezeout.costs.saving import (
    in_stages,
    interpolated,
    paper_costs,
)
from composer_freezeout.costs.seconds import counts_to_measure, profile_steps
from composer_freezeout.freezing.execution.compilation import is_compiled, stage_limit
from composer_freezeout.freezing.observing.units import Unit
from composer_freezeout.method.schedule import freeze_stages
from composer_freezeout.plan.batches import _data
from composer_freezeout.plan.caveats import _with_warnings
from composer_freezeout.plan.components import _components, _device, _is_as_asked, _partition
from composer_freezeout.plan.cost_models import _prediction
from composer_freezeout.plan.epochs import _Clock, _warmup
from composer_freezeout.plan.plan import CostModel, Plan, PlannedUnit
from composer_freezeout.plan.seconds import _cost_aware, _measured, _unit_seconds
from composer_freezeout.run.config import (
    RunConfig,
)
from composer_freezeout.run.models import build_model
from composer_freezeout.run.registry import constructed

__all__ = ['make_plan']


def make_plan(
    config: RunConfig,
    *,
    target: float | None = None,
    profile_repeats: int | None = 5,
    image_size: int | None = None,
    budget_seconds: float = 30.0,
    every_unit: bool = False,
) -> Plan:
    """Plans FreezeOut for a run. Nothing is trained or downloaded.

    Args:
        config (RunConfig): A checked configuration; without FreezeOut in it, FreezeOut's defaults are planned.
        target (float, optional): A saving, in ``(0, 1)``, to find ``t_0`` for.
        profile_repeats (int, optional): Measured steps for each number of frozen units, in ``[1, ∞)``; None to measure
            nothing. Default: 5.
        image_size (int, optional): Pixels, in ``[1, ∞)``, where there are no data and the file doesn't say.
        budget_seconds (float): About how long the profile may take. Default: 30.
        every_unit (bool): Whether to measure steps with every number of frozen units, at the expense of time: the
            budget is that of the usual ones. Default: ``False``.

    Returns:
        Plan: The plan.

    Raises:
        ConfigError: If the configuration is at fault, or the model can't be run.
    """
    notes: list[str] = []
    index, freezeout, optimizer = _components(config, notes)
    reproducibility.seed_all(config.seed)
    model = build_model(config.model)
    device, precision = _device(config, notes if profile_repeats else [])
    data = _data(config, device, image_size, measure=profile_repeats is not None, notes=notes)
    partition = _partition(model, data.example, freezeout, index)
    units = partition.units
    with constructed(f'algorithms.{index}', vars(freezeout)):
        times = freezeout.freeze_times(len(units), heads=partition.heads)
    flops = [UnitFlops(*_per_sample(unit)) for unit in unit_flops(model, data.example, units)]
    profile = None
    if profile_repeats is not None:
        usual = counts_to_measure(len(units))
        counts = range(len(units)) if every_unit else usual
        profile = profile_steps(
            model,
            data.batch,
            units,
            optimizer.build,
            device=device,
            precision=precision,
            batchnorm=freezeout.settings.batchnorm,
            repeats=profile_repeats,
            budget_seconds=budget_seconds * len(counts) / len(usual),
            counts=counts,
        )

    max_stages = stage_limit(freezeout.settings.max_stages, is_compiled(model))
    stages = freeze_stages(len(units) - partition.heads + 1, max_stages)
    costs: dict[CostModel, list[float]] = {
        'paper': in_stages(paper_costs([unit.forward for unit in flops]), stages),
        'flops': in_stages(_per_sample(step_flops_by_units_frozen(model, data.example, units)), stages),
    }
    cost_aware = None
    if profile is not None:
        steps = {count: step.total for count, step in profile.scaled(config.train_data.batch_size).items()}
        seconds = interpolated(steps, len(units))
        costs['seconds'] = in_stages(seconds, stages)
        cost_aware = _cost_aware(seconds, costs['seconds'], len(steps) == len(units), freezeout, partition.heads)
    predictions = tuple(
        _prediction(name, cost, freezeout, partition.heads, target, profile) for name, cost in costs.items()
    )
    saving = {prediction.model: prediction.saving for prediction in predictions}
    as_asked = profile is not None and _is_as_asked(config, device, precision)
    measured = profile and _measured(profile, config, costs['seconds'], data.loading, times)

    stretch = 1 / (1 - saving['flops']) if freezeout.const_time else 1.0
    if freezeout.const_time:
        notes.append(
            f'const_time: the run is {stretch:.3f} times as long as {config.max_duration}, and freeze epochs are those '
            'of the longer run'
        )
    warmup = _warmup(config, freezeout, data.batches_per_epoch, stretch, notes)
    plan = Plan(
        run_name=config.run_name,
        duration=config.max_duration,
        batch_size=config.train_data.batch_size,
        image_shape=data.image_shape,
        algorithm=index,
        t_0=freezeout.settings.t_0,
        how_scale=freezeout.settings.how_scale,
        scale_lr=freezeout.settings.scale_lr,
        unit_costs=None if freezeout.settings.unit_costs is None else tuple(freezeout.settings.unit_costs),
        cost_shift=freezeout.settings.cost_shift,
        warmup=warmup,
        stages=len(stages) - 1,
        heads=partition.heads,
        units=_planned_units(
            _sizes(model, units),
            flops,
            _unit_seconds(profile, config.train_data.batch_size, len(units)),
            times,
            stages,
            _Clock(config, data, stretch),
        ),
        predictions=predictions,
        relied_on='seconds' if as_asked else 'flops',
        target=target,
        measured=measured,
        cost_aware=cost_aware,
        notes=tuple(notes),
        warnings=(),
    )
    return _with_warnings(plan, partition)


# --- what the file says


# --- data


def _per_sample(of_example: Sequence[int]) -> list[int]:
    return [flops // 2 for flops in of_example]


# --- what it comes to


def _sizes(model: ComposerModel, units: Sequence[Unit]) -> dict[str, int]:
    return {unit.name: sum(model.get_parameter(name).numel() for name in unit.parameters) for unit in units}


def _planned_units(
    sizes: Mapping[str, int],
    flops: Sequence[UnitFlops],
    seconds: Sequence[tuple[float | None, float | None]],
    times: Sequence[float],
    stages: Sequence[int],
    clock: _Clock,
) -> tuple[PlannedUnit, ...]:
    whole = sum(sum(unit) for unit in flops)
    planned = []
    for index, (name, size) in enumerate(sizes.items()):
        stage = next((stage for stage in stages if stage > index), None)
        freezes_at = 1.0 if stage is None else times[stage - 1]
        planned.append(
            PlannedUnit(
                name=name.removeprefix('module.'),
                parameters=size,
                forward_flops=flops[index].forward,
                step_share=sum(flops[index]) / whole,
                forward_seconds=seconds[index][0],
                backward_seconds=seconds[index][1],
                t_i=times[index],
                freezes_at=freezes_at,
                freeze_epoch=clock.epoch(freezes_at),
            )
        )
    return tuple(planned)


# --- where it doesn't pay
