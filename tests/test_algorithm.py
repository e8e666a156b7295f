import logging
import math
from typing import Any

import pytest
import torch
import torchvision
from composer import Callback, Event, Trainer
from composer.core import DataSpec, State
from composer.loggers import InMemoryLogger, Logger
from composer.models import ComposerClassifier
from composer.optim import (
    ConstantScheduler,
    CosineAnnealingScheduler,
    DecoupledAdamW,
    DecoupledSGDW,
)
from torch import nn

from composer_freezeout import FreezeOut
from composer_freezeout.freezing.optimizer.param_group import UNIT

from .networks import DenseNet, ResidualNet, Transformer, chain
from .training import BATCH_SIZE, CLASSES, StepTrace, classifier, images, trainer

POWER = {'linear': 1, 'squared': 2, 'cubic': 3}
# First parameter of each of the four units of `chain`.
FIRST = ['module.conv1.weight', 'module.conv2.weight', 'module.conv3.weight', 'module.head.weight']


def expected_lr(t: float, i: int, t_0: float, how_scale: str, scale_lr: bool, lr: float = 0.1, n: int = 4) -> float:
    t_i = 1.0 if i == n - 1 else (t_0 + (1 - t_0) * i / (n - 1)) ** POWER[how_scale]
    if t >= t_i:
        return 0.0
    return 0.5 * (lr / t_i if scale_lr else lr) * (1 + math.cos(math.pi * t / t_i))


# --- the learning rates of a real run


@pytest.mark.parametrize('duration', ['2ep', '7ba', '26sp'])
@pytest.mark.parametrize('t_0', [0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize('scale_lr', [True, False])
@pytest.mark.parametrize('how_scale', POWER)
def test_learning_rates_at_every_step(how_scale, scale_lr, t_0, duration):
    model, trace = classifier(), StepTrace()
    trainer(model, [FreezeOut(t_0, how_scale, scale_lr)], callbacks=[trace], max_duration=duration).fit()

    batches = {'2ep': 8, '7ba': 7, '26sp': 7}[duration]
    assert len(trace.steps) == batches
    for batch, rates in enumerate(trace.steps):
        t = BATCH_SIZE * batch / 26 if duration == '26sp' else batch / batches
        for i, name in enumerate(FIRST):
            expected = expected_lr(t, i, t_0, how_scale, scale_lr)
            assert (rates[name] or 0.0) == pytest.approx(expected, rel=1e-12, abs=1e-16), (batch, name)
            # Out of the optimizer only after it has frozen.
            assert rates[name] is not None or expected == 0


def test_with_a_shared_cosine_the_rates_of_all_units_are_equal_until_each_freezes():
    trace, algorithm = StepTrace(), FreezeOut(0.5, scale_lr=False, anneal='shared')
    trainer(classifier(), [algorithm], callbacks=[trace], max_duration='40ba').fit()
    times = algorithm.freeze_times(4)
    for batch, rates in enumerate(trace.steps):
        t = batch / 40
        for t_i, name in zip(times, FIRST, strict=True):
            expected = 0.05 * (1 + math.cos(math.pi * t)) if t < t_i else 0.0
            assert (rates[name] or 0.0) == pytest.approx(expected, rel=1e-12, abs=1e-16), (batch, name)
    assert algorithm.unit_table()[0]['frozen_at_batch'] == math.ceil(40 * times[0])


def test_tokens_count_as_progress():
    model = classifier()
    loader = images()
    trace = StepTrace()
    spec = DataSpec(loader, get_num_tokens_in_batch=lambda batch: 10 * len(batch[0]))
    trainer(model, [FreezeOut(0.5)], callbacks=[trace], train_dataloader=spec, max_duration='240tok').fit()
    assert len(trace.steps) == 6
    for batch, rates in enumerate(trace.steps):
        expected = expected_lr(batch / 6, 0, 0.5, 'cubic', True)
        assert (rates[FIRST[0]] or 0.0) == pytest.approx(expected, rel=1e-12, abs=1e-16)


def test_t_0_of_one_is_plain_cosine_annealing():
    ours, theirs = StepTrace(), StepTrace()
    trainer(classifier(), [FreezeOut(1.0)], callbacks=[ours]).fit()
    # torch's, as Composer's own scheduler is one batch late.
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=16)
    trainer(model, [], optimizer, callbacks=[theirs], schedulers=cosine, step_schedulers_every_batch=True).fit()
    for a, b in zip(ours.steps, theirs.steps, strict=True):
        assert a == pytest.approx(b, rel=1e-10)  # torch's recursion rounds at every step


def test_same_weights_as_a_hand_written_loop():
    freezeout = classifier()
    trainer(freezeout, [FreezeOut(0.5)]).fit()

    reference = classifier()
    trainer(reference, [])  # seeds the same way
    net = reference.module
    layers = [[net.conv1, net.bn1], [net.conv2, net.bn2], [net.conv3, net.bn3], [net.head]]
    optimizers = [
        torch.optim.SGD([p for module in unit for p in module.parameters()], lr=1.0, momentum=0.9) for unit in layers
    ]
    net.train()
    batch = 0
    for _ in range(4):
        for inputs, targets in images():
            for i, optimizer in enumerate(optimizers):
                lr = expected_lr(batch / 16, i, 0.5, 'cubic', True)
                optimizer.param_groups[0]['lr'] = lr
                if lr == 0:
                    for module in layers[i]:
                        module.requires_grad_(False).eval()
            loss = nn.functional.cross_entropy(net(inputs), targets)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            batch += 1
    for (name, a), b in zip(freezeout.state_dict().items(), reference.state_dict().values(), strict=True):
        # One rounding per learning rate differs (sin² against 1 + cos); it grows over 16 steps.
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


def test_warmup_in_every_unit_that_compares():
    reference = None
    for t_warmup in ('1ep', '4ba', '0.25dur'):
        trace = StepTrace()
        trainer(classifier(), [FreezeOut(0.8, t_warmup=t_warmup)], callbacks=[trace]).fit()
        rates = [step[FIRST[0]] for step in trace.steps]
        at_end = expected_lr(4 / 16, 0, 0.8, 'cubic', True)
        #                                0    1/4          1/2         3/4              all of the warm-up
        assert rates[:5] == pytest.approx([0, at_end / 4, at_end / 2, at_end * 3 / 4, at_end], rel=1e-12)
        reference = reference or trace.steps
        assert trace.steps == reference


def test_warmup_in_epochs_of_a_run_in_batches():
    trace = StepTrace()
    trainer(classifier(), [FreezeOut(t_warmup='1ep')], callbacks=[trace], max_duration='16ba').fit()
    assert trace.steps[2][FIRST[0]] == pytest.approx(expected_lr(4 / 16, 0, 0.8, 'cubic', True) / 2, rel=1e-12)


def test_where_layers_are_given_their_costs_are_counted_before_training():
    freezeout = FreezeOut(layers=['module.[^h].*', 'module.head'], unit_costs=[3, 2, 1])
    with pytest.raises(ValueError, match='the model has 2 units, got 3 numbers'):
        trainer(classifier(), [freezeout])


def test_a_warmup_may_last_until_the_first_freeze_of_these_units():
    # By the paper's times the first unit would freeze at 0.125, and the warm-up with it.
    freezeout = FreezeOut(0.5, unit_costs=[0, 0, 3, 0], cost_shift=0.1, t_warmup='3ba')
    trainer(classifier(), [freezeout]).fit()
    assert freezeout.unit_table()[0]['t_i'] == pytest.approx(0.125 + 0.1)
    assert freezeout.unit_table()[0]['frozen_at_batch'] == 4


@pytest.mark.parametrize(
    ('t_warmup', 'message'),
    [('3ep', 'must end before the first unit freezes, at progress 0.512'), ('8sp', 'cannot be compared')],
)
def test_warmup_that_does_not_fit_is_refused(t_warmup, message):
    with pytest.raises(ValueError, match=message):
        trainer(classifier(), [FreezeOut(t_warmup=t_warmup)]).fit()


# --- what is frozen


class Snapshots(Callback):
    """Every tensor of the model, at the start of each batch and after each evaluation."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, str, dict[str, torch.Tensor]]] = []

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        if event in (Event.BATCH_START, Event.BATCH_END, Event.EVAL_END, Event.FIT_END):
            tensors = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
            self.taken.append((int(state.timestamp.batch), event.value, tensors))


def drift(snapshots: Snapshots, name: str, since: int) -> bool:
    """Whether a tensor changes after the start of batch `since`."""
    later = [tensors[name] for batch, event, tensors in snapshots.taken if (batch, event) >= (since, 'batch_start')]
    assert len(later) > 2
    return any(not torch.equal(later[0], tensor) for tensor in later[1:])


@pytest.mark.parametrize('microbatch', [None, 2])
@pytest.mark.parametrize('batchnorm', ['eval', 'batch', 'update'])
def test_frozen_is_frozen_to_the_bit(batchnorm, microbatch):
    model, snapshots = classifier(), Snapshots()
    freezeout = FreezeOut(0.5, batchnorm=batchnorm)
    trainer(
        model,
        [freezeout],
        # Momentum and decay would move what is only without a gradient.
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1),
        callbacks=[snapshots],
        eval_dataloader=images(),
        eval_interval='3ba',
        device_train_microbatch_size=microbatch,
    ).fit()
    frozen = [row for row in freezeout.unit_table() if row['frozen']]
    #                                                 t_i = .125, .296…, .578… of 16 batches
    assert [row['frozen_at_batch'] for row in frozen] == [2, 5, 10]
    for index, row in enumerate(frozen, start=1):
        for name in (f'conv{index}.weight', f'conv{index}.bias', f'bn{index}.weight', f'bn{index}.bias'):
            assert not drift(snapshots, f'module.{name}', row['frozen_at_batch']), name
            assert drift(snapshots, f'module.{name}', row['frozen_at_batch'] - 1), name
        for name in ('running_mean', 'running_var', 'num_batches_tracked'):
            moves = drift(snapshots, f'module.bn{index}.{name}', row['frozen_at_batch'])
            assert moves == (batchnorm == 'update'), name
    assert drift(snapshots, 'module.head.weight', 15)


@pytest.mark.parametrize('batchnorm', ['eval', 'batch', 'update'])
def test_what_a_frozen_batchnorm_normalises_by(batchnorm):
    class Outputs(Callback):
        def __init__(self) -> None:
            self.frozen: torch.Tensor | None = None

        def fit_start(self, state: State, logger: Logger) -> None:
            def keep(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
                if torch.is_grad_enabled():
                    self.inputs, self.output = inputs[0], output

            state.model.module.bn1.register_forward_hook(keep)

    model, outputs = classifier(), Outputs()
    trainer(model, [FreezeOut(0.5, batchnorm=batchnorm)], callbacks=[outputs]).fit()
    bn = model.module.bn1
    statistics = (bn.running_mean, bn.running_var) if batchnorm == 'eval' else (None, None)
    expected = nn.functional.batch_norm(
        outputs.inputs, *statistics, bn.weight, bn.bias, training=batchnorm != 'eval', eps=bn.eps
    )
    assert torch.equal(outputs.output, expected)


def test_after_training_batchnorm_is_its_own_again():
    for batchnorm in ('eval', 'batch'):
        model = classifier()
        trainer(model, [FreezeOut(0.5, batchnorm=batchnorm)]).fit()
        model.train()
        before = model.module.bn1.running_mean.clone()
        model.module(torch.randn(4, 3, 8, 8))
        assert not torch.equal(model.module.bn1.running_mean, before)


class Backward(Callback):
    """Per batch: the names of the autograd nodes of the loss, and of the parameters with a gradient at the step."""

    def __init__(self) -> None:
        self.nodes: list[list[str]] = []
        self.with_gradient: list[set[str]] = []

    def before_backward(self, state: State, logger: Logger) -> None:
        nodes, seen = [state.loss.grad_fn], set()
        while nodes:
            node = nodes.pop()
            if node is not None and node not in seen:
                seen.add(node)
                nodes += [parent for parent, _ in node.next_functions]
        self.nodes.append([node.name() for node in seen])

    def after_backward(self, state: State, logger: Logger) -> None:
        self.with_gradient.append({name for name, p in state.model.named_parameters() if p.grad is not None})


def count(nodes: list[str], kind: str) -> int:
    return sum(kind in name for name in nodes)


@pytest.mark.parametrize(
    ('network', 'convolutions'),
    [
        # Convolution backwards left with k units frozen.
        (chain, [3, 2, 1, 0]),
        (ResidualNet, [7, 6, 5, 4, 3, 2, 1, 0]),
        (DenseNet, [4, 3, 2, 1, 0]),
    ],
)
def test_backward_ends_at_the_first_trainable_unit(network, convolutions):
    backward, logger = Backward(), InMemoryLogger()
    torch.manual_seed(0)
    trainer(classifier(network()), [FreezeOut(0.3, 'linear')], callbacks=[backward], loggers=[logger]).fit()
    frozen = [int(value) for _, value in logger.data['freezeout/units_frozen']]
    assert sorted(set(frozen)) == list(range(len(convolutions)))
    for k, nodes in zip(frozen, backward.nodes, strict=True):
        assert count(nodes, 'ConvolutionBackward') == convolutions[k]
        # Gradients are accumulated for the trained units alone, and the frozen ones have no other node either.
        if k == len(convolutions) - 1:
            assert count(nodes, 'NativeBatchNorm') == 0
            assert count(nodes, 'AccumulateGrad') == 2


def test_transformer_backward_shrinks_too():
    class Tokens(ComposerClassifier):
        def loss(self, outputs, batch, *args, **kwargs):
            return nn.functional.cross_entropy(outputs.flatten(0, 1), batch[1].flatten())

    tokens = torch.arange(40).reshape(8, 5) % 11
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(tokens, tokens), batch_size=2)
    torch.manual_seed(0)
    model = Tokens(Transformer(), num_classes=11)
    model.train_metrics = None
    model.get_metrics = lambda is_train=False: {}
    backward, freezeout = Backward(), FreezeOut(0.3, 'linear')
    trainer(model, [freezeout], callbacks=[backward], train_dataloader=loader).fit()
    # embedding, 2 × (in_proj, out_proj, 2 MLP), head
    assert len(freezeout.unit_table()) == 1 + 2 * 4 + 1
    assert [row['frozen'] for row in freezeout.unit_table()] == [True] * 9 + [False]
    assert count(backward.nodes[0], 'EmbeddingBackward') == 1
    assert count(backward.nodes[-1], 'AccumulateGrad') == 1
    assert backward.with_gradient[-1] == {'module.lm_head.weight'}


@pytest.mark.parametrize(
    ('name', 'size'),
    [
        ('resnet18', 32),
        ('densenet121', 32),
        ('mobilenet_v3_small', 32),
        pytest.param('vgg11_bn', 32, marks=pytest.mark.slow),
        pytest.param('vit_b_16', 224, marks=pytest.mark.slow),
    ],
)
def test_torchvision_networks_train(name, size):
    torch.manual_seed(0)
    model = classifier(torchvision.models.get_model(name, weights=None, num_classes=CLASSES))
    backward, freezeout = Backward(), FreezeOut(0.3)
    trainer(model, [freezeout], callbacks=[backward], train_dataloader=images(8, size), max_duration='2ep').fit()
    frozen = [row['name'] for row in freezeout.unit_table() if row['frozen']]
    assert 0 < len(frozen) < len(freezeout.unit_table())
    trained = {p for unit in freezeout._freezer.partition.units[len(frozen) :] for p in unit.parameters}
    assert backward.with_gradient[-1] <= trained
    # Four batches: the last one is at progress 3/4, so every unit with t_i <= 3/4 is frozen.
    assert len(frozen) == sum(row['t_i'] <= 0.75 for row in freezeout.unit_table())


# --- the optimizer


def test_frozen_parameters_leave_the_optimizer_at_the_end_of_the_epoch():
    class Sizes(Callback):
        def __init__(self) -> None:
            self.batches: list[int] = []
            self.epochs: list[tuple[list[str], int]] = []

        def batch_end(self, state: State, logger: Logger) -> None:
            self.batches.append(sum(len(group['params']) for group in state.optimizers[0].param_groups))

        def epoch_end(self, state: State, logger: Logger) -> None:
            optimizer = state.optimizers[0]
            self.epochs.append(([group[UNIT] for group in optimizer.param_groups], len(optimizer.state)))

    model, sizes = classifier(), Sizes()
    trainer(model, [FreezeOut(0.5)], callbacks=[sizes]).fit()
    #                          freezes at batch 2, 5 and 10; leaves at batch 4, 8 and 12
    assert sizes.batches == [14] * 4 + [10] * 4 + [6] * 4 + [2] * 4
    units = ['module.head', 'module.conv3', 'module.conv2']
    #                        deepest first; momentum goes with its parameters
    assert sizes.epochs == [(units, 10), (units[:2], 6), (units[:1], 2), (units[:1], 2)]


def test_existing_groups_are_split_and_keep_their_settings():
    model = classifier()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.SGD(
        [{'params': decayed, 'weight_decay': 0.1}, {'params': others, 'lr': 0.3}], lr=0.1, momentum=0.9
    )
    logger = InMemoryLogger()
    groups: list[list[tuple]] = []

    class Groups(Callback):
        def batch_end(self, state: State, logger: Logger) -> None:
            groups.append([(g[UNIT], g['weight_decay'], len(g['params']), g['lr']) for g in optimizer.param_groups])

    trainer(model, [FreezeOut(0.5)], optimizer, callbacks=[Groups()], loggers=[logger]).fit()
    assert [group[:3] for group in groups[0]] == [
        ('module.head', 0.1, 1), ('module.head', 0, 1),
        ('module.conv3', 0.1, 1), ('module.conv3', 0, 3),
        ('module.conv2', 0.1, 1), ('module.conv2', 0, 3),
        ('module.conv1', 0.1, 1), ('module.conv1', 0, 3),
    ]  # fmt: skip
    assert [group[3] for group in groups[0]] == pytest.approx(
        [lr / t_i for t_i in (1, 0.578703703703, 0.296296296296, 0.125) for lr in (0.1, 0.3)], rel=1e-9
    )
    assert {'freezeout/lr/module.head/group0', 'freezeout/lr/module.head/group1'} <= set(logger.data)


def test_parameters_outside_of_the_model_stay_and_follow_the_head():
    model = classifier()
    extra = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([*model.parameters(), extra], lr=0.1)
    trainer(model, [FreezeOut(0.3)], optimizer).fit()
    assert optimizer.param_groups[0][UNIT] is None
    assert optimizer.param_groups[0]['params'] == [extra]
    assert optimizer.param_groups[0]['lr'] == optimizer.param_groups[1]['lr'] > 0


@pytest.mark.parametrize('optimizer_class', [DecoupledSGDW, DecoupledAdamW])
def test_decoupled_decay_does_not_grow_with_the_scaled_rate(optimizer_class):
    """Composer decays by lr / initial_lr: 1 at the start of training whatever the scaling."""

    def decayed(scale_lr: bool) -> torch.Tensor:
        model = classifier()
        before = model.module.conv1.weight.detach().clone()
        arguments = {'momentum': 0.9} if optimizer_class is DecoupledSGDW else {}
        # A learning rate of nearly zero leaves the decay alone.
        optimizer = optimizer_class(model.parameters(), lr=1e-12, weight_decay=0.1, **arguments)
        trainer(model, [FreezeOut(0.5, scale_lr=scale_lr)], optimizer, max_duration='4ba').fit()
        return model.module.conv1.weight / before

    torch.testing.assert_close(decayed(True), decayed(False), rtol=1e-6, atol=0)
    assert decayed(True).mean() < 0.95


def test_the_same_optimizer_in_two_trainers_keeps_its_base_rate():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        trace = StepTrace()
        trainer(model, [FreezeOut(1.0)], optimizer, callbacks=[trace]).fit()
        assert trace.steps[0][FIRST[0]] == 0.1


def test_parameters_are_stepped_once():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer(model, [FreezeOut(1.0)], optimizer, max_duration='1ba').fit()
    listed = [p for group in optimizer.param_groups for p in group['params']]
    assert len(listed) == len(set(listed)) == len(list(model.parameters()))


# --- schedulers


def test_a_rival_scheduler_is_named_and_has_no_effect(caplog):
    trace = StepTrace()
    with caplog.at_level(logging.WARNING, 'composer_freezeout'):
        trainer(classifier(), [FreezeOut(0.5)], callbacks=[trace], schedulers=CosineAnnealingScheduler()).fit()
    assert [record.getMessage() for record in caplog.records if 'CosineAnnealingScheduler' in record.getMessage()]
    assert len(caplog.records) == 1
    for batch, rates in enumerate(trace.steps):
        assert (rates[FIRST[2]] or 0.0) == pytest.approx(expected_lr(batch / 16, 2, 0.5, 'cubic', True), abs=1e-16)


@pytest.mark.parametrize('constant', [None, ConstantScheduler()])
def test_no_message_without_a_rival(constant, caplog):
    with caplog.at_level(logging.WARNING, 'composer_freezeout'):
        trainer(classifier(), [FreezeOut(0.5)], schedulers=constant).fit()
    assert not caplog.records


@pytest.mark.parametrize('when', ['batch', 'epoch'])
def test_schedulers_keep_addressing_the_right_groups(when):
    """A scheduler steps after us; what it computes for a group must be that group's own, also after others left."""

    class AfterScheduler(Callback):
        def __init__(self) -> None:
            self.rates: list[dict[str, float]] = []

        def epoch_end(self, state: State, logger: Logger) -> None:
            (scheduler,) = state.schedulers
            groups = state.optimizers[0].param_groups
            assert len(scheduler.base_lrs) == len(groups)
            scheduler.step()
            self.rates.append({group[UNIT]: group['lr'] / group['initial_lr'] for group in groups})

    model = classifier()
    optimizer = torch.optim.SGD(
        [
            {'params': list(model.module.head.parameters())},
            {'params': [p for n, p in model.named_parameters() if 'head' not in n]},
        ],
        lr=0.1,
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda _: 0.5, lambda _: 0.25])
    after = AfterScheduler()
    trainer(
        model, [FreezeOut(0.5)], optimizer, schedulers=scheduler, callbacks=[after],
        step_schedulers_every_batch=when == 'batch',
    ).fit()  # fmt: skip
    assert [len(rates) for rates in after.rates] == [3, 2, 1, 1]
    for rates in after.rates:
        for unit, rate in rates.items():
            assert rate == pytest.approx(0.5 if unit == 'module.head' else 0.25)


# --- duration


def test_missing_max_duration_is_a_clear_error():
    with pytest.raises(ValueError, match='max_duration'):
        trainer(classifier(), [FreezeOut()], max_duration=None).fit()


def test_dataloader_without_length_is_a_clear_error():
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            while True:
                yield torch.zeros(3, 8, 8), torch.tensor(0)

    loader = torch.utils.data.DataLoader(Endless(), batch_size=4)
    trace = StepTrace()
    trainer(classifier(), [FreezeOut(0.5)], train_dataloader=loader, max_duration='4ba', callbacks=[trace]).fit()
    assert len(trace.steps) == 4
    with pytest.raises(ValueError, match='max_duration'):
        trainer(classifier(), [FreezeOut()], train_dataloader=loader, max_duration='1ep').fit()


def test_longer_duration_in_a_second_fit_thaws():
    model, trace, freezeout = classifier(), StepTrace(), FreezeOut(0.5)
    run = trainer(model, [freezeout], callbacks=[trace], max_duration='2ep')
    run.fit()
    assert sum(row['frozen'] for row in freezeout.unit_table()) == 3
    trace.steps.clear()
    run.fit(duration='14ep')  # 8 of 64 batches are done: progress falls back to 1/8, where one unit is frozen
    for step, rates in enumerate(trace.steps):
        for i, name in enumerate(FIRST):
            expected = expected_lr((8 + step) / 64, i, 0.5, 'cubic', True)
            assert (rates[name] or 0.0) == pytest.approx(expected, rel=1e-12, abs=1e-16)
    assert [row['frozen_at_batch'] for row in freezeout.unit_table()] == [1, 19, 38, None]


def test_statistics_stand_still_in_a_second_fit_with_as_many_frozen_units():
    model, freezeout = classifier(), FreezeOut(0.3)
    run = trainer(model, [freezeout])
    run.fit()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    run.fit(duration='1ep')
    assert [row['frozen_at_batch'] for row in freezeout.unit_table()] == [1, 3, 8, None]
    assert len(before) == 9
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_train_subset_num_batches_is_the_length_of_the_epoch():
    trace = StepTrace()
    trainer(classifier(), [FreezeOut(0.5)], callbacks=[trace], max_duration='4ep', train_subset_num_batches=2).fit()
    assert len(trace.steps) == 8
    assert trace.steps[1][FIRST[1]] == pytest.approx(expected_lr(1 / 8, 1, 0.5, 'cubic', True), rel=1e-12)


# --- the object


@pytest.mark.parametrize(
    'freezeout',
    [
        FreezeOut(),
        FreezeOut(0.5, 'linear', False, layers=['a', r'b\.\d+']),
        FreezeOut(1.0, granularity='block', batchnorm='batch', t_warmup='5ep'),
        FreezeOut(t_warmup='0.05dur'),
    ],
)
def test_repr_evaluates_back(freezeout):
    assert repr(eval(repr(freezeout))) == repr(freezeout)


def test_defaults():
    assert repr(FreezeOut()).startswith("FreezeOut(t_0=0.8, how_scale='cubic', scale_lr=True, ")


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        ({'t_0': 1.4}, ValueError, r't_0 must be in \(0, 1\], got 1.4'),
        ({'how_scale': 'quartic'}, ValueError, 'how_scale must be one of'),
        ({'scale_lr': 'yes'}, TypeError, 'scale_lr must be True or False'),
        ({'layers': []}, ValueError, 'at least one'),
        ({'granularity': 'layer'}, ValueError, 'granularity must be one of'),
        ({'layers': ['a'], 'granularity': 'block'}, ValueError, 'layers already says'),
        ({'batchnorm': 'train'}, ValueError, 'batchnorm must be one of'),
        ({'t_warmup': '5 minutes'}, ValueError, 't_warmup must be a Composer time string'),
        ({'t_warmup': '5sec'}, ValueError, 't_warmup must be a Composer time string'),
        ({'t_warmup': '-1ep'}, ValueError, 't_warmup must be a Composer time string'),
        ({'t_warmup': 5}, ValueError, 't_warmup must be a Composer time string'),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        FreezeOut(**arguments)


def test_batch_mode_is_refused_for_instance_norm():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, track_running_stats=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, CLASSES),
    )  # fmt: skip
    with pytest.raises(ValueError, match="needs BatchNorm layers, but 'module.1' is InstanceNorm2d"):
        trainer(classifier(network), [FreezeOut(batchnorm='batch')]).fit()


def test_logs():
    logger = InMemoryLogger()
    trainer(classifier(), [FreezeOut(0.5)], loggers=[logger]).fit()
    series = {name: [value for _, value in logger.data[f'freezeout/{name}']] for name in (
        'progress', 'units_frozen', 'fraction_frozen', 'lr/module.conv1', 'lr/module.head',
    )}  # fmt: skip
    assert series['progress'] == [batch / 16 for batch in range(16)]
    assert series['units_frozen'] == [0] * 2 + [1] * 3 + [2] * 5 + [3] * 6
    sizes = [3 * 4 * 9 + 4 + 8, 4 * 4 * 9 + 4 + 8, 4 * 4 * 9 + 4 + 8, 4 * 4 + 4]
    frozen = [sum(sizes[:k]) / sum(sizes) for k in range(4)]
    assert series['fraction_frozen'] == [frozen[int(k)] for k in series['units_frozen']]
    assert series['lr/module.conv1'][0] == pytest.approx(0.8)
    assert series['lr/module.conv1'][2:] == [0.0] * 14
    assert series['lr/module.head'][8] == pytest.approx(0.05)


def test_one_object_in_two_trainers():
    freezeout, tables, weights = FreezeOut(0.5), [], []
    for _ in range(2):
        model = classifier()
        trainer(model, [freezeout]).fit()
        tables.append(freezeout.unit_table())
        weights.append(model.module.head.weight)
    assert tables[0] == tables[1]
    assert torch.equal(*weights)


def test_match_changes_nothing():
    freezeout = FreezeOut()
    before = dict(vars(freezeout))
    for event in Event:
        freezeout.match(event, None)
    assert vars(freezeout) == before


def test_tied_parameters_are_reported(caplog):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(3 * 64, 8)
            self.middle = nn.Linear(8, 8)
            self.head = nn.Linear(8, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.middle(self.stem(x.flatten(1)))
            return self.head(self.middle(x))

    class Early(Tied):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.middle(self.stem(x.flatten(1)) * self.head.weight.mean()))

    with caplog.at_level(logging.WARNING, 'composer_freezeout'):
        trainer(classifier(Tied()), [FreezeOut(0.5)]).fit()
    assert not caplog.records  # stem, then the twice-used middle, then the head: every cut is clean
    with caplog.at_level(logging.WARNING, 'composer_freezeout'):
        trainer(classifier(Early()), [FreezeOut(0.5)]).fit()
    assert [r for r in caplog.records if 'still runs through frozen units' in r.getMessage()]


def test_layers_and_blocks_in_a_trainer():
    freezeout = FreezeOut(0.5, layers=[r'module\.(conv|bn)[12]', r'module\.(conv|bn)3', r'module\.head'])
    trainer(classifier(), [freezeout]).fit()
    assert [row['frozen_at_batch'] for row in freezeout.unit_table()] == [2, math.ceil(0.75**3 * 16), None]
    blocks = FreezeOut(0.5, granularity='block')
    trainer(classifier(ResidualNet()), [blocks]).fit()
    assert [row['name'] for row in blocks.unit_table()][1:4] == [f'module.blocks.{i}' for i in range(3)]


def test_the_dataloader_may_come_with_fit():
    model = classifier()
    freezeout = FreezeOut(0.5)
    run = trainer(model, [freezeout], train_dataloader=None, max_duration=None)
    assert isinstance(run, Trainer)
    run.fit(train_dataloader=images(), duration='4ep')
    assert [row['frozen_at_batch'] for row in freezeout.unit_table()] == [2, 5, 10, None]


def test_chain_is_the_network_the_tests_think_it_is():
    assert [name for name, _ in chain().named_children()][:3] == ['conv1', 'bn1', 'relu1']


def test_a_batch_that_is_only_ready_as_a_microbatch():
    """Pixels are scaled per microbatch: the batch at BATCH_START is of a type that the model can't take."""
    loader = images()
    loader.dataset.tensors = (loader.dataset.tensors[0].mul(10).to(torch.uint8), loader.dataset.tensors[1])
    spec = DataSpec(loader, microbatch_transforms=lambda batch: (batch[0] / 10, batch[1]))
    model, trace, freezeout = classifier(), StepTrace(), FreezeOut(0.5)
    trainer(model, [freezeout], callbacks=[trace], train_dataloader=spec, device_train_microbatch_size=2).fit()
    assert [row['frozen_at_batch'] for row in freezeout.unit_table()] == [2, 5, 10, None]
    for batch, rates in enumerate(trace.steps[1:], start=1):
        expected = expected_lr(batch / 16, 0, 0.5, 'cubic', True)
        assert (rates[FIRST[0]] or 0.0) == pytest.approx(expected, rel=1e-12, abs=1e-16)


@pytest.mark.parametrize(
    ('freezeout', 'message'),
    [
        (FreezeOut(layers=['nothing', 'module']), "'nothing' matches no module"),
        (FreezeOut(t_warmup='3ep'), 'must end before the first unit freezes'),
        (FreezeOut(t_warmup='8sp'), 'cannot be compared'),
    ],
)
def test_what_can_be_told_early_is_told_by_the_trainer(freezeout, message):
    with pytest.raises(ValueError, match=message):
        trainer(classifier(), [freezeout])


def test_errors_of_the_model_itself_are_raised():
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError('broken by design')

    with pytest.raises(RuntimeError, match='broken by design'):
        trainer(classifier(Broken()), [FreezeOut()]).fit()
