"""Signatures of constructors as schemas of what YAML can give to them."""

import collections.abc
import enum
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from composer.core import Time
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

from composer_freezeout.run.faults import ConfigError, Fault
from composer_freezeout.run.validation import faults_of

__all__ = ['Constructor', 'arguments_model', 'check_arguments']

Constructor = Callable[..., Any]
_INEXPRESSIBLE = object()
_PREFIX = 'arg_'  # pydantic reserves some field names (`model_…`, `copy`); arguments may be called anything


def _time(value: str) -> str:
    try:
        Time.from_timestring(value)
    except (ValueError, TypeError, AssertionError):
        raise ValueError("must be a time string such as '5ep', '100ba' or '0.1dur'") from None
    return value


def _path(value: str) -> Path:
    # Path's own signature tells pydantic nothing.
    return Path(value)


def _yaml_type(annotation: Any) -> Any:
    """The part of an annotation that a YAML value can have, or ``_INEXPRESSIBLE``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in (inspect.Parameter.empty, Any, object) or isinstance(annotation, (str, typing.TypeVar)):
        return Any
    if annotation in (None, type(None)):
        return None
    if annotation is Time:
        return Annotated[str, AfterValidator(_time)]
    if annotation is Path:
        return Annotated[str, AfterValidator(_path)]
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
def arguments_model(
    constructor: Constructor, positional: int = 0, partial: bool = False, supplied: tuple[str, ...] = ()
) -> type[BaseModel]:
    """A pydantic model of the arguments that YAML can give to a constructor.

    Args:
        constructor (Callable): A class or function.
        positional (int): How many leading arguments the caller supplies itself, in ``[0, ∞)``.
        partial (bool): Whether the caller also supplies whatever else is missing.
        supplied (tuple[str, ...]): Arguments that the caller supplies by name.

    Returns:
        type[BaseModel]: Strict; a field for each argument that a YAML value can express, under its own name as alias.
    """
    parameters = list(_signature(constructor).parameters.values())[positional:]
    parameters = [p for p in parameters if p.name not in supplied]
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
    constructor: Constructor,
    arguments: Mapping[str, Any],
    path: str,
    positional: int = 0,
    partial: bool = False,
    supplied: tuple[str, ...] = (),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Checks the arguments that a YAML file gives to a constructor.

    Args:
        constructor (Callable): A class or function.
        arguments (Mapping[str, Any]): The arguments.
        path (str): Key path of the section that they come from.
        positional (int): How many leading arguments the caller supplies itself, in ``[0, ∞)``.
        partial (bool): Whether the caller also supplies whatever else is missing.
        supplied (tuple[str, ...]): Arguments that the caller supplies by name.

    Returns:
        tuple[dict[str, Any], dict[str, Any]]: The keyword arguments for the call, and all of them with the defaults
        filled in, as JSON can hold them.

    Raises:
        ConfigError: If an argument is unknown, missing or of the wrong type.
    """
    schema = arguments_model(constructor, positional, partial, supplied)
    try:
        checked = schema.model_validate(dict(arguments))
    except ValidationError as error:
        faults = faults_of(error, schema, arguments, path)
        raise ConfigError([_as_argument(fault, constructor) for fault in faults]) from None
    given = {name.removeprefix(_PREFIX): getattr(checked, name) for name in checked.model_fields_set}
    return given, checked.model_dump(mode='json', by_alias=True, warnings=False)


def _as_argument(fault: Fault, constructor: Constructor) -> Fault:
    return fault._replace(message=fault.message.replace('unknown key', f'{constructor.__name__} has no argument', 1))
