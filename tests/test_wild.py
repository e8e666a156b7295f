"""Models, losses and habits as they are met in the wild: what freezes, in which order, and that the rest goes on."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from composer import Callback
from composer.algorithms import GradientClipping
from composer.core import DataSpec, Event, State
from composer.loggers import Logger
from composer.models import ComposerModel
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from composer_freezeout import FreezeOut, FreezeOutLoop, apply_freezeout
from composer_freezeout.freezing.observing.observation import Observation
from composer_freezeout.freezing.observing.partition import Partition, partition_model
from composer_freezeout.freezing.observing.rehearsal import rehearse

from .training import classifier, images, trainer

compatibility = pytest.mark.compatibility

BATCHES = 20


def partition(model: nn.Module, *inputs: Any, **arguments: Any) -> Partition:
    return partition_model(model, observe(model, *inputs), **arguments)


def observe(model: nn.Module, *inputs: Any) -> Observation:
    return rehearse(model, lambda: model(*inputs))


def names(result: Partition) -> list[str]:
    return [unit.name for unit in result.units]


def loop(
    model: nn.Module,
    step: Callable[[int], torch.Tensor],
    t_0: float = 0.4,
    after: Callable[[int, FreezeOutLoop], None] | None = None,
    batches: int = BATCHES,
    **arguments: Any,
) -> FreezeOutLoop:
    """Trains for some batches; ``after`` looks at the gradients of each."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    freezer = apply_freezeout(model, optimizer, t_0=t_0, **arguments)
    for batch in range(batches):
        model.train()
        freezer.batch_start(batch / batches)
        optimizer.zero_grad()
        step(batch).backward()
        if after is not None:
            after(batch, freezer)
        optimizer.step()
    return freezer


def starved(model: nn.Module, freezer: FreezeOutLoop) -> list[str]:
    """Parameters that should train and have no gradient."""
    assert freezer.partition is not None
    live = [name for unit in freezer.partition.units[freezer.units_frozen :] for name in unit.parameters]
    return [name for name in live if model.get_parameter(name).grad is None]


class Layers(nn.Module):
    """Three layers, registered the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.middle, self.stem = nn.Linear(6, 3), nn.Linear(6, 6), nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.middle(self.stem(x).relu()).relu())


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
IN_ORDER = ['stem', 'middle', 'head']


# --- what counts as a use

PENALTIES: dict[str, Callable[[Any], torch.Tensor]] = {
    'l1': lambda m: sum(p.abs().sum() for p in m.parameters()),
    'l2 of one vector': lambda m: nn.utils.parameters_to_vector(m.parameters()).norm(),
    'orthogonality': lambda m: sum((w @ w.T - torch.eye(len(w))).square().sum() for w in m.parameters() if w.ndim > 1),
    'to an anchor': lambda m: sum((p - a).square().sum() for p, a in zip(m.parameters(), m.anchors[0], strict=True)),
    'of two layers': lambda m: (m.stem.weight.sum() * m.middle.weight.sum()).square(),
}


@compatibility('penalties on weights in the loss')
@pytest.mark.parametrize('where', ['loss', 'forward', 'output'])
@pytest.mark.parametrize('penalty', PENALTIES)
def test_a_penalty_is_no_use(penalty, where):
    class Penalised(Layers):
        def __init__(self) -> None:
            super().__init__()
            self.anchors = [[p.detach().clone() for p in self.parameters()]]

        def forward(self, x: torch.Tensor) -> Any:
            output = super().forward(x)
            if where == 'output':
                return output + 0.0 * PENALTIES[penalty](self)
            return (output, PENALTIES[penalty](self)) if where == 'forward' else output

    model = Penalised()

    def loss() -> Any:
        output = model(X)
        output, extra = output if isinstance(output, tuple) else (output, 0.0)
        if where == 'loss':
            extra = PENALTIES[penalty](model)
        return F.cross_entropy(output, torch.zeros(5, dtype=torch.long)) + 1e-3 * extra

    result = partition_model(model, rehearse(model, loss))
    assert names(result) == IN_ORDER
    assert result.cuts == (0, 1, 2, 3) and result.heads == 1


READS: dict[str, Callable[[torch.Tensor], Any]] = {
    'zeros_like': lambda w: torch.zeros_like(w).sum(),
    'new_zeros': lambda w: w.new_zeros(()),
    'norm of a copy': lambda w: 0.0 * w.detach().norm(),
    'isfinite': lambda w: 0.0 * torch.isfinite(w).all(),
    'device and type': lambda w: torch.zeros((), device=w.device, dtype=w.dtype),
}


@compatibility('reading the type or a copy of a weight')
@pytest.mark.parametrize('read', READS)
def test_to_ask_a_weight_for_something_is_no_use(read):
    class Asks(Layers):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + READS[read](self.stem.weight)

    assert names(partition(Asks(), X)) == IN_ORDER


def test_a_weight_is_used_where_it_meets_activations():
    """And not where it is normalised, or made by another network."""

    class Early(Layers):
        def __init__(self) -> None:
            super().__init__()
            self.code = nn.Parameter(torch.randn(3))
            self.generator = nn.Linear(3, 36)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            late = F.normalize(self.head.weight)
            made = self.generator(self.code).view(6, 6)
            x = self.middle(self.stem(x).relu()).relu()
            return (x @ made).relu() @ late.T

    result = partition(Early(), X)
    assert names(result) == ['stem', 'middle', 'code', 'generator', 'head']
    assert result.cuts == tuple(range(6))


def test_a_second_derivative_does_not_turn_the_order_round():
    class Forces(nn.Module):
        def __init__(self, only: bool) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1))
            self.only = only

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.detach().requires_grad_()
            energy = self.net(x)
            force = torch.autograd.grad(energy.sum(), x, create_graph=True)[0]
            return force if self.only else torch.cat([energy, force], 1)

    for only in (False, True):
        result = partition(Forces(only), X)
        assert names(result) == ['net.0', 'net.2', 'net.4']
        # The input gets a gradient, which goes through all layers whatever is frozen.
        assert result.cuts[:3] == (0, 0, 0)
        assert 'something in front of them gets a gradient' in str(result.describe_bad_cuts())


def test_a_bias_stays_with_its_weight():
    """Added by an operator of its own, by a layer that is used twice."""

    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.middle, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def use(self, layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
            return x @ layer.weight.T + layer.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.use(self.head, self.use(self.shared, self.middle(self.use(self.shared, x)).relu()).relu())

    result = partition(Again(), X)
    assert [(unit.name, len(unit.parameters)) for unit in result.units] == [('middle', 2), ('shared', 2), ('head', 2)]


def test_tensors_of_one_module_that_are_used_apart():
    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Parameter(torch.randn(6, 3))
            self.shift = nn.Parameter(torch.zeros(4))
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x + self.shift).relu()).relu() @ self.project

    result = partition(Tower(), X)
    assert names(result) == ['shift', 'first', 'second', 'project']
    assert result.cuts == tuple(range(5))


@pytest.mark.parametrize('held', [nn.ParameterList, nn.ParameterDict])
def test_a_network_in_one_list_of_parameters(held):
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            tensors = [torch.randn(6, 4), torch.zeros(6), torch.randn(6, 6), torch.zeros(6), torch.randn(3, 6)]
            self.layers = held(tensors if held is nn.ParameterList else {f'w{i}': t for i, t in enumerate(tensors)})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            w = list(self.layers.values() if isinstance(self.layers, nn.ParameterDict) else self.layers)
            return F.linear(F.linear(F.linear(x, w[0], w[1]).relu(), w[2], w[3]).relu(), w[4])

    result = partition(Functional(), X)
    assert [len(unit.parameters) for unit in result.units] == [2, 2, 1]
    assert result.cuts == (0, 1, 2, 3)


def test_parametrised_weights_are_no_norms():
    model = nn.Sequential()
    kinds: list[Any] = [parametrizations.weight_norm, parametrizations.orthogonal, parametrizations.spectral_norm]
    for index, make in enumerate(kinds):
        model.add_module(str(2 * index), make(nn.Linear(4, 4)))
        model.add_module(str(2 * index + 1), nn.ReLU())
    model.add_module('head', nn.Linear(4, 2))
    model[4].parametrizations.weight.original.data += 0.1 * torch.randn(4, 4)  # what it iterates has to move on
    result = partition(model, X)
    assert names(result) == ['0', '2', '4', 'head']
    assert [unit.norms for unit in result.units] == [(), (), ('4.parametrizations.weight.0',), ()]


# --- what the first batch doesn't show, and heads


@compatibility('parts that the first batch does not use', note='They train to the end; a message names them.')
def test_what_was_not_seen_comes_last_and_is_named(caplog):
    class Conditional(Layers):
        def __init__(self) -> None:
            super().__init__()
            self._modules = {'condition': nn.Embedding(3, 6), **self._modules}

        def forward(self, x: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
            x = self.middle(self.stem(x).relu())
            return self.head((x if condition is None else x * self.condition(condition)).relu())

    model = Conditional()
    given = torch.zeros(5, dtype=torch.long)
    with caplog.at_level(logging.WARNING):
        freezer = loop(model, lambda batch: model(X, given if batch % 2 else None).square().mean())
    assert freezer.partition is not None and names(freezer.partition) == [*IN_ORDER, 'condition']
    assert "the first batch does not use 'condition'" in caplog.text
    assert freezer.units_frozen == 2 and freezer.freeze_times[2:] == (1.0, 1.0)


def test_all_heads_train_to_the_end():
    class Heads(Layers):
        def __init__(self) -> None:
            super().__init__()
            self.auxiliary = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor) -> Any:
            x = self.stem(x).relu()
            return {'auxiliary': self.auxiliary(x), 'main': self.scale * self.head(self.middle(x).relu())}

    result = partition(Heads(), X)
    assert names(result)[-3:] == ['auxiliary.2', 'head', 'scale']
    assert result.heads == 3 and set(names(result)[:3]) == {'stem', 'auxiliary.0', 'middle'}


@compatibility('a model of a single unit', note='Nothing freezes, and a message says so.')
def test_a_model_in_which_nothing_will_freeze_says_so(caplog):
    model = nn.Linear(4, 3)
    with caplog.at_level(logging.WARNING):
        loop(model, lambda _: model(X).square().mean(), batches=3)
    assert 'nothing will freeze: every unit trains to the end' in caplog.text


@compatibility('modules registered under several names')
@pytest.mark.parametrize('first', [True, False])
def test_a_module_under_two_names(first):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            attention, head = nn.MultiheadAttention(4, 2), nn.Linear(4, 2)
            if first:
                self.whole = nn.Sequential(attention, head)
            self.attention, self.head = attention, head
            if not first:
                self.whole = nn.Sequential(attention, head)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.attention(x, x, x)[0])

    sizes = [len(unit.parameters) for unit in partition(Twice(), X[None]).units]
    assert sizes == [2, 2, 2]
    patterns = partition(Twice(), X[None], layers=['attention', 'head'])
    assert [len(unit.parameters) for unit in patterns.units] == [4, 2]


# --- activation checkpoints


class Checkpointed(nn.Module):
    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)) for _ in range(3))
        self.head = nn.Linear(6, 3)
        self.call = call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        for block in self.blocks:
            x = self.call(block, x)
        return self.head(x)


class HandMade(torch.autograd.Function):
    """A reentrant checkpoint that nobody knows."""

    @staticmethod
    def forward(ctx: Any, function: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.function = function
        ctx.save_for_backward(x)
        with torch.no_grad():
            return function(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            torch.autograd.backward(ctx.function(x), gradients)
        return None, x.grad


def reentrant(function: Any, x: torch.Tensor) -> torch.Tensor:
    return checkpoint(function, x, use_reentrant=True)


CHECKPOINTS: dict[str, Callable[..., Any]] = {
    'none': lambda function, x: function(x),
    'reentrant': reentrant,
    'non-reentrant': lambda function, x: checkpoint(function, x, use_reentrant=False),
    'reentrant in reentrant': lambda function, x: reentrant(lambda y: reentrant(function, y), x),
    'reentrant in non-reentrant': lambda function, x: checkpoint(
        lambda y: reentrant(function, y), x, use_reentrant=False
    ),
}


@compatibility('activation checkpoints, reentrant and not')
@pytest.mark.parametrize('kind', CHECKPOINTS)
def test_behind_a_frozen_prefix_checkpoints_train_as_without(kind):
    ends = []
    for call in (CHECKPOINTS['none'], CHECKPOINTS[kind]):
        torch.manual_seed(0)
        model = Checkpointed(call)
        missing: list[Any] = []
        freezer = loop(
            model,
            lambda _, model=model: model(X).square().mean(),
            after=lambda _, freezer, model=model, missing=missing: missing.extend(starved(model, freezer)),
        )
        assert freezer.units_frozen == 7 and not missing
        assert freezer.partition is not None and freezer.partition.cuts == tuple(range(9))
        ends.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    for name, tensor in ends[0].items():
        assert torch.equal(ends[1][name], tensor), name
    # Elsewhere they are as torch has them.
    with pytest.warns(UserWarning, match='None of the inputs have requires_grad=True'):
        assert not reentrant(model.blocks[0], torch.ones(2, 6)).requires_grad


@compatibility(
    'functions that compute gradients of parameters themselves', note='Refused in the first batch after a freeze.'
)
@pytest.mark.parametrize('told', ['by the first batch', 'by a pass of its own', 'by layers', 'by a checkpoint'])
def test_who_gets_no_gradient_any_more_is_named(refusal, told):
    torch.manual_seed(0)
    model = Checkpointed(lambda function, x: HandMade.apply(function, x))
    arguments: dict[str, Any] = {}
    if told == 'by a pass of its own':
        arguments['forward'] = lambda: model(X)
    elif told == 'by layers':
        arguments['layers'] = ['stem', r'blocks\.0', r'blocks\.[12]', 'head']
    step = lambda _: model(X).square().mean()  # noqa: E731
    if told == 'by a checkpoint':
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        before = apply_freezeout(model, optimizer, t_0=0.4)
        before.batch_start(0.0)
        step(0).backward()
        optimizer.step()
        again = apply_freezeout(model, torch.optim.SGD(model.parameters(), lr=0.05), t_0=0.4)
        again.load_state_dict(before.state_dict())
        again.batch_start(0.07)
        assert again.units_frozen == 1
        step(0).backward()
        with refusal(r"no gradient since 'stem' is frozen, first 'blocks.0.0.weight'.*use_reentrant=False"):
            again._optimizer.step()
        return
    with refusal(r"no gradient since 'stem' is frozen, first 'blocks.0.0.weight'.*use_reentrant=False"):
        loop(model, step, **arguments)


def test_a_branch_that_is_not_taken_is_no_fault():
    class Branches(Layers):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor, both: bool) -> torch.Tensor:
            x = self.stem(x).relu()
            return self.head((self.middle(x) + (self.other(x) if both else 0.0)).relu())

    model = Branches()
    freezer = loop(model, lambda batch: model(X, batch == 0).square().mean())
    assert freezer.units_frozen == 3


# --- no live parameter


@compatibility(
    'batches whose loss reaches no trained layer', note='The step is skipped, as for parameters without a gradient.'
)
def test_a_loss_of_frozen_layers_alone_is_a_step_without_gradients():
    class Features(Layers):
        def forward(self, x: torch.Tensor, features: bool = False) -> torch.Tensor:
            x = self.stem(x).relu()
            return x if features else self.head(self.middle(x).relu())

    model = Features()
    skipped = []

    def after(batch: int, freezer: FreezeOutLoop) -> None:
        if batch % 2 and freezer.units_frozen:
            skipped.append(all(parameter.grad is None for parameter in model.parameters()))

    freezer = loop(model, lambda batch: model(X, bool(batch % 2)).square().mean(), after=after)
    assert freezer.units_frozen == 2 and len(skipped) > 5 and all(skipped)


def test_in_a_trainer_a_loss_of_frozen_layers_alone_skips_the_step():
    class Alternating(ComposerModel):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.batches = classifier().module, 0

        def forward(self, batch: Any) -> Any:
            self.batches += 1
            return self.net.conv1(batch[0]) if self.batches % 2 == 0 else self.net(batch[0])

        def loss(self, outputs: Any, batch: Any) -> Any:
            return outputs.square().mean()

    model, freezeout = Alternating(), FreezeOut(0.5)
    trainer(model, [freezeout]).fit()
    assert freezeout._freezer is not None and freezeout._freezer.units_frozen == 3
    assert model.batches == 16


# --- norms


class ActivatedBatchNorm(nn.Module):
    """Normalises as BatchNorm does, under a name of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer('mean', torch.zeros(channels))
        self.register_buffer('variance', torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, self.mean, self.variance, self.weight, self.bias, self.training).relu()


class NormalisedBlock(nn.Module):
    """Named like a norm, with constants of its own and dropout inside."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('mean', torch.zeros(4))
        self.first, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.dropout, self.second = nn.Dropout(0.5), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.dropout(self.norm(self.first(x - self.mean)).relu()))


@compatibility('normalisation of any class')
def test_what_stands_still_is_what_training_moves():
    model = nn.Sequential(
        nn.Linear(4, 6), ActivatedBatchNorm(6), nn.utils.spectral_norm(nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, 2)
    )
    held: dict[str, torch.Tensor] = {}

    def after(batch: int, freezer: FreezeOutLoop) -> None:
        assert freezer.partition is not None
        for unit in freezer.partition.units[: freezer.units_frozen]:
            for norm in unit.norms:
                for name, buffer in model.get_submodule(norm).named_buffers():
                    assert torch.equal(held.setdefault(f'{norm}.{name}', buffer.clone()), buffer)

    freezer = loop(model, lambda batch: model(torch.randn(6, 4) + batch).square().mean(), after=after)
    assert freezer.partition is not None
    assert [unit.norms for unit in freezer.partition.units] == [('1',), ('2',), ()]
    assert set(held) == {'1.mean', '1.variance', '2.weight_u', '2.weight_v'}
    assert held['1.mean'].abs().max() > 0.01


def test_only_a_norms_own_mode_is_switched():
    model = nn.Sequential(NormalisedBlock(), nn.ReLU(), nn.Linear(6, 2))
    block: Any = model[0]
    modes = []

    def after(batch: int, freezer: FreezeOutLoop) -> None:
        modes.append((freezer.units_frozen, block.norm.training, block.dropout.training, block.training))

    freezer = loop(model, lambda _: model(torch.randn(6, 4)).square().mean(), after=after)
    assert set(modes) == {(0, True, True, True), (1, False, True, True), (2, False, True, True)}
    freezer.release()
    assert block.norm.training


@pytest.mark.parametrize('batchnorm', ['eval', 'batch', 'update'])
def test_constants_are_no_norms_and_modes_come_back_as_they_were(batchnorm):
    class Kept(nn.Module):
        """Keeps its norm in evaluation, as detectors do."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer('mean', torch.zeros(4))
            self.first, self.norm, self.head = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.first(x - self.mean)).relu())

        def train(self, mode: bool = True) -> 'Kept':
            super().train(mode)
            self.norm.eval()
            return self

    model = Kept()
    freezer = loop(model, lambda _: model(torch.randn(6, 4)).square().mean(), batchnorm=batchnorm)
    assert freezer.units_frozen == 1 and int(model.norm.num_batches_tracked) == 0
    freezer.release()
    assert not model.norm.training and model.norm.track_running_stats


def test_batch_statistics_of_a_norm_of_its_own_kind_are_refused(refusal):
    model = nn.Sequential(nn.Linear(4, 6), ActivatedBatchNorm(6), nn.Linear(6, 2))
    with refusal("needs BatchNorm layers, but '1' is ActivatedBatchNorm, and training changes its buffers"):
        loop(model, lambda _: model(torch.randn(6, 4)).square().mean(), batchnorm='batch')


@compatibility('scripted modules inside of a model')
def test_a_scripted_backbone():
    body = torch.jit.script(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6)))
    model = nn.Sequential(body, nn.Linear(6, 2))
    means = []

    def after(batch: int, freezer: FreezeOutLoop) -> None:
        if freezer.units_frozen:
            means.append(model[0].state_dict()['1.running_mean'].clone())

    freezer = loop(model, lambda batch: model(torch.randn(6, 4) + batch).square().mean(), after=after)
    assert freezer.partition is not None and names(freezer.partition) == ['0.0', '0.3', '1']
    assert len(means) > 10 and all(torch.equal(mean, means[0]) for mean in means)


@compatibility(
    'weights that the forward pass writes to', note='They move on when they are frozen; a message names them.'
)
def test_an_embedding_that_rescales_itself_is_named(caplog):
    model = nn.Sequential(nn.Embedding(9, 4, max_norm=0.5), nn.Flatten(), nn.Linear(8, 2))
    tokens = torch.randint(0, 9, (5, 2))
    with caplog.at_level(logging.WARNING):
        loop(model, lambda _: model(tokens).square().mean(), batches=3)
    assert "the forward pass itself writes to '0.weight', frozen or not" in caplog.text


# --- what users switch themselves


@compatibility('requires_grad switched by the user')
@pytest.mark.parametrize('moment', ['before the batch', 'before the pass', 'after the pass'])
def test_what_is_frozen_stays_so_whoever_thaws_it(moment):
    torch.manual_seed(0)
    model = Layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
    freezer = apply_freezeout(model, optimizer, t_0=0.4)
    frozen: dict[str, torch.Tensor] = {}
    for batch in range(BATCHES):
        if moment == 'before the batch':
            model.requires_grad_(True)
        freezer.batch_start(batch / BATCHES)
        if moment == 'before the pass':
            model.requires_grad_(True)
        optimizer.zero_grad(set_to_none=batch % 2 == 0)
        loss = model(X).square().mean()
        if moment == 'after the pass':
            model.requires_grad_(True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert freezer.partition is not None
        for unit in freezer.partition.units[: freezer.units_frozen]:
            for name in unit.parameters:
                parameter = model.get_parameter(name)
                assert parameter.grad is None
                assert torch.equal(frozen.setdefault(name, parameter.detach().clone()), parameter)
        optimizer.step()
    assert len(frozen) == 4


def test_after_training_the_model_is_the_users_own():
    """To thaw it and to train on, and to freeze it anew."""
    model = Layers()
    freezer = loop(model, lambda _: model(X).square().mean())
    assert freezer.units_frozen == 2
    freezer.epoch_end()
    model.requires_grad_(True)
    model(X).square().mean().backward()
    assert model.stem.weight.grad is not None
    again = loop(model, lambda _: model(X).square().mean(), batches=2)
    assert again.units_frozen > 0
    third = loop(model.requires_grad_(True), lambda _: model(X).square().mean(), t_0=1.0)
    assert third.units_frozen == 0 and all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    'event', [Event.EPOCH_START, Event.BATCH_START, Event.BEFORE_FORWARD, Event.BEFORE_TRAIN_BATCH]
)
def test_in_a_trainer_what_is_frozen_stays_so(event):
    class Toggle(Callback):
        seen = 0

        def run_event(self, now: Event, state: State, logger: Logger) -> None:
            if now is event:
                state.model.requires_grad_(True)
            if now is Event.AFTER_BACKWARD and freezeout._freezer is not None:
                units = freezeout._freezer.partition.units[: freezeout._freezer.units_frozen]
                Toggle.seen += len(units)
                assert all(state.model.get_parameter(name).grad is None for unit in units for name in unit.parameters)

    freezeout = FreezeOut(0.5)
    trainer(classifier(), [freezeout, GradientClipping('norm', 0.5)], callbacks=[Toggle()]).fit()
    assert Toggle.seen > 10
    Toggle.seen = 0


# --- whatever Composer trains with


class Graphs(ComposerModel):
    """Batches that only their own function can split: the nodes of all samples stand in one tensor."""

    def __init__(self, loss: str = 'tensor') -> None:
        super().__init__()
        self.head, self.encode, self.middle = nn.Linear(6, 2), nn.Linear(3, 6), nn.Linear(6, 6)
        self.kind = loss

    def forward(self, batch: Any) -> Any:
        assert int(batch['graph'].max()) < len(batch['label']), 'nodes of a graph that is not in the batch'
        nodes = self.middle(self.encode(batch['nodes']).relu()).relu()
        return self.head(torch.zeros(len(batch['label']), 6).index_add(0, batch['graph'], nodes))

    def loss(self, outputs: Any, batch: Any) -> Any:
        loss = F.cross_entropy(outputs, batch['label'])
        if self.kind == 'tuple':
            return loss, 1e-3 * sum(p.abs().sum() for p in self.parameters())
        if self.kind == 'dictionary':
            return {'ce': loss, 'l1': 1e-3 * sum(p.abs().sum() for p in self.parameters())}
        if self.kind == 'total':
            l1 = 1e-3 * sum(p.abs().sum() for p in self.parameters())
            return {'ce': loss.detach(), 'total': loss + l1}
        return loss


def graphs() -> DataSpec:
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(3 + i % 3, 3, generator=generator), torch.tensor(i % 2)) for i in range(24)]

    def collate(items: Any) -> dict[str, torch.Tensor]:
        return {
            'nodes': torch.cat([nodes for nodes, _ in items]),
            'graph': torch.cat([torch.full((len(nodes),), i) for i, (nodes, _) in enumerate(items)]),
            'label': torch.stack([label for _, label in items]),
        }

    def split(batch: Any, size: int) -> list[Any]:
        parts = []
        for start in range(0, len(batch['label']), size):
            own = (batch['graph'] >= start) & (batch['graph'] < start + size)
            nodes, graph = batch['nodes'][own], batch['graph'][own] - start
            parts.append({'nodes': nodes, 'graph': graph, 'label': batch['label'][start : start + size]})
        return parts

    loader = DataLoader(data, batch_size=6, collate_fn=collate)
    return DataSpec(loader, split_batch=split, get_num_samples_in_batch=lambda batch: len(batch['label']))


@compatibility('a split_batch of the user’s own')
@compatibility('losses in a tuple or dictionary')
@pytest.mark.parametrize('const_time', [False, True])
@pytest.mark.parametrize('loss', ['tensor', 'tuple', 'dictionary', 'total'])
def test_batches_and_losses_of_every_kind(loss, const_time):
    freezeout = FreezeOut(0.5, const_time=const_time)
    run = trainer(
        Graphs(loss), [freezeout], train_dataloader=graphs(), max_duration='12ba', device_train_microbatch_size=2
    )
    run.fit()
    assert [row['name'] for row in freezeout.unit_table()] == ['encode', 'middle', 'head']
    assert [row['frozen'] for row in freezeout.unit_table()] == [True, True, False]
    assert (int(run.state.timestamp.batch) > 12) == const_time


def test_a_duration_can_be_lengthened_whatever_the_model_asks_of_its_batch():
    """Counting FLOPs needs values then, on a copy of the batch."""

    class Picky(ComposerModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = classifier().module

        def forward(self, batch: Any) -> Any:
            assert batch[0].mean().item() < 100
            return self.net(batch[0][batch[0].flatten(1).sum(1) > -1e9])

        def loss(self, outputs: Any, batch: Any) -> Any:
            return F.cross_entropy(outputs, batch[1])

    freezeout = FreezeOut(0.5, const_time=True)
    run = trainer(Picky(), [freezeout], train_dataloader=images())
    run.fit()
    assert int(run.state.timestamp.batch) > 16
