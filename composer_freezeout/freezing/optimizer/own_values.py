"""What an optimizer counts in its param groups, such as a number of steps, where it differs from unit to unit."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from composer_freezeout.freezing.optimizer.param_group import NOT_SHARED, ORIGIN, UNIT, are_equal

__all__ = ['own_values', 'put_own_values']

_VALUES = (bool, int, float, list, tuple, torch.Tensor)  # that an optimizer may count in a group


def own_values(groups: Iterable[Mapping[str, Any]], original: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """What split groups hold that differs from their original group, which can hold one value only.

    Args:
        groups (Iterable[Mapping[str, Any]]): The split groups.
        original (Sequence[Mapping[str, Any]]): The groups that they were split from.

    Returns:
        list[list[Any]]: Unit or None, index of the original group, and the values by key: numbers, tensors, lists.
    """
    found = []
    for group in groups:
        joined = original[group[ORIGIN]]
        own = {
            key: value
            for key, value in group.items()
            if key not in NOT_SHARED and isinstance(value, _VALUES) and not are_equal(joined.get(key), value)
        }
        if own:
            found.append([group[UNIT], group[ORIGIN], copy.deepcopy(own)])
    return found


def put_own_values(groups: Iterable[dict[str, Any]], values: Iterable[Sequence[Any]]) -> None:
    """Puts back what :func:`own_values` gave.

    Args:
        groups (Iterable[dict[str, Any]]): The split groups as they are now.
        values (Iterable[Sequence[Any]]): The values; those of groups that are gone are left out.
    """
    by_unit = {(group[UNIT], group[ORIGIN]): group for group in groups}
    for unit, origin, own in values:
        if (unit, origin) in by_unit:
            by_unit[unit, origin].update(copy.deepcopy(own))
