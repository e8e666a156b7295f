"""What is wrong with a configuration or a command line, told in lines that a user can act on."""

import difflib
import errno
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

__all__ = [
    'COMMAND_LINE',
    'Attempts',
    'ConfigError',
    'Fault',
    'Refused',
    'SectionFault',
    'describe',
    'disk_error',
    'dotted',
    'lines_of',
    'nearest',
    'shortened',
    'shown',
    'suggest',
    'told',
    'units_fault',
]

T = TypeVar('T')

COMMAND_LINE = 'command line'

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REMEDIES = dict.fromkeys(_FULL, 'free some space, or let the output go to another disk') | dict.fromkeys(
    (errno.EACCES, errno.EPERM, errno.EROFS), 'change its permissions, or choose another place'
)
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


def describe(fault: Fault, path: str | Path, overrides: Sequence[str] = ()) -> str:
    """The line that tells a user of a fault, with where the value comes from.

    Args:
        fault (Fault): The fault.
        path (str | Path): The YAML file.
        overrides (Sequence[str]): The ``key=value`` pairs that were laid over it.

    Returns:
        str: ``<file>: <key>: <message>``; ``command line`` for the file where an override set the value, or
        ``<file> with <key=value>`` where an override may have a part in it.
    """
    overridden = [override.partition('=')[0] for override in overrides]
    unknown = fault.message.startswith('unknown key')
    from_command_line = (
        fault.path.startswith('--')
        or fault.message.startswith('expected key=value')
        or any(
            # Of a key that is not in the file an override makes the sections around it, too.
            f'{fault.path}.'.startswith(f'{key}.') or (unknown and key.startswith(f'{fault.path}.'))
            for key in overridden
        )
    )
    source = COMMAND_LINE if from_command_line else str(path)
    if not from_command_line and isinstance(fault, SectionFault):
        # Any value of the section may be to blame, and those of the command line are not in the file.
        inside = f'{fault.section}.' if fault.section else ''
        given = [override for override, key in zip(overrides, overridden, strict=True) if key.startswith(inside)]
        source = ' '.join([source, *(['with', *given] if given else [])])
    return ': '.join(filter(None, [source, fault.path, fault.message]))


def lines_of(error: Exception, path: str | Path, overrides: Sequence[str] = ()) -> Sequence[str] | None:
    """The lines that tell a user why a command could not do what it was asked for.

    Args:
        error (Exception): What was raised.
        path (str | Path): The YAML file of the command.
        overrides (Sequence[str]): The ``key=value`` pairs that were laid over it.

    Returns:
        Sequence[str], optional: A line for each fault; None if only a traceback explains the error.
    """
    if isinstance(error, ConfigError):
        return [describe(fault, path, overrides) for fault in error.faults]
    if isinstance(error, Refused):
        return error.lines
    line = told(error)
    return None if line is None else [line]


def told(error: BaseException) -> str | None:
    """The line that tells a user of an error that the machine is at fault for: files, disks and memory.

    Args:
        error (BaseException): What was raised.

    Returns:
        str, optional: The line; None if the error is of another kind, which only its traceback explains.
    """
    # Others are raised in the place of these; of what lies behind another error, only they are its reason.
    if disk := disk_error(error):
        return _told_of_file(disk)
    if isinstance(error, OSError) and (error.filename is not None or error.errno in _REMEDIES):
        return _told_of_file(error)
    for cause in _causes(error):
        text = ' '.join(str(cause).split())[:200]
        if isinstance(cause, MemoryError) or (isinstance(cause, RuntimeError) and _NO_MEMORY.search(text)):
            return f'not enough memory ({text or "for Python"}); take smaller batches, or a smaller model or data set'
    return None


def _told_of_file(error: OSError) -> str:
    remedy = _REMEDIES.get(error.errno or 0, 'make it readable, or name another file')
    return f'{error.filename or "a file"}: {error.strerror}; {remedy}'


def disk_error(error: BaseException) -> OSError | None:
    """The full disk, or the limit of a user's space, that an error comes from.

    Args:
        error (BaseException): What was raised; torch and Composer raise others in its place.

    Returns:
        OSError, optional: None if it comes from something else.
    """
    return next((e for e in _causes(error) if isinstance(e, OSError) and e.errno in _FULL), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__
