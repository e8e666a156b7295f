"""FreezeOut in a bare PyTorch loop."""

import logging

import pytest
import torch
from torch import nn

from composer_freezeout import FreezeOut, LayerFreezer, apply_freezeout
from composer_freezeout.freezing.optimizer.param_group import UNIT

from .networks import ResidualNet, chain
from .training import images

EPOCHS = 4


def set_up(**arguments) -> tuple[nn.Module, torch.optim.Optimizer, LayerFreezer]:
    torch.manual_seed(0)
    model = chain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, optimizer, apply_freezeout(model, optimizer, lambda: model(torch.zeros(2, 3, 8, 8)), **arguments)


def test_in_a_loop():
    model, optimizer, freezer = set_up(t_0=0.5)
    loader = images()
    conv1_at: list[torch.Tensor] = []
    frozen = []
    for epoch in range(EPOCHS):
        model.train()
        for batch, (inputs, targets) in enumerate(loader):
            freezer.batch_start((epoch * len(loader) + batch) / (EPOCHS * len(loader)))
            frozen.append(freezer.units_frozen)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            conv1_at.append(model.conv1.weight.detach().clone())
        freezer.epoch_end()
    assert frozen == [0] * 2 + [1] * 3 + [2] * 5 + [3] * 6
    assert not torch.equal(conv1_at[0], conv1_at[1])
    assert all(torch.equal(conv1_at[1], later) for later in conv1_at[2:])
    assert [group[UNIT] for group in optimizer.param_groups] == ['head']
    assert freezer.learning_rates()['conv1'] == 0.0
    assert [row['frozen'] for row in freezer.unit_table()] == [True, True, True, False]


def test_layers_need_no_example():
    model = ResidualNet()
    optimizer = torch.optim.AdamW(model.parameters())
    freezer = apply_freezeout(model, optimizer, layers=['stem.*', 'blocks', 'head'])
    assert [unit.name for unit in freezer.partition.units] == ['stem.*', 'blocks', 'head']
    with pytest.raises(ValueError, match='the optimizer holds none'):
        apply_freezeout(ResidualNet(), optimizer)


def test_progress_that_falls_back_thaws_and_starts_with_fresh_state():
    model, optimizer, freezer = set_up(t_0=0.5)
    weight = model.conv1.weight

    def step(progress: float) -> None:
        freezer.batch_start(progress)
        optimizer.zero_grad()
        model(torch.rand(2, 3, 8, 8)).sum().backward()
        optimizer.step()

    step(0.0)
    step(0.2)
    assert weight in optimizer.state and not weight.requires_grad
    freezer.epoch_end()
    assert weight not in optimizer.state
    assert [group[UNIT] for group in optimizer.param_groups] == ['head', 'conv3', 'conv2']
    freezer.batch_start(0.1)
    assert weight.requires_grad and model.bn1.training
    assert [group[UNIT] for group in optimizer.param_groups] == ['head', 'conv3', 'conv2', 'conv1']
    assert weight not in optimizer.state
    before = weight.detach().clone()
    step(0.1)
    assert not torch.equal(weight, before)


def test_units_that_cost_more_freeze_earlier():
    _, _, paper = set_up(t_0=0.5)
    _, _, freezer = set_up(t_0=0.5, unit_costs=[1, 3, 0.5, 0], cost_shift=0.1)
    assert freezer.freeze_times[0] >= paper.freeze_times[0] and freezer.freeze_times[-1] == 1
    assert freezer.freeze_times[1] < paper.freeze_times[1]
    assert sum(freezer.freeze_times) == pytest.approx(sum(paper.freeze_times), rel=1e-12)
    freezer.batch_start((freezer.freeze_times[1] + paper.freeze_times[1]) / 2)
    assert freezer.units_frozen == 2
    assert freezer.freeze_times == FreezeOut(0.5, unit_costs=(1, 3, 0.5, 0), cost_shift=0.1).freeze_times(4)
    assert [name for name, rate in freezer.learning_rates().items() if rate == 0] == ['conv1', 'conv2']


def test_setting_up_twice_changes_no_group_and_no_rate():
    model, optimizer, freezer = set_up()
    freezer.batch_start(0.0)
    first = [(group[UNIT], group['lr'], group['initial_lr']) for group in optimizer.param_groups]
    again = apply_freezeout(model, optimizer, lambda: model(torch.zeros(2, 3, 8, 8)))
    again.batch_start(0.0)
    assert [(group[UNIT], group['lr'], group['initial_lr']) for group in optimizer.param_groups] == first


def test_a_tensor_as_learning_rate_stays_one_per_group():
    model = chain()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.1), foreach=False)
    freezer = apply_freezeout(model, optimizer, lambda: model(torch.zeros(2, 3, 8, 8)), t_0=0.5)
    freezer.batch_start(0.0)
    rates = [group['lr'] for group in optimizer.param_groups]
    assert all(isinstance(lr, torch.Tensor) for lr in rates)
    assert torch.stack(rates).tolist() == pytest.approx([0.1, 0.1 / 0.578703703, 0.1 / 0.296296296, 0.8], rel=1e-6)


@pytest.mark.parametrize('warmup', [-0.1, 0.125, 0.5])
def test_warmup_beyond_the_first_freeze_is_refused(warmup):
    _, _, freezer = set_up(t_0=0.5)
    with pytest.raises(ValueError, match='warm-up must end before the first unit freezes, at progress 0.125'):
        freezer.batch_start(0.0, warmup)


def test_parameters_missing_from_the_optimizer_freeze_all_the_same(caplog):
    model = chain()
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
    with caplog.at_level(logging.WARNING):
        freezer = apply_freezeout(model, optimizer, lambda: model(torch.zeros(2, 3, 8, 8)), t_0=0.5)
    freezer.batch_start(0.9)
    freezer.epoch_end()
    assert [p.requires_grad for p in model.parameters()] == [False] * 12 + [True] * 2
    assert [group[UNIT] for group in optimizer.param_groups] == ['head']
