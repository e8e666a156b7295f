import copy

import pytest
import torch
from composer.algorithms import LabelSmoothing, LayerFreezing
from torch import nn

from composer_freezeout import FreezeOut
from composer_freezeout.predict import predict_saving, step_flops

from .training import CLASSES, classifier


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.long)


def network() -> nn.Sequential:
    """Three linear layers of 10, 20 and 30 multiply-adds a sample, seen by hand below."""
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.Linear(5, 6), nn.Linear(6, CLASSES))


# Multiply-adds count as two operations; two samples.
A, B, C = (2 * 2 * m for m in (192 * 5, 5 * 6, 6 * CLASSES))
# Forward of all, gradient of the weights of what trains, gradient of the inputs behind the first that trains.
STEP = [A + B + C + A + B + C + B + C, A + B + C + B + C + C, A + B + C + C]


def test_flops_of_a_step():
    model = classifier(network())
    for k in range(3):
        for layer in list(model.module)[1 : 1 + k]:
            layer.requires_grad_(False)
        assert step_flops(model, batch()) == STEP[k]
    assert all(p.grad is None for p in model.parameters())


def test_freezeout_by_hand():
    # linear, t_0 = 0.5: frozen at 0.5 and 0.75
    saving = predict_saving(classifier(network()), batch(), [LabelSmoothing(), FreezeOut(0.5, 'linear')], 4)
    assert saving == pytest.approx(1 - (0.5 * STEP[0] + 0.25 * STEP[1] + 0.25 * STEP[2]) / STEP[0], rel=1e-12)


def test_layer_freezing_by_hand():
    # Of the two layers before the head it freezes int(2/4) = 0, int(4/4) = 1 and int(6/4) = 1 after epochs 1, 2 and 3.
    saving = predict_saving(classifier(network()), batch(), [LayerFreezing(freeze_start=0.0)], 4)
    assert saving == pytest.approx(1 - (2 * STEP[0] + 2 * STEP[1]) / (4 * STEP[0]), rel=1e-12)


def test_without_freezing_nothing_is_saved_and_two_kinds_are_not_predicted():
    model = classifier()
    assert predict_saving(model, batch(), [], 4) == 0
    assert predict_saving(model, batch(), [FreezeOut(), LayerFreezing()], 4) is None


def test_the_model_is_not_changed():
    model = classifier()
    before = copy.deepcopy(model.state_dict())
    assert predict_saving(model, batch(), [FreezeOut(0.3)], 4) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert model.training
