"""YAML files: read, overridden from the command line, written."""

import difflib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from composer_freezeout.results.files import write_text
from composer_freezeout.run.faults import ConfigError, Fault, shown

__all__ = ['apply_overrides', 'read_yaml', 'write_yaml']


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


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a YAML 1.2 file whose top level is a mapping.

    Args:
        path (str | Path): The file.

    Returns:
        dict[str, Any]: Its content.

    Raises:
        ConfigError: If it cannot be read, is not YAML, repeats a key, or is not a mapping.
    """
    try:
        raw = _yaml().load(Path(path).read_text(encoding='utf-8'))
    except FileNotFoundError:
        folder = Path(path).parent
        siblings = [str(folder / file.name) for file in folder.glob('*.y*ml')] if folder.is_dir() else []
        near = difflib.get_close_matches(str(path), siblings, n=1)
        hint = f'; did you mean {near[0]!r}?' if near else '; give the path of a YAML file'
        raise ConfigError([Fault('', f'no such file{hint}')]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Fault('', f'cannot be read: {error}')]) from None
    except YAMLError as error:
        raise ConfigError([Fault('', _yaml_fault(error))]) from None
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
            _set(raw, keys, _yaml().load(text))
        except YAMLError as error:
            faults.append(Fault(path, f'the value {text!r} is {_yaml_fault(error).rpartition("line 1: ")[2]}'))
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
            if not (key.isdecimal() and int(key) < len(node)):
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
