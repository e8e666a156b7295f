"""Names of a YAML file → constructors of Composer, torch and this package.

A YAML file never names Python code to import: it chooses from these tables. What a constructor takes is read from its
signature, so that a misspelt or mistyped argument is reported with its key path before anything is built.
"""

import inspect
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import composer.algorithms
import composer.callbacks
import composer.loggers
import composer.optim
import torch.optim
from composer.core import Algorithm, Callback
from composer.loggers import LoggerDestination

from composer_freezeout.algorithm.freezeout import FreezeOut
from composer_freezeout.run.config import Component
from composer_freezeout.run.faults import ConfigError, Fault, SectionFault, suggest
from composer_freezeout.run.signatures import Constructor, check_arguments

__all__ = ['ALGORITHMS', 'CALLBACKS', 'LOGGERS', 'OPTIMIZERS', 'SCHEDULERS', 'Bound', 'bind', 'constructed']


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
        raise ConfigError([SectionFault(path, message, self.path)]) from error


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
