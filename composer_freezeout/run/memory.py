"""How much memory there is, asked before it is taken: what takes more is ended by the system without a word."""

from pathlib import Path

import psutil

from composer_freezeout.run.faults import ConfigError, SectionFault

__all__ = ['available_bytes', 'check_memory', 'gigabytes']

# A container's limit, in the two versions of control groups.
_LIMITS = (
    ('/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory.current'),
    ('/sys/fs/cgroup/memory/memory.limit_in_bytes', '/sys/fs/cgroup/memory/memory.usage_in_bytes'),
)


def available_bytes() -> int:
    """Memory that this process can still take.

    Returns:
        int: Bytes, in ``[0, ∞)``: of the machine, or of the container where that is less.
    """
    available = psutil.virtual_memory().available
    for limit, usage in _LIMITS:
        try:
            available = min(available, int(Path(limit).read_text()) - int(Path(usage).read_text()))
        except (OSError, ValueError):  # no such file, or 'max'
            continue
    return max(0, available)


def gigabytes(size: int) -> str:
    """A size in an error message.

    Args:
        size (int): Bytes.

    Returns:
        str: In GB.
    """
    # Of a whole number, as there are sizes beyond what a float can hold.
    tenths = size * 10 // 10**9
    return f'{tenths // 10:,}.{tenths % 10} GB'


def check_memory(size: int, path: str, what: str, remedy: str) -> None:
    """Makes sure that there is memory for something before it is made.

    Args:
        size (int): Bytes, in ``[0, ∞)``.
        path (str): Key path of what asks for it.
        what (str): What is made, in the plural.
        remedy (str): How less could be made.

    Raises:
        ConfigError: If there is not enough.
    """
    available = available_bytes()
    if size > available:
        fault = f'{what} take {gigabytes(size)}, and {gigabytes(available)} of memory are free; {remedy}'
        raise ConfigError([SectionFault(path, fault, path.rpartition('.')[0] or path)])
