r"""When each unit freezes and which learning rate it has until then.

Pure functions of the progress ``t``, the fraction of training done, in ``[0, 1)``. Notation of
`FreezeOut <https://arxiv.org/abs/1706.04983>`_ (Brock et al., 2017), section 3: ``t_0`` sets the schedule, ``t_i`` is
the progress at which unit :math:`i` freezes, and its learning rate anneals along a cosine that ends there. With the
costs of the units given, freeze times are no longer the paper's, but :func:`.cost_aware_times`. Neither are learning
rates the paper's where all units anneal along one cosine.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal, get_args

from composer_freezeout.method.allocation import COST_SHIFT, check_unit_count, cost_aware_times

__all__ = [
    'Anneal',
    'HowScale',
    'check_anneal',
    'check_progress',
    'check_schedule',
    'check_warmup',
    'freeze_stages',
    'freeze_times',
    'lr_factor',
    'lr_factors',
    'units_frozen',
]

HowScale = Literal['linear', 'squared', 'cubic']
Anneal = Literal['shared']

_EXPONENT: dict[str, int] = {'linear': 1, 'squared': 2, 'cubic': 3}


def check_schedule(t_0: float, how_scale: str) -> None:
    """Checks the two arguments that fix the schedule.

    Args:
        t_0 (float): In ``(0, 1]``.
        how_scale (str): ``'linear'``, ``'squared'`` or ``'cubic'``.

    Raises:
        TypeError: If ``t_0`` is not a number.
        ValueError: If either is out of range.
    """
    if isinstance(t_0, bool) or not isinstance(t_0, (int, float)):
        raise TypeError(f't_0 must be a number in (0, 1], got {t_0!r} ({type(t_0).__name__})')
    if not 0 < t_0 <= 1:
        raise ValueError(
            f't_0 must be in (0, 1], got {t_0!r}; the paper uses 0.3 to 0.9, and 1 anneals all units together'
        )
    if how_scale not in get_args(HowScale):
        raise ValueError(f'how_scale must be one of {", ".join(get_args(HowScale))}, got {how_scale!r}')


def check_anneal(anneal: str | None) -> None:
    """Checks along what learning rates fall.

    Raises:
        ValueError: If it is neither ``'shared'`` nor None.
    """
    if anneal is not None and anneal not in get_args(Anneal):
        raise ValueError(f"anneal must be 'shared', or None for a cosine of each unit's own, got {anneal!r}")


def freeze_times(
    num_units: int,
    t_0: float = 0.8,
    how_scale: str = 'cubic',
    unit_costs: Sequence[float] | None = None,
    cost_shift: float = COST_SHIFT,
    heads: int = 1,
) -> tuple[float, ...]:
    r"""Progress at which each unit freezes.

    :math:`t_i = f(t_0 + (1 - t_0)\,i / (n - 1))` with :math:`f(x) = x`, :math:`x^2` or :math:`x^3` (section 3 of the
    paper; the squared scale is from its published code). The last unit trains to the end; with one unit ``t_0`` is
    unused. Heads train to the end: the others freeze as if there were one unit behind them, and not ``heads``.

    Args:
        num_units (int): Number of units ``n``, in ``[1, ∞)``.
        t_0 (float): Freeze time of the first unit before scaling, in ``(0, 1]``.
        how_scale (str): ``'linear'``, ``'squared'`` or ``'cubic'``.
        unit_costs (Sequence[float], optional): What freezing each unit saves of a step; times are shifted by them.
            Default: ``None``, the paper's times.
        cost_shift (float): How far, in ``(0, 1]`` (see :func:`.cost_aware_times`).
        heads (int): How many of the last units train to the end, in ``[1, num_units]``.

    Returns:
        tuple[float, ...]: ``n`` times in ``(0, 1]``, ascending; those of the heads are exactly 1.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, or there is not one cost per unit.
    """
    check_schedule(t_0, how_scale)
    if num_units < 1:
        raise ValueError(f'num_units must be at least 1, got {num_units}')
    if not 1 <= heads <= num_units:
        raise ValueError(f'heads must be in [1, {num_units}], the number of units, got {heads}')
    if unit_costs is not None:
        check_unit_count(unit_costs, num_units)
    exponent = _EXPONENT[how_scale]
    freezing = num_units - heads
    times = [(t_0 + (1 - t_0) * i / freezing) ** exponent for i in range(freezing)]
    if times and times[0] == 0:
        raise ValueError(f't_0 = {t_0!r} is too small: t_0 ** {exponent} is zero in floating point; use a larger t_0')
    # Set, not computed: rounding can leave the head at 0.999… and freeze it before the end.
    times = (*times, 1.0)
    if unit_costs is not None:
        times = cost_aware_times(times, unit_costs[: freezing + 1], cost_shift)
    return (*times, *[1.0] * (heads - 1))


def lr_factor(t: float, t_i: float, scale_lr: bool = True, warmup: float = 0.0, anneal: Anneal | None = None) -> float:
    r"""Learning rate of a unit at progress ``t``, as a multiple of the base learning rate.

    :math:`\frac{1}{2}\,s\,(1 + \cos(\pi t / t_i))` with :math:`s = 1 / t_i` if ``scale_lr`` else 1 (section 3, equation
    1, with the ½ that the paper's formula lacks), and 0 from ``t_i`` on. With one cosine for all units, which is not
    the paper's, :math:`\frac{1}{2}\,s\,(1 + \cos(\pi t))` until ``t_i``; there ``scale_lr`` stands for
    :math:`s = 1 / (t_i + \sin(\pi t_i) / \pi)`, under which every unit travels as far, too. During a warm-up the factor
    rises linearly from 0 to the value that the cosine has at its end; freeze times don't move.

    Args:
        t (float): Progress, in ``[0, 1)``.
        t_i (float): Freeze time of the unit, in ``(0, 1]``.
        scale_lr (bool): Whether each unit's rate is scaled by ``s``, so that all units travel the same distance.
        warmup (float): Progress at which the warm-up ends, in ``[0, t_i)``; 0 for none.
        anneal (str, optional): ``'shared'``, one cosine for all units. Default: ``None``, one for each.

    Returns:
        float: The factor, in ``[0, 1 / t_i]``.
    """
    return lr_factors(t, (t_i,), scale_lr, warmup, anneal)[0]


def lr_factors(
    t: float, times: Sequence[float], scale_lr: bool = True, warmup: float = 0.0, anneal: Anneal | None = None
) -> list[float]:
    """Learning rates of all units at progress ``t``, as multiples of the base learning rate (see :func:`lr_factor`).

    Args:
        t (float): Progress, in ``[0, 1)``.
        times (Sequence[float]): Freeze time of each unit, in ``(0, 1]``.
        scale_lr (bool): Whether each unit's rate is scaled.
        warmup (float): Progress at which the warm-up ends, below all freeze times; 0 for none.
        anneal (str, optional): ``'shared'`` or None.

    Returns:
        list[float]: As many factors, each in ``[0, 1 / t_i]``.
    """
    if t < warmup:
        return [t / warmup * factor for factor in lr_factors(warmup, times, scale_lr, anneal=anneal)]
    # ½(1 + cos πx) = sin²(½π(1 - x)): the same value, but without cancellation near the freeze.
    quarter, sine = 0.5 * math.pi, math.sin
    if anneal == 'shared':
        shared = sine(quarter * (1 - t)) ** 2
        return [0.0 if t >= t_i else shared * (_shared_scale(t_i) if scale_lr else 1.0) for t_i in times]
    if scale_lr:
        return [0.0 if t >= t_i else (s := sine(quarter * (t_i - t) / t_i)) * s / t_i for t_i in times]
    return [0.0 if t >= t_i else (s := sine(quarter * (t_i - t) / t_i)) * s for t_i in times]


def _shared_scale(t_i: float) -> float:
    # Half the area under the whole cosine, over that of its part before t_i.
    return 1 / (t_i + math.sin(math.pi * t_i) / math.pi)


def freeze_stages(num_units: int, max_stages: int | None = None) -> tuple[int, ...]:
    """The numbers of frozen units that a training passes through.

    Units are frozen in stages where each change is costly, as it is for a compiled model. The units of a stage freeze
    together when the last of them is due; until then the learning rate of those that were due earlier is zero.

    Args:
        num_units (int): Number of units ``n``, in ``[1, ∞)``.
        max_stages (int, optional): How often units may freeze, in ``[1, ∞)``. Default: ``None``, each by itself.

    Returns:
        tuple[int, ...]: Ascending from 0 to ``n - 1``, evenly spread.

    Raises:
        ValueError: If ``max_stages`` is below 1.
    """
    if max_stages is not None and max_stages < 1:
        raise ValueError(f'max_stages must be at least 1, or None for no limit, got {max_stages}')
    freezing = num_units - 1
    stages = freezing if max_stages is None else min(max_stages, freezing)
    return (0, *(round(freezing * stage / stages) for stage in range(1, stages + 1)))


def units_frozen(t: float, times: Sequence[float], stages: Sequence[int] | None = None) -> int:
    """Number of leading units that are frozen at progress ``t``: those with ``t_i <= t``, in whole stages.

    Args:
        t (float): Progress, in ``[0, 1)``.
        times (Sequence[float]): Freeze times, ascending, the last one 1.
        stages (Sequence[int], optional): From :func:`freeze_stages`. Default: ``None``, each unit by itself.

    Returns:
        int: In ``[0, n)``.

    Raises:
        ValueError: If ``t`` is outside ``[0, 1)``.
    """
    check_progress(t)
    due = bisect_right(times, t)
    return due if stages is None else stages[bisect_right(stages, due) - 1]


def check_progress(t: float) -> None:
    """Checks the progress.

    Raises:
        ValueError: If it is outside ``[0, 1)``.
    """
    if not 0 <= t < 1:
        raise ValueError(f'progress must be in [0, 1), got {t!r}')


def check_warmup(warmup: float, first_freeze: float) -> None:
    """Checks that the warm-up is over before anything freezes.

    Args:
        warmup (float): Progress at which it ends, in ``[0, first_freeze)``.
        first_freeze (float): Freeze time of the first unit, in ``(0, 1]``.

    Raises:
        ValueError: If it is not.
    """
    if not 0 <= warmup < first_freeze:
        raise ValueError(
            f'the warm-up must end before the first unit freezes, at progress {first_freeze:.4g}, but it ends at '
            f'{warmup:.4g}; shorten t_warmup or raise t_0'
        )
