"""The rivals that people make by hand when they fine-tune: the first layers are frozen from the start."""

import json
import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from composer_freezeout.compare.arms.dry_run import Data
from composer_freezeout.compare.arms.known import FREEZEOUT, HEAD_ONLY, share_of
from composer_freezeout.compare.arms.predicted import saving_of
from composer_freezeout.run.config import RunConfig

if TYPE_CHECKING:
    from torch import nn

__all__ = ['covering', 'static_override']


def static_override(name: str, config: RunConfig, freezeout: RunConfig | None, data: Data) -> tuple[str, str]:
    """Chooses how many of the baseline's first layers are frozen, by what that saves.

    The cut lies between two of FreezeOut's units: after the one with which the saving, predicted from FLOPs, is nearest
    to what it is to be.

    Args:
        name (str): The arm: ``'static'`` saves what FreezeOut does, ``'static_0.25'`` that share, and ``'head_only'``
            trains no unit but those that FreezeOut trains to the end.
        config (RunConfig): The baseline's.
        freezeout (RunConfig, optional): FreezeOut's, where the saving is to be its.
        data (Data): What both are trained on.

    Returns:
        tuple[str, str]: The override, and a note on what it freezes and brings.

    Raises:
        ConfigError: If the model cannot be built.
    """
    from composer_freezeout.costs.flops import step_flops_by_units_frozen
    from composer_freezeout.costs.predict import partition_for
    from composer_freezeout.method.settings import Settings
    from composer_freezeout.run.models import build_model

    model, target = build_model(config.model), _target(name, config, freezeout, data)
    partition = partition_for(model, data.batch, Settings())
    units, most = partition.units, len(partition.units) - partition.heads
    costs = step_flops_by_units_frozen(model, data.batch, units)
    savings = [1 - cost / costs[0] for cost in costs]
    cuts = range(1, most + 1)
    cut = most if target is None else min(cuts, key=lambda cut: abs(savings[cut] - target), default=0)
    frozen = covering(model, {name for unit in units[:cut] for name in unit.parameters})
    note = f'{", ".join(frozen) or "nothing"} frozen from the start saves {savings[cut]:.1%} of the FLOPs'
    if target is not None:
        note += f', nearest to {target:.1%}' if share_of(name) else f', as freezeout does ({target:.1%})'
    patterns = [*(config.model.freeze or ()), *map(re.escape, frozen)]
    return f'model.freeze={json.dumps(patterns)}', note


def _target(name: str, config: RunConfig, freezeout: RunConfig | None, data: Data) -> float | None:
    """Share of the baseline's FLOPs that is to be saved; None for as much as can be."""
    if name == HEAD_ONLY:
        return None
    if (share := share_of(name)) is not None:
        return share
    assert freezeout is not None, f'{name} is made of {FREEZEOUT}'
    return saving_of(config, freezeout, data)


def covering(model: 'nn.Module', parameters: Collection[str]) -> list[str]:
    """The modules that some parameters make up, each as a whole as can be.

    Args:
        model (nn.Module): The model.
        parameters (Collection[str]): Full names of parameters of it.

    Returns:
        list[str]: Names of modules, and of parameters whose module has others, without Composer's ``module.`` before
        them, in the model's order.
    """
    found: list[str] = []

    def descend(module: 'nn.Module', prefix: str) -> None:
        for name, _ in module.named_parameters(prefix, recurse=False):
            if name in parameters:
                found.append(name)
        for child_name, child in module.named_children():
            path = f'{prefix}.{child_name}' if prefix else child_name
            names = [name for name, _ in child.named_parameters(path)]
            if names and all(name in parameters for name in names):
                found.append(path)
            else:
                descend(child, path)

    descend(model, '')
    return [name.removeprefix('module.') for name in found]
