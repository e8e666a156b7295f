"""FreezeOut together with Composer's own algorithms, callbacks and features.

Every run has a `Witness`, which holds FreezeOut to its promises whoever else is in it; each test adds what its
neighbour has promised. `docs/compatibility.md` is written from the marks here.
"""

import inspect
import itertools
import logging
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composer import Callback, Evaluator, Trainer, algorithms
from composer.callbacks import EarlyStopper, LRMonitor, MemoryMonitor, OptimizerMonitor, SpeedMonitor
from composer.core import Algorithm, State
from composer.loggers import InMemoryLogger, Logger
from composer.models import HuggingFaceModel
from composer.optim import CosineAnnealingScheduler, DecoupledAdamW
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.datasets import VisionDataset
from torchvision.models.resnet import Bottleneck, ResNet

from composer_freezeout import FreezeOut

from . import test_loop, test_observation, test_optimizers, test_wild
from .compatibility import expected_rows, read_rows
from .networks import chain
from .training import CLASSES, classifier, images, trainer

TABLE = Path(__file__).parents[1] / 'docs' / 'compatibility.md'
BATCHES = 16
compatibility = pytest.mark.compatibility
BOTH_ORDERS = pytest.mark.parametrize('freezeout_first', [True, False], ids=['before', 'after'])


class Witness(Callback):
    """Checks at every batch that the units own everything once, learn at their rates, and stand still when frozen."""

    def __init__(self, freezeout: FreezeOut, stands_still_until: float = math.inf) -> None:
        self.freezeout = freezeout
        self.stands_still_until = stands_still_until  # the batch at which another algorithm replaces the weights
        self.frozen: dict[str, torch.Tensor] = {}
        self.frozen_counts: list[int] = []
        self.trainable: list[str] = []
        self.steps = 0

    def after_load(self, state: State, logger: Logger) -> None:
        optimizer = state.optimizers[0]
        # The one that changes the weights is the innermost.
        optimizer = getattr(optimizer, 'base_optimizer', optimizer)
        optimizer.register_step_post_hook(lambda optimizer, *_: self.check_step(state, optimizer))

    def check_step(self, state: State, optimizer: Optimizer) -> None:
        self.steps += 1
        rates = {id(p): float(group['lr']) for group in optimizer.param_groups for p in group['params']}
        parameters = dict(state.model.named_parameters())
        t = int(state.timestamp.batch) / BATCHES
        for unit, row in zip(self.freezeout._freezer.partition.units, self.freezeout.unit_table(), strict=True):
            x = min(1.0, t / row['t_i'])
            expected = 0.1 / row['t_i'] * 0.5 * (1 + math.cos(math.pi * x))
            for name in unit.parameters:
                # What has left the optimizer has no rate.
                assert rates.get(id(parameters[name]), 0.0) == pytest.approx(expected, rel=1e-9, abs=1e-12), name
                assert row['frozen'] == (t >= row['t_i'])

    def batch_start(self, state: State, logger: Logger) -> None:  # algorithms come before callbacks
        if self.freezeout._freezer is None:  # the first batch shows the units
            self.frozen_counts.append(0)
            return
        units, table = self.freezeout._freezer.partition.units, self.freezeout.unit_table()
        parameters = dict(state.model.named_parameters())
        self.trainable = self.trainable or sorted(name for name, p in parameters.items() if p.requires_grad)
        assert sorted(name for unit in units for name in unit.parameters) == self.trainable
        listed = [id(p) for group in state.optimizers[0].param_groups for p in group['params']]
        assert len(listed) == len(set(listed))
        self.frozen_counts.append(sum(row['frozen'] for row in table))
        for unit, row in zip(units, table, strict=True):
            assert all(parameters[name].requires_grad != row['frozen'] for name in unit.parameters)
            assert row['frozen'] or all(id(parameters[name]) in listed for name in unit.parameters)
        self.check_frozen(state)

    def batch_end(self, state: State, logger: Logger) -> None:
        for name, parameter in state.model.named_parameters():
            assert parameter.requires_grad or parameter.grad is None, name

    def fit_end(self, state: State, logger: Logger) -> None:
        self.check_frozen(state)

    def check_frozen(self, state: State) -> None:
        if state.timestamp.batch.value >= self.stands_still_until:
            return
        tensors = state.model.state_dict()
        for unit in self.freezeout._freezer.partition.units[: self.freezeout._freezer.units_frozen]:
            statistics = [n for n in tensors if n.rpartition('.')[0] in unit.norms and n not in unit.parameters]
            for name in (*unit.parameters, *statistics):
                before = self.frozen.setdefault(name, tensors[name].clone())
                assert torch.equal(tensors[name], before), f'{name} moves although it is frozen'

    def done(self, steps: int | None = BATCHES) -> None:
        """The run was as long as it should be, and more and more froze."""
        assert steps is None or self.steps == steps
        assert len(self.frozen_counts) == BATCHES
        assert self.frozen_counts == sorted(self.frozen_counts)
        heads = self.freezeout._freezer.partition.heads
        assert self.frozen_counts[0] == 0 < self.frozen_counts[-1] == len(self.freezeout.unit_table()) - heads


def train(
    neighbours: Sequence[Any] = (),
    *,
    model: Any = None,
    freezeout_first: bool = True,
    callbacks: Sequence[Callback] = (),
    stands_still_until: float = math.inf,
    optimizer: Optimizer | None = None,
    steps: int | None = BATCHES,
    **arguments: Any,
) -> tuple[Trainer, FreezeOut]:
    """A run of 16 batches with FreezeOut, under the eyes of a `Witness`."""
    freezeout = FreezeOut(0.5)
    witness = Witness(freezeout, stands_still_until)
    in_order = [freezeout, *neighbours] if freezeout_first else [*neighbours, freezeout]
    run = trainer(model or classifier(), in_order, optimizer, callbacks=[witness, *callbacks], **arguments)
    run.fit()
    witness.done(steps)
    return run, freezeout


def train_alone(neighbours: Sequence[Any], model: Any = None, **arguments: Any) -> Trainer:
    """The control: the neighbours without FreezeOut."""
    run = trainer(model or classifier(), neighbours, **arguments)
    run.fit()
    return run


def weights(run: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.state.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


# --- module surgery: listed before or after FreezeOut, with the same result


class SmallNet(nn.Sequential):
    """Something for every kind of surgery: strides, pooling, wide layers, dropout."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2, 2),
            nn.Conv2d(16, 16, 3, stride=2, padding=1),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.LayerNorm(16),
            nn.Linear(16, 16),
            nn.Dropout(0.5),
            nn.Linear(16, CLASSES),
        )


def bottlenecks() -> ResNet:
    return ResNet(Bottleneck, [1, 2, 1, 1], num_classes=CLASSES, width_per_group=8)


def surgery(feature: str, *arguments: Any, note: str = '', **keywords: Any) -> Any:
    return pytest.param(*arguments, id=feature, marks=[compatibility(feature, note=note)], **keywords)


def train_with_surgery(make: Callable[[], Algorithm], network: Callable[[], nn.Module], freezeout_first: bool) -> Any:
    torch.manual_seed(5)
    np.random.seed(5)
    return train([make()], model=classifier(network()), freezeout_first=freezeout_first)


def check_surgery(
    make: Callable[[], Algorithm], network: Callable[[], nn.Module], replaced: Callable[[nn.Module], int]
) -> FreezeOut:
    """The modules are replaced as without FreezeOut, all that is new is trained, and the order does not matter."""
    before, freezeout = train_with_surgery(make, network, freezeout_first=True)
    after, _ = train_with_surgery(make, network, freezeout_first=False)
    assert same(weights(before), weights(after))

    torch.manual_seed(5)
    np.random.seed(5)
    control = trainer(classifier(network()), [make()])
    start = weights(control)
    control.fit()
    assert replaced(before.state.model) == replaced(control.state.model) > 0
    assert list(weights(before)) == list(weights(control))
    for name, parameter in before.state.model.named_parameters():
        assert not torch.equal(parameter, start[name]), f'{name} was never trained'
    return freezeout


def count(kind: type | str) -> Callable[[nn.Module], int]:
    return lambda model: sum(
        type(m).__name__ == kind if isinstance(kind, str) else isinstance(m, kind) for m in model.modules()
    )


@compatibility('BlurPool')
def test_blurpool():
    replaced = lambda model: count('BlurConv2d')(model) + count('BlurMaxPool2d')(model)  # noqa: E731
    check_surgery(lambda: algorithms.BlurPool(min_channels=1), SmallNet, replaced)


@compatibility('ChannelsLast')
def test_channels_last():
    check_surgery(
        algorithms.ChannelsLast,
        SmallNet,
        lambda model: sum(
            p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.ndim == 4
        ),
    )


@compatibility('SqueezeExcite')
def test_squeeze_excite():
    make = lambda: algorithms.SqueezeExcite(latent_channels=4, min_channels=8)  # noqa: E731
    freezeout = check_surgery(make, SmallNet, count('SqueezeExcite2d'))
    assert any('.se.' in row['name'] for row in freezeout.unit_table())


@compatibility('Factorize')
def test_factorize():
    make = lambda: algorithms.Factorize(  # noqa: E731
        min_channels=8, latent_channels=4, min_features=8, latent_features=4
    )
    replaced = lambda model: count('FactorizedConv2d')(model) * count('FactorizedLinear')(model)  # noqa: E731
    check_surgery(make, SmallNet, replaced)


@compatibility('WeightStandardization')
def test_weight_standardization():
    freezeout = check_surgery(algorithms.WeightStandardization, SmallNet, count('WeightStandardizer'))
    # The standardised weight is one unit with the bias of its convolution.
    assert [row['name'] for row in freezeout.unit_table()][:2] == ['module.0', 'module.4']


@compatibility('GhostBatchNorm')
def test_ghost_batchnorm():
    check_surgery(lambda: algorithms.GhostBatchNorm(2), SmallNet, count('GhostBatchNorm2d'))


@pytest.mark.filterwarnings('ignore:GyroDropout is not implemented:UserWarning')
@compatibility('GyroDropout')
def test_gyro_dropout():
    make = lambda: algorithms.GyroDropout(p=0.25, sigma=4, tau=4)  # noqa: E731
    check_surgery(make, SmallNet, count('GyroDropoutLayer'))


@pytest.mark.parametrize('method', ['block', 'sample'])
@compatibility(
    'StochasticDepth',
    note='Frozen blocks go on being dropped at random. Those that the first batch drops train to the end.',
)
def test_stochastic_depth(method):
    def make() -> Algorithm:
        return algorithms.StochasticDepth('ResNetBottleneck', method, drop_rate=0.3, drop_distribution='uniform')

    check_surgery(make, bottlenecks, lambda model: sum(hasattr(m, 'drop_rate') for m in model.modules()))


@BOTH_ORDERS
@compatibility('NoOpModel', note='Its one parameter is one unit, so nothing freezes.')
def test_no_op_model(freezeout_first):
    freezeout = FreezeOut(0.5)
    both = [freezeout, algorithms.NoOpModel()]
    data = DataLoader(TensorDataset(torch.zeros(BATCHES, 3, 8, 8), torch.arange(BATCHES) % 2), batch_size=4)
    run = trainer(classifier(), both if freezeout_first else both[::-1], train_dataloader=data)
    weight = run.state.model.weights.item()
    run.fit()
    assert [(row['name'], row['frozen']) for row in freezeout.unit_table()] == [('weights', False)]
    assert run.state.model.weights.item() != weight


# --- what changes the batch: the network sees the same as without FreezeOut


class Inputs(Callback):
    """What the network is given in training."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def before_forward(self, state: State, logger: Logger) -> None:
        self.seen.append(state.batch[0].clone())


class Pictures(VisionDataset):
    """PIL images, for what transforms single samples."""

    def __init__(self) -> None:
        super().__init__('.', transform=None)
        pixels = np.random.default_rng(0).integers(0, 256, (BATCHES, 8, 8, 3), dtype=np.uint8)
        from PIL import Image

        self.pictures = [Image.fromarray(image) for image in pixels]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        picture = self.pictures[index]
        if self.transform is not None:
            picture = self.transform(picture)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255, index % CLASSES


def inputs_of(
    run: Callable[..., Any], neighbours: Sequence[Any], make_data: Callable[[], Any], **arguments: Any
) -> Any:
    np.random.seed(7)
    seen = Inputs()
    run(neighbours, callbacks=[seen], train_dataloader=make_data(), **arguments)
    return seen.seen


def tensors() -> DataLoader:
    return images()


def pictures() -> DataLoader:
    dataset: Dataset[Any] = Pictures()
    return DataLoader(dataset, batch_size=4)


CHANGE_THE_BATCH = [
    surgery('MixUp', lambda: algorithms.MixUp(alpha=0.4), tensors),
    surgery('MixUp', lambda: algorithms.MixUp(alpha=0.4, interpolate_loss=True), tensors),
    surgery('CutMix', lambda: algorithms.CutMix(alpha=1.0), tensors),
    surgery('CutOut', lambda: algorithms.CutOut(length=0.5), tensors),
    surgery('ColOut', lambda: algorithms.ColOut(p_row=0.25, p_col=0.25), tensors),
    surgery('ColOut', lambda: algorithms.ColOut(p_row=0.25, p_col=0.25, batch=False), pictures),
    surgery('AugMix', lambda: algorithms.AugMix(severity=3), pictures),
    surgery('RandAugment', lambda: algorithms.RandAugment(severity=9), pictures),
    surgery(
        'ProgressiveResizing', lambda: algorithms.ProgressiveResizing(initial_scale=0.5, size_increment=2), tensors
    ),
]


@BOTH_ORDERS
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
@pytest.mark.parametrize(('make', 'data'), CHANGE_THE_BATCH)
def test_the_network_sees_the_same_inputs_as_without_freezeout(make, data, freezeout_first):
    ours = inputs_of(train, [make()], data, freezeout_first=freezeout_first)
    control = inputs_of(train_alone, [make()], data)
    plain = inputs_of(train_alone, [], data)
    assert len(ours) == len(control) == len(plain) == BATCHES
    assert all(torch.equal(a, b) for a, b in zip(ours, control, strict=True))
    changed = [a.shape != b.shape or not torch.equal(a, b) for a, b in zip(ours, plain, strict=True)]
    assert sum(changed) >= BATCHES // 2


@BOTH_ORDERS
@compatibility('LabelSmoothing')
def test_label_smoothing(freezeout_first):
    class Losses(Callback):
        def __init__(self) -> None:
            self.batches = 0

        def before_backward(self, state: State, logger: Logger) -> None:
            self.batches += 1
            expected = nn.functional.cross_entropy(state.outputs, state.batch[1], label_smoothing=0.2)
            torch.testing.assert_close(state.loss, expected)
            assert not torch.allclose(state.loss, nn.functional.cross_entropy(state.outputs, state.batch[1]))

    losses = Losses()
    train([algorithms.LabelSmoothing(0.2)], freezeout_first=freezeout_first, callbacks=[losses])
    assert losses.batches == BATCHES


@BOTH_ORDERS
@pytest.mark.filterwarnings('ignore:Cannot split tensor of length 2:UserWarning')
@compatibility('SelectiveBackprop')
def test_selective_backprop(freezeout_first):
    """It runs the model in training mode as soon as a batch is there, also right after an evaluation."""
    sizes = Inputs()
    train(
        [algorithms.SelectiveBackprop(start=0.0, end=1.0, keep=0.5, interrupt=0)],
        freezeout_first=freezeout_first,
        callbacks=[sizes],
        eval_dataloader=images(),
        eval_interval='1ba',
    )
    assert [len(batch) for batch in sizes.seen] == [2] * BATCHES


# --- averages of the weights


@BOTH_ORDERS
@compatibility('EMA')
def test_ema(freezeout_first):
    class Average(Callback):
        """The same average by hand, and how far it is from what has frozen."""

        def fit_start(self, state: State, logger: Logger) -> None:
            self.of = {name: p.detach().clone() for name, p in state.model.named_parameters()}
            self.distance: list[float] = []

        def batch_end(self, state: State, logger: Logger) -> None:
            for name, p in state.model.named_parameters():
                # The average begins with the weights after the first step.
                self.of[name] = 0.5 * self.of[name] + 0.5 * p.detach() if self.distance else p.detach().clone()
            name = 'module.conv1.weight'
            self.distance.append(float((self.of[name] - state.model.state_dict()[name]).norm()))

    ema, average = algorithms.EMA(half_life='1ba'), Average()
    run, freezeout = train(
        [ema],
        freezeout_first=freezeout_first,
        callbacks=[average],
        eval_dataloader=images(),
        eval_interval='3ba',
    )
    averaged = ema.ema_model.named_parameters_dict
    assert list(averaged) == list(average.of)
    for name, tensor in averaged.items():
        torch.testing.assert_close(tensor, average.of[name], rtol=1e-5, atol=1e-7)
    frozen_at = freezeout.unit_table()[0]['frozen_at_batch']
    halvings = BATCHES - frozen_at
    assert average.distance[-1] <= average.distance[frozen_at - 1] * 0.5**halvings * 1.01 + 1e-6
    torch.testing.assert_close(
        averaged['module.conv1.weight'], run.state.model.module.conv1.weight.detach(), rtol=1e-3, atol=1e-4
    )
    assert not torch.allclose(averaged['module.head.weight'], run.state.model.module.head.weight, atol=1e-4)


def all_weights(run: Trainer) -> dict[str, torch.Tensor]:
    """Those that are trained, and those that are averaged."""
    averages = {}
    for algorithm in run.state.algorithms:
        if isinstance(algorithm, algorithms.EMA):
            # After a checkpoint the model is left with the averaged ones.
            algorithm._ensure_training_weights_active(run.state)
            averages = {f'average of {name}': t for name, t in algorithm.ema_model.named_parameters_dict.items()}
    return {**weights(run), **averages}


@pytest.mark.filterwarnings('ignore:SWA has known issues:UserWarning')
@pytest.mark.parametrize('order', ['control', 'before', 'after'])
@pytest.mark.parametrize(
    'make',
    [
        surgery('EMA', lambda: algorithms.EMA(half_life='2ba')),
        surgery('SWA', lambda: algorithms.SWA('1ep', '3ep')),
    ],
)
def test_averages_resume_to_the_bit(make, order, tmp_path):
    def both() -> list[Any]:
        return {'control': [make()], 'before': [FreezeOut(0.5), make()], 'after': [make(), FreezeOut(0.5)]}[order]

    whole = trainer(
        classifier(), both(), save_folder=str(tmp_path), save_interval='3ba', save_num_checkpoints_to_keep=-1
    )
    whole.fit()
    for checkpoint in ('ep0-ba3', 'ep1-ba6', 'ep2-ba9', 'ep3-ba15'):
        resumed = trainer(classifier(), both(), load_path=str(tmp_path / f'{checkpoint}-rank0.pt'))
        resumed.fit()
        assert same(all_weights(whole), all_weights(resumed)), checkpoint


@BOTH_ORDERS
@pytest.mark.filterwarnings('ignore:SWA has known issues:UserWarning')
@compatibility(
    'SWA',
    note='At `swa_end` it replaces the weights of frozen layers too; their BatchNorm statistics stay. Start averaging '
    'after they have frozen, or use `batchnorm="update"`.',
)
def test_swa(freezeout_first):
    class EpochEnds(Callback):
        def __init__(self) -> None:
            self.weights: list[dict[str, torch.Tensor]] = []

        def fit_start(self, state: State, logger: Logger) -> None:
            self.record(state)

        def before_dataloader(self, state: State, logger: Logger) -> None:
            # Before the averaged weights come in.
            self.latest = {name: p.detach().clone() for name, p in state.model.named_parameters()}

        def batch_end(self, state: State, logger: Logger) -> None:
            self.latest = {name: p.detach().clone() for name, p in state.model.named_parameters()}

        def record(self, state: State) -> None:
            self.weights.append({name: p.detach().clone() for name, p in state.model.named_parameters()})

        def epoch_end(self, state: State, logger: Logger) -> None:
            self.weights.append(self.latest)
            if state.timestamp.epoch == 3:
                self.replaced = {name: p.detach().clone() for name, p in state.model.named_parameters()}

    ends = EpochEnds()
    train([algorithms.SWA('1ep', '3ep')], freezeout_first=freezeout_first, callbacks=[ends], stands_still_until=12)
    for name, tensor in ends.replaced.items():
        mean = torch.stack([ends.weights[epoch][name] for epoch in (1, 2, 3)]).mean(0)
        torch.testing.assert_close(tensor, mean, rtol=1e-5, atol=1e-6)
    # Frozen before the first of them, so the average is the weight itself.
    assert torch.equal(ends.replaced['module.conv1.weight'], ends.weights[1]['module.conv1.weight'])
    assert not torch.equal(ends.replaced['module.head.weight'], ends.weights[3]['module.head.weight'])


@BOTH_ORDERS
@pytest.mark.filterwarnings('ignore:SWA has known issues:UserWarning')
@compatibility('SWA(schedule_swa_lr=True)')
def test_swa_with_a_learning_rate_of_its_own_is_refused(freezeout_first, refusal):
    both = [FreezeOut(), algorithms.SWA('1ep', '3ep', schedule_swa_lr=True, swa_lr=0.1)]
    with refusal(r'both set the learning rate.*use SWA\(schedule_swa_lr=False\)'):
        trainer(classifier(), both if freezeout_first else both[::-1])


@BOTH_ORDERS
@compatibility('LayerFreezing')
def test_layer_freezing_is_refused(freezeout_first, refusal):
    both = [FreezeOut(), algorithms.LayerFreezing()]
    with refusal('both freeze layers; use one of them'):
        trainer(classifier(), both if freezeout_first else both[::-1])


# --- the optimizer and the gradients


def rate(batch: int, unit: int) -> float:
    t_i = 1.0 if unit == 3 else (0.5 + 0.5 * unit / 3) ** 3
    return 0.1 / t_i * 0.5 * (1 + math.cos(math.pi * min(1.0, batch / BATCHES / t_i)))


@BOTH_ORDERS
@pytest.mark.filterwarnings('ignore:SAM has known issues:UserWarning')
@compatibility('SAM')
def test_sam_equals_a_hand_written_loop(freezeout_first):
    run, _ = train([algorithms.SAM(rho=0.05)], freezeout_first=freezeout_first)

    net = classifier().module.train()
    units = [[net.conv1, net.bn1], [net.conv2, net.bn2], [net.conv3, net.bn3], [net.head]]
    optimizers = [torch.optim.SGD([p for m in unit for p in m.parameters()], lr=1.0, momentum=0.9) for unit in units]
    for batch, (inputs, targets) in enumerate(itertools.chain.from_iterable(images() for _ in range(4))):
        for i, (unit, optimizer) in enumerate(zip(units, optimizers, strict=True)):
            optimizer.param_groups[0]['lr'] = rate(batch, i)
            if rate(batch, i) < 1e-12:
                for module in unit:
                    module.requires_grad_(False).eval()
        trained = [p for p in net.parameters() if p.requires_grad]
        loss = nn.functional.cross_entropy(net(inputs), targets)
        gradients = torch.autograd.grad(loss, trained)
        norm = torch.stack([g.norm() for g in gradients]).norm()
        with torch.no_grad():
            for p, g in zip(trained, gradients, strict=True):
                p.add_(g * 0.05 / (norm + 1e-12))
        for optimizer in optimizers:
            optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), targets).backward()
        with torch.no_grad():
            for p, g in zip(trained, gradients, strict=True):
                p.sub_(g * 0.05 / (norm + 1e-12))
        for optimizer in optimizers:
            optimizer.step()
    for (name, a), b in zip(run.state.model.module.state_dict().items(), net.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.filterwarnings('ignore:SAM has known issues:UserWarning')
@compatibility('SAM')
def test_sam_does_not_take_back_an_old_excursion_of_a_frozen_layer():
    """When a gradient overflows, SAM subtracts the last excursion, which for a frozen layer was taken back long ago."""

    class Overflow(Callback):
        checked = 0

        def batch_end(self, state: State, logger: Logger) -> None:
            frozen = {name: p.clone() for name, p in state.model.named_parameters() if not p.requires_grad}
            state.optimizers[0].sub_e_w()
            parameters = dict(state.model.named_parameters())
            assert all(torch.equal(tensor, parameters[name]) for name, tensor in frozen.items())
            self.checked += len(frozen)

    overflow = Overflow()
    train([algorithms.SAM(rho=0.05)], callbacks=[overflow])
    assert overflow.checked > 0


@BOTH_ORDERS
@pytest.mark.parametrize('clipping_type', ['norm', 'value', 'adaptive'])
@compatibility('GradientClipping')
def test_gradient_clipping(clipping_type, freezeout_first):
    class Gradients(Callback):
        """Compares the clipped gradients with those that torch clips, of the trainable parameters alone."""

        def __init__(self) -> None:
            self.clipped = 0

        def after_backward(self, state: State, logger: Logger) -> None:
            self.gradients = {n: p.grad.clone() for n, p in state.model.named_parameters() if p.grad is not None}

        def after_train_batch(self, state: State, logger: Logger) -> None:
            parameters = {name: p for name, p in state.model.named_parameters() if p.requires_grad}
            assert set(parameters) == set(self.gradients)
            references = []
            for name, p in parameters.items():
                reference = nn.Parameter(p.detach().clone())
                reference.grad = self.gradients[name].clone()
                references.append(reference)
            if clipping_type == 'norm':
                self.clipped += bool(nn.utils.clip_grad_norm_(references, threshold) > threshold)
            elif clipping_type == 'value':
                self.clipped += any(bool((r.grad.abs() > threshold).any()) for r in references)
                nn.utils.clip_grad_value_(references, threshold)
            else:
                algorithms.gradient_clipping.gradient_clipping._apply_agc(references, threshold)
                self.clipped += 1
            for reference, (name, p) in zip(references, parameters.items(), strict=True):
                torch.testing.assert_close(p.grad, reference.grad, msg=name)

    threshold, gradients = 0.02, Gradients()
    clipping = algorithms.GradientClipping(clipping_type, threshold)
    train([clipping], freezeout_first=freezeout_first, callbacks=[gradients])
    assert gradients.clipped > BATCHES // 2


def without_batchnorm() -> nn.Sequential:
    layers = [layer for channels in (3, 8, 8) for layer in (nn.Conv2d(channels, 8, 3), nn.GroupNorm(2, 8), nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))


@compatibility('microbatching')
def test_microbatches_give_the_same_result():
    ends = []
    for size in (None, 1, 2):
        torch.manual_seed(0)
        run, _ = train(model=classifier(without_batchnorm()), device_train_microbatch_size=size)
        ends.append(weights(run))
    for name, tensor in ends[0].items():
        # Sums in another order.
        torch.testing.assert_close(ends[1][name], tensor, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ends[2][name], tensor, rtol=1e-4, atol=1e-5)


@compatibility('microbatching')
def test_the_order_is_observed_on_the_microbatches_of_the_training():
    """A whole batch may not fit into memory, and there is no pass of the model that training alone would not make."""
    sizes = []

    class Size(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes.append(len(x))
            return x

    train(model=classifier(nn.Sequential(Size(), *without_batchnorm())), device_train_microbatch_size=2)
    assert sizes == [2] * (2 * BATCHES)


@compatibility('closures')
def test_an_optimizer_that_evaluates_its_closure_twice():
    class Twice(torch.optim.SGD):
        closures = 0

        def step(self, closure=None):
            Twice.closures += closure is not None
            trained = [p for group in self.param_groups for p in group['params'] if p.requires_grad]
            closure()
            first = [p.grad.clone() for p in trained]
            loss = closure()
            # The same weights, and nothing left over from the first time.
            assert all(torch.equal(p.grad, gradient) for p, gradient in zip(trained, first, strict=True))
            super().step()
            return loss

    def network() -> Any:
        torch.manual_seed(0)
        return classifier(without_batchnorm())

    ends = []
    for kind, steps in ((torch.optim.SGD, BATCHES), (Twice, 2 * BATCHES)):  # torch counts super().step(), too
        model = network()
        run, _ = train(model=model, optimizer=kind(model.parameters(), lr=0.1, momentum=0.9), steps=steps)
        ends.append(weights(run))
    assert Twice.closures == BATCHES
    assert same(*ends)


@compatibility('two optimizers', note='Composer itself takes one only.')
def test_two_optimizers_are_refused(refusal):
    model = classifier()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model.module.conv1, model.module.head)]
    with refusal('Only one optimizer is supported; found 2 optimizers', NotImplementedError):
        trainer(model, [FreezeOut()], optimizers=optimizers)


# --- evaluators, monitors


@compatibility('several evaluators')
def test_evaluators_see_the_model_and_leave_it_alone():
    evaluators = [
        Evaluator(label=label, dataloader=images(samples), metric_names=['MulticlassAccuracy'])
        for label, samples in (('small', 8), ('large', 16))
    ]
    logger = InMemoryLogger()
    run, _ = train(eval_dataloader=evaluators, eval_interval='1ba', loggers=[logger])
    plain, _ = train()
    assert same(weights(run), weights(plain))
    for label, samples in (('small', 8), ('large', 16)):
        series = [float(value) for _, value in logger.data[f'metrics/{label}/MulticlassAccuracy']]
        assert len(series) == BATCHES
        run.state.model.eval()
        right = [(run.state.model.module(x).argmax(1) == y).float() for x, y in images(samples)]
        assert series[-1] == pytest.approx(float(torch.cat(right).mean()))


@pytest.mark.parametrize('scheduler', [None, CosineAnnealingScheduler()], ids=['no-scheduler', 'scheduler'])
@compatibility('LRMonitor', note='Next to a scheduler, which has no effect, it shows that scheduler’s rates.')
def test_lr_monitor_shows_the_rates_that_were_used(scheduler):
    logger, used = InMemoryLogger(), []

    class Used(Callback):
        def after_load(self, state: State, logger: Logger) -> None:
            state.optimizers[0].register_step_post_hook(
                lambda optimizer, *_: used.append([float(group['lr']) for group in optimizer.param_groups])
            )

    train(callbacks=[LRMonitor(), Used()], loggers=[logger], schedulers=scheduler)
    shown = [[value for _, value in logger.data[f'lr-SGD/group{group}']] for group in range(4)]
    # Deepest unit first; a unit that has left the optimizer has no rate any more.
    expected = [[rates[group] for rates in used if group < len(rates)] for group in range(4)]
    assert [len(series) for series in expected] == [16, 12, 8, 4]
    if scheduler is None:
        assert shown == expected
    else:
        assert [len(series) for series in shown] == [16, 12, 8, 4]
        assert shown != expected


@compatibility('OptimizerMonitor')
def test_optimizer_monitor_logs_what_trains_and_nothing_else():
    class Norms(Callback):
        def __init__(self) -> None:
            self.of: list[dict[str, float]] = []

        def batch_end(self, state: State, logger: Logger) -> None:
            self.of.append({n: float(p.grad.norm()) for n, p in state.model.named_parameters() if p.grad is not None})

    logger, norms, model = InMemoryLogger(), Norms(), classifier()
    train(
        model=model,
        optimizer=DecoupledAdamW(model.parameters(), lr=0.1),
        callbacks=[OptimizerMonitor(batch_log_interval=1), norms],
        loggers=[logger],
    )
    logged = lambda name: [float(value) for _, value in logger.data[name]]  # noqa: E731
    # Frozen at batch 2, 5 and 10.
    assert [len(logged(f'l2_norm/grad/module.{name}.weight')) for name in ('conv1', 'conv2', 'conv3', 'head')] == [
        2, 5, 10, 16,
    ]  # fmt: skip
    assert len(logged('l2_norm/moment/module.conv1.weight')) == 2
    assert logged('l2_norm/grad/global') == pytest.approx(
        [math.sqrt(sum(norm**2 for norm in of.values())) for of in norms.of], rel=1e-4
    )


@pytest.mark.filterwarnings('ignore:The memory monitor only works on CUDA devices:UserWarning')
@compatibility('MemoryMonitor')
def test_memory_monitor_changes_nothing():
    run, _ = train(callbacks=[MemoryMonitor()])
    plain, _ = train()
    assert same(weights(run), weights(plain))


@compatibility('SpeedMonitor', note='The FLOPs that a model states do not get less as layers freeze.')
def test_speed_monitor():
    logger, model = InMemoryLogger(), classifier()
    model.flops_per_batch = lambda batch: 1000.0
    run, _ = train(model=model, callbacks=[SpeedMonitor(window_size=4)], loggers=[logger])
    plain, _ = train()
    assert same(weights(run), weights(plain))
    rates = [value for _, value in logger.data['throughput/batches_per_sec']]
    flops = [value for _, value in logger.data['throughput/flops_per_sec']]
    assert len(rates) == len(flops) == BATCHES - 4  # once the window is full
    assert flops == pytest.approx([1000.0 * per_second for per_second in rates])


@compatibility('EarlyStopper')
def test_early_stopper_leaves_the_rest_unfrozen():
    stopper = EarlyStopper('MulticlassAccuracy', 'eval', comp=lambda new, best: False, patience='1ep')
    freezeout = FreezeOut(0.5)
    run = trainer(classifier(), [freezeout], callbacks=[stopper], eval_dataloader=images(), eval_interval='1ep')
    run.fit()
    assert run.state.timestamp.epoch == 3  # the first is the best, one epoch is forgiven
    # Batch 10 of 16 was the last to freeze something; that training is over must freeze no more.
    assert [row['frozen_at_batch'] for row in freezeout.unit_table()] == [2, 5, 10, None]
    assert all(p.requires_grad for p in run.state.model.module.head.parameters())


# --- Hugging Face


TOKENS = 23


def language_model(kind: str = 'GPT2', tied: bool = True) -> HuggingFaceModel:
    """A tiny GPT-2 or BERT, untrained."""
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    if kind == 'GPT2':
        config = transformers.GPT2Config(
            vocab_size=TOKENS, n_positions=16, n_embd=8, n_layer=2, n_head=2, tie_word_embeddings=tied,
            attn_implementation='eager', loss_type='ForCausalLM',
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.BertConfig(
            vocab_size=TOKENS, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=16, attn_implementation='eager',
        )  # fmt: skip
        model = transformers.BertForMaskedLM(config)
    return HuggingFaceModel(model, use_logits=True)


class Sentences(Dataset):
    def __init__(self, length: int = 12) -> None:
        self.tokens = torch.randint(0, TOKENS, (BATCHES, length), generator=torch.Generator().manual_seed(2))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = self.tokens[index]
        return {'input_ids': tokens, 'labels': tokens, 'attention_mask': torch.ones_like(tokens)}


def sentences() -> DataLoader:
    return DataLoader(Sentences(), batch_size=4)


class Lengths(Callback):
    def __init__(self) -> None:
        self.seen: list[int] = []

    def before_forward(self, state: State, logger: Logger) -> None:
        self.seen.append(state.batch['input_ids'].shape[1])


NO_TOKENIZER = pytest.mark.filterwarnings('ignore:The tokenizer was not provided:UserWarning')


@NO_TOKENIZER
@compatibility('HuggingFaceModel')
def test_hugging_face_model():
    _, freezeout = train(model=language_model(tied=False), train_dataloader=sentences())
    names = [row['name'] for row in freezeout.unit_table()]
    assert names[-1] == 'model.lm_head'
    assert len(names) == 2 + 2 * 4 + 1  # two embeddings, four matrices in each block, the head


@NO_TOKENIZER
@compatibility(
    'HuggingFaceModel, tied embeddings',
    note='The shared matrix trains to the end with the head, so the backward pass runs through all layers: a message '
    'says so. Optimizer work and statistics are saved, backward time is not.',
)
def test_tied_embeddings_train_once_and_to_the_end(caplog):
    model = language_model()
    with caplog.at_level(logging.WARNING, 'composer_freezeout'):
        _, freezeout = train(model=model, train_dataloader=sentences())
    assert any('still runs through frozen units' in record.getMessage() for record in caplog.records)
    last = freezeout._freezer.partition.units[-1]
    assert last.parameters == ('model.transformer.wte.weight',)
    assert model.model.lm_head.weight is model.model.transformer.wte.weight
    assert model.model.lm_head.weight.requires_grad


@NO_TOKENIZER
@BOTH_ORDERS
@compatibility('SeqLengthWarmup')
def test_seq_length_warmup(freezeout_first):
    def warmup() -> Algorithm:
        return algorithms.SeqLengthWarmup(duration=0.5, min_seq_length=4, max_seq_length=12, step_size=2)

    lengths, control = Lengths(), Lengths()
    train(
        [warmup()],
        model=language_model(tied=False),
        train_dataloader=sentences(),
        freezeout_first=freezeout_first,
        callbacks=[lengths],
    )
    train_alone([warmup()], language_model(tied=False), train_dataloader=sentences(), callbacks=[control])
    assert lengths.seen == control.seen
    assert lengths.seen[0] == 4 < lengths.seen[-1] == 12


@NO_TOKENIZER
@BOTH_ORDERS
@pytest.mark.filterwarnings('ignore:where received a uint8 condition tensor:UserWarning')
@pytest.mark.parametrize(
    ('make', 'kind', 'new'),
    [
        surgery('Alibi', lambda: algorithms.Alibi(max_sequence_length=12), 'GPT2', 'alibi'),
        surgery('GatedLinearUnits', algorithms.GatedLinearUnits, 'BERT', 'gated_layer'),
    ],
)
def test_surgery_on_language_models(make, kind, new, freezeout_first):
    run, _ = train(
        [make()], model=language_model(kind, tied=False), train_dataloader=sentences(), freezeout_first=freezeout_first
    )
    control = train_alone([make()], language_model(kind, tied=False), train_dataloader=sentences())
    assert list(weights(run)) == list(weights(control))
    assert any(new in name for name in weights(run))


# --- on a GPU


def train_on_gpu(model: Any = None, **arguments: Any) -> FreezeOut:
    model = model or classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    # How many steps there are is left open: a gradient scaler leaves some out, automatic microbatching repeats some.
    _, freezeout = train(model=model, optimizer=optimizer, device='gpu', steps=None, **arguments)
    return freezeout


@pytest.mark.gpu
@pytest.mark.parametrize('precision', ['amp_bf16', 'amp_fp16'])
@compatibility('bf16 and fp16 autocast, grad scaler')
def test_autocast_and_the_grad_scaler(precision):
    class Scales(Callback):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def batch_end(self, state: State, logger: Logger) -> None:
            if state.scaler is not None and state.scaler.is_enabled():
                self.seen.append(state.scaler.get_scale())

    scales, model = Scales(), classifier()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train_on_gpu(model, precision=precision, callbacks=[scales])
    for name, p in model.named_parameters():
        assert p.isfinite().all()
        assert p.ndim == 1 or not torch.equal(p.cpu(), before[name])
    if precision == 'amp_fp16':
        # A gradient left behind on a frozen layer would never be unscaled.
        assert len(scales.seen) == BATCHES
        assert min(scales.seen) > 0


@pytest.mark.gpu
@pytest.mark.filterwarnings('ignore::UserWarning')  # how it is done without NVIDIA's apex
@pytest.mark.parametrize(
    ('make', 'new'),
    [
        surgery('LowPrecisionLayerNorm', algorithms.LowPrecisionLayerNorm, 'LPLayerNorm'),
        surgery('LowPrecisionGroupNorm', algorithms.LowPrecisionGroupNorm, 'LPGroupNorm'),
    ],
)
def test_low_precision_norms(make, new):
    model = classifier(SmallNet())
    train_on_gpu(model, neighbours=[make()], precision='amp_bf16')
    assert count(new)(model) == 1


@pytest.mark.gpu
@compatibility('SyncBatchNorm')
def test_sync_batchnorm():
    freezeout = train_on_gpu(classifier(nn.SyncBatchNorm.convert_sync_batchnorm(chain(classes=CLASSES))))
    assert [row['frozen_at_batch'] for row in freezeout.unit_table()] == [2, 5, 10, None]


@pytest.mark.gpu
@pytest.mark.filterwarnings('ignore:CUDA out of memory:UserWarning')
@compatibility('automatic microbatching')
def test_automatic_microbatching():
    class OutOfMemory(nn.Module):
        """A layer that runs out of memory on more than two samples."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training and len(x) > 2:
                raise torch.cuda.OutOfMemoryError('CUDA out of memory')
            return x

    sizes = Inputs()
    train_on_gpu(
        classifier(nn.Sequential(*chain(classes=CLASSES), OutOfMemory())),
        device_train_microbatch_size='auto',
        callbacks=[sizes],
    )
    assert {len(batch) for batch in sizes.seen[-8:]} <= {1, 2}


@pytest.mark.gpu
@compatibility('MemoryMonitor')
def test_memory_monitor_on_a_gpu():
    logger = InMemoryLogger()
    train_on_gpu(callbacks=[MemoryMonitor()], loggers=[logger])
    assert len(logger.data['memory/peak_allocated_mem']) == BATCHES


# --- the table


def test_the_table_lists_what_the_tests_run():
    modules = [sys.modules[__name__], test_observation, test_wild, test_loop, test_optimizers]
    functions = [f for m in modules for name, f in inspect.getmembers(m) if name.startswith('test_')]
    assert read_rows(TABLE) == expected_rows(functions)
