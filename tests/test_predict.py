import copy

import pytest
import torch
from composer.algorithms import LabelSmoothing, LayerFreezing
from torch import nn

from composer_freezeout import FreezeOut
from composer_freezeout.costs.predict import match_layer_freezing
from composer_freezeout.run.predicted import predict_backward_left, predict_saving

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


def test_freezeout_by_hand():
    # linear, t_0 = 0.5: frozen at 0.5 and 0.75
    saving = predict_saving(classifier(network()), batch(), [LabelSmoothing(), FreezeOut(0.5, 'linear')], 4)
    assert saving == pytest.approx(1 - (0.5 * STEP[0] + 0.25 * STEP[1] + 0.25 * STEP[2]) / STEP[0], rel=1e-12)


def test_layer_freezing_by_hand():
    # Of the two layers before the head it freezes int(2/4) = 0, int(4/4) = 1 and int(6/4) = 1 after epochs 1, 2 and 3.
    saving = predict_saving(classifier(network()), batch(), [LayerFreezing(freeze_start=0.0)], 4)
    assert saving == pytest.approx(1 - (2 * STEP[0] + 2 * STEP[1]) / (4 * STEP[0]), rel=1e-12)


def test_layer_freezing_matched_to_a_saving():
    # With 8 epochs depth is int(2 (epoch / 8 - start) / (1 - start)): several savings are possible.
    model = classifier(network())
    possible = {predict_saving(model, batch(), [LayerFreezing(s / 100)], 8) for s in range(100)}
    assert len(possible) > 4
    for saving in sorted(possible):
        start, reached = match_layer_freezing(model, batch(), saving, 8)
        assert reached == pytest.approx(saving, abs=1e-12)
        assert predict_saving(model, batch(), [LayerFreezing(start)], 8) == reached
    lowest, second = sorted(possible)[:2]
    _, reached = match_layer_freezing(model, batch(), lowest + 0.7 * (second - lowest), 8)
    assert reached == second
    with pytest.raises(ValueError, match=r'LayerFreezing saves at most .* got a target of 90'):
        match_layer_freezing(model, batch(), 0.9, 8)


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


def test_what_is_left_of_the_backward_pass_as_parameters_freeze():
    model = classifier(network())
    sizes = [192 * 5 + 5, 5 * 6 + 6, 6 * CLASSES + CLASSES]
    backward = [step - (A + B + C) for step in STEP]
    left = predict_backward_left(model, batch(), [LabelSmoothing(), FreezeOut(0.5, 'linear')], 4)
    assert left == {sum(sizes[k:]): pytest.approx(backward[k] / backward[0]) for k in range(3)}
    # LayerFreezing freezes one of the two layers before the head.
    left = predict_backward_left(model, batch(), [LayerFreezing(freeze_start=0.0)], 4)
    assert left == {sum(sizes[k:]): pytest.approx(backward[k] / backward[0]) for k in range(2)}
    assert predict_backward_left(model, batch(), [], 4) is None
    assert all(parameter.requires_grad for parameter in model.parameters())
