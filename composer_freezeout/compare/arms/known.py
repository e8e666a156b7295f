"""The arms that tables and plots know. A new one is a line of :data:`KNOWN`, and a file in each family that has it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    'ARMS',
    'BASELINE',
    'BASELINE_SHORT',
    'COST_AWARE',
    'DERIVED',
    'FINE_TUNING_ARMS',
    'FREEZEOUT',
    'FREEZING',
    'HEAD_ONLY',
    'KNOWN',
    'LAYER_FREEZING',
    'MATCHED',
    'SHARED',
    'SHORTENED',
    'STATIC',
    'KnownArm',
    'baseline_of_length',
    'in_order',
    'is_baseline',
    'length_of',
    'round_order',
    'share_of',
    'sources_of',
    'without_freezing',
]

BASELINE, BASELINE_SHORT, FREEZEOUT = 'baseline', 'baseline_short', 'freezeout'
LAYER_FREEZING, MATCHED = 'layer_freezing', 'layer_freezing_matched'
# What people do by hand when they fine-tune: the first layers don't train at all.
STATIC, HEAD_ONLY = 'static', 'head_only'
# FreezeOut with freeze times shifted by measured costs, in families that have them.
COST_AWARE = 'freezeout_cost_aware'
# FreezeOut with one cosine for all units.
SHARED = 'freezeout_shared'

# Names of the algorithms that freeze, as they stand in a configuration.
FREEZING = ('freezeout', 'layer_freezing')


@dataclass(frozen=True)
class KnownArm:
    """An arm with a place in tables and a look in plots.

    Attributes:
        colour (str): ``'ink'`` and ``'muted'`` follow the reader's light or dark scheme; others as matplotlib takes
            them.
        marker (str): As matplotlib takes it.
        filled (bool): Whether the marker is filled, and the line whole.
        made_of (tuple[str, ...]): The arms whose files it is made from, its own kind first. Default: it has a file.
        in_the_time_of (str, optional): The arm whose training time it gets: it is a shortened baseline, and the control
            of that arm.
        full (bool): Whether a full comparison has it.
    """

    colour: str
    marker: str
    filled: bool = True
    made_of: tuple[str, ...] = ()
    in_the_time_of: str | None = None
    full: bool = True


def _shortened(arm: str, colour: str, full: bool = True) -> KnownArm:
    return KnownArm(colour, 'o', False, made_of=(BASELINE, arm), in_the_time_of=arm, full=full)


# In the order of the tables.
KNOWN = {
    BASELINE: KnownArm('ink', 'o'),
    BASELINE_SHORT: _shortened(FREEZEOUT, 'ink'),
    LAYER_FREEZING: KnownArm('#8957e5', '^'),
    MATCHED: KnownArm('#8957e5', '^', False, made_of=(LAYER_FREEZING, FREEZEOUT)),
    STATIC: KnownArm('#2f7d32', 'p', made_of=(BASELINE, FREEZEOUT), full=False),
    HEAD_ONLY: KnownArm('#2f7d32', 'h', False, made_of=(BASELINE,), full=False),
    FREEZEOUT: KnownArm('#d95926', 'D'),
    'freezeout_unscaled': KnownArm('#d95926', 'D', False),
    'freezeout_squared': KnownArm('#1a9e8f', 's'),
    'freezeout_squared_unscaled': KnownArm('#1a9e8f', 's', False),
    'freezeout_linear': KnownArm('#3b82f6', 'v'),
    'freezeout_linear_unscaled': KnownArm('#3b82f6', 'v', False),
    'freezeout_const_time': KnownArm('#c4479b', 'P'),
    'baseline_short_cost_aware': _shortened(COST_AWARE, 'muted', full=False),
    COST_AWARE: KnownArm('#b8860b', 'd', full=False),
    SHARED: KnownArm('#0b7285', 'X', full=False),
}
# What a full comparison consists of: from random weights, and from weights that are there.
ARMS = tuple(name for name, arm in KNOWN.items() if arm.full)
FINE_TUNING_ARMS = (BASELINE, BASELINE_SHORT, LAYER_FREEZING, MATCHED, STATIC, HEAD_ONLY, FREEZEOUT)
# The arms without a file of their own, and those that they are made of.
DERIVED = {name: arm.made_of for name, arm in KNOWN.items() if arm.made_of}
# The shortened baselines, and the arm whose time each has.
SHORTENED = {name: arm.in_the_time_of for name, arm in KNOWN.items() if arm.in_the_time_of is not None}


_LENGTH = re.compile(re.escape(BASELINE) + r'_(\d\.\d+)')


def baseline_of_length(length: float) -> str:
    """Name of the baseline with its schedule compressed to some length.

    Args:
        length (float): Share of the whole baseline's batches, in ``(0, 2)`` but not 1.

    Returns:
        str: As ``baseline_0.75``.
    """
    text = f'{length:.4f}'.rstrip('0')
    return f'{BASELINE}_{text}0' if text.endswith('.') else f'{BASELINE}_{text}'


def length_of(name: str) -> float | None:
    """The length that :func:`baseline_of_length` has made a name of; None of any other arm."""
    match = _LENGTH.fullmatch(name)
    return float(match[1]) or None if match else None


_SHARE = re.compile(re.escape(STATIC) + r'_(0\.\d+)')


def share_of(name: str) -> float | None:
    """The share of the FLOPs that ``static_0.25`` and the like are named after; None of any other arm."""
    match = _SHARE.fullmatch(name)
    return float(match[1]) or None if match else None


def sources_of(name: str) -> tuple[str, ...]:
    """The arms whose files an arm is made from, its own kind first."""
    return (BASELINE,) if share_of(name) is not None else DERIVED.get(name, (name,))


def without_freezing(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration, as a record holds it, without what freezes: algorithms, and what is frozen from the start."""
    algorithms = [entry for entry in config['algorithms'] if entry.get('name') not in FREEZING]
    model = {key: value for key, value in config['model'].items() if key != 'freeze'}
    return {**config, 'model': model, 'algorithms': algorithms}


def is_baseline(name: str) -> bool:
    """Whether an arm is the baseline, of whatever length: a point of the curve that others are judged by."""
    return name == BASELINE or name in SHORTENED or length_of(name) is not None


def in_order(names: Iterable[str]) -> list[str]:
    """Sorts names of arms into the order of tables.

    Args:
        names (Iterable[str]): The names.

    Returns:
        list[str]: Without repetitions; after the baseline its other lengths, longest first; after the static arm its
        others; unknown ones last.
    """
    places = {name: place for place, name in enumerate(KNOWN)}

    def place(name: str) -> tuple[float, float, str]:
        if (length := length_of(name)) is not None:
            return places[BASELINE], 1 / length, name
        if (share := share_of(name)) is not None:
            return places[STATIC], 1 + share, name
        return places.get(name, len(places)), 0, name

    return sorted(set(names), key=place)


def round_order(names: Sequence[str], number: int) -> list[str]:
    """The order in which the arms run with one seed.

    From round to round the order moves on by one, so that no arm is always the first, or always runs when the machine
    is warm. A shortened baseline waits for the arms that its length is taken from.

    Args:
        names (Sequence[str]): The arms.
        number (int): Number of the round, in ``[0, ∞)``.

    Returns:
        list[str]: All of them.
    """
    turn = number % len(names)
    order = [*names[turn:], *names[:turn]]
    for short in SHORTENED:
        if short in order:
            after = max((order.index(name) for name in DERIVED[short] if name in order), default=-1)
            if (at := order.index(short)) < after:
                order.insert(after, order.pop(at))
    return order
