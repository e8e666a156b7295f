"""Finds the unit with which a module has to stand still whose buffers training changes, such as BatchNorm."""

from collections import defaultdict
from collections.abc import Sequence

from torch import nn

from composer_freezeout.freezing.observing.head import head_matcher
from composer_freezeout.freezing.observing.names import join_names, without_parametrizations
from composer_freezeout.freezing.observing.observation import Observation
from composer_freezeout.freezing.observing.patterns import matcher
from composer_freezeout.freezing.observing.structure import (
    is_within,
)
from composer_freezeout.freezing.observing.units import Unit

__all__ = ['place_norms']


def place_norms(
    model: nn.Module,
    units: Sequence[Unit],
    observed: Observation,
    layers: Sequence[str] | None = None,
    head: Sequence[str] | None = None,
) -> list[Unit]:
    """Gives each module whose buffers training changes to the unit with which it has to stand still.

    That is the last unit with parameters in the module, or else the one before it in the forward pass; of what is in
    the head, the last unit. Modules whose parameters the user has frozen are left alone.

    Args:
        model (nn.Module): The model.
        units (Sequence[Unit]): Its units; norms that they have already are placed anew.
        observed (Observation): What a step has shown.
        layers (Sequence[str], optional): The expressions that the units were made from, where they were.
        head (Sequence[str], optional): Those of the head.

    Returns:
        list[Unit]: The units, with their norms.
    """
    position = observed.positions()
    index = {name: i for i, unit in enumerate(units) for name in unit.parameters}
    order = sorted((position[name], i) for name, i in index.items() if name in position)
    matches = matcher(model, layers) if layers is not None else None
    in_head = head_matcher(model, head) if head is not None else None
    by_name = {unit.name: i for i, unit in enumerate(units)}
    norms: dict[int, list[str]] = defaultdict(list)
    previous = 0
    for module_name, module in model.named_modules():
        # A parametrisation stands still with the tensor that it makes.
        around = without_parametrizations(module_name)
        own = [join_names(module_name, name) for name, _ in module.named_parameters(recurse=False)]
        within = [i for name, i in index.items() if is_within(name, around)] if around else list(index.values())
        if module_name in observed.changed and (not own or any(name in index for name in own)):
            buffers = [join_names(module_name, name) for name, _ in module.named_buffers(recurse=False)]
            read = [observed.reads[name] for name in buffers if name in observed.reads]
            if within:
                unit = max(within)
            elif in_head is not None and in_head(module_name):
                unit = len(units) - 1
            elif matches is not None and (found := [p for p in matches(module_name) if p in by_name]):
                unit = by_name[found[0]]
            elif read:
                unit = next((i for used, i in reversed(order) if used < max(read)), 0)
            else:  # read by scripted code, which hides it: it goes with what is registered before it
                unit = previous
            norms[unit].append(module_name)
        previous = max((index[name] for name in own if name in index), default=previous)
    return [Unit(unit.name, unit.parameters, tuple(norms[i])) for i, unit in enumerate(units)]
