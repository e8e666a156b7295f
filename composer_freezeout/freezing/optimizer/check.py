"""Checks that an optimizer can have a learning rate per unit."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import LBFGS, Optimizer

from composer_freezeout.freezing.optimizer.nesting import chain_of
from composer_freezeout.freezing.optimizer.param_group import another_group
from composer_freezeout.freezing.optimizer.trial import (
    SIDE,
    another_optimizer,
    random_numbers,
    take_step,
    unnoticed,
)

__all__ = ['check_optimizer']

_RATE = 0.01  # the smallest that is tried


def check_optimizer(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Checks that units can have learning rates of their own.

    Args:
        optimizer (Optimizer): The optimizer.
        parameters (Iterable[nn.Parameter]): The model's trainable parameters.

    Raises:
        ValueError: If it holds none of the parameters, or has no learning rate per group.
    """
    chain = chain_of(optimizer)
    instead = 'use an optimizer with a learning rate per param group, such as SGD or AdamW'
    for inner in chain:
        name = type(inner).__name__
        if isinstance(inner, LBFGS):
            raise ValueError(
                f'{name} has one learning rate for all parameters and would go on moving frozen ones; {instead}'
            )
        if isinstance(inner, ZeroRedundancyOptimizer):
            raise ValueError(
                f'{name} shares out its param groups among the ranks when it is made, so that units could not leave '
                'it; use the optimizer itself, or FSDP to shard its state'
            )
        if not hasattr(inner, '_optimizer_state_dict_pre_hooks'):
            raise ValueError(
                f'{name} does not initialise torch.optim.Optimizer, so that nobody can know when it steps or is saved; '
                f'give FreezeOut the optimizer inside of it if that does all the work, or {instead}'
            )
        for index, group in enumerate(inner.param_groups):
            if not isinstance(group.get('lr'), (int, float, torch.Tensor)):
                raise ValueError(
                    f'lr of param group {index} of {name} must be a number, got {group.get("lr")!r}, with which it '
                    'chooses learning rates of its own; give it a learning rate'
                )
    groups = [group for group in optimizer.param_groups if group['params']]
    listed = {id(parameter) for group in groups for parameter in group['params']}
    if not any(id(parameter) in listed for parameter in parameters):
        raise ValueError(
            "the optimizer holds none of the model's trainable parameters; make it from the `model.parameters()` of"
            ' the model to train'
        )
    problem = rates_without_effect(chain[-1], groups[0])
    if problem is not None:
        raise ValueError(f'{problem}, so FreezeOut cannot anneal its layers one by one; {instead}')


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
    with unnoticed(device):
        try:
            _, moved = run(1, 1, 1, split=False)
            if not moved.any():
                return None
        except Exception:  # an optimizer that can't be used like this may raise anything
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
    pair = [nn.Parameter(random_numbers(seed, (SIDE, SIDE), like)) for seed in range(2)]
    before = [parameter.detach().clone() for parameter in pair]
    made = another_optimizer(optimizer, group, pair)
    (whole,) = made.param_groups
    rate = max(float(whole['lr']), _RATE)
    if split:
        made.param_groups[:] = [another_group(whole, params=[parameter]) for parameter in pair]
    for step, factor in enumerate(rates):
        for of_one in made.param_groups:
            lr = rate * factor if of_one is made.param_groups[-1] else rate
            of_one['lr'] = torch.full_like(of_one['lr'], lr) if isinstance(of_one['lr'], Tensor) else lr
        take_step(made, pair, [random_numbers(2 + 2 * step + index, (SIDE, SIDE), like) for index in range(2)])
    return [parameter.detach() - start for parameter, start in zip(pair, before, strict=True)]
