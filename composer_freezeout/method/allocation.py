r"""Freeze times shifted by what freezing each unit saves: expensive units earlier, cheap ones later.

Not FreezeOut as published, whose freeze times depend on the number of units alone. Up to a constant a training costs
:math:`\sum_i c_i t_i`: :math:`c_i` is what a step saves once unit :math:`i` is frozen, too, and :math:`t_i` when it
freezes. Units train as long on average as by the paper's schedule, in the same order, and none of them freezes before
the paper's first one. Pure functions.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy.optimize import brentq, isotonic_regression

__all__ = ['COST_SHIFT', 'check_unit_costs', 'check_unit_count', 'cost_aware_times', 'measured_unit_costs']

COST_SHIFT = 0.25

_DIGITS = 3  # more than that are noise


def check_unit_costs(unit_costs: Sequence[float] | None, cost_shift: float = COST_SHIFT) -> None:
    """Checks the two arguments that shift freeze times, as far as can be done without knowing the units.

    Args:
        unit_costs (Sequence[float], optional): One number per unit, in ``[0, ∞)``, one of them before the last above 0.
        cost_shift (float): In ``(0, 1]``.

    Raises:
        TypeError: If either has the wrong type.
        ValueError: If either is out of range, or ``cost_shift`` is given without costs.
    """
    if not _is_number(cost_shift):
        raise TypeError(f'cost_shift must be a number in (0, 1], got {cost_shift!r} ({type(cost_shift).__name__})')
    if not 0 < cost_shift <= 1:
        raise ValueError(f'cost_shift must be in (0, 1], got {cost_shift!r}; leave out unit_costs to shift nothing')
    if unit_costs is None:
        if cost_shift != COST_SHIFT:
            raise ValueError(f'cost_shift={cost_shift!r} shifts nothing without unit_costs; give both or neither')
        return
    # The order counts, so a set won't do, and neither will what can be read only once.
    if not isinstance(unit_costs, Sequence) or not all(map(_is_number, unit_costs)):
        raise TypeError(f'unit_costs must be a list of numbers, one per unit, got {unit_costs!r}')
    for position, cost in enumerate(unit_costs):
        if not 0 <= cost < np.inf:
            raise ValueError(f'unit_costs must be in [0, ∞), got {cost!r} at position {position}; measure them anew')
    if not any(unit_costs[:-1]):
        raise ValueError(
            'unit_costs must hold a number above 0 before the last one, which never freezes, got '
            f'{list(unit_costs)!r}; leave it out if freezing saves nothing'
        )


def check_unit_count(unit_costs: Sequence[float], num_units: int) -> None:
    """Checks that there is a cost for each unit.

    Raises:
        ValueError: If there is not.
    """
    if len(unit_costs) != num_units:
        raise ValueError(
            f'unit_costs must hold one number per unit: the model has {num_units} units, got {len(unit_costs)} '
            'numbers; `composer-freezeout plan FILE --unit-costs COSTS.yaml` writes them for the units of a YAML file'
        )


def cost_aware_times(
    times: Sequence[float], unit_costs: Sequence[float], cost_shift: float = COST_SHIFT
) -> tuple[float, ...]:
    r"""Shifts freeze times by the costs of the units.

    Over the :math:`n - 1` units that freeze, with the paper's times :math:`\tau` and
    :math:`\tilde c_i = c_i / \mathrm{mean}(c)`, the one minimum of

    .. math:: \eta \sum_i \tilde c_i t_i + \tfrac{1}{2} \sum_i (t_i - \tau_i)^2

    such that :math:`t` ascends, lies in :math:`[\tau_0, 1]` and has the mean of :math:`\tau`. So a unit that costs
    twice the average is moved forward by :math:`\eta`, before the constraints.

    Args:
        times (Sequence[float]): The paper's freeze times of ``n`` units, in ``(0, 1]``, ascending, the last one 1.
        unit_costs (Sequence[float]): What freezing each unit saves of a step, in any unit of cost, in ``[0, ∞)``. The
            last one, which never freezes, is not used.
        cost_shift (float): :math:`\eta`, in ``(0, 1]``.

    Returns:
        tuple[float, ...]: ``n`` times in ``[times[0], 1]``, ascending, the last exactly 1; ``times`` itself where all
        costs are equal.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, or there is not one cost per unit.
    """
    check_unit_costs(unit_costs, cost_shift)
    check_unit_count(unit_costs, len(times))
    paper, costs = np.array(times[:-1]), np.array(unit_costs[:-1], dtype=float)
    # Equal costs shift nothing. Solving for it would change the last bits of the times.
    if np.all(costs == costs[0]):
        return tuple(times)
    costs /= costs.max()  # or the sum of large costs is infinite
    ascending = isotonic_regression(paper - cost_shift * costs / costs.mean()).x

    def shifted(by: float) -> np.ndarray:
        return np.clip(ascending + by, paper[0], 1.0)

    # By the conditions of Karush, Kuhn and Tucker the bounds and the mean are met by one shift of all, and a clip. At
    # the ends of the bracket all units are at a bound, whatever is rounded.
    least, most = paper[0] - ascending[-1] - 1, 2 - ascending[0]
    by = brentq(lambda by: (shifted(by) - paper).sum(), least, most, xtol=1e-15)
    return (*shifted(by).tolist(), 1.0)  # pyright: ignore[reportArgumentType]


def measured_unit_costs(step_costs: Sequence[float]) -> list[float]:
    """What freezing each unit saves, from measured steps.

    Noise can make a step with more frozen units look dearer. The steps are taken to be the falling ones that are
    nearest to those that were measured, so that no unit costs less than nothing.

    Args:
        step_costs (Sequence[float]): ``step_costs[k]``: cost of one step with the first ``k`` of ``n`` units frozen,
            for ``k`` from 0 to ``n - 1``.

    Returns:
        list[float]: ``n`` costs in ``[0, ∞)``, of three digits; the last, which never freezes, is 0.
    """
    falling = isotonic_regression(step_costs, increasing=False).x.tolist()
    return [float(f'{before - after:.{_DIGITS}g}') for before, after in pairwise(falling)] + [0.0]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
