"""What share of a training run the algorithms of a YAML file save, predicted from FLOPs."""

from collections.abc import Sequence
from typing import Any

from composer.algorithms import LayerFreezing
from composer.core import Algorithm
from composer.models import ComposerModel

from composer_freezeout.algorithm.freezeout import FreezeOut
from composer_freezeout.costs.flops import on_copy, step_flops
from composer_freezeout.costs.predict import (
    freezeout_backward_left,
    freezeout_saving,
    layer_freezing_backward_left,
    layer_freezing_saving,
)
from composer_freezeout.run.config import ModelConfig
from composer_freezeout.run.models import build_model

__all__ = ['predict_backward_left', 'predict_saving', 'predict_whole_saving']


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


def predict_whole_saving(config: ModelConfig, batch: Any, algorithms: Sequence[Algorithm], epochs: int) -> float | None:
    """The same of a model of which something is frozen from the start, with what that saves.

    Args:
        config (ModelConfig): Its section.
        batch (Any): An example batch, two samples suffice.
        algorithms (Sequence[Algorithm]): The run's algorithms.
        epochs (int): Length of the run, in ``[1, ∞)``.

    Returns:
        float, optional: Share of the FLOPs of the model with nothing frozen, in ``[0, 1)``; None with several freezing
        algorithms.
    """
    model = build_model(config)
    saving = predict_saving(model, batch, algorithms, epochs)
    if saving is None or not config.freeze:
        return saving
    whole = build_model(config.model_copy(update={'freeze': None}))
    return 1 - (1 - saving) * on_copy(model, batch, step_flops) / on_copy(whole, batch, step_flops)


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
