"""What FreezeOut costs while nothing is frozen, in operators: a count, not a time."""

from typing import Any

import pytest
import torch
from composer import Callback
from composer.core import State
from composer.loggers import Logger
from torch.utils._python_dispatch import TorchDispatchMode

from composer_freezeout import FreezeOut

from .training import classifier, trainer


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class Steps(Callback):
    """Operators per batch, from the arrival of the data to the end of the batch, those of the optimizer's step
    apart."""

    def __init__(self, operators: Operators) -> None:
        self.operators = operators
        self.optimizer: list[int] = []
        self.outside: list[int] = []

    def fit_start(self, state: State, logger: Logger) -> None:
        def stepped(*_: object) -> None:
            self.optimizer.append(self.optimizer.pop() + self.operators.count)

        state.optimizers[0].register_step_post_hook(stepped)

    def after_backward(self, state: State, logger: Logger) -> None:
        # Composer computes the gradients in a closure, within the step: what the step itself does comes after.
        self.optimizer.append(-self.operators.count)

    def after_dataloader(self, state: State, logger: Logger) -> None:
        self.outside.append(-self.operators.count)

    def batch_end(self, state: State, logger: Logger) -> None:
        self.outside.append(self.outside.pop() + self.operators.count - self.optimizer[-1])


def steps(algorithms: list[FreezeOut], kind: Any = torch.optim.SGD, **arguments: Any) -> Steps:
    with Operators() as operators:
        counted = Steps(operators)
        model = classifier()
        arguments = {'momentum': 0.9, **arguments} if kind is torch.optim.SGD else arguments
        optimizer = kind(model.parameters(), lr=0.1, **arguments)
        trainer(model, algorithms, optimizer, callbacks=[counted], max_duration='1ep').fit()
    return counted


@pytest.mark.parametrize('batchnorm', ['eval', 'batch', 'update'])
def test_no_operator_more_outside_of_the_optimizer(batchnorm):
    baseline = steps([])
    ours = steps([FreezeOut(1.0, batchnorm=batchnorm)])
    # In the first batch the buffers are compared with those before it.
    assert ours.outside[1:] == baseline.outside[1:]
    assert ours.outside[0] > baseline.outside[0]
    assert len(baseline.outside) == 4


@pytest.mark.parametrize('foreach', [False, True], ids=['loop', 'multi-tensor'])
def test_the_optimizer_steps_units_with_the_calls_of_one_group(foreach):
    """A loop over parameters doesn't care how they are grouped, and multi-tensor calls are shared."""
    baseline, ours = steps([], foreach=foreach), steps([FreezeOut(1.0)], foreach=foreach)
    # The first step begins before the units are known, and the second one is the first of the shared calls.
    assert ours.optimizer[2:] == baseline.optimizer[2:]


@pytest.mark.parametrize('kind', [torch.optim.Adam, torch.optim.AdamW])
def test_adam_steps_units_with_no_more_calls_than_one_group(kind):
    baseline, ours = steps([], kind, foreach=True), steps([FreezeOut(1.0)], kind, foreach=True)
    # Torch reads each parameter's count of steps twice; 14 parameters.
    # The first step begins before the units are known, so that it takes them one by one.
    assert [a - b for a, b in zip(baseline.optimizer, ours.optimizer, strict=True)][1:] == [14] * 3


def test_steps_get_cheaper_with_every_unit_that_leaves():
    frozen = steps([FreezeOut(0.5, 'linear')], foreach=False)
    assert frozen.optimizer[3] < frozen.optimizer[2] < frozen.optimizer[1]
    # Frozen units drop out of the shared calls, whose number stays.
    merged, baseline = steps([FreezeOut(0.5, 'linear')], foreach=True), steps([], foreach=True)
    assert merged.optimizer[2:] == baseline.optimizer[2:]


def test_operators_get_fewer_with_every_freeze():
    frozen = steps([FreezeOut(0.5, 'linear', fuse_frozen=False)])  # one unit at batch 2, another at batch 3
    assert frozen.outside[3] < frozen.outside[2] < frozen.outside[1]


def test_a_folded_batchnorm_runs_no_operator():
    layers = [r'module\.(conv|bn).*', r'module\.head']
    folded, unfolded = (
        steps([FreezeOut(0.2, 'linear', layers=layers, fuse_frozen=fuse_frozen)]).outside
        for fuse_frozen in (True, False)
    )
    # Which can be folded is seen in the first pass in which they are frozen, which runs them as they are and as one.
    assert folded[0] == unfolded[0] and folded[1] > unfolded[1]
    assert folded[2] == folded[3]  # nothing is folded anew
    each = 2  # the normalisation, and an empty tensor for what its backward pass would need
    assert unfolded[3] - folded[3] == 3 * each
