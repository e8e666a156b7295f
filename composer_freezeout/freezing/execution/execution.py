"""How a model runs, and what that needs when units freeze: the seam between freezing and torch's ways of execution.

A new way is a new class with the hooks in which it differs, and a line in :func:`.execution_of`.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from torch.compiler import set_stance
from torch.distributed.tensor import DTensor

from composer_freezeout.freezing.execution.ranks import agree_on_buffers

__all__ = ['Eager', 'Execution']


class Execution:
    """The hooks, as they are for a model that runs as it stands there, in one process or in several.

    Args:
        model (nn.Module): The model as it is trained, with its data-parallel wrapper.

    Attributes:
        shows_steps (bool): Whether a step of the training can be watched; if not, a pass of its own shows the units.
        runs_as_written (bool): Whether the forward methods of its modules run as they stand there, on whole tensors.
        runs_hooks (bool): Whether hooks can be put on and taken off while it trains.
    """

    shows_steps = True
    runs_as_written = True
    runs_hooks = True

    def __init__(self, model: nn.Module) -> None:
        self._model: Any = model

    @property
    def module(self) -> nn.Module:
        """The model itself, without a wrapper."""
        return self._model

    @property
    def counts_flops(self) -> bool:
        """Whether FLOPs can be counted on a copy of the model; shards can't be copied to where there is no data."""
        return not any(isinstance(parameter, DTensor) for parameter in self.module.parameters())

    def stage_limit(self, max_stages: int | None) -> int | None:
        """How often units may freeze.

        Args:
            max_stages (int, optional): What the user says.

        Returns:
            int, optional: None for no limit.
        """
        return max_stages

    @contextlib.contextmanager
    def rehearsing(self) -> Iterator[None]:
        """Around a forward pass that is not one of training, and has no backward pass."""
        # Parts that are compiled, or that a compiled version outside shares, would hide their operators.
        with set_stance('force_eager'):
            yield

    def after_freeze(self, settled: Sequence[nn.Module]) -> None:
        """Lets what surrounds the model know that other parameters are trainable now.

        Args:
            settled (Sequence[nn.Module]): Modules whose buffers stand still from now on.
        """
        agree_on_buffers(settled)

    def metrics(self) -> dict[str, float]:
        """What is worth logging of it, by name."""
        return {}


class Eager(Execution):
    """A model that runs as it stands there."""
