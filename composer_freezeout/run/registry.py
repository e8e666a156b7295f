"""Names of a YAML file → constructors of Composer, torch and this package.

A YAML file never names Python code to import: it chooses from these tables. What a constructor takes is read from its
signature, so that a misspelt or mistyped argument is reported with its key path before anything is built.
"""

import collections.abc
import enum
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

import composer.algorithms
import composer.callbacks
import composer.loggers
import composer.optim
import torch.optim
from composer.core import Algorithm, Callback, Time
from composer.loggers import LoggerDestination
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    create_model,
)
from torch.optim.optimizer import required

from composer_freezeout.algorithm.freezeout import FreezeOut
from composer_freezeout.run.config import Component
from composer_freezeout.run.faults import ConfigError, Fault, faults_of, suggest

__all__ = [
    'ALGORITHMS',
    'CALLBACKS',
    'LOGGERS',
    'OPTIMIZERS',
    'SCHEDULERS',
    'Bound',
    'arguments_model',
    'bind',
    'check_arguments',
    'constructed',
]

Constructor = Callable[..., Any]


def _by_module(package: types.ModuleType, base: type, depth: int = -1) -> dict[str, Constructor]:
    # Composer names the module as the class, in snake case and with its own idea of abbreviations.
    return {
        cls.__module__.split('.')[depth]: cls
        for _, cls in inspect.getmembers(package, inspect.isclass)
        if issubclass(cls, base) and cls is not base
    }


def _snake_case(name: str) -> str:
    return re.sub(r'(?<=[a-z])(?=[A-Z])', '_', name).lower()


def _without(table: dict[str, Constructor], *names: str) -> dict[str, Constructor]:
    return {key: value for key, value in table.items() if key not in names}


ALGORITHMS: dict[str, Constructor] = {'freezeout': FreezeOut} | _by_module(composer.algorithms, Algorithm, depth=2)

OPTIMIZERS: dict[str, Constructor] = {
    'decoupled_sgdw': composer.optim.DecoupledSGDW,
    'decoupled_adamw': composer.optim.DecoupledAdamW,
} | {
    name.lower(): cls
    for name, cls in inspect.getmembers(torch.optim, inspect.isclass)
    # LBFGS needs a closure that evaluates several times, SparseAdam sparse gradients: Composer's loop gives neither.
    if name not in ('Optimizer', 'LBFGS', 'SparseAdam')
}

SCHEDULERS: dict[str, Constructor] = {
    _snake_case(name).removesuffix(suffix): cls
    for name, cls in inspect.getmembers(composer.optim, inspect.isclass)
    if name.endswith('Scheduler') and cls is not composer.optim.ComposerScheduler
    for suffix in ('', '_scheduler')
}

# The run's own `checkpoint` key is the way to save and load.
CALLBACKS: dict[str, Constructor] = _without(_by_module(composer.callbacks, Callback), 'checkpoint_saver')

# The progress bar has a key of its own; a second one, or the console logger beside it, garbles the terminal.
LOGGERS: dict[str, Constructor] = _without(
    _by_module(composer.loggers, LoggerDestination), 'progress_bar_logger', 'console_logger'
)
LOGGERS |= {name.removesuffix('_logger'): cls for name, cls in LOGGERS.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Signatures as schemas
# ---------------------------------------------------------------------------------------------------------------------

_INEXPRESSIBLE = object()
_PREFIX = 'arg_'  # pydantic reserves some field names (`model_…`, `copy`); arguments may be called anything


def _time(value: str) -> str:
    try:
        Time.from_timestring(value)
    except (ValueError, AssertionError):
        raise ValueError("must be a time string such as '5ep', '100ba' or '0.1dur'") from None
    return value


def _yaml_type(annotation: Any) -> Any:
    """The part of an annotation that a YAML value can have, or ``_INEXPRESSIBLE``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in (inspect.Parameter.empty, Any, object) or isinstance(annotation, (str, typing.TypeVar)):
        return Any
    if annotation in (None, type(None)):
        return None
    if annotation is Time:
        return Annotated[str, AfterValidator(_time)]
    if annotation in (bool, int, float, str, list, dict) or origin is Literal:
        return annotation
    if inspect.isclass(annotation) and issubclass(annotation, enum.Enum):
        values = tuple(member.value for member in annotation)
        return Annotated[Literal[values], AfterValidator(annotation)]  # pyright: ignore[reportInvalidTypeArguments]
    if origin is Annotated:
        return _yaml_type(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return _union(arguments)
    if origin in (list, collections.abc.Sequence, collections.abc.Iterable):
        item = _yaml_type(arguments[0])
        return _INEXPRESSIBLE if item is _INEXPRESSIBLE else list[item]
    if origin is tuple:
        items = tuple(item if item is Ellipsis else _yaml_type(item) for item in arguments)
        # YAML has lists only; what is in them stays strict.
        return _INEXPRESSIBLE if _INEXPRESSIBLE in items else Annotated[tuple[items], Strict(False)]
    if origin in (dict, collections.abc.Mapping):
        key, value = map(_yaml_type, arguments)
        return _INEXPRESSIBLE if _INEXPRESSIBLE in (key, value) else dict[key, value]
    return _INEXPRESSIBLE


def _union(members: tuple[Any, ...]) -> Any:
    if Any in members:
        return Any
    # `str | Time` means a time string, not any string.
    members = tuple(member for member in members if not (member is str and Time in members))
    kept = [converted for member in members if (converted := _yaml_type(member)) is not _INEXPRESSIBLE]
    if not kept or kept == [None]:
        return _INEXPRESSIBLE
    return typing.Union[tuple(kept)]  # noqa: UP007 - the members are known at run time only


def _signature(constructor: Constructor) -> inspect.Signature:
    try:
        return inspect.signature(constructor, eval_str=True)
    except NameError:  # an annotation that is imported for type checkers only
        return inspect.signature(constructor)


@cache
def arguments_model(constructor: Constructor, positional: int = 0, partial: bool = False) -> type[BaseModel]:
    """A pydantic model of the arguments that YAML can give to a constructor.

    Args:
        constructor (Callable): A class or function.
        positional (int): How many leading arguments the caller supplies itself, in ``[0, ∞)``.
        partial (bool): Whether the caller also supplies whatever else is missing.

    Returns:
        type[BaseModel]: Strict; a field for each argument that a YAML value can express, under its own name as alias.
    """
    parameters = list(_signature(constructor).parameters.values())[positional:]
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    fields: dict[str, Any] = {}
    for parameter in named:
        annotation = _yaml_type(parameter.annotation)
        if annotation is _INEXPRESSIBLE:
            continue
        has_default = parameter.default is not parameter.empty and parameter.default is not required
        default = parameter.default if has_default else None if partial else ...
        fields[_PREFIX + parameter.name] = (annotation, Field(default, alias=parameter.name))
    # `*args, **kwargs` alone is a base class's signature that throws them away.
    open_ended = bool(named) and any(p.kind is p.VAR_KEYWORD for p in parameters)
    config = ConfigDict(extra='allow' if open_ended else 'forbid', strict=True, allow_inf_nan=False)
    return create_model('Arguments', __config__=config, **fields)


def check_arguments(
    constructor: Constructor, arguments: Mapping[str, Any], path: str, positional: int = 0, partial: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Checks the arguments that a YAML file gives to a constructor.

    Args:
        constructor (Callable): A class or function.
        arguments (Mapping[str, Any]): The arguments.
        path (str): Key path of the section that they come from.
        positional (int): How many leading arguments the caller supplies itself, in ``[0, ∞)``.
        partial (bool): Whether the caller also supplies whatever else is missing.

    Returns:
        tuple[dict[str, Any], dict[str, Any]]: The keyword arguments for the call, and all of them with the defaults
        filled in, as JSON can hold them.

    Raises:
        ConfigError: If an argument is unknown, missing or of the wrong type.
    """
    schema = arguments_model(constructor, positional, partial)
    try:
        checked = schema.model_validate(dict(arguments))
    except ValidationError as error:
        faults = faults_of(error, schema, arguments, path)
        raise ConfigError([_as_argument(fault, constructor) for fault in faults]) from None
    given = {name.removeprefix(_PREFIX): getattr(checked, name) for name in checked.model_fields_set}
    return given, checked.model_dump(mode='json', by_alias=True, warnings=False)


def _as_argument(fault: Fault, constructor: Constructor) -> Fault:
    return fault._replace(message=fault.message.replace('unknown key', f'{constructor.__name__} has no argument', 1))


# ---------------------------------------------------------------------------------------------------------------------
# Components
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bound:
    """A component whose name and arguments are checked, ready to be built.

    Args:
        path (str): Its key path.
        name (str): Its name in the YAML file.
        constructor (Callable): What builds it.
        arguments (Mapping[str, Any]): Keyword arguments.
        resolved (Mapping[str, Any]): Name and all arguments, defaults included, as JSON can hold them.
    """

    path: str
    name: str
    constructor: Constructor
    arguments: Mapping[str, Any]
    resolved: Mapping[str, Any]

    def build(self, *positional: Any, **defaults: Any) -> Any:
        """Calls the constructor.

        Args:
            *positional (Any): Leading arguments.
            **defaults (Any): Keyword arguments where the file gives none.

        Raises:
            ConfigError: If the constructor refuses its arguments, or needs a package that is not installed.
        """
        with constructed(self.path, self.arguments):
            return self.constructor(*positional, **(defaults | dict(self.arguments)))


class constructed:
    """Turns what a constructor raises about its arguments into a :class:`ConfigError` with the key path.

    Args:
        path (str): Key path of the section.
        arguments (Mapping[str, Any]): The section's arguments; the one that the message starts with is named.
    """

    def __init__(self, path: str, arguments: Mapping[str, Any]):
        self.path = path
        self.arguments = arguments

    def __enter__(self) -> None:
        """Nothing to set up."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Raises the same error as a fault."""
        if not isinstance(error, (ValueError, TypeError, ImportError)) or isinstance(error, ConfigError):
            return
        message = ' '.join(str(error).split())
        words = re.findall(r'\w+', message)
        culprit = next((name for name in self.arguments if words and words[0] == name), None)
        path = self.path if culprit is None else f'{self.path}.{culprit}'
        raise ConfigError([Fault(path, message)]) from error


def bind(table: Mapping[str, Constructor], entry: Component, path: str, positional: int = 0) -> Bound:
    """Looks up a component and checks its arguments.

    Args:
        table (Mapping[str, Callable]): One of this module's tables.
        entry (Component): What the YAML file says.
        path (str): Its key path.
        positional (int): How many leading arguments the builder supplies itself, in ``[0, ∞)``.

    Returns:
        Bound: The component, ready to be built.

    Raises:
        ConfigError: If the name or an argument is unknown, or an argument is missing or of the wrong type.
    """
    if entry.name not in table:
        raise ConfigError([Fault(f'{path}.name', f'unknown name {entry.name!r}; {suggest(entry.name, table)}')])
    constructor = table[entry.name]
    arguments, resolved = check_arguments(constructor, entry.arguments, path, positional)
    return Bound(path, entry.name, constructor, arguments, {'name': entry.name} | resolved)
