"""What is wrong with a configuration or a command line, told in lines that a user can act on."""

import difflib
import errno
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError

__all__ = ['COMMAND_LINE', 'ConfigError', 'Fault', 'Refused', 'describe', 'faults_of', 'shown', 'suggest', 'told']

COMMAND_LINE = 'command line'

_REMEDIES = dict.fromkeys(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), 'free some space, or let the output go to another disk'
) | dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), 'change its permissions, or choose another place')
# torch has no type of its own for an allocation that fails on the CPU.
_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory", re.IGNORECASE)


class Fault(NamedTuple):
    """One thing that is wrong.

    Args:
        path (str): Dotted path of the key, empty for the file as a whole.
        message (str): What is wrong, with the value and what is allowed.
    """

    path: str
    message: str


class ConfigError(ValueError):
    """A run cannot be started because of what its configuration says.

    Args:
        faults (Iterable[Fault]): At least one fault.
    """

    def __init__(self, faults: Iterable[Fault]):
        self.faults = tuple(faults)
        super().__init__('\n'.join(f'{path}: {message}' if path else message for path, message in self.faults))


class Refused(ValueError):
    """A command cannot do what was asked for.

    Args:
        lines (str | Iterable[str]): What is wrong, a line for each fault.
    """

    def __init__(self, lines: str | Iterable[str]):
        self.lines = (lines,) if isinstance(lines, str) else tuple(dict.fromkeys(lines))
        super().__init__('\n'.join(self.lines))


def _nearest(name: str, valid: Iterable[str]) -> str | None:
    near = difflib.get_close_matches(str(name), sorted(valid), n=1, cutoff=0.5)
    return near[0] if near else None


def suggest(name: str, valid: Iterable[str]) -> str:
    """Names the valid name nearest to a wrong one, or all of them if none is near.

    Args:
        name (str): The wrong name.
        valid (Iterable[str]): The right ones.

    Returns:
        str: The end of an error message.
    """
    valid = sorted(valid)
    near = _nearest(name, valid)
    if near:
        return f'did you mean {near!r}?'
    return f'valid: {", ".join(valid)}' if valid else 'it takes none'


_TYPE_NAMES = {
    bool: 'boolean',
    int: 'integer',
    float: 'number',
    str: 'string',
    list: 'list',
    dict: 'mapping',
    type(None): 'null',
}
_MISSING = 'is missing, and has no default'


def shown(value: object) -> str:
    """A value in an error message.

    Args:
        value (object): The value.

    Returns:
        str: It, shortened, and the name of its type.
    """
    if value is None:
        return 'null'
    text = repr(value)
    return f'{text if len(text) <= 60 else text[:57] + "..."} ({_TYPE_NAMES.get(type(value), type(value).__name__)})'


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _valid_keys(schema: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    """Keys of the section at a pydantic location, whose elements are field names, list indices and union tags."""
    models = [schema]
    for element in loc:
        tagged = [
            m for m in models if 'name' in m.model_fields and element in get_args(m.model_fields['name'].annotation)
        ]
        if tagged:
            models = tagged
        elif isinstance(element, str):
            fields = [field for m in models for key, field in m.model_fields.items() if element in (key, field.alias)]
            models = [m for field in fields for m in _models_in(field.annotation)]
    return [field.alias or key for m in models for key, field in m.model_fields.items()]


def _has(node: Any, key: int | str) -> bool:
    if isinstance(node, list):
        return isinstance(key, int) and key < len(node)
    return isinstance(node, Mapping) and key in node


def _key_path(loc: Sequence[int | str], raw: Any, *, missing: bool) -> tuple[int | str, ...]:
    """The part of a pydantic location that is made of keys of the file; union branches are left out."""
    path: list[int | str] = []
    for position, element in enumerate(loc):
        if _has(raw, element):
            raw = raw[element]
        elif not (missing and position == len(loc) - 1):
            continue
        path.append(element)
    return tuple(path)


def _message(error: Any, schema: type[BaseModel]) -> str:
    kind, value, context = error['type'], error['input'], error.get('ctx', {})
    if kind == 'extra_forbidden':
        key = error['loc'][-1]
        return f'unknown key {key!r}; {suggest(str(key), _valid_keys(schema, error["loc"][:-1]))}'
    if kind in ('missing', 'union_tag_not_found'):
        return _MISSING
    if kind == 'union_tag_invalid':
        tags = [tag.strip(" '") for tag in context['expected_tags'].split(',')]
        return f'unknown name {context["tag"]!r}; {suggest(context["tag"], tags)}'
    if kind == 'value_error':
        return f'{context["error"]}, got {shown(value)}' if not isinstance(value, Mapping) else str(context['error'])
    text = error['msg'].replace('Input should be', 'must be')
    if kind in ('model_type', 'dict_type', 'model_attributes_type'):
        text = 'must be a mapping'
    if kind == 'literal_error' and isinstance(value, str):
        choices = [choice.strip(" '") for choice in re.split(',| or ', context['expected'])]
        return f'{text}, got {shown(value)}; {suggest(value, choices)}'
    return f'{text}, got {shown(value)}'


def faults_of(error: ValidationError, schema: type[BaseModel], raw: object, prefix: str = '') -> list[Fault]:
    """Turns pydantic's errors into faults, one for each key.

    Args:
        error (ValidationError): What pydantic raised.
        schema (type[BaseModel]): The model that was validated, for the names of valid keys.
        raw (object): The validated input.
        prefix (str): Path of the input within the file.

    Returns:
        list[Fault]: In the order of pydantic's errors.
    """
    messages: dict[str, list[str]] = {}
    meant = set()
    for entry in error.errors(include_url=False):
        path = _key_path(entry['loc'], raw, missing=entry['type'] == 'missing')
        if entry['type'].startswith('union_tag'):
            path += ('name',)
        messages.setdefault(_dotted(prefix, *path), []).append(_message(entry, schema))
        if entry['type'] == 'extra_forbidden':
            near = _nearest(str(path[-1]), _valid_keys(schema, entry['loc'][:-1]))
            meant.add(_dotted(prefix, *path[:-1], near))
    # A required key that is misspelt is one fault, not two.
    return [
        Fault(path, _merged(texts)) for path, texts in messages.items() if not (path in meant and texts == [_MISSING])
    ]


def _dotted(*keys: object) -> str:
    return '.'.join(str(key) for key in keys if key not in (None, ''))


def _merged(texts: list[str]) -> str:
    # The branches of a union each complain about the same value: say it once, with every alternative.
    if len(texts) == 1:
        return texts[0]
    heads, tails = zip(*(text.partition(', got ')[::2] for text in texts), strict=True)
    alternatives = list(dict.fromkeys(head.removeprefix('must be ') for head in heads))
    return f'must be {" or ".join(alternatives)}, got {tails[0]}'


def describe(fault: Fault, path: str | Path, overrides: Sequence[str] = ()) -> str:
    """The line that tells a user of a fault, with where the value comes from.

    Args:
        fault (Fault): The fault.
        path (str | Path): The YAML file.
        overrides (Sequence[str]): The ``key=value`` pairs that were laid over it.

    Returns:
        str: ``<file>: <key>: <message>``, or ``command line`` for the file where an override set the value.
    """
    overridden = [override.partition('=')[0] for override in overrides]
    unknown = fault.message.startswith('unknown key')
    from_command_line = fault.message.startswith('expected key=value') or any(
        # Of a key that is not in the file an override makes the sections around it, too.
        f'{fault.path}.'.startswith(f'{key}.') or (unknown and key.startswith(f'{fault.path}.'))
        for key in overridden
    )
    source = COMMAND_LINE if from_command_line else str(path)
    return ': '.join(filter(None, [source, fault.path, fault.message]))


def told(error: BaseException) -> str | None:
    """The line that tells a user of an error that the machine is at fault for: files, disks and memory.

    Args:
        error (BaseException): What was raised.

    Returns:
        str, optional: The line; None if the error is of another kind, which only its traceback explains.
    """
    text = ' '.join(str(error).split())
    if isinstance(error, OSError) and (error.filename is not None or error.errno in _REMEDIES):
        remedy = _REMEDIES.get(error.errno or 0, 'make it readable, or name another file')
        return f'{error.filename or "a file"}: {error.strerror}; {remedy}'
    if isinstance(error, RuntimeError) and 'PytorchStreamWriter failed' in text:
        return f'a checkpoint cannot be written ({text[:200]}); {_REMEDIES[errno.ENOSPC]}'
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(text)):
        return (
            f'not enough memory ({text[:200] or type(error).__name__}); take smaller batches, data or a smaller model'
        )
    return None
