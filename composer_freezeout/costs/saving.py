"""What freezing saves, predicted from what a training step costs with ``k`` frozen units.

Three models say what a step costs. ``paper``: the backward pass of a layer costs as much as its forward pass
(:func:`paper_costs`), as in the authors' estimate. ``flops``: what the backward pass really computes, which is about
twice as much (:func:`composer_freezeout.costs.flops.step_flops_by_units_frozen`). ``seconds``: what was measured, at
some numbers of frozen units (:func:`interpolated`).
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.optimize import brentq

__all__ = [
    'in_stages',
    'interpolated',
    'largest_saving',
    'paper_costs',
    'predicted_saving',
    'saving_by_t_0',
    'saving_over',
    'solve_t_0',
    'with_loading',
]

# Stands for t_0 → 0; its cube is still far from the smallest number that floating point knows.
_SMALLEST_T_0 = 1e-6


def predicted_saving(step_costs: Sequence[float], freeze_times: Sequence[float]) -> float:
    """Share of the training's cost that FreezeOut saves.

    Between two freeze times every step costs the same, so the cost of the training is a sum over these spans.

    Args:
        step_costs (Sequence[float]): ``step_costs[k]``: cost of one step with the first ``k`` of ``n`` units frozen,
            for ``k`` from 0 to ``n - 1``, in any unit (FLOPs, seconds), in ``[0, ∞)``; the first is above 0.
        freeze_times (Sequence[float]): Progress at which each of the ``n`` units freezes, ascending, the last one 1.

    Returns:
        float: In ``[0, 1)`` where frozen units cost nothing extra.

    Raises:
        ValueError: If the lengths differ or a step without frozen units costs nothing.
    """
    if len(step_costs) != len(freeze_times):
        raise ValueError(f'got {len(step_costs)} step costs for {len(freeze_times)} freeze times; give one per unit')
    if not step_costs or step_costs[0] <= 0:
        raise ValueError(f'a step without frozen units must cost more than nothing, got {list(step_costs)[:1]}')
    starts = (0.0, *freeze_times[:-1])
    spent = sum(cost * (end - start) for cost, start, end in zip(step_costs, starts, freeze_times, strict=True))
    return 1 - spent / step_costs[0]


def saving_over(saving: float, reference: float) -> float:
    """What is saved of a reference's cost, where the reference itself saves something.

    Args:
        saving (float): Share of the whole cost that is saved, in ``[0, 1)``.
        reference (float): The share of it that the reference saves, in ``[0, 1)``.

    Returns:
        float: Share of the reference's cost, in ``(-∞, 1)``; below 0 if the reference saves more.
    """
    return (saving - reference) / (1 - reference)


def in_stages(step_costs: Sequence[float], stages: Sequence[int]) -> list[float]:
    """Cost of a step with ``k`` units due to freeze, where they freeze in stages.

    Args:
        step_costs (Sequence[float]): ``step_costs[k]``: cost of one step with the first ``k`` units frozen.
        stages (Sequence[int]): Numbers of frozen units that the training passes through, ascending from 0.

    Returns:
        list[float]: As many costs: for each ``k`` that of the last stage that is complete.
    """
    return [step_costs[stages[bisect_right(stages, due) - 1]] for due in range(len(step_costs))]


def paper_costs(forward: Sequence[float]) -> list[float]:
    r"""Cost of a step where a unit's backward pass costs as much as its forward pass, as in the paper's estimate.

    :math:`\sum_i c_i + \sum_{i \ge k} c_i`. With the cost :math:`c_i` of each convolution of a DenseNet, and a head
    that costs nothing, the saving is what the authors' published code prints for the squared and the cubic scale. For
    the linear one that code multiplies by 1.3 and doesn't say why; this doesn't.

    Args:
        forward (Sequence[float]): Cost :math:`c_i` of the forward pass of each of the ``n`` units, in ``[0, ∞)``.

    Returns:
        list[float]: ``n`` costs, for ``k`` from 0 to ``n - 1`` frozen units.
    """
    whole = sum(forward)
    return [whole + sum(forward[frozen:]) for frozen in range(len(forward))]


def interpolated(measured: Mapping[int, float], num_units: int) -> list[float]:
    """Cost of a step for every number of frozen units, on straight lines between those that were measured.

    Args:
        measured (Mapping[int, float]): Cost by number of frozen units; 0 and ``num_units - 1`` are among them.
        num_units (int): Number of units ``n``, in ``[1, ∞)``.

    Returns:
        list[float]: ``n`` costs, for ``k`` from 0 to ``n - 1`` frozen units.

    Raises:
        ValueError: If an end is missing.
    """
    missing = sorted({0, num_units - 1} - measured.keys())
    if missing:
        raise ValueError(f'no cost for {missing[0]} of {num_units} units frozen; measure 0 and {num_units - 1} as well')
    counts = sorted(measured)
    return [float(cost) for cost in np.interp(range(num_units), counts, [measured[count] for count in counts])]


def with_loading(step_seconds: Sequence[float], load_seconds: float, overlapped: bool) -> list[float]:
    """Seconds of a step together with its wait for data.

    Args:
        step_seconds (Sequence[float]): Seconds of a step, without the wait, by number of frozen units.
        load_seconds (float): Seconds that the loader takes to bring a batch, in ``[0, ∞)``.
        overlapped (bool): Whether workers load the next batch during the step: then the slower of the two counts,
            otherwise both do.

    Returns:
        list[float]: As many.
    """
    return [max(seconds, load_seconds) if overlapped else seconds + load_seconds for seconds in step_seconds]


def saving_by_t_0(
    step_costs: Sequence[float], times_by_t_0: Callable[[float], Sequence[float]]
) -> Callable[[float], float]:
    """The predicted saving as a function of ``t_0``.

    Args:
        step_costs (Sequence[float]): Cost of one step by number of frozen units (see :func:`predicted_saving`).
        times_by_t_0 (Callable[[float], Sequence[float]]): From ``t_0`` in ``(0, 1]`` to the freeze times of the units.

    Returns:
        Callable[[float], float]: From ``t_0`` in ``(0, 1]`` to the saving.
    """
    return lambda t_0: predicted_saving(step_costs, times_by_t_0(t_0))


def largest_saving(saving: Callable[[float], float]) -> float:
    """What is saved as ``t_0`` goes to 0 and the first unit freezes at once.

    Args:
        saving (Callable[[float], float]): From ``t_0`` in ``(0, 1]`` to the saving.

    Returns:
        float: The limit of the saving.
    """
    return saving(_SMALLEST_T_0)


def solve_t_0(saving: Callable[[float], float], target: float) -> float:
    """Finds the ``t_0`` with which a certain share is saved.

    Args:
        saving (Callable[[float], float]): From ``t_0`` in ``(0, 1]`` to the saving: continuous, 0 at 1.
        target (float): The saving, above 0 and below :func:`largest_saving`.

    Returns:
        float: ``t_0``, in ``(0, 1)``.

    Raises:
        ValueError: If the target is out of range.
    """
    most = largest_saving(saving)
    if not 0 < target < most:
        raise ValueError(
            f'a saving of {target:.1%} is out of reach: t_0 in (0, 1) saves between 0 and {most:.1%} here; '
            'take a target between these'
        )
    return float(brentq(lambda t_0: saving(t_0) - target, _SMALLEST_T_0, 1.0, xtol=1e-14))  # pyright: ignore[reportArgumentType]
