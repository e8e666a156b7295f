"""What freezing saves, predicted from what a training step costs with ``k`` frozen units."""

from bisect import bisect_right
from collections.abc import Sequence

__all__ = ['in_stages', 'predicted_saving']


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


def in_stages(step_costs: Sequence[float], stages: Sequence[int]) -> list[float]:
    """Cost of a step with ``k`` units due to freeze, where they freeze in stages.

    Args:
        step_costs (Sequence[float]): ``step_costs[k]``: cost of one step with the first ``k`` units frozen.
        stages (Sequence[int]): Numbers of frozen units that the training passes through, ascending from 0.

    Returns:
        list[float]: As many costs: for each ``k`` that of the last stage that is complete.
    """
    return [step_costs[stages[bisect_right(stages, due) - 1]] for due in range(len(step_costs))]
