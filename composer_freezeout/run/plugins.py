"""Modules that register models and data sets: who names them, and which have been imported.

Installed packages name theirs as entry points of the group :data:`GROUP`; others are named on the command line. A YAML
file names none.
"""

import argparse
import hashlib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from composer_freezeout.results.record import Plugin
from composer_freezeout.run.data_config import BUILT_IN
from composer_freezeout.run.faults import Refused
from composer_freezeout.run.registered import DATA_SETS, MODELS, Clash

__all__ = ['GROUP', 'add_import_option', 'imports', 'load_plugins', 'plugins']

GROUP = 'composer_freezeout.plugins'

_PLUGINS: dict[str, Plugin] = {}
_NAMED: list[str] = []


def add_import_option(parser: argparse.ArgumentParser) -> None:
    """Adds the option that names modules to import."""
    parser.add_argument(
        '--import',
        dest='imports',
        action='append',
        default=[],
        metavar='MODULE',
        help='a module with models and data sets of your own, such as my_project.freezing; may be repeated',
    )


def load_plugins(named: Sequence[str]) -> None:
    """Imports the plugins of installed packages, and modules that are named on the command line.

    Args:
        named (Sequence[str]): The latter. They are looked for in the current folder, too, as with ``python -m``.

    Raises:
        Refused: If one cannot be imported, or a name is taken.
    """
    _NAMED[:] = dict.fromkeys(named)
    for entry in sorted(metadata.entry_points(group=GROUP), key=lambda entry: (entry.value, entry.name)):
        package = entry.dist
        whose = entry.value if package is None else f'the installed package {package.name} {package.version}'
        _import(entry.module, f'{whose}: its plugin {entry.module}', 'mend the package, or uninstall it', package)
    if named and os.getcwd() not in sys.path and '' not in sys.path:
        sys.path.insert(0, os.getcwd())
    for module in _NAMED:
        _import(module, f'command line: --import: {module}', _remedy(module), None)
    _check_names()


def imports() -> tuple[str, ...]:
    """What the command line has named, for processes that are started here."""
    return tuple(_NAMED)


def plugins() -> list[Plugin]:
    """The plugins that have been imported, by name of the module."""
    return [_PLUGINS[module] for module in sorted(_PLUGINS)]


def _import(module: str, what: str, remedy: str, package: metadata.Distribution | None) -> None:
    try:
        found = importlib.import_module(module)
    except Clash as error:
        raise Refused(f'{what}: {error}') from error
    except Exception as error:
        raise Refused(f'{what} cannot be imported ({_told(error)}); {remedy}') from error
    file = getattr(found, '__file__', None)
    digest = None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()
    version = None if package is None else f'{package.name} {package.version}'
    _PLUGINS.setdefault(module, Plugin(module=module, distribution=version, sha256=digest))


def _told(error: Exception) -> str:
    """An error in a line, with where it was raised, unless Python itself did not find the module."""
    line = f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if 'importlib' not in frame.filename]
    last = frames[-1]
    return line if last.filename == __file__ else f'{line}, in line {last.lineno} of {last.filename}'


def _remedy(module: str) -> str:
    if '/' in module or module.endswith('.py'):
        dotted = '.'.join(part for part in Path(module).with_suffix('').parts if part not in ('.', '..', '/'))
        return f'give the name of a module, not a file: --import {dotted}'
    return 'give a module that is installed, or in the current folder: my_project.freezing for my_project/freezing.py'


def _check_names() -> None:
    """Makes sure that no name means two things."""
    lines = [
        f'{DATA_SETS[name].module}: the data set {name!r} has the name of one that comes with composer_freezeout; '
        'register it by another name'
        for name in sorted(BUILT_IN & DATA_SETS.keys())
    ]
    if MODELS:
        # Imported here, as it needs torch; who has a model needs it, too.
        from composer_freezeout.run.models import is_built_in

        lines += [
            f'{MODELS[name].module}: the model {name!r} has the name of one that comes with composer_freezeout or '
            'torchvision; register it by another name'
            for name in sorted(MODELS)
            if is_built_in(name)
        ]
    if lines:
        raise Refused(lines)
