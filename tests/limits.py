"""Limits that the system sets, as a full disk does."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ['no_file_beyond']


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """No file grows beyond a size in bytes: writing more fails half-way, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
