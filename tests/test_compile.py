"""Under torch.compile freezing shrinks the backward pass as it does without, in a known number of compilations."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from composer.loggers import InMemoryLogger
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters

from composer_freezeout import FreezeOut

from .training import CLASSES, StepTrace, classifier, images, trainer

# Dynamo looks at Composer's and torchmetrics' code on the way, and warns about what it finds there.
pytestmark = pytest.mark.filterwarnings('ignore::UserWarning', 'ignore::DeprecationWarning', 'ignore::FutureWarning')


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


class CountingBackend:
    """Runs compiled graphs as they are, and counts the convolutions in each backward graph that it is given."""

    def __init__(self) -> None:
        self.forwards = 0
        self.backwards: list[int] = []
        self.compile = aot_autograd(fw_compiler=self._forward, bw_compiler=self._backward)

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        return self.compile(graph, inputs)

    def _forward(self, graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        self.forwards += 1
        return make_boxed_func(graph.forward)

    def _backward(self, graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        self.backwards.append(sum('convolution_backward' in str(node.target) for node in graph.graph.nodes))
        return make_boxed_func(graph.forward)


def deep(norm: bool, layers: int = 12) -> nn.Sequential:
    modules: list[nn.Module] = []
    for index in range(layers):
        modules += [nn.Conv2d(3 if index == 0 else 4, 4, 3, padding=1)]
        modules += [nn.BatchNorm2d(4)] if norm else []
        modules += [nn.ReLU()]
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))


@pytest.mark.parametrize(
    ('max_stages', 'convolutions', 'norm', 'evaluate'),
    [
        # Twelve convolutions; after each stage those of its units are gone from the backward graph.
        (None, [12, 9, 6, 3, 0], False, False),
        (None, [12, 9, 6, 3, 0], True, True),
        (1, [12, 0], True, False),
        pytest.param(3, [12, 8, 4, 0], False, True, marks=pytest.mark.slow),
        # More stages than torch compiles by itself before it falls back to eager.
        pytest.param(12, list(range(12, -1, -1)), False, False, marks=pytest.mark.slow),
    ],
)
def test_every_stage_is_compiled_once_and_shrinks_the_backward(max_stages, convolutions, norm, evaluate):
    backend = CountingBackend()
    evaluation = {'eval_dataloader': images(), 'eval_interval': '5ba'} if evaluate else {}
    freezeout = FreezeOut(0.1, 'linear', max_stages=max_stages)
    trainer(
        classifier(deep(norm)), [freezeout], compile_config={'backend': backend}, max_duration='10ep', **evaluation
    ).fit()
    assert backend.backwards == convolutions
    # A training graph per stage, and as many for evaluation at the most.
    assert len(convolutions) <= backend.forwards <= (2 if evaluate else 1) * len(convolutions)
    assert counters['frames']['total'] == counters['frames']['ok']
    assert not counters['unimplemented']


def test_same_weights_as_without_compiling():
    def trained(**arguments: Any) -> dict[str, torch.Tensor]:
        model = classifier()
        trainer(model, [FreezeOut(0.5, max_stages=2)], **arguments).fit()
        return model.state_dict()

    eager, compiled = trained(), trained(compile_config={'backend': CountingBackend()})
    for name, tensor in eager.items():
        # The same operators on the same data; decompositions round differently.
        torch.testing.assert_close(compiled[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_a_compiled_model_as_a_whole_is_recognised():
    backend = CountingBackend()
    model = torch.compile(classifier(deep(norm=False)), backend=backend)
    trainer(model, [FreezeOut(0.1, 'linear')], max_duration='10ep').fit()
    assert backend.backwards == [12, 9, 6, 3, 0]


def test_units_that_wait_for_their_stage_stand_still():
    model, trace, freezeout = classifier(), StepTrace(), FreezeOut(0.5, max_stages=1)
    weights: list[torch.Tensor] = []
    run = trainer(model, [freezeout], callbacks=[trace])
    run.state.optimizers[0].register_step_post_hook(
        lambda *_: weights.append(model.module.conv1.weight.detach().clone())
    )
    run.fit()
    # Due at batches 2, 5 and 10, frozen together at the last.
    assert [row['frozen_at_batch'] for row in freezeout.unit_table()] == [10, 10, 10, None]
    assert [step['module.conv1.weight'] for step in trace.steps[2:10]] == [0.0] * 8
    assert not torch.equal(weights[0], weights[1])
    assert all(torch.equal(weights[1], later) for later in weights[2:])


def test_compile_time_is_logged_apart():
    logger = InMemoryLogger()
    trainer(classifier(), [FreezeOut(0.5)], compile_config={'backend': CountingBackend()}, loggers=[logger]).fit()
    seconds = [value for _, value in logger.data['freezeout/compile_seconds']]
    # What was spent before the batch: grows after the first batch and after each freeze, at 2, 5 and 10.
    grown = [batch for batch in range(1, 16) if seconds[batch] > seconds[batch - 1]]
    assert grown == [1, 3, 6, 11]
    eager = InMemoryLogger()
    trainer(classifier(), [FreezeOut(0.5)], loggers=[eager]).fit()
    assert 'freezeout/compile_seconds' not in eager.data


@pytest.mark.slow
def test_inductor():
    model, freezeout = classifier(deep(norm=True, layers=4)), FreezeOut(0.1, 'linear', max_stages=2)
    trainer(model, [freezeout], compile_config={}, max_duration='2ep').fit()
    assert [row['frozen'] for row in freezeout.unit_table()] == [True] * 4 + [False]
    assert counters['frames']['total'] == counters['frames']['ok'] == 3
