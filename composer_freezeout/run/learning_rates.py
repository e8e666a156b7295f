"""What the optimizer really uses: its learning rates over a run, and its hyperparameters."""

from typing import Any

from torch.optim import Optimizer

from composer_freezeout.freezing.optimizer.param_group import UNIT
from composer_freezeout.results.record import LearningRates

__all__ = ['LearningRateTrace', 'hyperparameters']

Point = tuple[int, dict[str, float]]


class LearningRateTrace:
    """Learning rates of a live optimizer, at points that are spread over the run, however long it gets.

    Args:
        max_points (int): Points to keep besides the last one, in ``[2, ∞)``.

    Raises:
        ValueError: If ``max_points`` is out of range.
    """

    def __init__(self, max_points: int):
        if max_points < 2:
            raise ValueError(f'max_points must be at least 2, got {max_points}')
        self.max_points = max_points
        self._points: list[Point] = []
        self._last: Point | None = None
        self._stride = 1

    def add(self, batch: int, optimizer: Optimizer) -> None:
        """Reads the optimizer.

        Args:
            batch (int): Batches that were trained before, in ``[0, ∞)``.
            optimizer (Optimizer): After its step, and before any scheduler's.
        """
        self._last = (batch, _learning_rates(optimizer))
        if batch % self._stride == 0:
            self._points.append(self._last)
        if len(self._points) > self.max_points:
            self._stride *= 2
            self._points = [point for point in self._points if point[0] % self._stride == 0]

    def result(self) -> LearningRates:
        """The points so far.

        Returns:
            LearningRates: For each param group its rates, None where it has left the optimizer.
        """
        points = list(self._points)
        if self._last is not None and (not points or points[-1][0] != self._last[0]):
            points.append(self._last)
        keys = dict.fromkeys(key for _, rates in points for key in rates)
        return LearningRates(
            batch=[batch for batch, _ in points],
            lr={key: [rates.get(key) for _, rates in points] for key in keys},
        )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the same points."""
        return {'trace': self._points, 'last_point': self._last, 'stride': self._stride}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with the points of an earlier run."""
        self._points, self._last, self._stride = state['trace'], state['last_point'], state['stride']


def hyperparameters(optimizer: Optimizer) -> dict[str, Any]:
    """Hyperparameters as they stand in an optimizer.

    Args:
        optimizer (Optimizer): The optimizer.

    Returns:
        dict[str, Any]: ``name``, and ``groups``, of each param group the unit, the number of parameters, and what is
        a scalar or a tuple of scalars.
    """
    scalars = (bool, int, float, str, type(None))
    groups = [
        {
            'unit': group.get(UNIT),
            'parameters': sum(p.numel() for p in group['params']),
            **{
                key: list(value) if isinstance(value, tuple) else value
                for key, value in group.items()
                if key != UNIT
                and all(isinstance(item, scalars) for item in (value if isinstance(value, tuple) else (value,)))
            },
        }
        for group in optimizer.param_groups
    ]
    return {'name': type(optimizer).__name__, 'groups': groups}


def _group_keys(optimizer: Optimizer) -> list[str]:
    # A unit has several groups where the optimizer was given several.
    keys: list[str] = []
    for index, group in enumerate(optimizer.param_groups):
        unit = group.get(UNIT)
        key = f'group{index}' if unit is None else unit
        copies = sum(other == key or other.startswith(f'{key}#') for other in keys)
        keys.append(f'{key}#{copies + 1}' if copies else key)
    return keys


def _learning_rates(optimizer: Optimizer) -> dict[str, float]:
    groups = zip(_group_keys(optimizer), optimizer.param_groups, strict=True)
    return {key: float(group['lr']) for key, group in groups if group['params']}
