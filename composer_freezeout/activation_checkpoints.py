"""Reentrant activation checkpoints behind a frozen prefix.

Such a checkpoint computes the gradients of its parameters only if one of its inputs requires a gradient, which what
comes out of a frozen layer does not. Torch's other kind of checkpoint doesn't ask for that, and computes the same.
"""

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction, checkpoint

__all__ = ['Nonreentrant', 'nonreentrant']

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

    def remove(self) -> None:
        """Puts torch's function back, unless others stand in for it."""
        _stand_ins.discard(self)
        self._depth = 0
        if not _stand_ins and 'apply' in vars(CheckpointFunction):
            del CheckpointFunction.apply

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


def _apply(function: Any, preserve_rng_state: bool, *args: Any) -> Any:
    required = any(isinstance(value, Tensor) and value.requires_grad for value in args)
    if torch.is_grad_enabled() and any(stand_in.serves(required) for stand_in in _stand_ins):
        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state)
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
