"""Makes a plan of a run that was looked at: counts its FLOPs, measures its steps, and says what freezing saves.

Costs come from three models (:mod:`composer_freezeout.planning.cost_models`). Nothing here says what freezing costs in
accuracy.
"""

from collections.abc import Sequence
from dataclasses import replace

from composer_freezeout.costs.batches import samples_of
from composer_freezeout.costs.flops import UnitFlops, step_flops_by_units_frozen, unit_flops
from composer_freezeout.costs.seconds import StepProfile, counts_to_measure, profile_steps
from composer_freezeout.planning.caveats import warnings_of
from composer_freezeout.planning.content import Measured, PlannedUnit, Prediction
from composer_freezeout.planning.cost_models import Counted, predict
from composer_freezeout.planning.epochs import Epochs, warmup_end
from composer_freezeout.planning.looked import Looked, ToMeasure
from composer_freezeout.planning.measured import cost_aware, how_measured, unit_seconds
from composer_freezeout.planning.plan import Plan

__all__ = ['make_plan']


def make_plan(
    run: Looked,
    *,
    target: float | None = None,
    repeats: int = 5,
    budget_seconds: float = 30.0,
    every_unit: bool = False,
) -> Plan:
    """Plans FreezeOut for a run. Nothing is trained.

    Args:
        run (Looked): The run.
        target (float, optional): A saving, in ``(0, 1)``, to find ``t_0`` for.
        repeats (int): Measured steps for each number of frozen units, in ``[1, ∞)``, if there is what to measure with.
            Default: 5.
        budget_seconds (float): About how long measuring may take. Default: 30.
        every_unit (bool): Whether to measure steps with every number of frozen units, at the expense of time: the
            budget is that of the usual ones. Default: ``False``.

    Returns:
        Plan: The plan.

    Raises:
        ValueError: If the FLOPs of the model can't be counted.
    """
    profile, measuring = None, run.to_measure
    if measuring is not None:
        profile = _profile(run, measuring, repeats, budget_seconds, every_unit)
    counted = _count(run, profile)
    settings, heads, stages = run.freezeout.settings, run.partition.heads, run.schedule.stages
    predictions = predict(counted, run.freezeout, stages, heads, target)
    stretch, stretch_notes = _stretch(run, predictions)
    warmup, warmup_notes = _warmup(run, stretch)
    epochs = Epochs(run.duration, run.batch_size, run.batches_per_epoch, stretch)
    plan = Plan(
        run_name=run.name,
        duration=run.duration,
        batch_size=run.batch_size,
        image_shape=run.sample_shape,
        algorithm=run.algorithm,
        t_0=settings.t_0,
        how_scale=settings.how_scale,
        scale_lr=settings.scale_lr,
        anneal=settings.anneal,
        unit_costs=None if settings.unit_costs is None else tuple(settings.unit_costs),
        cost_shift=settings.cost_shift,
        warmup=warmup,
        stages=len(stages) - 1,
        heads=heads,
        units=_planned_units(run, counted.units, profile, epochs),
        predictions=predictions,
        relied_on='seconds' if measuring is not None and measuring.place.as_asked else 'flops',
        target=target,
        measured=None if profile is None else _how_measured(run, profile, predictions),
        cost_aware=None if profile is None else cost_aware(profile, run.batch_size, settings, stages, heads),
        notes=(*run.notes, *stretch_notes, *warmup_notes),
        warnings=(),
    )
    return replace(plan, warnings=warnings_of(plan, run.partition))


def _profile(run: Looked, measuring: ToMeasure, repeats: int, budget_seconds: float, every_unit: bool) -> StepProfile:
    usual = counts_to_measure(len(run.units))
    counts = range(len(run.units)) if every_unit else usual
    return profile_steps(
        run.model,
        measuring.batch,
        run.units,
        measuring.make_optimizer,
        device=measuring.place.device,
        precision=measuring.place.precision,
        batchnorm=run.freezeout.settings.batchnorm,
        repeats=repeats,
        budget_seconds=budget_seconds * len(counts) / len(usual),
        counts=counts,
    )


def _count(run: Looked, profile: StepProfile | None) -> Counted:
    samples = samples_of(run.example)

    def per_sample(of_example: Sequence[int]) -> list[int]:
        return [flops // samples for flops in of_example]

    return Counted(
        units=[UnitFlops(*per_sample(unit)) for unit in unit_flops(run.model, run.example, run.units)],
        steps=per_sample(step_flops_by_units_frozen(run.model, run.example, run.units)),
        seconds=None if profile is None else profile.scaled(run.batch_size),
        device='' if run.to_measure is None else run.to_measure.place.name,
    )


def _stretch(run: Looked, predictions: Sequence[Prediction]) -> tuple[float, Sequence[str]]:
    """How many times as long the run is as it is said to be."""
    if not run.freezeout.const_time:
        return 1.0, ()
    saving = next(prediction.saving for prediction in predictions if prediction.model == 'flops')
    stretch = 1 / (1 - saving)
    return stretch, [
        f'const_time: the run is {stretch:.3f} times as long as {run.duration}, and freeze epochs are those of the '
        'longer run'
    ]


def _warmup(run: Looked, stretch: float) -> tuple[float, Sequence[str]]:
    """Progress at which the warm-up ends."""
    try:
        return warmup_end(run.duration, run.freezeout.t_warmup, run.batches_per_epoch, stretch), ()
    except ValueError as error:
        return 0.0, [f'the warm-up is left out: {error}']


def _how_measured(run: Looked, profile: StepProfile, predictions: Sequence[Prediction]) -> Measured:
    step_costs = next(prediction.step_costs for prediction in predictions if prediction.model == 'seconds')
    loading = None if run.to_measure is None else run.to_measure.loading
    return how_measured(profile, run.batch_size, step_costs, loading, run.schedule.times)


def _planned_units(
    run: Looked, flops: Sequence[UnitFlops], profile: StepProfile | None, epochs: Epochs
) -> tuple[PlannedUnit, ...]:
    whole, times = sum(sum(unit) for unit in flops), run.schedule.times
    seconds = [(None, None)] * len(run.units) if profile is None else unit_seconds(profile, run.batch_size)
    planned = []
    for index, unit in enumerate(run.units):
        stage = next((stage for stage in run.schedule.stages if stage > index), None)
        freezes_at = 1.0 if stage is None else times[stage - 1]
        planned.append(
            PlannedUnit(
                name=run.names[index],
                parameters=sum(run.model.get_parameter(name).numel() for name in unit.parameters),
                forward_flops=flops[index].forward,
                step_share=sum(flops[index]) / whole if whole else 0.0,
                forward_seconds=seconds[index][0],
                backward_seconds=seconds[index][1],
                t_i=times[index],
                freezes_at=freezes_at,
                freeze_epoch=epochs.epoch(freezes_at),
                freeze_batch=epochs.batch(freezes_at),
                learning_rates=run.learning_rates[index],
            )
        )
    return tuple(planned)
