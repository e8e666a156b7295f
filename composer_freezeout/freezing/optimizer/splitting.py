"""Splits an optimizer's param groups per unit."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from composer_freezeout.freezing.observing.units import Unit
from composer_freezeout.freezing.optimizer.param_group import (
    BASE_LR,
    ORIGIN,
    UNIT,
    another_group,
)

__all__ = ['labels_of', 'peak_rate', 'split_per_unit']

log = logging.getLogger(__name__)


def peak_rate(group: Mapping[str, Any], index: int, scheduled: bool) -> float:
    """The learning rate that a group's factors refer to.

    Args:
        group (Mapping[str, Any]): The param group.
        index (int): Its index.
        scheduled (bool): Whether ``lr`` may be what a scheduler has made of ``initial_lr``.
    """
    lr = float(group['lr'])
    initial = float(group.get('initial_lr', lr))
    if scheduled or initial == lr:
        return initial
    peak = max(lr, initial)
    log.warning(
        'FreezeOut takes the larger one of lr=%g and initial_lr=%g, which a scheduler has left in param group %d, as '
        "the peak rate: %g. If it is not, set the group's `lr` and remove `initial_lr` before.",
        lr,
        initial,
        index,
        peak,
    )
    return peak


def split_per_unit(
    groups: Sequence[dict[str, Any]],
    base_lrs: Sequence[float],
    unit_of: Mapping[int, str],
    units: Sequence[Unit],
    initial_factors: Sequence[float],
) -> list[dict[str, Any]]:
    """New groups in the order: outside of the units, last unit, …, first unit. O(parameters)."""
    names: list[str | None] = [None, *(unit.name for unit in reversed(units))]
    factors = [initial_factors[-1], *reversed(initial_factors)]
    members: dict[tuple[str | None, int], list[int]] = {}
    for origin, group in enumerate(groups):
        for position, parameter in enumerate(group['params']):
            members.setdefault((unit_of.get(id(parameter)), origin), []).append(position)
    split = []
    for name, factor in zip(names, factors, strict=True):
        for origin, group in enumerate(groups):
            if positions := members.get((name, origin)):
                lists = {key: [group[key][p] for p in positions] for key in ('params', 'param_names') if key in group}
                lr = group['lr'].clone() if isinstance(group['lr'], torch.Tensor) else group['lr']
                ours = {UNIT: name, BASE_LR: base_lrs[origin], ORIGIN: origin}
                split.append(another_group(group, **lists, **ours, lr=lr, initial_lr=base_lrs[origin] * factor))
    return split


def labels_of(groups: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], str]:
    """A name for each learning rate of each unit, first unit first, by unit and original group."""
    of_units = [group for group in reversed(groups) if group[UNIT] is not None]
    base_lrs: dict[str, set[float]] = {}
    for group in of_units:
        base_lrs.setdefault(group[UNIT], set()).add(group[BASE_LR])
    return {
        (unit, origin): unit if len(base_lrs[unit]) == 1 else f'{unit}/group{origin}'
        for unit, origin in ((group[UNIT], group[ORIGIN]) for group in of_units)
    }
