"""Batches of any kind: tensors in any nesting of mappings and sequences, with the samples in front."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

__all__ = ['first_samples', 'map_tensors', 'samples_of']


def map_tensors(batch: Any, function: Callable[[Tensor], Any]) -> Any:
    """A batch with a function of each of its tensors in their places.

    Args:
        batch (Any): The batch.
        function (Callable[[Tensor], Any]): From a tensor to what stands in its place.

    Returns:
        Any: Mappings as dictionaries, sequences as they were; what is no tensor stays as it is.
    """
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {key: map_tensors(value, function) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        parts = [map_tensors(value, function) for value in batch]
        return type(batch)(*parts) if hasattr(batch, '_fields') else type(batch)(parts)
    return batch


def first_samples(batch: Any, samples: int) -> Any:
    """The first samples of a batch.

    Args:
        batch (Any): The batch.
        samples (int): How many, in ``[1, ∞)``.

    Returns:
        Any: Views of its tensors; a tensor without dimensions stays as it is.
    """
    return map_tensors(batch, lambda tensor: tensor[:samples] if tensor.ndim else tensor)


def samples_of(batch: Any) -> int:
    """Samples of a batch: the length of its first tensor."""
    sizes: list[int] = []
    map_tensors(batch, lambda tensor: sizes.append(len(tensor)) if tensor.ndim else None)
    return sizes[0]
