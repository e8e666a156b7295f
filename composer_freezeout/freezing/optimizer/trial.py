"""What a new optimizer of the same kind does, as tried on tensors that are thrown away.

An optimizer's state belongs to its class: what it holds of a parameter that was never stepped, and whether it heeds the
learning rates of its param groups, is found by making another instance of the class and looking.
"""

import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from composer_freezeout.freezing.observing.snapshot import random_states_put_back

__all__ = ['SIDE', 'another_optimizer', 'copied', 'random_numbers', 'take_step', 'unnoticed']

SIDE = 4  # of the tensors that are tried, in each dimension


def another_optimizer(optimizer: Optimizer, group: Mapping[str, Any], parameters: list[nn.Parameter]) -> Any:
    """Another optimizer of the same class with a group's hyperparameters; None if it can't be made from these."""
    try:
        given = {**optimizer.defaults, **group}
        names = [name for name in inspect.signature(type(optimizer)).parameters if name in given and name != 'params']
        values = {name: given[name].clone() if isinstance(given[name], Tensor) else given[name] for name in names}
        return type(optimizer)(parameters, **values)
    except Exception:  # any class may be made in a way of its own
        return None


def take_step(optimizer: Optimizer, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    """Steps an optimizer with given gradients."""
    # Optimizers without a schedule want to be told that this is training.
    if callable(train := getattr(optimizer, 'train', None)):
        train()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()


def copied(value: Any) -> Any:
    """A copy of a tensor, or anything else as it is."""
    return value.detach().clone() if isinstance(value, Tensor) else value


def random_numbers(seed: int, shape: Iterable[int], like: Tensor) -> Tensor:
    """The same normally distributed numbers whenever asked for, on another tensor's device and of its type."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator).to(like.device, like.dtype)


@contextmanager
def unnoticed(device: torch.device) -> Iterator[None]:
    """Leaves random states as they are, and says nothing of what other people's classes warn about."""
    with random_states_put_back([device]), warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter('ignore')
        yield
