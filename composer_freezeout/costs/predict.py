"""What share of a training run freezing saves, predicted from FLOPs: FreezeOut's, and Composer's LayerFreezing's."""

import copy
from typing import Any

import torch
from composer.algorithms import LayerFreezing
from composer.algorithms.layer_freezing.layer_freezing import freeze_layers
from composer.models import ComposerModel

from composer_freezeout.costs.flops import (
    forward_flops,
    losses_of,
    on_copy,
    step_flops,
    step_flops_by_units_frozen,
    unit_flops,
)
from composer_freezeout.costs.saving import in_stages, predicted_saving
from composer_freezeout.freezing.observing.partition import Partition, partition_model
from composer_freezeout.freezing.observing.rehearsal import rehearse
from composer_freezeout.method.schedule import freeze_stages
from composer_freezeout.method.settings import Settings

__all__ = [
    'freezeout_backward_left',
    'freezeout_saving',
    'layer_freezing_backward_left',
    'layer_freezing_saving',
    'match_layer_freezing',
    'partition_for',
]

_RESOLUTION = 2**14  # steps of freeze_start that are told apart


def partition_for(model: ComposerModel, batch: Any, settings: Settings) -> Partition:
    """The units that FreezeOut will make of a model.

    Args:
        model (ComposerModel): The model, before training.
        batch (Any): An example batch, two samples suffice.
        settings (Settings): FreezeOut's.

    Returns:
        Partition: The units.
    """
    example = copy.deepcopy(batch)
    observed = rehearse(model, lambda: losses_of(model.loss(model(example), example)))
    return partition_model(model, observed, settings.layers, settings.granularity, settings.head)


def freezeout_saving(model: ComposerModel, batch: Any, settings: Settings) -> float:
    """Share of the FLOPs that FreezeOut saves over a whole run.

    Args:
        model (ComposerModel): The model, with nothing frozen by an algorithm yet. It is not changed.
        batch (Any): An example batch, two samples suffice.
        settings (Settings): FreezeOut's.

    Returns:
        float: In ``[0, 1)``.
    """
    partition = partition_for(model, batch, settings)
    costs = step_flops_by_units_frozen(model, batch, partition.units)
    stages = freeze_stages(len(costs) - partition.heads + 1, settings.max_stages)
    return predicted_saving(in_stages(costs, stages), settings.freeze_times(len(costs), partition.heads))


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
    return _LayerFreezingRun(model, batch, epochs).saving(layer_freezing.freeze_start, layer_freezing.freeze_level)


def freezeout_backward_left(model: ComposerModel, batch: Any, settings: Settings) -> dict[int, float]:
    """Share of the FLOPs of a whole backward pass that FreezeOut leaves, as units freeze.

    Args:
        model (ComposerModel): The model, with nothing frozen by an algorithm yet. It is not changed.
        batch (Any): An example batch, two samples suffice.
        settings (Settings): FreezeOut's.

    Returns:
        dict[int, float]: By the number of parameters that still train; in ``[0, 1]``. Empty if nothing is counted.
    """
    units = partition_for(model, batch, settings).units
    flops = unit_flops(model, batch, units)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.requires_grad}
    trainable, left = sum(sizes.values()), {}
    # The gradient of the first trainable unit's input is needed by nothing.
    weights, inputs = [unit.grad_weight for unit in flops], [unit.grad_input for unit in flops]
    backward = [sum(weights[k:]) + sum(inputs[k + 1 :]) for k in range(len(units))]
    if not backward[0]:
        return {}
    for unit, now in zip(units, backward, strict=True):
        left[trainable] = now / backward[0]
        trainable -= sum(sizes[name] for name in unit.parameters)
    return left


def layer_freezing_backward_left(
    model: ComposerModel, batch: Any, layer_freezing: LayerFreezing, epochs: int
) -> dict[int, float]:
    """The same for Composer's ``LayerFreezing``.

    Args:
        model (ComposerModel): The model, with nothing frozen by an algorithm yet. It is not changed.
        batch (Any): An example batch, two samples suffice.
        layer_freezing (LayerFreezing): The algorithm.
        epochs (int): Length of the run, in ``[1, ∞)``.

    Returns:
        dict[int, float]: By the number of parameters that still train; in ``[0, 1]``. Empty if nothing is counted.
    """
    run = _LayerFreezingRun(model, batch, epochs)
    whole = {sum(parameter.numel() for parameter in run.trainable): run.flops[0]}
    steps = whole | run.steps(layer_freezing.freeze_start, layer_freezing.freeze_level)
    forward = forward_flops(run.model, run.batch)
    if run.flops[0] == forward:
        return {}
    return {trainable: (flops - forward) / (run.flops[0] - forward) for trainable, flops in steps.items()}


def match_layer_freezing(
    model: ComposerModel, batch: Any, target: float, epochs: int, freeze_level: float = 1.0
) -> tuple[float, float]:
    """Finds the ``freeze_start`` with which Composer's ``LayerFreezing`` saves as much as something else does.

    It freezes whole layers at the ends of epochs, so that not every saving can be had: the nearest one is taken.

    Args:
        model (ComposerModel): The model, with nothing frozen by an algorithm yet. It is not changed.
        batch (Any): An example batch, two samples suffice.
        target (float): Share of the FLOPs to save, in ``[0, 1)``.
        epochs (int): Length of the run, in ``[1, ∞)``.
        freeze_level (float): Share of the layers that are frozen in the end, in ``[0, 1]``.

    Returns:
        tuple[float, float]: ``freeze_start``, in ``[0, 1)``, and the saving that it brings.

    Raises:
        ValueError: If even freezing from the start saves less.
    """
    run = _LayerFreezingRun(model, batch, epochs)
    early, late = 0.0, 1.0 - 1.0 / _RESOLUTION
    if (most := run.saving(early, freeze_level)) < target:
        raise ValueError(
            f'LayerFreezing saves at most {most:.1%} in {epochs} epochs with freeze_level={freeze_level}, got a target '
            f'of {target:.1%}; train for more epochs or take a smaller target'
        )
    # Saving falls in steps as freezing starts later; the interval ends up around the step that passes the target.
    while late - early > 1.0 / _RESOLUTION:
        middle = (early + late) / 2
        early, late = (middle, late) if run.saving(middle, freeze_level) >= target else (early, middle)
    start = min((early, late), key=lambda start: abs(run.saving(start, freeze_level) - target))
    return round(start, 4), run.saving(round(start, 4), freeze_level)


class _LayerFreezingRun:
    """What a run with Composer's ``LayerFreezing`` costs, by going through its schedule on a model without data."""

    def __init__(self, model: ComposerModel, batch: Any, epochs: int):
        self.model, self.batch, whole = on_copy(model, batch, lambda *copies: (*copies, step_flops(*copies)))
        self.epochs = epochs
        self.trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.flops = {0: whole}

    def saving(self, freeze_start: float, freeze_level: float) -> float:
        for parameter in self.trainable:
            parameter.requires_grad = True
        optimizer = torch.optim.SGD(self.trainable, lr=0.1)
        spent = self.flops[0]
        for epoch in range(1, self.epochs):
            depth, _ = freeze_layers(self.model, optimizer, epoch / self.epochs, freeze_start, freeze_level)
            if depth not in self.flops:
                self.flops[depth] = step_flops(self.model, self.batch)
            spent += self.flops[depth]
        return 1 - spent / (self.flops[0] * self.epochs)

    def steps(self, freeze_start: float, freeze_level: float) -> dict[int, int]:
        """FLOPs of a step by the number of parameters that train, through the schedule."""
        for parameter in self.trainable:
            parameter.requires_grad = True
        optimizer, found = torch.optim.SGD(self.trainable, lr=0.1), {}
        for epoch in range(1, self.epochs):
            freeze_layers(self.model, optimizer, epoch / self.epochs, freeze_start, freeze_level)
            trainable = sum(parameter.numel() for parameter in self.trainable if parameter.requires_grad)
            if trainable not in found:
                found[trainable] = step_flops(self.model, self.batch)
        return found
