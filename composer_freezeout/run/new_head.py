"""The head of FreezeOut where a run begins with weights: the layers that these don't have train to the end."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn

from composer_freezeout.results.record import Weights
from composer_freezeout.run.config import RunConfig
from composer_freezeout.run.faults import ConfigError
from composer_freezeout.run.weight_files import read_pickle

__all__ = ['head_line', 'new_head']


def new_head(config: RunConfig, model: nn.Module, weights: Weights | None) -> list[str] | None:
    """What FreezeOut's ``head`` is where the file doesn't say.

    Args:
        config (RunConfig): A checked configuration.
        model (nn.Module): The model, with its weights.
        weights (Weights, optional): What became of them; None if there are none, or a run goes on that had some.

    Returns:
        list[str], optional: An expression for each new layer. None where the file says what the head or the units are,
        without FreezeOut, and if nothing is new, or all that trains.
    """
    given = [entry.arguments for entry in config.algorithms if entry.name == 'freezeout']
    if config.model.weights is None or len(given) != 1:
        return None
    if 'head' in given[0] or given[0].get('layers') is not None:
        return None
    return _earlier(config) if weights is None else _new_layers(model, frozenset(weights.new))


def head_line(head: Sequence[str]) -> str:
    """What the user is told of it.

    Args:
        head (Sequence[str]): From :func:`new_head`.

    Returns:
        str: A line.
    """
    return f'new layers, which FreezeOut trains to the end as head={list(head)!r}; give its `head` for another'


def _new_layers(model: nn.Module, new: Collection[str]) -> list[str] | None:
    trained = [name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad]

    def within(module: nn.Module, prefix: str) -> list[str]:
        inside = [name for name in trained if name.startswith(prefix)]
        if not any(name in new for name in inside):
            return []
        inner = [found for name, child in module.named_children() for found in within(child, f'{prefix}{name}.')]
        is_layer = all(not any(True for _ in child.parameters()) for child in module.children())
        return [prefix] if is_layer or all(name in new for name in inside) else inner

    found = within(model, '')
    if all(any(name.startswith(prefix) for prefix in found) for name in trained):
        return None
    return [re.escape(prefix.removesuffix('.').removeprefix('module.')) for prefix in found] or None


def _earlier(config: RunConfig) -> list[str] | None:
    """The head of the run that goes on, which may have lost its file of weights by now."""
    try:
        content = read_pickle(config.latest_checkpoint, 'checkpoint.resume')
    except ConfigError:  # told when it is loaded
        return None
    state = content.get('state') if isinstance(content, Mapping) else None
    algorithms: Any = state.get('algorithms') if isinstance(state, Mapping) else None
    for name, own in algorithms.items() if isinstance(algorithms, Mapping) else algorithms or ():
        if name == 'FreezeOut':
            return own.get('settings', {}).get('head')
    return None
