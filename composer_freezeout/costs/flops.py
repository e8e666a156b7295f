"""FLOPs of training steps, counted on the real model by torch's counter.

Nothing is assumed about how the backward pass compares to the forward pass, or about what a layer costs. A
multiplication and an addition count as two operations; operators that torch's counter doesn't know (normalisation,
activations, pooling, the optimizer) count as none.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from composer.models import ComposerModel
from composer.utils import ensure_tuple
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from composer_freezeout.costs.batches import map_tensors
from composer_freezeout.freezing.observing.graph import leaves_of
from composer_freezeout.freezing.observing.snapshot import random_states_put_back
from composer_freezeout.freezing.observing.units import Unit
from composer_freezeout.freezing.prefix.activation_checkpoints import nonreentrant

__all__ = ['UnitFlops', 'losses_of', 'on_copy', 'on_meta', 'step_flops', 'step_flops_by_units_frozen', 'unit_flops']

log = logging.getLogger(__name__)

T = TypeVar('T')


class UnitFlops(NamedTuple):
    """FLOPs of one unit in one training step.

    Attributes:
        forward (int): Of the forward pass, in ``[0, ∞)``.
        grad_input (int): Of the gradient of what the unit reads, which units before it need.
        grad_weight (int): Of the gradient of its own parameters.
    """

    forward: int
    grad_input: int
    grad_weight: int


def on_meta(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    """A copy whose tensors have shapes but no data: its operators are counted, not computed.

    Args:
        model (nn.Module): The model. It is not changed.
        batch (Any): A batch, in any nesting of tensors.

    Returns:
        tuple[Any, Any]: The copy of the model, in training mode, and that of the batch.
    """
    duplicate = _copy_of(model).to('meta').train()
    return duplicate, map_tensors(batch, lambda tensor: tensor.to('meta'))


def on_copy(model: nn.Module, batch: Any, count: Callable[[Any, Any], T]) -> T:
    """Counts on a copy: without data, and with them where the model asks for their values.

    Args:
        model (nn.Module): The model. It is not changed.
        batch (Any): A batch, in any nesting of tensors.
        count (Callable[[Any, Any], T]): From the copies of the model, in training mode, and of the batch to a count.

    Returns:
        T: The count.
    """
    try:
        return count(*on_meta(model, batch))
    except Exception as error:
        log.debug('FLOPs cannot be counted without data (%s); they are counted with them', error)
    with random_states_put_back(p.device for p in model.parameters()):
        return count(_copy_of(model).train(), copy.deepcopy(batch))


def step_flops(model: ComposerModel, batch: Any) -> int:
    """FLOPs of one forward and backward pass, with what is trainable now.

    Args:
        model (ComposerModel): The model; its gradients are cleared.
        batch (Any): A batch; FLOPs are proportional to its size.

    Returns:
        int: In ``[0, ∞)``.
    """
    with FlopCounterMode(display=False) as counter:
        sum(loss.mean() for loss in losses_of(model.loss(model(batch), batch))).backward()  # pyright: ignore
    model.zero_grad()
    return counter.get_total_flops()


def forward_flops(model: ComposerModel, batch: Any) -> int:
    """FLOPs of one forward pass, with the loss.

    Args:
        model (ComposerModel): The model.
        batch (Any): A batch; FLOPs are proportional to its size.

    Returns:
        int: In ``[0, ∞)``.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.loss(model(batch), batch)
    return counter.get_total_flops()


def step_flops_by_units_frozen(model: ComposerModel, batch: Any, units: Sequence[Unit]) -> list[int]:
    """FLOPs of a training step with the first ``k`` units frozen, for each ``k``.

    Args:
        model (ComposerModel): The model, with nothing frozen by an algorithm yet. It is not changed.
        batch (Any): An example batch, two samples suffice.
        units (Sequence[Unit]): Its ``n`` units, first to freeze first.

    Returns:
        list[int]: ``n`` numbers, for ``k`` from 0 to ``n - 1``, descending.
    """
    forward, backward = _count_on_copy(model, batch, units)
    return [sum(cost for cost, _ in forward) + cost for cost in backward]


def unit_flops(model: ComposerModel, batch: Any, units: Sequence[Unit]) -> list[UnitFlops]:
    """FLOPs of each unit in one training step, by what they are spent on.

    Operators without parameters (attention's products) belong to the unit before them. The gradient of a weight takes
    as many FLOPs as the product with it; what else freezing a unit saves is the next unit's gradient of its input.

    Args:
        model (ComposerModel): The model, with nothing frozen by an algorithm yet. It is not changed.
        batch (Any): An example batch, two samples suffice.
        units (Sequence[Unit]): Its ``n`` units, first to freeze first.

    Returns:
        list[UnitFlops]: ``n`` rows. They add up to :func:`step_flops`; the first unit's ``grad_input`` is 0.
    """
    forward, backward = _count_on_copy(model, batch, units)
    weights = [weight for _, weight in forward]
    inputs = [0, *(now - after - weight for now, after, weight in zip(backward, backward[1:], weights, strict=False))]
    # Behind the last unit's weights: a loss with products of its own.
    inputs[-1] += backward[-1] - weights[-1]
    return [UnitFlops(cost, i, w) for (cost, w), i in zip(forward, inputs, strict=True)]


def _count_on_copy(model: ComposerModel, batch: Any, units: Sequence[Unit]) -> tuple[list[tuple[int, int]], list[int]]:
    """Counts without data or with them.

    Raises:
        ValueError: If neither works.
    """
    try:
        return on_copy(model, batch, partial(_count, units=units))
    except Exception as error:
        message = ' '.join(str(error).split())[:200]
        raise ValueError(
            f'FLOPs cannot be counted on a copy of {type(model).__name__} ({type(error).__name__}: {message}); use '
            'const_time=False, and max_duration for as long as the training is to take'
        ) from error


def _copy_of(model: nn.Module) -> Any:
    # Activations that a model has put aside can't be copied; the copy makes its own.
    aside = {
        id(value): value.detach()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    duplicate = copy.deepcopy(model, aside)
    for module in duplicate.modules():
        # A compiled method that stands in the instance is still that of the original.
        if hasattr(vars(module).get('forward'), '_torchdynamo_orig_callable'):
            del module.forward
    return duplicate


def losses_of(loss: Any) -> list[Tensor]:
    """The losses that a Trainer adds up and goes back from.

    Args:
        loss (Any): What ``model.loss`` returns: a tensor, several, or a dictionary of them, in which ``'total'`` stands
            for all.

    Returns:
        list[Tensor]: At least one.
    """
    if isinstance(loss, dict) and 'total' in loss:
        return [loss['total']]
    return list(ensure_tuple(loss))


def _count(model: ComposerModel, batch: Any, units: Sequence[Unit]) -> tuple[list[tuple[int, int]], list[int]]:
    """Forward FLOPs of each unit (all, and those with its weights), and the backward pass's by units frozen."""
    parameters = [[model.get_parameter(name) for name in unit.parameters] for unit in units]
    with (
        nonreentrant(),
        FlopCounterMode(display=False) as counter,
        _AttributeToUnits(counter, parameters) as attributed,
    ):
        loss = torch.stack([loss.mean() for loss in losses_of(model.loss(model(batch), batch))]).sum()
    # What the model asks a gradient for itself, such as its input, it goes on asking for.
    owned = {id(parameter) for of_unit in parameters for parameter in of_unit}
    others = [leaf for leaf in leaves_of([loss]) if id(leaf) not in owned]
    backward = []
    for frozen in range(len(units)):
        trainable = [parameter for of_unit in parameters[frozen:] for parameter in of_unit]
        # One graph serves all: autograd follows only the paths that lead to what it is asked for.
        with FlopCounterMode(display=False) as counter:
            torch.autograd.grad(loss, trainable + others, retain_graph=True, allow_unused=True)
        backward.append(counter.get_total_flops())
    return list(zip(attributed.all, attributed.weights, strict=True)), backward


class _AttributeToUnits(TorchDispatchMode):
    """Tells which unit's parameters the operators read that a counter, entered before, is counting."""

    def __init__(self, counter: FlopCounterMode, parameters: Sequence[Sequence[Tensor]]):
        super().__init__()
        self.all = [0] * len(parameters)
        self.weights = [0] * len(parameters)
        self._counter = counter
        self._unit_of = {_storage(p): index for index, of_unit in enumerate(parameters) for p in of_unit}
        self._current = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self._counter.get_total_flops()
        result = func(*args, **(kwargs or {}))
        flops = self._counter.get_total_flops() - before
        if flops:
            read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            units = [self._unit_of[_storage(tensor)] for tensor in read if _storage(tensor) in self._unit_of]
            self._current = max(units, default=self._current)
            self.all[self._current] += flops
            self.weights[self._current] += flops if units else 0
        return result


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
