"""Errors as lines that a user can act on: of configurations and command lines, of files, disks and memory."""

import errno
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from composer_freezeout.run.faults import ConfigError, Fault, Refused, SectionFault

__all__ = ['COMMAND_LINE', 'describe', 'disk_error', 'lines_of', 'told']

COMMAND_LINE = 'command line'

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REMEDIES = dict.fromkeys(_FULL, 'free some space, or let the output go to another disk') | dict.fromkeys(
    (errno.EACCES, errno.EPERM, errno.EROFS), 'change its permissions, or choose another place'
)
# torch has no type of its own for an allocation that fails on the CPU.
_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory", re.IGNORECASE)


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
