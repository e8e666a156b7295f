"""Where two configurations differ."""

from collections.abc import Iterator
from typing import Any

__all__ = ['ABSENT', 'differences']


class _Absent:
    def __repr__(self) -> str:
        return 'absent'


# Stands for the value of a key that only the other one has.
ABSENT = _Absent()


def differences(one: Any, other: Any) -> dict[str, tuple[Any, Any]]:
    """Where two configurations, or parts of them, differ.

    Args:
        one (Any): Mappings, lists and scalars.
        other (Any): The same.

    Returns:
        dict[str, tuple[Any, Any]]: Both values by key path (``algorithms.0.t_0``), in the order of the first's keys;
        :data:`ABSENT` where one of the two has no such key. A key that is missing beside one with null is no
        difference: it is a setting that came later, and that is not used.
    """
    left, right = dict(_leaves(one)), dict(_leaves(other))
    pairs = {key: (left.get(key, ABSENT), right.get(key, ABSENT)) for key in dict.fromkeys([*left, *right])}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b and {id(a), id(b)} != {id(ABSENT), id(None)}}


def _leaves(value: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    if isinstance(value, (dict, list)) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _leaves(item, f'{path}.{key}' if path else str(key))
    else:
        yield path, value
