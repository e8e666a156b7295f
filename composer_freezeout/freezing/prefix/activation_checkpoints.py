"""Activation checkpoints in and behind a frozen prefix.

A reentrant checkpoint computes the gradients of its parameters only if one of its inputs requires a gradient, which
what comes out of a frozen layer does not. Torch's other kind of checkpoint doesn't ask for that, and computes the same.
What a checkpoint of either kind runs is run once more in the backward pass.
"""

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction, _checkpoint_hook, checkpoint

__all__ = ['Nonreentrant', 'is_run_again', 'nonreentrant']

_stand_ins: 'weakref.WeakSet[Nonreentrant]' = weakref.WeakSet()


class Nonreentrant:
    """Runs reentrant checkpoints as non-reentrant ones if none of their inputs requires a gradient.

    Between :meth:`put` and :meth:`remove` it stands in for torch's own function, and is asked within a pass of the
    model, from :meth:`enter` to :meth:`leave`, and in backward passes, where other checkpoints run forward once more.

    Args:
        all_of_them (bool): Whether those whose inputs require a gradient are run so, too.
    """

    def __init__(self, all_of_them: bool = False) -> None:
        self._all = all_of_them
        self._depth = 0

    def put(self) -> None:
        """Stands in for torch's function from now on."""
        _stand_ins.add(self)
        CheckpointFunction.apply = staticmethod(_apply)  # pyright: ignore[reportAttributeAccessIssue]
        torch.utils.checkpoint._checkpoint_hook = _Counted

    def remove(self) -> None:
        """Puts torch's function back, unless others stand in for it."""
        _stand_ins.discard(self)
        self._depth = 0
        if not _stand_ins and 'apply' in vars(CheckpointFunction):
            del CheckpointFunction.apply
            torch.utils.checkpoint._checkpoint_hook = _checkpoint_hook

    def enter(self) -> None:
        """The model begins a forward pass."""
        self._depth += 1

    def leave(self) -> None:
        """The model ends a forward pass."""
        self._depth = max(0, self._depth - 1)

    def serves(self, required: bool) -> bool:
        """Whether a checkpoint is to run as a non-reentrant one.

        Args:
            required (bool): Whether one of its inputs requires a gradient.
        """
        within = self._depth > 0 or torch._C._current_graph_task_id() != -1
        return within and (self._all or not required)


_depth = 0  # of checkpoints that are running forward


def is_run_again() -> bool:
    """Whether what runs now will run once more in a backward pass, as far as a :class:`Nonreentrant` stands in."""
    return _depth > 0


@contextlib.contextmanager
def _counting() -> Iterator[None]:
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


class _Counted(_checkpoint_hook):
    """Torch's own hooks around a non-reentrant checkpoint, which tell that there is one."""

    def __enter__(self) -> None:
        super().__enter__()
        self._count = _counting()
        self._count.__enter__()

    def __exit__(self, *args: Any) -> None:
        self._count.__exit__(None, None, None)
        super().__exit__(*args)


def _apply(function: Any, preserve_rng_state: bool, *args: Any) -> Any:
    required = any(isinstance(value, Tensor) and value.requires_grad for value in args)
    if torch.is_grad_enabled() and any(stand_in.serves(required) for stand_in in _stand_ins):
        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state)
    with _counting():
        return super(CheckpointFunction, CheckpointFunction).apply(function, preserve_rng_state, *args)


@contextlib.contextmanager
def nonreentrant() -> Iterator[None]:
    """Runs all reentrant checkpoints inside as non-reentrant ones, which ``torch.autograd.grad`` works with."""
    stand_in = Nonreentrant(all_of_them=True)
    stand_in.put()
    stand_in.enter()
    try:
        yield
    finally:
        stand_in.remove()
