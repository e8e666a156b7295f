"""One run of a frozen layer, by itself or as one with the norm behind it."""

import operator
from typing import Any

import torch
from torch import Tensor

from composer_freezeout.freezing.prefix.fold import Fold

__all__ = ['LayerRun']


class LayerRun:
    """One run of a frozen layer.

    Args:
        layer (nn.Module): The layer.
        inputs (Tensor): What it has run on.
        fold (Fold, optional): What it is to be folded with; None if it is to run by itself.
    """

    __slots__ = ('_dtype', '_from', '_versions', 'fold', 'layer', 'value')

    def __init__(self, layer: Any, inputs: Tensor, fold: Fold | None) -> None:
        self.layer = layer
        self.fold = fold
        value = None if fold is None else fold.run(inputs)
        if value is None:
            self.fold, value = None, type(layer).forward(layer, inputs)
        self.value: Tensor = value
        # Kept to run the layer once more if someone else than the norm reads its output.
        self._from = inputs, *layer._parameters.values()
        self._versions = [*map(_version_of, self._from)]
        self._dtype = value.dtype

    @property
    def is_as_before(self) -> bool:
        """Whether what the layer was computed from is the same."""
        return [*map(_version_of, self._from)] == self._versions

    def alone(self) -> Tensor:
        """What the layer gives.

        Raises:
            RuntimeError: If it was folded, and what it was computed from is not the same any more.
        """
        if self.fold is None:
            return self.value
        if not self.is_as_before:
            raise RuntimeError(
                'what a frozen layer gives is read by others than in earlier passes, and what it was computed from has '
                'been changed in place; use fuse_frozen=False'
            )
        return self._convolved(self.fold, *self._from)

    def with_norm(self, fold: Fold) -> Tensor | None:
        """What the layer and a norm give as the norm is now; None if that can't be computed any more."""
        same = all(map(operator.is_, self._from[1:], self.layer._parameters.values()))
        if not same or not self.is_as_before or not fold.refold():
            return None
        return self._convolved(fold, self._from[0], fold.weight, fold.bias)

    def _convolved(self, fold: Fold, inputs: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        # In the precision in which the layer has run, as autocast may have been switched since.
        kind, lower = inputs.device.type, self._dtype != weight.dtype
        with torch.autocast(kind, dtype=self._dtype if lower else None, enabled=lower):
            return fold.convolve(inputs, weight, bias)


def _version_of(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor._version
