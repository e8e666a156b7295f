"""The arms that tables and plots know."""

from collections.abc import Iterable, Sequence

__all__ = [
    'ARMS',
    'BASELINE',
    'BASELINE_SHORT',
    'COST_AWARE',
    'DERIVED',
    'FREEZEOUT',
    'FREEZING',
    'LAYER_FREEZING',
    'MATCHED',
    'SHORTENED',
    'in_order',
    'round_order',
]

BASELINE, BASELINE_SHORT, FREEZEOUT = 'baseline', 'baseline_short', 'freezeout'
# FreezeOut with freeze times shifted by measured costs, in families that have them.
COST_AWARE = 'freezeout_cost_aware'
# The shortened baselines, and the arm whose time each has.
SHORTENED = {BASELINE_SHORT: FREEZEOUT, 'baseline_short_cost_aware': COST_AWARE}
# What a full comparison consists of, in the order of the tables.
ARMS = (
    BASELINE,
    BASELINE_SHORT,
    'layer_freezing',
    'layer_freezing_matched',
    FREEZEOUT,
    'freezeout_unscaled',
    'freezeout_squared',
    'freezeout_squared_unscaled',
    'freezeout_linear',
    'freezeout_linear_unscaled',
    'freezeout_const_time',
)
# Names of the algorithms that freeze, as they stand in a configuration.
FREEZING = ('freezeout', 'layer_freezing')
LAYER_FREEZING, MATCHED = 'layer_freezing', 'layer_freezing_matched'
# The arms without a file of their own, and those that they are made of.
DERIVED = {short: (BASELINE, arm) for short, arm in SHORTENED.items()} | {MATCHED: (LAYER_FREEZING, FREEZEOUT)}


def in_order(names: Iterable[str]) -> list[str]:
    """Sorts names of arms into the order of tables.

    Args:
        names (Iterable[str]): The names.

    Returns:
        list[str]: Without repetitions.
    """
    return sorted(set(names), key=lambda name: (ARMS.index(name) if name in ARMS else len(ARMS), name))


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
