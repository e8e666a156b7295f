"""The state of parameters that an optimizer has never stepped, as tried on tensors that are thrown away."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from composer_freezeout.freezing.optimizer.param_group import are_equal
from composer_freezeout.freezing.optimizer.trial import (
    SIDE,
    another_optimizer,
    copied,
    random_numbers,
    take_step,
    unnoticed,
)

__all__ = ['FreshStates']


class FreshStates:
    """The state of parameters that an optimizer has never stepped.

    Args:
        optimizer (Optimizer): The optimizer, which is left alone.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._makers: dict[tuple[Any, ...], _Maker | None] = {}

    def at_construction(self, parameter: nn.Parameter, group: Mapping[str, Any]) -> dict[str, Any]:
        """What the optimizer's constructor makes for a parameter; empty for most classes.

        Args:
            parameter (nn.Parameter): The parameter, of any shape.
            group (Mapping[str, Any]): Its param group, for the hyperparameters.
        """
        with unnoticed(parameter.device):
            return _constructed(self._optimizer, group, parameter) or {}

    def to_save(self, parameter: nn.Parameter, group: Mapping[str, Any]) -> dict[str, Any] | None:
        """A state that acts as if there was none, and looks like that of parameters that have been stepped if it can.

        Torch's functions for checkpoints want a state for every parameter, with the same entries for all of them.

        Args:
            parameter (nn.Parameter): The parameter, of any shape.
            group (Mapping[str, Any]): Its param group, for the hyperparameters.

        Returns:
            dict[str, Any] | None: The state; None if the optimizer keeps none.
        """
        hyperparameters = sorted((key, repr(value)) for key, value in group.items() if key not in _NOT_TRIED)
        kind = (parameter.ndim, parameter.dtype, parameter.device, *hyperparameters)
        with unnoticed(parameter.device):
            if kind not in self._makers:
                self._makers[kind] = self._find_maker(parameter, group)
            make = self._makers[kind]
            return None if make is None else make(self._optimizer, group, parameter)

    def _find_maker(self, parameter: nn.Parameter, group: Mapping[str, Any]) -> '_Maker | None':
        """The first of the makers whose states act as no state does."""
        small = nn.Parameter(random_numbers(0, (SIDE,) * parameter.ndim, parameter))
        try:
            truth = _two_steps(self._optimizer, group, small, None)
        except Exception:  # an optimizer that can't be used like this may raise anything
            return _empty
        if not truth[1]:
            return None
        for make in (_constructed, _first_values, _first_values_of_zeros, _nones, _empty):
            try:
                state = make(self._optimizer, group, small)
                if state is not None and are_equal(truth, _two_steps(self._optimizer, group, small, state)):
                    return make
            except Exception:
                continue
        return None


_Maker = Callable[[Optimizer, Mapping[str, Any], Tensor], dict[str, Any] | None]
# Of no influence on which states are fresh, or not the same for long.
_NOT_TRIED = frozenset({'params', 'param_names', 'lr', 'initial_lr'})


def _constructed(optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor) -> dict[str, Any] | None:
    """The state that the constructor makes."""
    taken = nn.Parameter(parameter.detach().clone())
    made = another_optimizer(optimizer, group, [taken])
    return None if made is None or taken not in made.state else dict(made.state[taken])


def _first_values(optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor) -> dict[str, Any] | None:
    """The value that the first step puts into each entry first, before it computes with it."""
    taken = nn.Parameter(parameter.detach().clone())
    made = another_optimizer(optimizer, group, [taken])
    if made is None:
        return None
    made.state = _FirstValuesByParameter()
    take_step(made, [taken], [torch.zeros_like(taken)])
    return made.state.first.get(taken)


def _first_values_of_zeros(optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor) -> dict[str, Any] | None:
    """The same for a parameter of zeros, which weight decay makes no gradient of."""
    return _first_values(optimizer, group, torch.zeros_like(parameter))


def _nones(optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor) -> dict[str, Any] | None:
    """The same entries, each of them None."""
    return dict.fromkeys(_first_values(optimizer, group, parameter) or ())


def _empty(*_: object) -> dict[str, Any]:
    return {}


def _two_steps(
    optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor, state: Mapping[str, Any] | None
) -> tuple[Tensor, dict[str, Any]]:
    """A parameter and its state after two steps that begin with a given state, or with none."""
    taken = nn.Parameter(parameter.detach().clone())
    made = another_optimizer(optimizer, group, [taken])
    if state is not None:
        # As from a checkpoint: loading casts some entries to the parameter's type.
        groups = made.state_dict()['param_groups']
        made.load_state_dict({'state': {0: {k: copied(v) for k, v in state.items()}}, 'param_groups': groups})
    for step in range(2):
        take_step(made, [taken], [random_numbers(1 + step, taken.shape, taken)])
    return taken.detach(), dict(made.state[taken]) if taken in made.state else {}


class _FirstValues(dict[str, Any]):
    """A parameter's state that remembers what has been put into each of its entries first."""

    def __init__(self, first: dict[str, Any], items: Iterable[tuple[str, Any]] = ()) -> None:
        super().__init__()
        self.first = first
        for key, value in items:
            self[key] = value

    def __setitem__(self, key: str, value: Any) -> None:
        self.first.setdefault(key, copied(value))
        super().__setitem__(key, value)

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value


class _FirstValuesByParameter(defaultdict[Tensor, Any]):
    """An optimizer's state of this kind."""

    def __init__(self) -> None:
        super().__init__(dict)
        self.first: dict[Tensor, dict[str, Any]] = {}

    def __missing__(self, parameter: Tensor) -> _FirstValues:
        self[parameter] = {}
        return self[parameter]

    def __setitem__(self, parameter: Tensor, state: Mapping[str, Any]) -> None:
        first = self.first.setdefault(parameter, {})
        super().__setitem__(parameter, _FirstValues(first, state.items()))
