"""YAML files: read, overridden from the command line, written."""

import difflib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent, NodeEvent

from composer_freezeout.results.files import write_text
from composer_freezeout.run.faults import ConfigError, Fault, dotted, shortened, shown

__all__ = ['apply_overrides', 'read_yaml', 'write_yaml']


# No configuration comes near them: what does is a mistake, or malice.
MAX_CHARACTERS, MAX_DEPTH, MAX_VALUES = 1_000_000, 50, 10_000


def _yaml() -> YAML:
    return YAML(typ='safe', pure=True)


def _yaml_fault(error: YAMLError) -> str:
    if not isinstance(error, MarkedYAMLError):
        return f'not YAML: {" ".join(str(error).split())}'
    problem = str(error.problem or error.context).splitlines()[0]
    mark = error.problem_mark or error.context_mark
    where = f'line {mark.line + 1}: ' if mark else ''
    if 'duplicate key' in problem:
        return f'{where}{problem.replace("found ", "")}; remove one of the two'
    return f'{where}not YAML: {problem}'


def _parsed(text: str) -> Any:
    """Content of a YAML text.

    Raises:
        ConfigError: With a fault whose path is within the content.
    """
    _check_size(text)
    try:
        return _plain(_yaml().load(text))
    except YAMLError as error:
        raise ConfigError([Fault('', _yaml_fault(error))]) from None
    except (ValueError, KeyError) as error:
        # What looks like a date or a number and is none.
        if isinstance(error, ConfigError):
            raise
        reason = ' '.join(str(error).split())
        too_long = reason.startswith('Exceeds the limit')
        message = 'holds a number of thousands of digits; take a smaller one' if too_long else f'not YAML: {reason}'
        raise ConfigError([Fault('', message)]) from None


def _check_size(text: str) -> None:
    # Before it is loaded, which takes seconds, and of deep nesting ends in a RecursionError.
    depth = values = 0
    try:
        for event in _yaml().parse(text):
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            values += isinstance(event, NodeEvent)
            if depth > MAX_DEPTH or values > MAX_VALUES:
                raise ConfigError([Fault('', f'line {event.start_mark.line + 1}: {_too_large(values)}')])
    except YAMLError as error:
        raise ConfigError([Fault('', _yaml_fault(error))]) from None


def _too_large(values: int) -> str:
    if values > MAX_VALUES:
        return f'more than {MAX_VALUES:,} values with all aliases, which no run needs; take fewer'
    return f'nested deeper than {MAX_DEPTH} levels with all aliases, which no run needs; take fewer'


def _plain(content: Any) -> Any:
    """A copy of which no part is in two places, as aliases are, so that changing one leaves the others.

    Raises:
        ConfigError: If it is larger than a configuration can be, or holds what JSON cannot.
    """
    values = 0

    def copy(value: Any, path: tuple[object, ...]) -> Any:
        nonlocal values
        values += 1
        # Aliases of aliases make millions of a few lines, and an alias of what it is in has no end.
        if values > MAX_VALUES or len(path) > MAX_DEPTH:
            raise ConfigError([Fault('', _too_large(values))])
        if isinstance(value, dict):
            return {_key(key, path): copy(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [copy(item, (*path, index)) for index, item in enumerate(value)]
        if isinstance(value, str):
            _check_text(value, path)
        elif isinstance(value, int) and abs(value) >= 2**63:
            raise ConfigError([Fault(dotted(*path), f'{shortened(value)} is beyond 64 bits; take a smaller number')])
        elif not isinstance(value, (bool, int, float, type(None))):
            fault = f'{shown(value)} is no plain value; put it in quotes to make it a string'
            raise ConfigError([Fault(dotted(*path), fault)])
        return value

    return copy(content, ())


def _key(key: object, path: tuple[object, ...]) -> str:
    if not isinstance(key, str):
        raise ConfigError([Fault(dotted(*path), f'the key {shown(key)} must be a string; put it in quotes')])
    return key


def _check_text(text: str, path: tuple[object, ...]) -> None:
    try:
        whole = '\0' not in text and text.encode('utf-8') is not None
    except UnicodeEncodeError:
        whole = False
    if not whole:
        fault = f'{shown(text)} holds a character that no file can hold; remove it'
        raise ConfigError([Fault(dotted(*path), fault)])


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a YAML 1.2 file whose top level is a mapping.

    Args:
        path (str | Path): The file.

    Returns:
        dict[str, Any]: Its content; no part of it is in two places, even where the file has aliases.

    Raises:
        ConfigError: If it cannot be read, is not YAML, repeats a key, is too large, or is no mapping of plain values.
    """
    try:
        with Path(path).open(encoding='utf-8') as file:
            text = file.read(MAX_CHARACTERS + 1)
    except FileNotFoundError:
        folder = Path(path).parent
        siblings = [str(folder / file.name) for file in folder.glob('*.y*ml')] if folder.is_dir() else []
        near = difflib.get_close_matches(str(path), siblings, n=1)
        hint = f'; did you mean {near[0]!r}?' if near else '; give the path of a YAML file'
        raise ConfigError([Fault('', f'no such file{hint}')]) from None
    except OSError as error:
        raise ConfigError([Fault('', f'cannot be read: {error.strerror}; give the path of a YAML file')]) from None
    except ValueError as error:
        raise ConfigError([Fault('', f'cannot be read: {error}')]) from None
    if len(text) > MAX_CHARACTERS:
        fault = f'has more than {MAX_CHARACTERS:,} characters; give the YAML file of a run'
        raise ConfigError([Fault('', fault)])
    raw = _parsed(text)
    if not isinstance(raw, dict):
        raise ConfigError([Fault('', f'must be a mapping of keys to values, got {shown(raw)}')])
    return raw


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Lays ``key=value`` pairs over a configuration.

    Args:
        raw (dict[str, Any]): The configuration; it is changed.
        overrides (Sequence[str]): Each a dotted path, ``=``, and a YAML value: ``optimizer.lr=0.1``,
            ``algorithms.0.t_0=0.5``.

    Returns:
        dict[str, Any]: ``raw``.

    Raises:
        ConfigError: If a pair is incomplete, its value is not YAML, or its path leads nowhere.
    """
    faults = []
    for override in overrides:
        path, equals, text = override.partition('=')
        keys = path.split('.')
        if not equals or not all(keys):
            faults.append(Fault('', f'expected key=value, got {override!r}; for example max_duration=2ep'))
            continue
        try:
            _set(raw, keys, _parsed(text))
        except ConfigError as error:
            within, message = error.faults[0]
            message = message.rpartition('line 1: ')[2]
            if message.startswith('not YAML'):
                message = f'the value {shortened(text)} is {message}'
            faults.append(Fault(dotted(path, within), message))
        except KeyError as error:
            faults.append(Fault(path, error.args[0]))
    if faults:
        raise ConfigError(faults)
    return raw


def _set(node: Any, keys: Sequence[str], value: object) -> None:
    for position, key in enumerate(keys):
        here = '.'.join(keys[:position])
        last = position == len(keys) - 1
        if isinstance(node, list):
            if not node:
                raise KeyError(f'{here!r} is an empty list; give it as a whole: {here}=[…]')
            if not (key.isdecimal() and len(key) < 10 and int(key) < len(node)):
                raise KeyError(f'{here!r} is a list of {len(node)}: {key!r} is not an index from 0 to {len(node) - 1}')
            index: Any = int(key)
        elif isinstance(node, dict):
            index = key
            if not last and node.get(key) is None:
                node[key] = {}
        else:
            raise KeyError(f'{here!r} is {shown(node)} and has no key {key!r}')
        if last:
            node[index] = value
        else:
            node = node[index]


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a YAML file that is there as a whole or not at all.

    Args:
        path (Path): The file; its folder exists.
        content (Mapping[str, Any]): What it is to hold, in this order.

    Raises:
        OSError: If it cannot be written; names the file.
    """
    yaml = _yaml()
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # pyright: ignore[reportAttributeAccessIssue]
    text = io.StringIO()
    yaml.dump(content, text)
    write_text(path, text.getvalue())
