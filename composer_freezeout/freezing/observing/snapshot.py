"""Puts back what Python code has changed in some objects."""

import contextlib
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ['Snapshot', 'random_states_put_back']

# What is not looked into: tensors, which others see to, and what is no state.
_LEFT_ALONE = (
    *(Tensor, torch.dtype, torch.device, torch.Size, type(None), bool, int, float, complex, str, bytes),
    *(type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, torch.jit.ScriptModule),
)
_LIBRARIES = ('torch.', 'numpy.')
_DEPTH = 6


@contextlib.contextmanager
def random_states_put_back(devices: Iterable[torch.device]) -> Iterator[None]:
    """Puts back the random states of torch, on the CPU and some other devices, of NumPy and of Python.

    Args:
        devices (Iterable[torch.device]): The devices.
    """
    indices = sorted({device.index for device in devices if device.type == 'cuda'})
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=indices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


class Snapshot:
    """The state of objects: their attributes, and what is in those that are containers, arrays or generators.

    The objects stay the same; what is in them is put back. Tensors are left alone.

    Args:
        values (list[Any]): The objects, such as modules.
    """

    def __init__(self, values: list[Any]) -> None:
        self._restore: list[Callable[[], None]] = []
        self._done: dict[int, Any] = {}  # held on to, as they are known by their identity
        for value in values:
            self._take(value, 0)

    def restore(self) -> None:
        """Puts everything back."""
        for restore in reversed(self._restore):
            restore()

    def _take(self, value: Any, depth: int) -> None:
        if isinstance(value, _LEFT_ALONE) or id(value) in self._done or depth > _DEPTH:
            return
        if isinstance(value, nn.Module) and depth > 0:  # those that are to be put back are given
            return
        self._done[id(value)] = value
        if isinstance(value, (list, deque)):
            self._add(lambda items: (value.clear(), value.extend(items)), list(value), list(value), depth)
        elif isinstance(value, dict):
            self._add(lambda items: _put_back(value, items), dict(value), list(value.values()), depth)
        elif isinstance(value, set):
            self._add(lambda items: (value.clear(), value.update(items)), set(value), [], depth)
        elif isinstance(value, (tuple, frozenset)):
            self._add(None, None, list(value), depth)
        elif isinstance(value, np.ndarray):
            self._add(lambda before: np.copyto(value, before), value.copy(), [], depth)
        elif isinstance(value, torch.Generator):
            self._add(value.set_state, value.get_state(), [], depth)
        elif isinstance(value, random.Random):
            self._add(value.setstate, value.getstate(), [], depth)
        elif isinstance(value, np.random.RandomState):
            self._add(value.set_state, value.get_state(), [], depth)
        elif isinstance(value, np.random.Generator):
            generator = value.bit_generator
            self._add(lambda before: setattr(generator, 'state', before), generator.state, [], depth)
        elif isinstance(value, nn.Module) or not type(value).__module__.startswith(_LIBRARIES):
            own = getattr(value, '__dict__', None)
            if isinstance(own, dict):
                self._take(own, depth)

    def _add(self, put_back: Callable[[Any], Any] | None, before: Any, inside: list[Any], depth: int) -> None:
        for item in inside:
            self._take(item, depth + 1)
        if put_back is not None:
            self._restore.append(lambda: put_back(before) and None)


def _put_back(own: dict[Any, Any], items: dict[Any, Any]) -> None:
    # Never emptied in between, as it may hold the attributes of an object that is in use.
    for name in own.keys() - items.keys():
        del own[name]
    own.update(items)
