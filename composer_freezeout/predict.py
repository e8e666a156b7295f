"""Predicts from FLOPs what share of a training run an algorithm saves.

The FLOPs are those of the real model's real steps, forward and backward, as torch's counter sees them: nothing is
assumed about how the backward pass compares to the forward pass, or about what a layer costs.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from composer.algorithms import LayerFreezing
from composer.algorithms.layer_freezing.layer_freezing import freeze_layers
from composer.core import Algorithm
from composer.models import ComposerModel
from composer.utils import map_collection
from torch.utils.flop_counter import FlopCounterMode

from composer_freezeout.algorithm import FreezeOut
from composer_freezeout.cost import predicted_saving
from composer_freezeout.freezing import UnitFreezer
from composer_freezeout.partition import Partition, partition_model, trace_usage
from composer_freezeout.schedule import freeze_stages, freeze_times, units_frozen

__all__ = ['freezeout_saving', 'layer_freezing_saving', 'predict_saving', 'step_flops']


def step_flops(model: ComposerModel, batch: Any) -> int:
    """FLOPs of one forward and backward pass, with what is trainable now.

    Args:
        model (ComposerModel): The model; its gradients are cleared.
        batch (Any): A batch; FLOPs are proportional to its size.

    Returns:
        int: Floating-point operations, a multiplication and an addition counted as two.
    """
    with FlopCounterMode(display=False) as counter:
        loss: Any = model.loss(model(batch), batch)
        loss.backward()
    model.zero_grad()
    return counter.get_total_flops()


def freezeout_saving(model: ComposerModel, batch: Any, freezeout: FreezeOut) -> float:
    """Share of the FLOPs that FreezeOut saves over a whole run.

    Args:
        model (ComposerModel): The model, with nothing frozen by an algorithm yet. It is not changed.
        batch (Any): An example batch, two samples suffice.
        freezeout (FreezeOut): The algorithm.

    Returns:
        float: In ``[0, 1)``.
    """
    partition = _partition(model, batch, freezeout)
    model, batch = _shapes_only(model, batch)
    freezer = UnitFreezer(model, partition.units, freezeout.batchnorm)
    times = freeze_times(len(partition.units), freezeout.t_0, freezeout.how_scale)
    stages = freeze_stages(len(partition.units), freezeout.max_stages)
    costs = [step_flops(model, batch)]
    for start in times[:-1]:
        changed = freezer.set_frozen(units_frozen(start, times, stages))
        costs.append(step_flops(model, batch) if changed else costs[-1])
    return predicted_saving(costs, times)


def layer_freezing_saving(model: ComposerModel, batch: Any, layer_freezing: LayerFreezing, epochs: int) -> float:
    """Share of the FLOPs that Composer's ``LayerFreezing`` saves over a whole run, by running its schedule on a copy.

    Args:
        model (ComposerModel): The model, with nothing frozen by an algorithm yet. It is not changed.
        batch (Any): An example batch, two samples suffice.
        layer_freezing (LayerFreezing): The algorithm.
        epochs (int): Length of the run, in ``[1, ∞)``.

    Returns:
        float: In ``[0, 1)``.
    """
    model, batch = _shapes_only(model, batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    whole = flops = step_flops(model, batch)
    spent, depth = 0, 0
    for epoch in range(1, epochs + 1):
        spent += flops
        new_depth, _ = freeze_layers(
            model, optimizer, epoch / epochs, layer_freezing.freeze_start, layer_freezing.freeze_level
        )
        if new_depth != depth and epoch < epochs:
            depth, flops = new_depth, step_flops(model, batch)
    return 1 - spent / (whole * epochs)


def predict_saving(model: ComposerModel, batch: Any, algorithms: Sequence[Algorithm], epochs: int) -> float | None:
    """Share of the FLOPs that the freezing algorithm among some algorithms saves.

    Args:
        model (ComposerModel): The model, with nothing frozen by an algorithm yet. It is not changed.
        batch (Any): An example batch, two samples suffice.
        algorithms (Sequence[Algorithm]): The run's algorithms.
        epochs (int): Length of the run, in ``[1, ∞)``.

    Returns:
        float, optional: In ``[0, 1)``; 0 without a freezing algorithm, None with several.
    """
    freezing = [algorithm for algorithm in algorithms if isinstance(algorithm, (FreezeOut, LayerFreezing))]
    if len(freezing) > 1:
        return None
    if not freezing:
        return 0.0
    (algorithm,) = freezing
    if isinstance(algorithm, FreezeOut):
        return freezeout_saving(model, batch, algorithm)
    return layer_freezing_saving(model, batch, algorithm, epochs)


def _shapes_only(model: ComposerModel, batch: Any) -> tuple[ComposerModel, Any]:
    """A copy whose tensors have no data: operators are counted, not computed."""
    return copy.deepcopy(model).to('meta').train(), map_collection(batch, lambda tensor: tensor.to('meta'))


def _partition(model: ComposerModel, batch: Any, freezeout: FreezeOut) -> Partition:
    usage = trace_usage(model, lambda: model.loss(model(batch), batch))
    return partition_model(model, usage, freezeout.layers, freezeout.granularity)
