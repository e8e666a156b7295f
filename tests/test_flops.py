import copy
from typing import Any

import pytest
import torch
from composer.models import ComposerModel
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from composer_freezeout import FreezeOut
from composer_freezeout.costs.flops import step_flops, step_flops_by_units_frozen, unit_flops
from composer_freezeout.costs.predict import partition_for
from composer_freezeout.freezing.observing.units import Unit
from composer_freezeout.freezing.prefix.activation_checkpoints import nonreentrant
from composer_freezeout.freezing.prefix.prefix import FrozenPrefix
from composer_freezeout.run.cifar_networks import CifarResNet

from .training import CLASSES, classifier


def batch(size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(2, 3, size, size), torch.zeros(2, dtype=torch.long)


def network() -> nn.Sequential:
    """Three linear layers of 960, 30 and 6 · CLASSES multiply-adds a sample."""
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.Linear(5, 6), nn.Linear(6, CLASSES))


# Multiply-adds count as two operations; two samples.
A, B, C = (2 * 2 * m for m in (192 * 5, 5 * 6, 6 * CLASSES))


def units_of(model):
    return partition_for(model, batch(), FreezeOut().settings).units


def test_a_chain_by_hand():
    model = classifier(network())
    assert step_flops(model, batch()) == 3 * (A + B + C) - A
    assert all(p.grad is None for p in model.parameters())
    assert unit_flops(model, batch(), units_of(model)) == [(A, 0, A), (B, B, B), (C, C, C)]
    assert step_flops_by_units_frozen(model, batch(), units_of(model)) == [
        3 * (A + B + C) - A, A + B + C + B + C + C, A + B + C + C
    ]  # fmt: skip


class Attention(nn.Module):
    """Products without weights, between units."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.outer = nn.Linear(8, 8)
        self.head = nn.Linear(8 * 24, CLASSES)

    def forward(self, x):
        x = self.inner(x.flatten(1, 2))
        x = torch.softmax(x @ x.mT, -1) @ x
        return self.head(self.outer(x).flatten(1))


@pytest.mark.parametrize('make', [lambda: CifarResNet(14, CLASSES), Attention], ids=['resnet14', 'attention'])
def test_costs_are_those_of_a_really_frozen_model(make):
    model = classifier(make())
    units = units_of(model)
    costs = step_flops_by_units_frozen(model, batch(), units)
    of_units = unit_flops(model, batch(), units)
    forward = sum(unit.forward for unit in of_units)
    assert sum(sum(unit) for unit in of_units) == costs[0]
    assert all(cost >= 0 for unit in of_units for cost in unit)
    freezer = FrozenPrefix(model, units, 'eval', fuse_frozen=False)
    for frozen, cost in enumerate(costs):
        freezer.set_frozen(frozen)
        assert step_flops(model, batch()) == cost
        assert cost == forward + sum(u.grad_weight for u in of_units[frozen:]) + sum(
            u.grad_input for u in of_units[frozen + 1 :]
        )


def test_the_gradient_of_a_weight_costs_as_much_as_the_product_with_it():
    model = classifier(CifarResNet(8, CLASSES))
    units = units_of(model)
    for unit, flops in zip(units[1:], unit_flops(model, batch(), units)[1:], strict=True):
        weight = model.get_parameter(unit.parameters[0])
        costs = []
        for trains in (True, False):
            weight.requires_grad_(trains)
            costs.append(step_flops(model, batch()))
        weight.requires_grad_(True)
        assert costs[0] - costs[1] == flops.grad_weight


def test_the_model_is_not_changed():
    model = classifier(CifarResNet(8, CLASSES))
    before = copy.deepcopy(model.state_dict())
    unit_flops(model, batch(), units_of(model))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert model.training


def test_flops_of_one_image_of_resnet56_by_hand():
    # He et al., section 4.2: 3 → 16 channels at 32², then three stages of 18 3x3 convolutions, and 64 → 10.
    stem = 32 * 32 * 9 * 3 * 16
    first = 18 * 32 * 32 * 9 * 16 * 16
    second = 16 * 16 * 9 * (16 * 32 + 17 * 32 * 32)
    third = 8 * 8 * 9 * (32 * 64 + 17 * 64 * 64)
    multiply_adds = stem + first + second + third + 64 * 10
    model = classifier(CifarResNet(56, 10))
    with FlopCounterMode(display=False) as counter:
        model((torch.zeros(1, 3, 32, 32), None))
    assert counter.get_total_flops() == 2 * multiply_adds
    flops = unit_flops(model, batch(32), partition_for(model, batch(32), FreezeOut().settings).units)
    assert sum(unit.forward for unit in flops) == 2 * 2 * multiply_adds
    # All but the stem also propagate the gradient of their input.
    assert sum(sum(unit) for unit in flops) == 2 * 2 * (3 * multiply_adds - stem)


class Differentiates(ComposerModel):
    """Asks for the gradient of its input, which goes through frozen layers, too."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))

    def forward(self, batch: Any) -> Any:
        return self.layers(batch[0].detach().requires_grad_())

    def loss(self, outputs: Any, batch: Any) -> Any:
        return {'first': outputs.square().mean(), 'second': outputs.abs().mean()}


class Checkpointed(Differentiates):
    def forward(self, batch: Any) -> Any:
        x = self.layers[0](batch[0])
        return self.layers[4](checkpoint(self.layers[1:4], x, use_reentrant=True))


@pytest.mark.parametrize('kind', [Differentiates, Checkpointed])
def test_what_stays_in_the_backward_pass_is_counted(kind):
    batch = (torch.randn(3, 4),)
    units = [Unit(str(i), (f'layers.{i}.weight', f'layers.{i}.bias')) for i in (0, 2, 4)]
    predicted = step_flops_by_units_frozen(kind(), batch, units)
    for frozen, flops in enumerate(predicted):
        model = kind()
        for unit in units[:frozen]:
            for name in unit.parameters:
                model.get_parameter(name).requires_grad_(False)
        with nonreentrant():
            assert step_flops(model, batch) == flops
    one, two = 2 * 3 * 4 * 6, 2 * 3 * 6 * 6
    assert predicted[0] - predicted[1] == (one if kind is Differentiates else one + two)
