"""The first step is watched, and nobody notices: as many passes, as many random numbers, the same bits."""

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from composer_freezeout import FreezeOut, apply_freezeout
from composer_freezeout.freezing.observing.rehearsal import rehearse

from .comparing import assert_equal
from .launching import launch
from .watched import MODELS, Counted, make, train

compatibility = pytest.mark.compatibility


def first_freeze(model: str) -> int:
    """Batches of a run until something freezes."""
    freezeout = FreezeOut(0.6)
    train(make(model), [freezeout])
    return min(row['frozen_at_batch'] for row in freezeout.unit_table() if row['frozen_at_batch'] is not None)


@compatibility('side effects of the forward pass: queues, counters, random numbers, changes of the batch')
@pytest.mark.parametrize('model', MODELS)
def test_a_run_is_to_the_bit_what_it_is_without_freezeout_until_something_freezes(model):
    batches = first_freeze(model)
    assert batches >= 3
    ours, theirs = (train(make(model), algorithms, batches) for algorithms in ([FreezeOut(0.6)], []))
    assert ours.steps == theirs.steps == batches
    assert ours.forwards == theirs.forwards
    assert_equal(ours.weights, theirs.weights)
    assert_equal(ours.random, theirs.random)
    # And what is compared does depend on what the model draws and does.
    assert not torch.equal(ours.random['torch'], train(make(model), [], batches - 1).random['torch'])


@pytest.mark.parametrize('model', MODELS)
def test_a_resumed_run_ends_with_the_same_bits(model, tmp_path):
    whole = train(make(model), [FreezeOut(0.4)], save_folder=tmp_path / 'whole')
    assert whole.frozen > 0
    # Torch can't load an optimizer that has not stepped every parameter yet, without FreezeOut either.
    for batch in (1, 3, 5, 9, 13) if model not in ('tasks', 'side effects') else (6, 9, 13):
        again = train(make(model), [FreezeOut(0.4)], load_path=tmp_path / 'whole' / f'ba{batch}.pt')
        assert_equal(again.weights, whole.weights)
        assert_equal(again.random, whole.random)


def test_in_two_processes(tmp_path):
    """Bits, passes and random states of each rank, with FreezeOut and without."""
    for rank in launch(2, Path(sys.modules[make.__module__].__file__ or ''), tmp_path):
        for model, batches in rank['batches'].items():
            ours, theirs = rank['ours'][model], rank['theirs'][model]
            assert ours['forwards'] == theirs['forwards'] >= batches
            assert_equal(ours['weights'], theirs['weights'])
            assert_equal(ours['random'], theirs['random'])
            assert ours['units'] == rank['first'][model]


# --- where a pass of its own is needed


class Greedy(nn.Module):
    """Changes whatever a forward pass in training can change."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 6, max_norm=0.5)
        self.norm = nn.BatchNorm1d(6)
        self.middle = nn.Linear(6, 6)
        self.head = nn.Linear(6, 2)
        self.register_buffer('steps', torch.zeros((), dtype=torch.long))
        self.average = torch.zeros(6)
        self.history: list[float] = []
        self.nested = {'counts': {'calls': 0}}
        self.array = np.zeros(3)
        self.calls = 0
        self.dice = random.Random(0)
        self.noise = torch.Generator().manual_seed(0)
        self.other_noise = np.random.default_rng(0)
        self.merged = False

    def train(self, mode: bool = True) -> 'Greedy':
        super().train(mode)
        if self.merged == mode:  # adapters are merged in evaluation
            self.middle.weight.data.mul_(0.5 if mode else 2.0)
            self.merged = not mode
        return self

    def forward(self, tokens: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        scale.mul_(2)
        x = self.norm(self.embedding(tokens) * scale)
        x = x + torch.rand(6, generator=self.noise) + float(self.other_noise.random()) + self.dice.random()
        x = F.dropout(x + np.random.rand() + random.random(), training=self.training)
        self.steps += 1
        self.average.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        self.history.append(x.mean().item())
        self.nested['counts']['calls'] += 1
        self.array += 1
        self.calls += 1
        self.last = x
        self.middle.weight.data.add_(1e-3)  # a weight that the pass itself moves
        return self.head(self.middle(x).relu())


def state_of(model: Greedy) -> dict[str, Any]:
    return {
        'tensors': {name: tensor.clone() for name, tensor in model.state_dict().items()},
        'attributes': [model.average.clone(), list(model.history), model.nested['counts']['calls'], model.array.copy()],
        'more': [model.calls, model.merged, hasattr(model, 'last'), [m.training for m in model.modules()]],
        'generators': [model.dice.getstate(), model.noise.get_state(), model.other_noise.bit_generator.state],
        'random': [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()],
        'gradients': [parameter.grad for parameter in model.parameters()],
    }


@pytest.mark.parametrize('training', [True, False])
def test_a_rehearsal_puts_everything_back(training):
    torch.manual_seed(0)
    model = Greedy().train(training)
    tokens, scale = torch.randint(0, 9, (8,)), torch.ones(8, 1)
    before = state_of(model)
    observed = rehearse(model, lambda: model(tokens, scale))
    assert len(observed.uses) == 7
    assert torch.equal(scale, torch.ones(8, 1))
    after = state_of(model)
    for part in before:
        assert_equal_nested(after[part], before[part])
    model(tokens, scale)
    with pytest.raises(AssertionError):
        assert_equal_nested(state_of(model)['attributes'], before['attributes'])


def assert_equal_nested(ours: Any, theirs: Any) -> None:
    if isinstance(ours, (torch.Tensor, np.ndarray)):
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_equal_nested(ours[key], theirs[key])
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs)
        for our, their in zip(ours, theirs, strict=True):
            assert_equal_nested(our, their)
    else:
        assert ours == theirs


def test_the_rehearsal_is_a_pass_of_training():
    """What a model uses in training only is seen, whatever mode it is in."""

    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.auxiliary, self.first, self.head = nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> Any:
            x = self.first(x)
            return (self.head(x), self.auxiliary(x)) if self.training else self.head(x)

    model = Auxiliary().eval()
    assert 'auxiliary.weight' in rehearse(model, lambda: model(torch.ones(2, 4))).uses
    assert not model.training


# --- in a loop, from the first batch


def counted_run(forward: Callable[[Counted], Callable[[], object] | None]) -> tuple[int, list[str]]:
    torch.manual_seed(0)
    model = Counted(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    calls: list[None] = []  # not an attribute of the model, which would be put back
    model.register_forward_pre_hook(lambda *_: calls.append(None))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    freezer = apply_freezeout(model, optimizer, forward(model), t_0=0.5)
    for batch in range(8):
        freezer.batch_start(batch / 8)
        optimizer.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
    assert freezer.units_frozen == 2
    return len(calls), [row['name'] for row in freezer.unit_table()]


def test_a_loop_needs_no_pass_of_its_own():
    units = ['model.0', 'model.2', 'model.4']
    assert counted_run(lambda model: None) == (8, units)
    assert counted_run(lambda model: lambda: model(torch.ones(2, 4))) == (9, units)


def test_the_groups_are_split_in_time_for_the_first_step_and_no_earlier():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    freezer = apply_freezeout(model, optimizer, t_0=0.5)
    freezer.batch_start(0.0)
    assert len(optimizer.param_groups) == 1 and freezer.partition is None
    model(torch.ones(2, 4)).sum().backward()
    assert [group['lr'] for group in optimizer.param_groups] == pytest.approx([0.1, 0.8])
    optimizer.step()


def test_a_pass_that_fails_is_watched_anew():
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head, self.failed = nn.Linear(4, 4), nn.Linear(4, 2), False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            if not self.failed:
                self.failed = True
                raise MemoryError('out of memory')
            return self.head(x.relu())

    model = Fails()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    freezer = apply_freezeout(model, optimizer, t_0=0.5)
    freezer.batch_start(0.0)
    with pytest.raises(MemoryError):
        model(torch.ones(2, 4))
    assert torch._C._len_torch_dispatch_stack() == 0
    freezer.batch_start(0.0)
    model(torch.ones(2, 4)).sum().backward()
    assert [row['name'] for row in freezer.unit_table()] == ['first', 'head']
    assert not model._forward_hooks


def test_an_evaluation_ahead_of_the_training_is_no_step_of_it():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    freezer = apply_freezeout(model, torch.optim.SGD(model.parameters(), lr=0.1), t_0=0.5)
    model.eval()
    model(torch.rand(3, 4, requires_grad=True)).sum().backward()
    model.train()
    freezer.batch_start(0.0)
    model(torch.rand(3, 4))
    assert freezer.partition is not None and freezer.partition.units[0].norms == ('1',)


def test_norms_that_begin_to_move_later_are_held_when_they_freeze():
    """In evaluation at first, as in a warm-up; those that are frozen already stay so."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()),
        nn.Linear(4, 2),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    freezer = apply_freezeout(model, optimizer, t_0=0.5)
    means: dict[int, list[torch.Tensor]] = {1: [], 4: []}
    for batch in range(20):
        model.train()
        model[4].train(batch > 4)
        freezer.batch_start(batch / 20)
        model(torch.rand(6, 4) + batch).sum().backward()
        optimizer.step()
        frozen = freezer.units_frozen
        for name, unit in ((1, 0), (4, 1)):
            if frozen > unit:
                means[name].append(model[name].running_mean.clone())
    assert freezer.units_frozen == 2
    for name in means:
        assert len(means[name]) > 5 and all(torch.equal(mean, means[name][0]) for mean in means[name])
    assert freezer.partition is not None
    assert [unit.norms for unit in freezer.partition.units] == [('1',), ('4',), ()]
    assert model[4].running_mean.abs().max() > 0.1


def test_a_scripted_model_is_refused(refusal):
    model = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    with refusal('scripted module, which takes no hooks; give the module that it was scripted from'):
        apply_freezeout(model, torch.optim.SGD(model.parameters(), lr=0.1))
