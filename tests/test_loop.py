"""A loop without a trainer does the same work as a Trainer: compilation, several processes, exact resume."""

import copy
import io
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from composer_freezeout import FreezeOut, apply_freezeout

from . import loop_ranks
from .comparing import assert_equal
from .launching import launch
from .networks import chain
from .training import classifier, images, trainer

compatibility = pytest.mark.compatibility

EPOCHS = 4


def start(model: nn.Module, **arguments: Any) -> tuple[torch.optim.Optimizer, Any]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return optimizer, apply_freezeout(model, optimizer, t_0=0.5, **arguments)


def train(model: nn.Module, optimizer: Any, freezer: Any, epochs: range = range(EPOCHS)) -> None:
    loader = images()
    for epoch in epochs:
        model.train()
        for batch, (inputs, targets) in enumerate(loader):
            freezer.batch_start((epoch * len(loader) + batch) / (EPOCHS * len(loader)))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        freezer.epoch_end()


def network() -> nn.Module:
    torch.manual_seed(0)
    return chain(classes=4)


def end_of(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    return copy.deepcopy({'model': model.state_dict(), 'optimizer': optimizer.state_dict()})


def test_the_loop_ends_where_a_trainer_does():
    """The same weights, from the same batches at the same rates."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    freezer = apply_freezeout(model, optimizer, t_0=0.5)
    train(model, optimizer, freezer)
    other, freezeout = classifier(network()), FreezeOut(0.5)
    trainer(other, [freezeout]).fit()
    assert [row['t_i'] for row in freezer.unit_table()] == [row['t_i'] for row in freezeout.unit_table()]
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        # The Trainer scales the loss by the share of the microbatch.
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


# --- resume


@compatibility('a loop: exact resume')
@pytest.mark.parametrize('order', ['freezer first', 'optimizer first', 'optimizer before FreezeOut'])
@pytest.mark.parametrize('forward', [False, True], ids=['first batch', 'forward'])
def test_a_resumed_loop_ends_with_the_same_bits(order, forward):
    whole = network()
    given: dict[str, Any] = {'forward': lambda: whole(torch.zeros(2, 3, 8, 8))} if forward else {}
    optimizer, freezer = start(whole, **given)
    states = []
    for epoch in range(EPOCHS):
        train(whole, optimizer, freezer, range(epoch, epoch + 1))
        states.append({**end_of(whole, optimizer), 'freezer': copy.deepcopy(freezer.state_dict())})
    assert freezer.units_frozen == 3
    for done, state in enumerate(states[:-1], start=1):
        model = network()
        model.load_state_dict(state['model'])
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        if order == 'optimizer before FreezeOut':
            optimizer.load_state_dict(state['optimizer'])
        given = {'forward': lambda model=model: model(torch.zeros(2, 3, 8, 8))} if forward else {}
        freezer = apply_freezeout(model, optimizer, t_0=0.5, **given)
        if order == 'optimizer first':
            optimizer.load_state_dict(state['optimizer'])
        freezer.load_state_dict(state['freezer'])
        if order == 'freezer first':
            optimizer.load_state_dict(state['optimizer'])
        train(model, optimizer, freezer, range(done, EPOCHS))
        assert_equal(
            {**end_of(model, optimizer), 'freezer': freezer.state_dict()},
            {**states[-1]},
        )


def test_the_state_is_plain_and_that_of_another_run_is_refused(refusal):
    model = network()
    optimizer, freezer = start(model)
    train(model, optimizer, freezer, range(2))
    state = freezer.state_dict()
    assert torch.load(saved(state), weights_only=True) == state
    with refusal(r'made with FreezeOut\(t_0=0.8\), not t_0=0.5'):
        start(model)[1].load_state_dict({**state, 'settings': {'t_0': 0.8}})
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    _, of_other = start(other)
    with refusal("don't fit the model"):
        of_other.load_state_dict(state)
    _, known = start(other, forward=lambda: other(torch.ones(2, 4)))
    with refusal('are not those of this model'):
        known.load_state_dict(state)


def saved(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


# --- torch.compile


class Backward:
    """Counts the matrix products of each compiled backward pass that runs."""

    def __init__(self) -> None:
        self.products: list[int] = []
        self.graphs = 0

    def backend(self) -> Any:
        def backward(module: Any, _: Any) -> Any:
            products = sum('mm' in str(node.target) for node in module.graph.nodes)
            self.graphs += 1

            def run(*arguments: Any) -> Any:
                self.products.append(products)
                return module(*arguments)

            return make_boxed_func(run)

        return aot_autograd(fw_compiler=lambda module, _: make_boxed_func(module.forward), bw_compiler=backward)


class Layers(nn.Module):
    """Not an ``nn.Sequential``, whose own forward method torch doesn't compile."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        hidden = (layer for _ in range(layers) for layer in (nn.Linear(8, 8), nn.ReLU()))
        self.layers = nn.Sequential(*hidden, nn.Linear(8, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@compatibility('a loop: torch.compile', note='Give `forward`: compiled code can’t be watched.')
@pytest.mark.parametrize('how', ['in place', 'compiled model given', 'compiled model kept'])
def test_compiled_models_are_compiled_anew_when_units_freeze(how):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Layers(4)
    counted, x = Backward(), torch.randn(4, 8)
    called: Any = model
    if how == 'in place':
        model.compile(backend=counted.backend())
    else:
        called = torch.compile(model, backend=counted.backend())
    given = called if how == 'compiled model given' else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    freezer = apply_freezeout(given, optimizer, lambda: model.forward(x), t_0=0.3)
    for batch in range(20):
        freezer.batch_start(batch / 20)
        optimizer.zero_grad()
        called(x).square().mean().backward()
        optimizer.step()
    assert freezer.units_frozen == 4
    # One product for the weight of each layer, and one for the input of each but the first.
    assert counted.products[0] == 9 and counted.products[-1] == 1
    assert counted.products == sorted(counted.products, reverse=True)
    assert counted.graphs == 5


def test_stages_bound_how_often_a_loop_compiles():
    torch._dynamo.reset()
    model = Layers(7)
    counted, x = Backward(), torch.randn(4, 8)
    model.compile(backend=counted.backend())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    freezer = apply_freezeout(model, optimizer, lambda: model.forward(x), t_0=0.3, max_stages=2)
    for batch in range(20):
        freezer.batch_start(batch / 20)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert freezer.units_frozen == 7 and counted.graphs == 3


def test_a_compiled_model_needs_a_pass_of_its_own(refusal):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model.compile(backend='eager')
    with refusal('a compiled model cannot be watched while it trains; give `forward`'):
        start(model)


# --- several processes


@pytest.fixture(scope='module')
def two_ranks(tmp_path_factory) -> list[dict[str, Any]]:
    return launch(2, Path(loop_ranks.__file__), tmp_path_factory.mktemp('loop'))


@compatibility('a loop: DistributedDataParallel')
def test_gradients_of_frozen_units_are_no_longer_sent(two_ranks):
    for rank in two_ranks:
        whole = rank['whole']
        assert whole['frozen'] == [0] * 2 + [1] * 3 + [2] * 5 + [3] * 6
        assert whole['reduced'] == whole['trainable']
        assert rank['compiled']['reduced'] == rank['compiled']['trainable']


@compatibility('a loop: DistributedDataParallel')
def test_ranks_agree_and_resume_to_the_bit(two_ranks):
    first, second = two_ranks
    # Each has statistics of its own as long as they move.
    assert_equal(first['whole']['model'], second['whole']['model'])
    for rank in two_ranks:
        for resumed in rank['resumed']:
            assert_equal(resumed['model'], rank['whole']['model'])


def test_messages_are_given_once(caplog):
    """What was found is said when it is found, and not with every batch."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    model[2].weight = model[0].weight  # keeps the whole backward pass alive
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    freezer = apply_freezeout(model, optimizer, t_0=0.5)
    with caplog.at_level(logging.WARNING):
        for batch in range(4):
            freezer.batch_start(batch / 4)
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
    assert len([record for record in caplog.records if record.name.startswith('composer_freezeout')]) == 1


def test_a_model_can_be_copied_while_its_first_batch_is_watched():
    model = network()
    _, freezer = start(model)
    freezer.batch_start(0.0)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_equal(copied.state_dict(), model.state_dict())
        copied(torch.ones(2, 3, 8, 8)).sum().backward()
    assert freezer.partition is None  # the copies are not what is watched
