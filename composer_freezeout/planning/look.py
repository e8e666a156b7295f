"""Looks at the run of a YAML file that is planned: makes its model, its batches and its units."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from composer.models import ComposerModel
from composer.utils import reproducibility

from composer_freezeout.costs.activations import saved_bytes
from composer_freezeout.costs.batches import samples_of
from composer_freezeout.freezing.execution.find import execution_of
from composer_freezeout.planning.batches import Batches, look_at_data, size_path
from composer_freezeout.planning.components import components_of, partition_of, place_note, place_to_measure
from composer_freezeout.planning.looked import Looked, ToMeasure, schedule_of
from composer_freezeout.run.config import Component, RunConfig
from composer_freezeout.run.data_config import OwnData
from composer_freezeout.run.faults import ConfigError, Fault
from composer_freezeout.run.memory import check_memory
from composer_freezeout.run.models import build_model
from composer_freezeout.run.new_head import head_line, new_head
from composer_freezeout.run.weights import load_weights

__all__ = ['look_at']


def look_at(
    config: RunConfig, image_size: int | None = None, *, measure: bool = True, settings: Mapping[str, Any] | None = None
) -> Looked:
    """Makes what the file describes, and looks at it. Nothing is trained or downloaded.

    Args:
        config (RunConfig): A checked configuration; without FreezeOut in it, FreezeOut's defaults are planned.
        image_size (int, optional): Pixels, in ``[1, ∞)``, where there are no data and the file doesn't say.
        measure (bool): Whether steps and loading are to be measured.
        settings (Mapping[str, Any], optional): Arguments of FreezeOut that stand in place of those of the file.

    Returns:
        Looked: What there is.

    Raises:
        ConfigError: If the configuration is at fault, or the model can't be run.
    """
    components = components_of(config, settings)
    reproducibility.seed_all(config.seed)
    model = build_model(config.model)
    components = components.with_head(*_head_of(config, model))
    place = place_to_measure(config)
    batches = look_at_data(config, place.device, image_size, measure=measure)
    _check_step(model, batches, config)
    partition = partition_of(model, batches.example, components)
    try:
        schedule = schedule_of(components.freezeout.settings, partition, execution_of(model))
    except ValueError as error:
        # How many units there are only the model shows.
        raise ConfigError([Fault(f'algorithms.{components.index}.unit_costs', str(error))]) from error
    to_measure = ToMeasure(batches.batch, components.optimizer.build, place, batches.loading) if measure else None
    return Looked(
        name=config.run_name,
        duration=config.max_duration,
        batch_size=config.train_data.batch_size,
        batches_per_epoch=batches.per_epoch,
        freezeout=components.freezeout,
        algorithm=components.index,
        model=model,
        example=batches.example,
        sample_shape=batches.image_shape,
        partition=partition,
        units=partition.units,
        names=tuple(unit.name.removeprefix('module.') for unit in partition.units),
        learning_rates=(components.learning_rates,) * len(partition.units),
        schedule=schedule,
        to_measure=to_measure,
        notes=(*components.notes, *(place_note(place, config) if measure else ()), *batches.notes),
    )


def _head_of(config: RunConfig, model: ComposerModel) -> tuple[list[str] | None, tuple[str, ...]]:
    """What new layers the run's weights leave to train to the end, and what to know of it."""
    source, weights = config.model.weights, None
    if source is None:
        return None, ()
    if not any(entry.name == 'freezeout' for entry in config.algorithms):
        config = config.model_copy(update={'algorithms': [Component(name='freezeout')]})
    if not config.resumes_itself:
        if not Path(source).exists():
            note = f'{source!r} is not here, and not read; layers that it lacks train to the end as the head'
            return None, (note,)
        weights = load_weights(model, config.model.name, source, 'model.weights')
    head = new_head(config, model, weights)
    return head, () if head is None else (head_line(head),)


def _check_step(model: ComposerModel, batches: Batches, config: RunConfig) -> None:
    samples, shape = samples_of(batches.example), 'x'.join(map(str, batches.image_shape[-2:]))
    own = isinstance(config.train_data, OwnData)
    what = f'the activations of {samples} {"samples" if own else "images"} of {shape}'
    path, remedy = ('train_data', 'smaller samples') if own else (size_path(config.train_data), 'smaller images')
    check_memory(saved_bytes(model, batches.example), path, what, f'choose {remedy}')
