"""The head that the user names: layers that train to the end."""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate

from torch import nn

from composer_freezeout.freezing.observing.names import owners_of
from composer_freezeout.freezing.observing.patterns import matcher

__all__ = ['check_head', 'find_head', 'head_matcher']


def head_matcher(model: nn.Module, head: Sequence[str]) -> Callable[[str], list[str]]:
    """Tells which expressions match a module, by any name that it has, with and without that of a wrapper.

    Args:
        model (nn.Module): The model.
        head (Sequence[str]): The expressions.

    Returns:
        Callable[[str], list[str]]: From a module's name to the expressions that match it, or a module around it.
    """
    whole, wrapper = matcher(model, head), _wrapper(model)
    within = matcher(model.get_submodule(wrapper), head) if wrapper else None

    def matches(module_name: str) -> list[str]:
        found = whole(module_name)
        if within is not None and module_name.startswith(f'{wrapper}.'):
            found += within(module_name.removeprefix(f'{wrapper}.'))
        return list(dict.fromkeys(found))

    return matches


def find_head(model: nn.Module, home: Mapping[str, str], head: Sequence[str]) -> dict[str, str]:
    """Finds the head's parameters, and checks that they are a part of the model.

    Args:
        model (nn.Module): The model.
        home (Mapping[str, str]): Name of the module that each trainable parameter belongs to.
        head (Sequence[str]): The expressions.

    Returns:
        dict[str, str]: Names of the head's parameters, each with an expression that matches it.

    Raises:
        ValueError: If an expression matches nothing, or if nothing else is trainable.
    """
    matches, wrapper = head_matcher(model, head), _wrapper(model)
    found = {name: patterns for name, module_name in home.items() if (patterns := matches(module_name))}
    for pattern in head:
        if not any(pattern in patterns for patterns in found.values()):
            names = (name.removeprefix(f'{wrapper}.') for name in home.values())
            raise ValueError(
                f'head: {pattern!r} matches no module with trainable parameters; {_nearest(pattern, names)}'
            )
    if len(found) == len(home):
        raise ValueError(
            f'head: {list(head)!r} is all of the model that is trainable, so that nothing would freeze; choose its '
            'last layers only'
        )
    return {name: patterns[0] for name, patterns in found.items()}


def check_head(model: nn.Module, head: Sequence[str]) -> None:
    """Checks a head before a step has shown which of its users a shared parameter belongs to.

    Args:
        model (nn.Module): The model.
        head (Sequence[str]): The expressions.

    Raises:
        ValueError: As in :func:`find_head`.
    """
    owners = owners_of(model)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if trainable:
        find_head(model, {f'{name} in {owner}': owner for name in trainable for owner in owners[name]}, head)


def _wrapper(model: nn.Module) -> str:
    """Name of the module that holds all of a model, such as the network in Composer's; empty if none does."""
    holders = [name for name, child in model.named_children() if any(True for _ in child.parameters())]
    return holders[0] if len(holders) == 1 and not any(True for _ in model.parameters(recurse=False)) else ''


def _nearest(pattern: str, module_names: Iterable[str]) -> str:
    names = {around for name in module_names for around in accumulate(name.split('.'), '{}.{}'.format)}
    near = difflib.get_close_matches(pattern, sorted(names), n=3, cutoff=0.4)
    return f'the nearest names are {", ".join(map(repr, near or sorted(names, key=len)[:3]))}'
