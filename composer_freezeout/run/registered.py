"""Models and data sets of users' own, by the names that YAML files choose them by.

A module of the user's registers them as it is imported; :mod:`composer_freezeout.run.plugins` says who imports it.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, overload

__all__ = ['DATA_SETS', 'MODELS', 'SUPPLIED', 'Clash', 'Registered', 'register_data', 'register_model']

F = TypeVar('F', bound=Callable[..., Any])

# What the run itself gives to a data set's function that has arguments of these names.
SUPPLIED = ('role', 'seed', 'batch_size', 'shuffle', 'drop_last', 'num_workers')
# Keys of the section in a YAML file that are no arguments.
_KEYS = {'model': ('name', 'weights', 'freeze'), 'data set': ('name',)}


class Clash(ValueError):
    """A name is taken, or means something else in a YAML file."""


@dataclass(frozen=True)
class Registered:
    """A model or a data set.

    Attributes:
        make (Callable): The function or class.
        module (str): Where it comes from.
    """

    make: Callable[..., Any]
    module: str

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """Arguments of the function by name."""
        return dict(inspect.signature(self.make).parameters)


MODELS: dict[str, Registered] = {}
DATA_SETS: dict[str, Registered] = {}


@overload
def register_model(name: F, /) -> F: ...
@overload
def register_model(name: str | None = None) -> Callable[[F], F]: ...
def register_model(name: Any = None) -> Any:
    """Makes a model of your own available in YAML files, as a decorator.

    ``@register_model`` decorates a function, or a class, that returns a :class:`torch.nn.Module` or a Composer model
    with its loss and metrics. It is chosen by its name, ``model: {name: …}``; the other keys of that section are its
    arguments, and are checked against its signature. ``weights`` and ``freeze`` are keys as for any model. A plain
    module is trained as a classifier, with cross entropy; its section has ``num_classes``.

    Args:
        name (str, optional): The name in YAML files. Default: that of the function.

    Returns:
        Callable: The function as it was, or a decorator.

    Raises:
        ValueError: If the name is taken, or an argument is called as a key of its own in YAML files.
    """
    return _registering(MODELS, 'model', name)


@overload
def register_data(name: F, /) -> F: ...
@overload
def register_data(name: str | None = None) -> Callable[[F], F]: ...
def register_data(name: Any = None) -> Any:
    """Makes a data set of your own available in YAML files, as a decorator.

    ``@register_data`` decorates a function that returns a data set: anything with ``__len__`` and ``__getitem__``, or a
    :class:`torch.utils.data.IterableDataset`. Batches are made of it for all processes, by its method ``collate_fn``
    if it has one. The function may also return a :class:`torch.utils.data.DataLoader` or a Composer ``DataSpec``, which
    is used as it is.

    It is chosen by its name, ``train_data: {name: …, batch_size: …}``. Other keys of that section are its arguments,
    and are checked against its signature. The run gives it those of the following that it has arguments for: ``role``
    (``'train'`` or ``'eval'``), ``seed`` (that of the run), ``batch_size`` (of this process), ``shuffle``,
    ``drop_last`` and ``num_workers``.

    Args:
        name (str, optional): The name in YAML files. Default: that of the function.

    Returns:
        Callable: The function as it was, or a decorator.

    Raises:
        ValueError: If the name is taken, or an argument is called as a key of its own in YAML files.
    """
    return _registering(DATA_SETS, 'data set', name)


def _registering(table: dict[str, Registered], kind: str, given: Any) -> Any:
    if given is None or isinstance(given, str):

        def decorate(make: F) -> F:
            _add(table, kind, given or make.__name__, make)
            return make

        return decorate
    _add(table, kind, given.__name__, given)
    return given


def _add(table: dict[str, Registered], kind: str, name: str, make: Callable[..., Any]) -> None:
    module, there = make.__module__, table.get(name)
    # The same function again is a module that is loaded anew, or a cell of a notebook.
    if there is not None and (there.module, there.make.__qualname__) != (module, make.__qualname__):
        places = f'{there.module}.{there.make.__qualname__} and {module}.{make.__qualname__}'
        raise Clash(f'the {kind} {name!r} is registered by both {places}; register one of them by another name')
    added = Registered(make, module)
    if taken := [key for key in _KEYS[kind] if key in added.parameters]:
        raise Clash(
            f'the {kind} {name!r} of {module} has an argument {taken[0]!r}, which is a key of its own in a YAML file; '
            'call the argument otherwise'
        )
    table[name] = added
