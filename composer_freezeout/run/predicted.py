"""What share of a training run the algorithms of a YAML file save, predicted from FLOPs."""

from collections.abc import Sequence
from typing import Any

from composer.algorithms import LayerFreezing
from composer.core import Algorithm
from composer.models import ComposerModel

from composer_freezeout.algorithm.freezeout import FreezeOut
from composer_freezeout.costs.predict import (
    freezeout_backward_left,
    freezeout_saving,
    layer_freezing_backward_left,
    layer_freezing_saving,
)

__all__ = ['predict_backward_left', 'predict_saving']


def predict_saving(model: ComposerModel, batch: Any, algorithms: Sequence[Algorithm], epochs: int) -> float | None:
    """Share of the FLOPs that the freezing algorithm among some algorithms saves, given the run's duration.

    Args:
        model (ComposerModel): The model, with nothing frozen by an algorithm yet. It is not changed.
        batch (Any): An example batch, two samples suffice.
        algorithms (Sequence[Algorithm]): The run's algorithms.
        epochs (int): Length of the run, in ``[1, ∞)``.

    Returns:
        float, optional: In ``[0, 1)``; 0 without a freezing algorithm, None with several.
    """
    freezing = _freezing(algorithms)
    if len(freezing) > 1:
        return None
    if not freezing:
        return 0.0
    (algorithm,) = freezing
    if isinstance(algorithm, FreezeOut):
        if algorithm.const_time:
            return 0.0  # what it saves it trains longer
        return freezeout_saving(model, batch, algorithm.settings)
    return layer_freezing_saving(model, batch, algorithm, epochs)


def predict_backward_left(
    model: ComposerModel, batch: Any, algorithms: Sequence[Algorithm], epochs: int
) -> dict[int, float] | None:
    """Share of the FLOPs of a whole backward pass that the freezing algorithm leaves, as parameters freeze.

    Args:
        model (ComposerModel): The model, with nothing frozen by an algorithm yet. It is not changed.
        batch (Any): An example batch, two samples suffice.
        algorithms (Sequence[Algorithm]): The run's algorithms.
        epochs (int): Length of the run, in ``[1, ∞)``.

    Returns:
        dict[int, float], optional: By the number of parameters that still train; None without a freezing algorithm, or
        with several.
    """
    freezing = _freezing(algorithms)
    if len(freezing) != 1:
        return None
    (algorithm,) = freezing
    if isinstance(algorithm, FreezeOut):
        return freezeout_backward_left(model, batch, algorithm.settings)
    return layer_freezing_backward_left(model, batch, algorithm, epochs)


def _freezing(algorithms: Sequence[Algorithm]) -> list[FreezeOut | LayerFreezing]:
    return [algorithm for algorithm in algorithms if isinstance(algorithm, (FreezeOut, LayerFreezing))]
