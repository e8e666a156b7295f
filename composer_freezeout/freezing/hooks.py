"""Hooks on a user's modules that are no part of them."""

from collections.abc import Callable
from typing import Any

__all__ = ['UncopiedHook']


class UncopiedHook:
    """A hook that does nothing in a copy of its module, or in what has been pickled.

    Args:
        call (Callable[..., Any], optional): What it does.
    """

    def __init__(self, call: Callable[..., Any] | None = None) -> None:
        self._call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return UncopiedHook, ()

    def __call__(self, *args: Any) -> Any:
        """Does it."""
        return None if self._call is None else self._call(*args)
