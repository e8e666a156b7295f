"""From pydantic's errors to faults that name the key, the value, and what is allowed."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from composer_freezeout.run.faults import Fault, dotted, nearest, shown, suggest

__all__ = ['faults_of']

_MISSING = 'is missing, and has no default'


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
        messages.setdefault(dotted(prefix, *path), []).append(_message(entry, schema))
        if entry['type'] == 'extra_forbidden':
            near = nearest(str(path[-1]), _valid_keys(schema, entry['loc'][:-1]))
            meant.add(dotted(prefix, *path[:-1], near))
    # A required key that is misspelt is one fault, not two.
    return [
        Fault(path, _merged(texts)) for path, texts in messages.items() if not (path in meant and texts == [_MISSING])
    ]


def _merged(texts: list[str]) -> str:
    # The branches of a union each complain about the same value: say it once, with every alternative.
    if len(texts) == 1:
        return texts[0]
    heads, tails = zip(*(text.partition(', got ')[::2] for text in texts), strict=True)
    alternatives = list(dict.fromkeys(head.removeprefix('must be ') for head in heads))
    return f'must be {" or ".join(alternatives)}, got {tails[0]}'
