"""Param groups: the keys that a split one has, copies and comparison."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

__all__ = ['BASE_LR', 'NOT_SHARED', 'ORIGIN', 'OURS', 'UNIT', 'another_group', 'are_equal', 'origins_of']

# Keys of a param group while it is split.
UNIT = 'freezeout_unit'
BASE_LR = 'freezeout_base_lr'  # None for a group that keeps its own learning rate
ORIGIN = 'freezeout_origin'  # index of the group that it was split from
OURS = frozenset({UNIT, BASE_LR, ORIGIN})
NOT_SHARED = OURS | {'params', 'param_names', 'lr', 'initial_lr'}


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


def are_equal(one: Any, other: Any) -> bool:
    """Whether two values, tensors or containers of them are the same to the bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and one.dtype == other.dtype and one.equal(other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(are_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(are_equal, one, other))
    return one == other


def origins_of(groups: Sequence[Mapping[str, Any]]) -> list[int]:
    """Index of the original group that each group was split from; its own where it is not split."""
    return [group.get(ORIGIN, index) for index, group in enumerate(groups)]
