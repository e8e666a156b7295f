"""Makes a plan: looks at the run of a YAML file, counts its FLOPs, measures its steps, and says what freezing saves.

Costs come from three models (:mod:`composer_freezeout.planning.cost_models`). Nothing here says what freezing costs in
accuracy.
"""

from collections.abc import Sequence
from dataclasses import replace

from composer_freezeout.costs.flops import UnitFlops, step_flops_by_units_frozen, unit_flops
from composer_freezeout.costs.seconds import StepProfile, counts_to_measure, profile_steps
from composer_freezeout.planning.caveats import warnings_of
from composer_freezeout.planning.cost_models import Counted, predict
from composer_freezeout.planning.epochs import Epochs, warmup_end
from composer_freezeout.planning.look import Looked, look_at
from composer_freezeout.planning.measured import cost_aware, how_measured, unit_seconds
from composer_freezeout.planning.plan import Measured, Plan, PlannedUnit, Prediction
from composer_freezeout.run.config import RunConfig

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
    run = look_at(config, image_size, measure=profile_repeats is not None)
    profile = None
    if profile_repeats is not None:
        profile = _profile(run, profile_repeats, budget_seconds, every_unit)
    counted = _count(run, profile)
    heads = run.partition.heads
    predictions = predict(counted, run.components.freezeout, run.stages, heads, target)
    stretch, stretch_notes = _stretch(run, predictions)
    warmup, warmup_notes = _warmup(run, stretch)
    place_notes = run.place.note(config) if profile is not None else ()
    settings = run.settings
    plan = Plan(
        run_name=config.run_name,
        duration=config.max_duration,
        batch_size=run.batch_size,
        image_shape=run.batches.image_shape,
        algorithm=run.components.index,
        t_0=settings.t_0,
        how_scale=settings.how_scale,
        scale_lr=settings.scale_lr,
        unit_costs=None if settings.unit_costs is None else tuple(settings.unit_costs),
        cost_shift=settings.cost_shift,
        warmup=warmup,
        stages=len(run.stages) - 1,
        heads=heads,
        units=_planned_units(run, counted.units, profile, Epochs(config, run.batches.per_epoch, stretch)),
        predictions=predictions,
        relied_on='seconds' if profile is not None and run.place.as_asked else 'flops',
        target=target,
        measured=None if profile is None else _how_measured(run, profile, predictions),
        cost_aware=None if profile is None else cost_aware(profile, run.batch_size, settings, run.stages, heads),
        notes=(*run.components.notes, *place_notes, *run.batches.notes, *stretch_notes, *warmup_notes),
        warnings=(),
    )
    return replace(plan, warnings=warnings_of(plan, run.partition))


def _profile(run: Looked, repeats: int, budget_seconds: float, every_unit: bool) -> StepProfile:
    units = run.partition.units
    usual = counts_to_measure(len(units))
    counts = range(len(units)) if every_unit else usual
    return profile_steps(
        run.model,
        run.batches.batch,
        units,
        run.components.optimizer.build,
        device=run.place.device,
        precision=run.place.precision,
        batchnorm=run.settings.batchnorm,
        repeats=repeats,
        budget_seconds=budget_seconds * len(counts) / len(usual),
        counts=counts,
    )


def _count(run: Looked, profile: StepProfile | None) -> Counted:
    example, units = run.batches.example, run.partition.units
    return Counted(
        units=[UnitFlops(*_per_sample(unit)) for unit in unit_flops(run.model, example, units)],
        steps=_per_sample(step_flops_by_units_frozen(run.model, example, units)),
        seconds=None if profile is None else profile.scaled(run.batch_size),
        device='GPU' if run.place.device == 'cuda' else 'CPU',
    )


def _per_sample(of_example: Sequence[int]) -> list[int]:
    return [flops // 2 for flops in of_example]


def _stretch(run: Looked, predictions: Sequence[Prediction]) -> tuple[float, Sequence[str]]:
    """How many times as long the run is as the file says."""
    if not run.components.freezeout.const_time:
        return 1.0, ()
    saving = next(prediction.saving for prediction in predictions if prediction.model == 'flops')
    stretch = 1 / (1 - saving)
    return stretch, [
        f'const_time: the run is {stretch:.3f} times as long as {run.config.max_duration}, and freeze epochs are those '
        'of the longer run'
    ]


def _warmup(run: Looked, stretch: float) -> tuple[float, Sequence[str]]:
    """Progress at which the warm-up ends."""
    try:
        return warmup_end(run.config, run.components.freezeout.t_warmup, run.batches.per_epoch, stretch), ()
    except ValueError as error:
        return 0.0, [f'the warm-up is left out: {error}']


def _how_measured(run: Looked, profile: StepProfile, predictions: Sequence[Prediction]) -> Measured:
    step_costs = next(prediction.step_costs for prediction in predictions if prediction.model == 'seconds')
    return how_measured(profile, run.batch_size, step_costs, run.batches.loading, run.times)


def _planned_units(
    run: Looked, flops: Sequence[UnitFlops], profile: StepProfile | None, epochs: Epochs
) -> tuple[PlannedUnit, ...]:
    units, whole = run.partition.units, sum(sum(unit) for unit in flops)
    seconds = [(None, None)] * len(units) if profile is None else unit_seconds(profile, run.batch_size)
    planned = []
    for index, unit in enumerate(units):
        stage = next((stage for stage in run.stages if stage > index), None)
        freezes_at = 1.0 if stage is None else run.times[stage - 1]
        planned.append(
            PlannedUnit(
                name=unit.name.removeprefix('module.'),
                parameters=sum(run.model.get_parameter(name).numel() for name in unit.parameters),
                forward_flops=flops[index].forward,
                step_share=sum(flops[index]) / whole,
                forward_seconds=seconds[index][0],
                backward_seconds=seconds[index][1],
                t_i=run.times[index],
                freezes_at=freezes_at,
                freeze_epoch=epochs.at(freezes_at),
            )
        )
    return tuple(planned)
