"""What a new optimizer of the same kind does, as tried on tensors that are thrown away.

An optimizer's state belongs to its class: what it holds of a parameter that was never stepped, and whether it heeds the
learning rates of its param groups, is found by making another instance of the class and looking.
"""

import copy
import inspect
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from composer_freezeout.freezing.observing.snapshot import random_states_put_back

__all__ = ['FreshStates', 'another_group', 'are_equal', 'rates_without_effect']

_RATE = 0.01
_SIDE = 4  # of the tensors that are tried, in each dimension


def rates_without_effect(optimizer: Optimizer, group: Mapping[str, Any]) -> str | None:
    """Tries whether param groups of an optimizer can have learning rates of their own.

    Args:
        optimizer (Optimizer): The optimizer, which is left alone.
        group (Mapping[str, Any]): A param group, for its hyperparameters and the device of its parameters.

    Returns:
        str | None: What stands against it, as a sentence about the class; None if nothing does, or if it cannot be
        tried, as for optimizers that are made from other things than parameters or that need a closure.
    """
    name = type(optimizer).__name__

    def run(*rates: float, split: bool = True) -> list[Tensor]:
        return _stepped_in_two(optimizer, group, rates, split)

    device = group['params'][0].device
    with _unnoticed(device):
        try:
            _, moved = run(1, 1, 1, split=False)
            if not moved.any():
                return None
        except Exception:  # whatever another's code raises where it is not meant to be used like this
            return None
        try:
            constant, annealed = run(1, 1, 1), run(1, 0.5, 0)
        except Exception as error:
            return f'{name} takes no param groups of different learning rates, one of them 0 ({error})'
    if not constant[1].any():
        return f'{name} steps no other param groups than those that it was made with'
    if torch.equal(constant[1], annealed[1]):
        return f'the learning rate of a param group has no effect on what {name} does after its first step'
    return None


def another_group(group: Mapping[str, Any], **own: Any) -> dict[str, Any]:
    """A param group with the hyperparameters of another one.

    What can be written to is copied, as some optimizers keep intermediate results of a group in a list.

    Args:
        group (Mapping[str, Any]): The other group.
        **own: What is its own, ``params`` first of all.
    """
    kept = {key: value for key, value in group.items() if key not in own}
    for key, value in kept.items():
        if key != 'params' and isinstance(value, (list, dict)):
            kept[key] = copy.deepcopy(value)
    return kept | own


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
        with _unnoticed(parameter.device):
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
        with _unnoticed(parameter.device):
            if kind not in self._makers:
                self._makers[kind] = self._find_maker(parameter, group)
            make = self._makers[kind]
            return None if make is None else make(self._optimizer, group, parameter)

    def _find_maker(self, parameter: nn.Parameter, group: Mapping[str, Any]) -> '_Maker | None':
        """The first of the makers whose states act as no state does."""
        small = nn.Parameter(_numbers(0, (_SIDE,) * parameter.ndim, parameter))
        try:
            truth = _two_steps(self._optimizer, group, small, None)
        except Exception:  # as above
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
    """What the constructor makes."""
    taken = nn.Parameter(parameter.detach().clone())
    made = _throw_away(optimizer, group, [taken])
    return None if made is None or taken not in made.state else dict(made.state[taken])


def _first_values(optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor) -> dict[str, Any] | None:
    """What stands in each entry first, before the first step makes something else of it."""
    taken = nn.Parameter(parameter.detach().clone())
    made = _throw_away(optimizer, group, [taken])
    if made is None:
        return None
    made.state = _FirstValuesByParameter()
    _take_step(made, [taken], [torch.zeros_like(taken)])
    return made.state.first.get(taken)


def _first_values_of_zeros(optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor) -> dict[str, Any] | None:
    """The same for a parameter of zeros, which weight decay makes no gradient of."""
    return _first_values(optimizer, group, torch.zeros_like(parameter))


def _nones(optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor) -> dict[str, Any] | None:
    """The entries, with nothing in them."""
    return dict.fromkeys(_first_values(optimizer, group, parameter) or ())


def _empty(*_: object) -> dict[str, Any]:
    return {}


def _throw_away(optimizer: Optimizer, group: Mapping[str, Any], parameters: list[nn.Parameter]) -> Any:
    """Another optimizer of the same class with a group's hyperparameters; None if it can't be made from these."""
    try:
        given = {**optimizer.defaults, **group}
        names = [name for name in inspect.signature(type(optimizer)).parameters if name in given and name != 'params']
        values = {name: given[name].clone() if isinstance(given[name], Tensor) else given[name] for name in names}
        return type(optimizer)(parameters, **values)
    except Exception:  # any class may be made in a way of its own
        return None


def _take_step(optimizer: Optimizer, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    # Optimizers without a schedule want to be told that this is training.
    if callable(train := getattr(optimizer, 'train', None)):
        train()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()


def _stepped_in_two(
    optimizer: Optimizer, group: Mapping[str, Any], rates: Sequence[float], split: bool
) -> list[Tensor]:
    """How far two parameters move, if the second one's learning rate goes through some values.

    Args:
        optimizer (Optimizer): An optimizer of the class.
        group (Mapping[str, Any]): The hyperparameters.
        rates (Sequence[float]): Factors of the learning rate, one per step.
        split (bool): Whether each of the two gets a group of its own, once the optimizer is made.
    """
    like = torch.empty(0, device=group['params'][0].device)
    pair = [nn.Parameter(_numbers(seed, (_SIDE, _SIDE), like)) for seed in range(2)]
    before = [parameter.detach().clone() for parameter in pair]
    made = _throw_away(optimizer, group, pair)
    (whole,) = made.param_groups
    rate = max(float(whole['lr']), _RATE)
    if split:
        made.param_groups[:] = [another_group(whole, params=[parameter]) for parameter in pair]
    for step, factor in enumerate(rates):
        for of_one in made.param_groups:
            lr = rate * factor if of_one is made.param_groups[-1] else rate
            of_one['lr'] = torch.full_like(of_one['lr'], lr) if isinstance(of_one['lr'], Tensor) else lr
        _take_step(made, pair, [_numbers(2 + 2 * step + index, (_SIDE, _SIDE), like) for index in range(2)])
    return [parameter.detach() - start for parameter, start in zip(pair, before, strict=True)]


def _two_steps(
    optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor, state: Mapping[str, Any] | None
) -> tuple[Tensor, dict[str, Any]]:
    """A parameter and its state after two steps that begin with a given state, or with none."""
    taken = nn.Parameter(parameter.detach().clone())
    made = _throw_away(optimizer, group, [taken])
    if state is not None:
        # As from a checkpoint: loading casts some entries to the parameter's type.
        groups = made.state_dict()['param_groups']
        made.load_state_dict({'state': {0: {k: _copied(v) for k, v in state.items()}}, 'param_groups': groups})
    for step in range(2):
        _take_step(made, [taken], [_numbers(1 + step, taken.shape, taken)])
    return taken.detach(), dict(made.state[taken]) if taken in made.state else {}


def are_equal(one: Any, other: Any) -> bool:
    """Whether two values, tensors or containers of them are the same to the bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and one.dtype == other.dtype and one.equal(other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(are_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(are_equal, one, other))
    return one == other


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _numbers(seed: int, shape: Iterable[int], like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator).to(like.device, like.dtype)


class _FirstValues(dict[str, Any]):
    """A parameter's state that remembers what has been put into each of its entries first."""

    def __init__(self, first: dict[str, Any], items: Iterable[tuple[str, Any]] = ()) -> None:
        super().__init__()
        self.first = first
        for key, value in items:
            self[key] = value

    def __setitem__(self, key: str, value: Any) -> None:
        self.first.setdefault(key, _copied(value))
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


@contextmanager
def _unnoticed(device: torch.device) -> Iterator[None]:
    """Leaves random states as they are, and says nothing of what other people's classes warn about."""
    with random_states_put_back([device]), warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter('ignore')
        yield
