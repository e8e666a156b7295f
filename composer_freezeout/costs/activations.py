"""Memory that a training step takes for what its forward pass keeps, counted without data."""

import logging
from typing import Any

from composer.models import ComposerModel
from torch import Tensor, UntypedStorage
from torch.autograd.graph import saved_tensors_hooks

from composer_freezeout.costs.flops import losses_of, on_meta

__all__ = ['saved_bytes']

log = logging.getLogger(__name__)


def saved_bytes(model: ComposerModel, batch: Any) -> int:
    """Bytes that a step keeps for its backward pass. Nothing is computed, and none of this memory is taken.

    Args:
        model (ComposerModel): The model. It is not changed.
        batch (Any): A batch; the bytes are about proportional to its size.

    Returns:
        int: In ``[0, ∞)``; 0 if the model asks for the values of its tensors, so that it cannot be counted.
    """
    sizes: dict[UntypedStorage, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage] = storage.nbytes()
        return tensor

    try:
        model, batch = on_meta(model, batch)
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            losses_of(model.loss(model(batch), batch))
    except Exception as error:
        log.debug('the memory of a step cannot be counted without data: %s', error)
        return 0
    present = {parameter.untyped_storage() for parameter in model.parameters()}
    return sum(size for storage, size in sizes.items() if storage not in present)
