"""The state of parameters that have left an optimizer: none, until someone asks for the state."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from composer_freezeout.freezing.optimizer.fresh_states import FreshStates

__all__ = ['RemovedStates']

_Members = Iterable[tuple[nn.Parameter, Mapping[str, Any]]]
"""Parameters, each with the param group that it belongs to."""


class RemovedStates:
    """Drops the state of parameters, and gives them one as if they had never been stepped.

    Args:
        optimizers (Iterable[Optimizer]): An optimizer and those that it wraps.
    """

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self.fresh = {optimizer: FreshStates(optimizer) for optimizer in optimizers}

    def follow(self, optimizers: Iterable[Optimizer]) -> list[Optimizer]:
        """Sees to other optimizers, too, and returns those that are new."""
        new = [optimizer for optimizer in optimizers if optimizer not in self.fresh]
        self.fresh |= {optimizer: FreshStates(optimizer) for optimizer in new}
        return new

    def drop(self, members: _Members) -> None:
        """Drops the state of some parameters."""
        for parameter, _ in members:
            for optimizer in self.fresh:
                optimizer.state.pop(parameter, None)

    def put_back(self, members: _Members) -> None:
        """Gives some parameters the state that the optimizer's constructor gives them, to be trained again."""
        for parameter, group in members:
            for optimizer, fresh in self.fresh.items():
                if state := fresh.at_construction(parameter, group):
                    optimizer.state[parameter] = state

    def fill_in(self, members: _Members) -> None:
        """Gives some parameters a state to be saved, unless the optimizer has none of any parameter."""
        members = list(members)
        for optimizer, fresh in self.fresh.items():
            for parameter, group in members if optimizer.state else ():
                state = fresh.to_save(parameter, group)
                if state is not None:
                    optimizer.state[parameter] = state
