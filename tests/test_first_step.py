"""FLOPs by units frozen from a step of the training itself, equal to those that are counted on a copy."""

import re
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from composer_freezeout import FreezeOut
from composer_freezeout.costs.first_step import CountingRecorder
from composer_freezeout.costs.flops import step_flops_by_units_frozen
from composer_freezeout.costs.predict import freezeout_saving
from composer_freezeout.freezing.observing.observer import Observer
from composer_freezeout.freezing.observing.partition import partition_model

from .training import CLASSES, classifier, images, trainer


class Attends(nn.Module):
    """Patches, transformer blocks whose attention is one operator or several, and a head."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, 2)
        self.blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True) for _ in range(2))
        )
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class Doubles(torch.autograd.Function):
    """Has a backward pass that torch doesn't know."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return 2 * gradients[0]


class Custom(nn.Module):
    """A network with a function of its own in it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(192, 8), nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(Doubles.apply(self.first(x.flatten(1))))


def resnet(frozen_stem: bool = False) -> nn.Module:
    network = torchvision.models.resnet18(num_classes=CLASSES)
    network.conv1.requires_grad_(not frozen_stem)
    return network


def counted(model: Any, batch: Any, granularity: Any = 'module') -> tuple[list[int] | None, list[int]]:
    """Those of a step, and those of a copy."""
    recorder = CountingRecorder()
    observer = Observer(model, recorder)
    observer.start()
    loss = model.loss(model(batch), batch)
    partition = partition_model(model, observer.finish([loss]), granularity=granularity)
    unit_of = {id(model.get_parameter(n)): i for i, unit in enumerate(partition.units) for n in unit.parameters}
    seen = recorder.by_units_frozen([loss], unit_of, len(partition.units))
    return seen, step_flops_by_units_frozen(model, batch, partition.units)


@pytest.mark.parametrize('granularity', ['module', 'block'])
@pytest.mark.parametrize('network', [lambda: None, resnet, lambda: resnet(True), Attends, lambda: Attends(0.1)])
def test_a_step_tells_what_a_copy_does(network, granularity):
    seen, on_copy = counted(classifier(network()), next(iter(images())), granularity)
    assert seen == on_copy and len(on_copy) > 1 and on_copy[0] > on_copy[-1]


def test_nothing_is_told_where_a_backward_pass_is_unknown():
    assert counted(classifier(Custom()), next(iter(images())))[0] is None


@pytest.mark.parametrize('arguments', [{}, {'max_stages': 1}])
def test_the_line_at_the_start_tells_the_saving_without_another_pass(arguments, caplog):
    model, runs = classifier(), []
    model.register_forward_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    with caplog.at_level('INFO', 'composer_freezeout'):
        trainer(model, [FreezeOut(0.5, **arguments)], max_duration='2ep').fit()
    first, *_, last = [message for message in caplog.messages if message.startswith('FreezeOut')]
    saving = freezeout_saving(classifier(), next(iter(images())), FreezeOut(0.5, **arguments).settings)
    for line in (first, last):
        assert re.findall(r'predicted to save (.*)% of the FLOPs', line) == [f'{100 * saving:.1f}']
    assert len(runs) == 8
