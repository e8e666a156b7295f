"""Hooks on a user's modules that are no part of them: a copy of the model knows nothing of FreezeOut."""

from collections.abc import Callable
from typing import Any

__all__ = ['UncopiedHook']


class UncopiedHook:
    """A hook that does nothing in a copy of its module, or in what has been pickled.

    Args:
        call (Callable[..., Any], optional): What the hook does; nothing in a copy.
    """

    def __init__(self, call: Callable[..., Any] | None = None) -> None:
        self._call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return UncopiedHook, ()

    def __call__(self, *args: Any) -> Any:
        """Passes on what the hook is given, and returns what comes of it."""
        return None if self._call is None else self._call(*args)
