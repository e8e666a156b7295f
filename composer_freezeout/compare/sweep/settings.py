"""Settings of FreezeOut: which are tried, and which are judged."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from composer_freezeout.results.stats import pareto_front

if TYPE_CHECKING:
    import optuna

__all__ = ['DEFAULT', 'WARM_UPS', 'Setting', 'chosen', 'default_setting', 'name_of', 'suggest']

# The paper's default, where the family's own file doesn't say otherwise.
DEFAULT = {'t_0': 0.8, 'how_scale': 'cubic', 'scale_lr': True, 'granularity': 'module', 't_warmup': '0dur'}
WARM_UPS = ('0dur', '0.03dur', '0.1dur')
Setting = Mapping[str, Any]


def default_setting(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The setting that others are compared with: that of the family.

    Args:
        arguments (Mapping[str, Any]): What the family's file gives to FreezeOut.

    Returns:
        dict[str, Any]: Arguments of FreezeOut; the paper's where the file has none.
    """
    return {key: arguments[key] if arguments.get(key) is not None else value for key, value in DEFAULT.items()}


def suggest(trial: 'optuna.Trial', warm_ups: Sequence[str] = WARM_UPS) -> dict[str, Any]:
    """Draws a setting.

    Args:
        trial (optuna.Trial): A trial of Optuna's.
        warm_ups (Sequence[str]): The lengths of warm-up to choose from.

    Returns:
        dict[str, Any]: Arguments of FreezeOut.
    """
    return {
        't_0': trial.suggest_float('t_0', 0.5, 0.95, step=0.05),
        'how_scale': trial.suggest_categorical('how_scale', ['linear', 'squared', 'cubic']),
        'scale_lr': trial.suggest_categorical('scale_lr', [True, False]),
        'granularity': trial.suggest_categorical('granularity', ['module', 'block']),
        't_warmup': trial.suggest_categorical('t_warmup', list(warm_ups)),
    }


def name_of(setting: Setting) -> str:
    """A short name for a setting, the same in every sweep.

    Args:
        setting (Mapping[str, Any]): Arguments of FreezeOut.

    Returns:
        str: What names its folder and its point of a plot.
    """
    digest = hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()
    return f'{setting["how_scale"]}-{setting["t_0"]:g}-{digest[:6]}'


def chosen(trials: Iterable[tuple[Setting, Sequence[float]]], keep: int, default: Setting) -> list[Setting]:
    """The settings that are judged: those that no other beats in accuracy and saving, and the default.

    Args:
        trials (Iterable[tuple[Mapping[str, Any], Sequence[float]]]): Settings, with accuracy and saving.
        keep (int): At most so many besides the default, evenly spread over the front; in ``[1, ∞)``.
        default (Mapping[str, Any]): The default.

    Returns:
        list[Mapping[str, Any]]: By rising saving, the default first.
    """
    unique = {name_of(setting): (setting, values) for setting, values in trials}
    settings = [setting for setting, _ in unique.values()]
    values = [values for _, values in unique.values()]
    # A front of costs and gains: the saving is a negative cost.
    front = pareto_front([-saving for _, saving in values], [accuracy for accuracy, _ in values])[::-1]
    places = sorted({round(place) for place in np.linspace(0, len(front) - 1, min(keep, len(front)))})
    found = [settings[front[place]] for place in places]
    return [default, *(setting for setting in found if setting != default)]
