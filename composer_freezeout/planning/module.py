"""Looks at a model of Python that is planned: makes its units, and what its steps are counted and measured with."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from composer_freezeout.algorithm.freezeout import FreezeOut
from composer_freezeout.costs.batches import first_samples, map_tensors, samples_of
from composer_freezeout.freezing.execution.compiled import as_written
from composer_freezeout.freezing.execution.execution import Execution
from composer_freezeout.freezing.execution.find import execution_of
from composer_freezeout.freezing.observing.observation import Observation
from composer_freezeout.freezing.observing.partition import partition_model
from composer_freezeout.freezing.observing.rehearsal import rehearse
from composer_freezeout.freezing.observing.tensors import tensors_in
from composer_freezeout.freezing.observing.units import Unit
from composer_freezeout.freezing.optimizer.check import check_optimizer
from composer_freezeout.planning.looked import Looked, Place, ToMeasure, schedule_of
from composer_freezeout.planning.rates import another_like, learning_rates, not_held
from composer_freezeout.planning.step import Step, check_step

__all__ = ['Training', 'look_at_module']


@dataclass(frozen=True)
class Training:
    """What a user trains.

    Attributes:
        model (nn.Module): The model, which DistributedDataParallel may wrap.
        batch (Any): An example batch.
        optimizer (Optimizer): The optimizer.
        loss_fn (Callable, optional): From outputs and targets to the loss.
        forward (Callable, optional): From the model and the batch to the loss.
    """

    model: nn.Module
    batch: Any
    optimizer: Optimizer
    loss_fn: Callable[[Any, Any], Any] | None
    forward: Callable[[nn.Module, Any], Any] | None


def look_at_module(
    training: Training, freezeout: FreezeOut, duration: str, batches_per_epoch: int | None, *, measure: bool
) -> Looked:
    """Looks at what a user trains, and leaves it as it was.

    Args:
        training (Training): The model and all that belongs to it.
        freezeout (FreezeOut): The algorithm.
        duration (str): Length of the training, as a Composer time string.
        batches_per_epoch (int, optional): None if it is not known.
        measure (bool): Whether steps are to be measured.

    Returns:
        Looked: What there is.

    Raises:
        TypeError: If the batch holds no tensors.
        ValueError: If the model can't be run, split or counted so.
    """
    execution, optimizer = execution_of(training.model), training.optimizer
    module, settings = execution.module, freezeout.settings
    check_step(module, training.batch, training.loss_fn, training.forward)
    if not execution.counts_flops:
        raise ValueError('the FLOPs of a model that is sharded by FSDP cannot be counted; plan before it is sharded')
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError('the model has no trainable parameter, so there is nothing to freeze')
    check_optimizer(optimizer, parameters.values())
    device = next(iter(parameters.values())).device
    batch = map_tensors(training.batch, lambda tensor: tensor.to(device))
    prefix, written = as_written(module)
    step = Step(written, training.loss_fn, training.forward)
    observed = _observed(execution, step, batch)
    partition = partition_model(module, observed, settings.layers, settings.granularity, settings.head)
    to_measure = None
    if measure:
        place = Place(str(device), 'fp32', as_asked=True)
        to_measure = ToMeasure(batch, another_like(optimizer, parameters, partition.units), place, loading=None)
    compiled = measure and not execution.shows_steps
    note = ('steps are measured as the model is written, not compiled',) if compiled else ()
    return Looked(
        name=type(written).__name__,
        duration=duration,
        batch_size=samples_of(batch),
        batches_per_epoch=batches_per_epoch,
        freezeout=freezeout,
        algorithm=None,
        model=step,
        example=_example(execution, step, batch),
        sample_shape=tuple(_first(batch).shape[1:]),
        partition=partition,
        units=tuple(_in_step(unit, prefix) for unit in partition.units),
        names=tuple(unit.name for unit in partition.units),
        learning_rates=learning_rates(optimizer, parameters, partition.units),
        schedule=schedule_of(settings, partition, execution),
        to_measure=to_measure,
        notes=(*not_held(optimizer, parameters, partition.units), *note),
    )


def _observed(execution: Execution, step: Step, batch: Any) -> Observation:
    try:
        with execution.rehearsing():
            return rehearse(execution.module, lambda: step(batch))
    except (ValueError, NotImplementedError):
        raise
    except Exception as error:
        message = ' '.join(str(error).split())[:300]
        raise ValueError(
            f'{type(step.module).__name__} cannot be run on batch ({type(error).__name__}: {message}); give one '
            'of training, such as next(iter(dataloader)), or forward, a function from the model and the batch to the '
            'loss'
        ) from error


def _example(execution: Execution, step: Step, batch: Any) -> Any:
    """Two samples, as they may have to be computed to be counted; the whole batch where it can't be divided."""
    example = first_samples(batch, 2)
    try:
        with execution.rehearsing():
            rehearse(execution.module, lambda: step(example))
    except Exception:  # of any model that wants the batch as it is
        return batch
    return example


def _first(batch: Any) -> Tensor:
    return next(tensor for tensor in tensors_in(batch) if tensor.ndim)


def _in_step(unit: Unit, prefix: str) -> Unit:
    """A unit with the names that its parameters and norms have in the step."""

    def named(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f'module.{name.removeprefix(prefix)}' for name in names)

    return replace(unit, parameters=named(unit.parameters), norms=named(unit.norms))
