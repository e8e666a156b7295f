"""What is wrong with a configuration or a command line."""

import difflib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

__all__ = [
    'Attempts',
    'ConfigError',
    'Fault',
    'Refused',
    'SectionFault',
    'dotted',
    'nearest',
    'shortened',
    'shown',
    'suggest',
    'units_fault',
]

T = TypeVar('T')


class Fault(NamedTuple):
    """One thing that is wrong.

    Args:
        path (str): Dotted path of the key, empty for the file as a whole.
        message (str): What is wrong, with the value and what is allowed.
    """

    path: str
    message: str


class SectionFault(Fault):
    """What is wrong with several values of a section together, or with one that its error does not name.

    Args:
        path (str): Dotted path of the key, or of the section.
        message (str): What is wrong.
        section (str): Dotted path of the section, empty for the whole.
    """

    section: str

    def __new__(cls, path: str, message: str, section: str) -> 'SectionFault':
        """See the class."""
        fault = super().__new__(cls, path, message)
        fault.section = section
        return fault


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


class Attempts:
    """Collects the faults of several attempts, to tell them together."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def attempt(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T | None:
        """Calls a function, and keeps the faults that it finds.

        Args:
            function (Callable): The function.
            *args (Any): Its arguments.
            **kwargs (Any): The same.

        Returns:
            T, optional: What it returns; None if it raised a :class:`ConfigError`.
        """
        try:
            return function(*args, **kwargs)
        except ConfigError as error:
            self.faults.extend(error.faults)
            return None

    def add(self, path: str, message: str) -> None:
        """Keeps a fault.

        Args:
            path (str): Dotted path of the key.
            message (str): What is wrong.
        """
        self.faults.append(Fault(path, message))

    def raise_if_any(self) -> None:
        """Tells what was found.

        Raises:
            ConfigError: If there are faults.
        """
        if self.faults:
            raise ConfigError(self.faults)


def units_fault(error: Exception, index: int | None) -> Fault | None:
    """What is wrong with the expressions that FreezeOut makes units of, with the key that they stand under.

    Args:
        error (Exception): What FreezeOut has raised.
        index (int, optional): Its place among the algorithms.

    Returns:
        Fault, optional: None if it is about something else.
    """
    setting, _, message = ' '.join(str(error).split()).partition(': ')
    return (
        None if index is None or setting not in ('layers', 'head') else Fault(f'algorithms.{index}.{setting}', message)
    )


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that a wrong one is most like.

    Args:
        name (str): The wrong name.
        valid (Iterable[str]): The right ones.

    Returns:
        str, optional: None if none is near.
    """
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
    if near := nearest(name, valid):
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


def shown(value: object) -> str:
    """A value in an error message.

    Args:
        value (object): The value.

    Returns:
        str: It, shortened, and the name of its type.
    """
    if value is None:
        return 'null'
    return f'{shortened(value)} ({_TYPE_NAMES.get(type(value), type(value).__name__)})'


def shortened(value: object) -> str:
    """A value in an error message, without its type.

    Args:
        value (object): The value.

    Returns:
        str: Its first characters.
    """
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python converts
        text = 'a number of thousands of digits'
    return text if len(text) <= 60 else text[:57] + '...'


def dotted(*keys: object) -> str:
    """A key path.

    Args:
        *keys (object): Keys, from the outermost one; None and empty ones are left out.

    Returns:
        str: The keys with dots between them.
    """
    return '.'.join(str(key) for key in keys if key not in (None, ''))
