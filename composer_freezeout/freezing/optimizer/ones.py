"""Tensors of ones in the layout of others."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor

__all__ = ['Ones']


class Ones:
    """Tensors of ones in the layout of others, kept: views of one buffer per device and type."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}
        self._views: dict[tuple[Any, ...], torch.Tensor] = {}

    def like(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Ones in the shape, strides and, if there is one, distribution of each of some tensors.

        Args:
            tensors (Sequence[torch.Tensor]): Tensors of one device and type, at least one.
        """
        layouts = [_layout(tensor) for tensor in tensors]
        if not all(layout in self._views for layout in layouts):
            self._reserve(tensors)
            for layout, tensor in zip(layouts, tensors, strict=True):
                if layout not in self._views:
                    self._views[layout] = self._make(tensor)
        return [self._views[layout] for layout in layouts]

    def _reserve(self, tensors: Sequence[torch.Tensor]) -> None:
        kind = (tensors[0].device, tensors[0].dtype)
        size = max((_extent(tensor) for tensor in tensors if not isinstance(tensor, DTensor)), default=0)
        if kind not in self._buffers or self._buffers[kind].numel() < size:
            # Views would keep the smaller buffer alive.
            self._views = {layout: view for layout, view in self._views.items() if layout[:2] != kind}
            self._buffers[kind] = torch.ones(size, device=kind[0], dtype=kind[1])

    def _make(self, tensor: torch.Tensor) -> torch.Tensor:
        if isinstance(tensor, DTensor):
            return torch.ones_like(tensor, requires_grad=False)
        return self._buffers[tensor.device, tensor.dtype].as_strided(tensor.shape, tensor.stride())


def _layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    distribution = (tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else None
    return tensor.device, tensor.dtype, tensor.shape, tensor.stride(), distribution


def _extent(tensor: torch.Tensor) -> int:
    """Elements of the storage from the first to the last of a tensor."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
