"""The pairs of a layer and the norm behind it that can run as one layer, and how the two become one.

Behind a convolution or a linear layer with weight ``W`` and bias ``b``, a BatchNorm that normalises by its running
statistics is that layer with weight ``W·γ/√(σ² + ε)`` and bias ``β + (b − μ)·γ/√(σ² + ε)``.

A new kind of layer goes into :data:`LAYERS`, and a new kind of norm, with the function that folds it, into
:data:`NORMS`.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ['LAYERS', 'NORMS', 'Fold', 'fold_batchnorm']


def fold_batchnorm(layer: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias with which a layer does what the BatchNorm behind it does in evaluation, too.

    Args:
        layer (nn.Module): A convolution or linear layer; weight of shape ``(channels, …)``.
        norm (nn.Module): A BatchNorm of as many channels, with running statistics.

    Returns:
        tuple[Tensor, Tensor]: Shapes ``(channels, …)`` and ``(channels,)``, in the weight's type and memory format.
    """
    with torch.no_grad():
        # Computed in single precision at least, and rounded once at the end.
        dtype = torch.promote_types(layer.weight.dtype, torch.float32)
        mean, variance = norm.running_mean.to(dtype), norm.running_var.to(dtype)
        scale = (variance + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.to(dtype)
        bias = -mean if layer.bias is None else layer.bias.to(dtype) - mean
        bias = bias * scale
        if norm.bias is not None:
            bias = bias + norm.bias.to(dtype)
        per_channel = scale.view(-1, *[1] * (layer.weight.ndim - 1))
        weight = torch.empty_like(layer.weight, requires_grad=False).copy_(layer.weight.to(dtype) * per_channel)
        return weight, bias.to(weight.dtype)


# By layer, the dimensions of its output that has channels second. Subclasses may compute something else.
LAYERS: dict[type[nn.Module], int] = {nn.Linear: 2, nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}

# By norm, the function that gives weight and bias of a layer that does the work of both. Subclasses may differ, too.
NORMS: dict[type[nn.Module], Callable[[Any, Any], tuple[Tensor, Tensor]]] = {
    nn.BatchNorm1d: fold_batchnorm,
    nn.BatchNorm2d: fold_batchnorm,
    nn.BatchNorm3d: fold_batchnorm,
}


class Fold:
    """A layer that does the work of the BatchNorm behind it, too.

    The tensors are folded anew when one that they come from is replaced, or written to other than through its ``data``.
    """

    def __init__(self, layer: Any, norm: Any) -> None:
        self.layer = layer
        self.norm = norm
        self.refolds = 0
        self.convolve: Any = F.linear if isinstance(layer, nn.Linear) else layer._conv_forward
        # Where the tensors are that the folded ones are made of. The norm's count of batches is among them, since it
        # alone shows that statistics were updated: the operator that does so doesn't raise their version.
        self._of_layer = _filled(layer._parameters)
        self._of_norm = _filled(norm._parameters) + _filled(norm._buffers)
        self._sources: list[Tensor] = []
        self._state_of_layer: Any = None
        self._state_of_norm: Any = None
        self._eps = 0.0
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None

    @property
    def fits(self) -> bool:
        """Whether the norm normalises what the layer gives, channel by channel."""
        return self.norm.num_features == self.layer._parameters['weight'].shape[0]

    def is_norm_as_before(self) -> bool:
        """Whether the norm is what it was when it was folded."""
        return _state_of(self._of_norm) == self._state_of_norm and self.norm.eps == self._eps

    def run(self, inputs: Tensor) -> Tensor | None:
        """What the two modules give, with the operators of one; None where a part of them trains.

        Whether the norm has changed is looked at when it is its turn to run, see :meth:`is_norm_as_before`.
        """
        if _state_of(self._of_layer) != self._state_of_layer and not self.refold():
            return None
        return self.convolve(inputs, self.weight, self.bias)

    def refold(self) -> bool:
        """Folds the tensors anew, unless a part of them trains."""
        sources: list[Any] = [tensors.get(key) for tensors, key in (*self._of_layer, *self._of_norm)]
        if any(source is None or source.requires_grad for source in sources):
            return False
        self.weight, self.bias = NORMS[type(self.norm)](self.layer, self.norm)
        # Held on to, so that no new tensor gets the address of one of them and passes for it.
        self._sources = [source.detach() for source in sources]
        self._state_of_layer = _state_of(self._of_layer)
        self._state_of_norm, self._eps = _state_of(self._of_norm), self.norm.eps
        self.refolds += 1
        return True


_about = attrgetter('_version', 'requires_grad')


def _filled(tensors: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """The entries that hold a tensor, each as its dictionary and key."""
    return [(tensors, key) for key, tensor in tensors.items() if tensor is not None]


def _state_of(slots: Sequence[tuple[dict[str, Any], str]]) -> list[Any] | None:
    try:
        found = [tensors[key] for tensors, key in slots]
        # Runs for every layer in every pass, so it takes no line of Python per tensor.
        return [*map(_about, found), *map(Tensor.data_ptr, found)]
    except (AttributeError, KeyError):  # one is missing
        return None
