"""Settings by name: what to give FreezeOut for a kind of training, in a word."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, ParamSpec, TypeVar, cast

from composer_freezeout.method.finetuning import FINE_TUNING

__all__ = ['PRESETS', 'Preset', 'expanded', 'takes_preset']

Preset = Literal['fine_tuning']

PRESETS: dict[Preset, Mapping[str, Any]] = {'fine_tuning': FINE_TUNING}

P = ParamSpec('P')
R = TypeVar('R')


def expanded(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of FreezeOut, with the settings of a preset in the place of its name.

    Args:
        arguments (Mapping[str, Any]): The arguments; those that are given stand, whatever the preset says.

    Returns:
        dict[str, Any]: As given, where no preset is named.

    Raises:
        ValueError: If there is no such preset.
    """
    name, own = arguments.get('preset'), {key: value for key, value in arguments.items() if key != 'preset'}
    if name is None:
        return own
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f'preset must be one of {", ".join(PRESETS)}, or None, got {name!r}')
    return {**PRESETS[name], **own}


def takes_preset(function: Callable[P, R]) -> Callable[P, R]:
    """Lets a function that takes settings take the name of a preset, too.

    Args:
        function (Callable): It has a keyword ``preset``, which is None whenever it is called.

    Returns:
        Callable: The same function for its callers.
    """
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        by_position = names[: len(args)]
        keywords = {k: v for k, v in expanded(kwargs).items() if k in kwargs or k not in by_position}
        return cast(Callable[..., R], function)(*args, **keywords)

    return called
