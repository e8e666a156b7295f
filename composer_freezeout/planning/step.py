"""A training step of any module: from the module and a batch to one loss."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from composer.models import ComposerModel
from torch import Tensor, nn

from composer_freezeout.costs.batches import map_tensors
from composer_freezeout.costs.flops import losses_of
from composer_freezeout.freezing.observing.tensors import tensors_in

__all__ = ['Step', 'check_step']


class Step(ComposerModel):
    """A module with its loss, in the shape that costs are counted of: called on a batch, it gives the loss.

    Its parameters are those of the module, with ``module.`` in front of their names.

    Args:
        module (nn.Module): The module, which is not changed.
        loss_fn (Callable, optional): From outputs and targets to the loss.
        forward (Callable, optional): From the module and a batch to the loss or the outputs.
    """

    def __init__(
        self,
        module: nn.Module,
        loss_fn: Callable[[Any, Any], Any] | None = None,
        forward: Callable[[nn.Module, Any], Any] | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        # One that is a module, with weights of the classes, say, is copied and moved with the model.
        self.loss_fn = loss_fn
        self._run = forward

    def forward(self, batch: Any) -> Tensor:
        """The loss; outputs stand for it where nobody says what it is.

        Raises:
            ValueError: If it doesn't depend on a trainable parameter.
        """
        # In containers of its own: some models take their labels out of a batch.
        losses = [t for t in tensors_in(_loss_in(self._result(map_tensors(batch, lambda t: t)))) if t.requires_grad]
        if not losses:
            raise ValueError(
                f'nothing that comes of {type(self.module).__name__} and batch depends on a trainable parameter; give '
                'loss_fn, or `forward`, a function from the model and the batch to the loss'
            )
        return losses[0] if len(losses) == 1 and not losses[0].ndim else torch.stack([t.mean() for t in losses]).sum()

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        """What the module gives already."""
        return outputs

    def _result(self, batch: Any) -> Any:
        module: Any = self.module
        if self._run is not None:
            return self._run(module, batch)
        if isinstance(module, ComposerModel):
            return losses_of(module.loss(module(batch), batch))
        if self.loss_fn is not None:
            inputs, targets = batch
            return self.loss_fn(_called(module, inputs), targets)
        return _called(module, batch[0] if isinstance(batch, (tuple, list)) else batch)


def _called(module: Any, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, (tuple, list)) else module(inputs)


def _loss_in(result: Any) -> Any:
    """The loss where a model returns it with its outputs, as those of transformers do."""
    loss = result.get('loss') if isinstance(result, Mapping) else getattr(result, 'loss', None)
    return loss if isinstance(loss, Tensor) else result


def check_step(model: nn.Module, batch: Any, loss_fn: object, forward: object) -> None:
    """Checks what a step is made of.

    Args:
        model (nn.Module): The model.
        batch (Any): An example batch.
        loss_fn (object): As given.
        forward (object): As given.

    Raises:
        TypeError: If one has the wrong type.
        ValueError: If they don't fit.
    """
    for name, function in (('loss_fn', loss_fn), ('forward', forward)):
        if function is not None and not callable(function):
            raise TypeError(f'{name} must be a function, got {type(function).__name__}')
    if loss_fn is not None and forward is not None:
        raise ValueError('forward already gives the loss; leave out loss_fn')
    if loss_fn is not None and isinstance(model, ComposerModel):
        raise ValueError(f'{type(model).__name__} is a ComposerModel and has its own loss; leave out loss_fn')
    dimensions: list[int] = []
    map_tensors(batch, lambda tensor: dimensions.append(tensor.ndim))
    if not any(dimensions):
        raise TypeError(
            'batch must be tensors with the samples in front, in any nesting of lists, tuples and mappings, got '
            f'{type(batch).__name__}; give an example batch, such as next(iter(dataloader))'
        )
    if forward is not None or isinstance(model, ComposerModel):
        return
    parts = len(batch) if isinstance(batch, (tuple, list)) else 1
    if loss_fn is not None and parts != 2:
        raise ValueError(
            f'with loss_fn, batch must be a pair (inputs, targets), got {_kind(batch)}; give forward instead, a '
            'function from the model and the batch to the loss'
        )
    if parts > 2:
        raise ValueError(
            f'batch must be inputs, or a pair (inputs, targets), got {_kind(batch)}; give forward, a function from the '
            'model and the batch to the loss'
        )


def _kind(batch: Any) -> str:
    many = f' of {len(batch)}' if isinstance(batch, (tuple, list)) else ''
    return f'a {type(batch).__name__}{many}'
