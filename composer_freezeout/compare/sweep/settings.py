"""Settings of FreezeOut: which are tried, and which are judged."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from composer_freezeout.method.schedule import Anneal
from composer_freezeout.results.stats import pareto_front

if TYPE_CHECKING:
    import optuna

__all__ = [
    'DEFAULT',
    'FINE_TUNING',
    'FROM_SCRATCH',
    'WARM_UPS',
    'Setting',
    'Space',
    'chosen',
    'default_setting',
    'name_of',
    'space_of',
    'suggest',
]

# The paper's default, where the family's own file doesn't say otherwise.
DEFAULT = {
    't_0': 0.8,
    'how_scale': 'cubic',
    'scale_lr': True,
    'granularity': 'module',
    't_warmup': '0dur',
    'anneal': None,
}
WARM_UPS = ('0dur', '0.03dur', '0.1dur')
Setting = Mapping[str, Any]


@dataclass(frozen=True)
class Space:
    """What is explored, which depends on what training starts from.

    Attributes:
        least_t_0 (float): The smallest ``t_0`` that is tried, in ``(0, 0.95]``.
        lengths (tuple[int, ...]): Of the baselines that settings are judged by, in percent of the whole duration; the
            first is 100, and the last saves about as much as any setting.
    """

    least_t_0: float
    lengths: tuple[int, ...]


FROM_SCRATCH = Space(0.5, (100, 90, 80, 70, 60))
# From trained weights layers may freeze much earlier.
FINE_TUNING = Space(0.05, (100, 80, 60, 45, 30))


def default_setting(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The setting that others are compared with: that of the family.

    Args:
        arguments (Mapping[str, Any]): What the family's file gives to FreezeOut.

    Returns:
        dict[str, Any]: Arguments of FreezeOut; the paper's where the file has none.
    """
    return {key: arguments[key] if arguments.get(key) is not None else value for key, value in DEFAULT.items()}


def space_of(default: Setting, fine_tunes: bool) -> Space:
    """What is explored for a family.

    Args:
        default (Mapping[str, Any]): Of :func:`default_setting`. One that freezes earlier than any from scratch tells of
            fine-tuning, too: a model of the user's own may load its weights itself.
        fine_tunes (bool): Whether the family names weights.

    Returns:
        Space: Lengths of baselines, and the smallest ``t_0``.
    """
    return FINE_TUNING if fine_tunes or default['t_0'] < FROM_SCRATCH.least_t_0 else FROM_SCRATCH


def suggest(
    trial: 'optuna.Trial', warm_ups: Sequence[str] = WARM_UPS, least_t_0: float = FROM_SCRATCH.least_t_0
) -> dict[str, Any]:
    """Draws a setting.

    Args:
        trial (optuna.Trial): A trial of Optuna's.
        warm_ups (Sequence[str]): The lengths of warm-up to choose from.
        least_t_0 (float): The smallest ``t_0``, in ``(0, 0.95]``.

    Returns:
        dict[str, Any]: Arguments of FreezeOut.
    """
    return {
        't_0': trial.suggest_float('t_0', least_t_0, 0.95, step=0.05),
        'how_scale': trial.suggest_categorical('how_scale', ['linear', 'squared', 'cubic']),
        'scale_lr': trial.suggest_categorical('scale_lr', [True, False]),
        'granularity': trial.suggest_categorical('granularity', ['module', 'block']),
        't_warmup': trial.suggest_categorical('t_warmup', list(warm_ups)),
        'anneal': trial.suggest_categorical('anneal', [None, *get_args(Anneal)]),
    }


def name_of(setting: Setting) -> str:
    """A short name for a setting, the same in every sweep.

    Args:
        setting (Mapping[str, Any]): Arguments of FreezeOut.

    Returns:
        str: What names its folder and its point of a plot.
    """
    # What is None is left out: sweeps that were begun before there was such an argument go on.
    given = {key: value for key, value in setting.items() if value is not None}
    digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()
    return f'{setting["how_scale"]}-{setting["t_0"]:g}-{digest[:6]}'


def chosen(trials: Iterable[tuple[Setting, Sequence[float]]], keep: int, default: Setting) -> list[Setting]:
    """The settings that are judged: those that no other beats in quality and saving, and the default.

    Args:
        trials (Iterable[tuple[Mapping[str, Any], Sequence[float]]]): Settings, with quality and saving.
        keep (int): At most so many besides the default, evenly spread over the front; in ``[1, ∞)``.
        default (Mapping[str, Any]): The default.

    Returns:
        list[Mapping[str, Any]]: By rising saving, the default first.
    """
    unique = {name_of(setting): (setting, values) for setting, values in trials}
    settings = [setting for setting, _ in unique.values()]
    values = [values for _, values in unique.values()]
    # A front of costs and gains: the saving is a negative cost.
    front = pareto_front([-saving for _, saving in values], [quality for quality, _ in values])[::-1]
    places = sorted({round(place) for place in np.linspace(0, len(front) - 1, min(keep, len(front)))})
    found = [settings[front[place]] for place in places]
    return [default, *(setting for setting in found if name_of(setting) != name_of(default))]
