"""Finds tensors: those in a value, those within a tensor, and where the numbers of one lie."""

import contextlib
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

__all__ = ['plain_tensors', 'storages_of', 'tensors_in']

# What holds no outputs, and how deep they are looked for.
_PLAIN = (str, bytes, int, float, complex, nn.Module, type, torch.dtype, torch.device, types.ModuleType)
_DEPTH = 8


def plain_tensors(value: Any) -> Iterator[Tensor]:
    """The tensors with a storage in a tensor: itself, or what a subclass wraps; nothing for what is no tensor."""
    # Of tensors that torch.func wraps nobody knows where they lie.
    if not isinstance(value, Tensor) or torch._C._functorch.is_functorch_wrapped_tensor(value):
        return
    if is_traceable_wrapper_subclass(value):
        for name in value.__tensor_flatten__()[0]:
            yield from plain_tensors(getattr(value, name))
    elif value.layout is torch.strided and not value.is_nested:
        yield value


def storages_of(value: Any) -> Iterator[StorageWeakRef]:
    """Where a tensor's numbers lie; nothing for tensors that have no such place."""
    for tensor in plain_tensors(value):
        with contextlib.suppress(RuntimeError, NotImplementedError):
            yield StorageWeakRef(tensor.untyped_storage())


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in what a model is given, or gives back: in containers, dataclasses and other objects."""
    yield from _tensors_in(value, set(), 0)


def _tensors_in(value: Any, done: set[int], depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    if value is None or isinstance(value, _PLAIN) or id(value) in done or depth > _DEPTH:
        return
    done.add(id(value))
    if isinstance(value, Mapping):
        items: Iterable[Any] = value.values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        items = value
    else:
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, '__slots__', ())]
        items = [*getattr(value, '__dict__', {}).values(), *(getattr(value, name, None) for name in slots)]
    for item in items:
        yield from _tensors_in(item, done, depth + 1)
