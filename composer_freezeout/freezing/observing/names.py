"""Names of modules and of the tensors in them."""

import re
from collections import defaultdict
from collections.abc import Iterator

from torch import Tensor, nn

__all__ = ['join_names', 'names_within', 'owners_of', 'without_parametrizations']


def owners_of(model: nn.Module) -> dict[str, list[str]]:
    """Names of the modules that directly hold each tensor, by the tensor's first name; several where it is shared.

    A module that is registered more than once goes by its first name.
    """
    owners: dict[str, list[str]] = defaultdict(list)
    first_names: dict[int, str] = {}
    for module_name, module in model.named_modules():
        for local_name, tensor in _own_tensors(module):
            first_name = first_names.setdefault(id(tensor), join_names(module_name, local_name))
            owners[first_name].append(without_parametrizations(module_name))
    return owners


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False, remove_duplicate=False)
    yield from module.named_buffers(recurse=False, remove_duplicate=False)


def names_within(model: nn.Module) -> dict[str, list[tuple[str, str]]]:
    """First name and local name of each parameter in a module or below, by name of the module."""
    first_names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        module_name: [
            (first_names[id(parameter)], name) for name, parameter in module.named_parameters(remove_duplicate=False)
        ]
        for module_name, module in model.named_modules()
    }


def join_names(*names: str) -> str:
    """Name of something in a module, whose own name is empty if it is the whole model."""
    return '.'.join(filter(None, names))


def without_parametrizations(module_name: str) -> str:
    """The module that uses what is made of parametrised tensors, by the name of one inside of it that holds them."""
    return re.sub(r'(^|\.)parametrizations(\..*|$)', '', module_name)
