"""What an optimizer says of units: their learning rates, what it doesn't hold, and another one like it."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

from torch import nn
from torch.optim import Optimizer

from composer_freezeout.freezing.observing.units import Unit
from composer_freezeout.freezing.optimizer.param_group import BASE_LR, another_group
from composer_freezeout.freezing.optimizer.splitting import peak_rate
from composer_freezeout.freezing.optimizer.trial import another_optimizer

__all__ = ['another_like', 'learning_rates', 'not_held']


def learning_rates(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], units: Sequence[Unit]
) -> tuple[tuple[float, ...], ...]:
    """The rates that FreezeOut will anneal, for each unit.

    Args:
        optimizer (Optimizer): The optimizer.
        parameters (Mapping[str, nn.Parameter]): The parameters that the names in ``units`` refer to.
        units (Sequence[Unit]): The units.

    Returns:
        tuple[tuple[float, ...], ...]: For each unit those of the groups that hold some of it.
    """
    rates: dict[int, float] = {}
    for index, group in enumerate(optimizer.param_groups):
        split = group.get(BASE_LR)  # by an earlier start of FreezeOut
        rate = peak_rate(group, index, scheduled=False) if split is None else float(split)
        rates |= {id(parameter): rate for parameter in group['params']}
    held = [[id(parameters[name]) for name in unit.parameters if id(parameters[name]) in rates] for unit in units]
    return tuple(tuple(dict.fromkeys(rates[parameter] for parameter in of_unit)) for of_unit in held)


def not_held(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], units: Sequence[Unit]) -> tuple[str, ...]:
    """A note on parameters of units that the optimizer doesn't hold; nothing if it holds all.

    Args:
        optimizer (Optimizer): The optimizer.
        parameters (Mapping[str, nn.Parameter]): The parameters that the names in ``units`` refer to.
        units (Sequence[Unit]): The units.
    """
    held = _held(optimizer)
    missing = [name for unit in units for name in unit.parameters if id(parameters[name]) not in held]
    if not missing:
        return ()
    names = ', '.join(map(repr, missing[:3])) + (f' and {len(missing) - 3} more' if len(missing) > 3 else '')
    return (
        f'the optimizer does not hold {names}: they never move, but get gradients until their units freeze; '
        'requires_grad_(False) spares these',
    )


def another_like(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], units: Sequence[Unit]
) -> Callable[[Any], Optimizer]:
    """Makes optimizers of the same kind for copies of the parameters.

    Args:
        optimizer (Optimizer): The optimizer, which is left alone.
        parameters (Mapping[str, nn.Parameter]): The parameters that the names in ``units`` refer to.
        units (Sequence[Unit]): The units.

    Returns:
        Callable[[Any], Optimizer]: From param groups, one per unit with its parameters in order, to an optimizer of
        those that this one holds.
    """
    held = _held(optimizer)
    chosen = [[id(parameters[name]) in held for name in unit.parameters] for unit in units]

    def make(groups: Sequence[Mapping[str, Any]]) -> Optimizer:
        kept = [
            [parameter for parameter, is_held in zip(group['params'], of_unit, strict=True) if is_held]
            for group, of_unit in zip(groups, chosen, strict=True)
        ]
        first = next(group for group in optimizer.param_groups if group['params'])
        made = another_optimizer(optimizer, first, list(chain.from_iterable(kept)))
        if made is None:
            raise ValueError(
                f'steps cannot be measured, as nobody can tell how another {type(optimizer).__name__} is made; leave '
                'out profile'
            )
        (whole,) = made.param_groups
        made.param_groups[:] = [another_group(whole, params=of_unit) for of_unit in kept if of_unit]
        return made

    return make


def _held(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group['params']}
