"""Reentrant activation checkpoints behind a frozen prefix.

Such a checkpoint computes the gradients of its parameters only if one of its inputs requires a gradient, which what
comes out of a frozen layer does not. Torch's other kind of checkpoint doesn't ask for that, and computes the same.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction, checkpoint

__all__ = ['Nonreentrant', 'nonreentrant']


class Nonreentrant:
    """Runs reentrant checkpoints as non-reentrant ones, between :meth:`enter` and :meth:`leave`.

    Args:
        all_of_them (bool): Whether those whose inputs require a gradient are run so, too.
    """

    def __init__(self, all_of_them: bool = False) -> None:
        self._all = all_of_them
        self._before: list[Any] = []

    def enter(self) -> None:
        """Stands in for torch's function from now on."""
        self._before.append(vars(CheckpointFunction).get('apply'))
        CheckpointFunction.apply = staticmethod(self._apply)  # pyright: ignore[reportAttributeAccessIssue]

    def leave(self) -> None:
        """Puts back what was there before. Does nothing if it is there already."""
        if not self._before:
            return
        if (before := self._before.pop()) is None:
            del CheckpointFunction.apply
        else:
            CheckpointFunction.apply = before

    def _apply(self, function: Any, preserve_rng_state: bool, *args: Any) -> Any:
        required = any(isinstance(value, Tensor) and value.requires_grad for value in args)
        if torch.is_grad_enabled() and (self._all or not required):
            return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state)
        return super(CheckpointFunction, CheckpointFunction).apply(function, preserve_rng_state, *args)


@contextlib.contextmanager
def nonreentrant() -> Iterator[None]:
    """Runs all reentrant checkpoints inside as non-reentrant ones, which ``torch.autograd.grad`` works with."""
    stand_in = Nonreentrant(all_of_them=True)
    stand_in.enter()
    try:
        yield
    finally:
        stand_in.leave()
