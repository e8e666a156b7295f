"""A frozen BatchNorm runs inside of the convolution before it, and nothing but the time shows it."""

import copy
import io
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from composer_freezeout import FreezeOut, apply_freezeout
from composer_freezeout.freezing.freezer import LayerFreezer
from composer_freezeout.freezing.observing.partition import partition_model
from composer_freezeout.freezing.observing.rehearsal import rehearse
from composer_freezeout.freezing.observing.units import Unit
from composer_freezeout.freezing.prefix.around_forward import AroundForward
from composer_freezeout.freezing.prefix.fold import NORMS, fold_batchnorm
from composer_freezeout.freezing.prefix.folding import BatchNormFolding
from composer_freezeout.freezing.prefix.prefix import FrozenPrefix
from composer_freezeout.run.cifar_networks import CifarDenseNet, CifarResNet

from .comparing import assert_equal
from .networks import chain
from .training import classifier, trainer

BATCH_NORMS = (torch.ops.aten.native_batch_norm.default, torch.ops.aten._native_batch_norm_legit_no_training.default)


class Operators(TorchDispatchMode):
    """Operators that run, by what is in their names."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for name in ('convolution', 'batch_norm', 'addmm', 'multi_head_attention'):
            self.counts[name] += name in str(func)
        return func(*args, **(kwargs or {}))


def counted(run: Callable[[], object]) -> tuple[int, int]:
    """Convolutions and batch normalisations."""
    with Operators() as operators:
        run()
    return operators.counts['convolution'], operators.counts['batch_norm']


def prepared(
    model: nn.Module, inputs: torch.Tensor, units_frozen: int | None = None, fuse_frozen: bool = True
) -> FrozenPrefix:
    """Statistics that have moved, and all units but the last frozen unless told otherwise."""
    model.train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
        model(inputs)
    units = partition_model(model, rehearse(model, lambda: model(inputs))).units
    freezer = FrozenPrefix(model, units, fuse_frozen=fuse_frozen)
    freezer.set_frozen(len(units) - 1 if units_frozen is None else units_frozen)
    with torch.random.fork_rng(), torch.no_grad():
        model(inputs)  # shows the pairs, and runs as it is
    return freezer


def owners(model: nn.Module) -> set[Any]:
    """The objects whose methods the model's hooks call; None for a hook that does nothing any more."""
    hooks: Any = (*model._forward_hooks.values(), *model._forward_pre_hooks.values())
    return {getattr(hook._call, '__self__', None) for hook in hooks}


def unfolded(model: nn.Module, inputs: torch.Tensor, freezer: FrozenPrefix) -> torch.Tensor:
    freezer.folding.fuse(())
    output = model(inputs)
    freezer.folding.fuse(freezer.frozen_norms)
    return output


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


MODELS = {
    # All of them stand behind a convolution.
    'resnet': (lambda: CifarResNet(8), 7, 7),
    # What is read is a concatenation, but for the norm between the two convolutions of each of the 6 dense layers.
    'densenet': (lambda: CifarDenseNet(16, 4), 15, 6),
    # The first norm of torchvision's stands behind the stem, the others as above.
    'torchvision-densenet': (lambda: torchvision.models.DenseNet(4, (2, 2), 8, num_classes=10), 11, 5),
    'mobilenet_v2': (lambda: without_dropout(torchvision.models.mobilenet_v2(width_mult=0.25)), 52, 52),
    'vgg16_bn': (lambda: without_dropout(narrow_vgg()), 13, 13),
}


def narrow_vgg() -> nn.Module:
    sizes = [8, 8, 'M', 8, 8, 'M', 8, 8, 8, 'M', 16, 16, 16, 'M', 16, 16, 16, 'M']
    model = torchvision.models.VGG(torchvision.models.vgg.make_layers(sizes, batch_norm=True), num_classes=10)
    model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 10)
    return model


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('name', MODELS)
def test_as_without_folding(name, dtype):
    make, norms, pairs = MODELS[name]
    torch.manual_seed(0)
    model, inputs = make().to(dtype), torch.randn(4, 3, 32, 32, dtype=dtype)
    freezer = prepared(model, inputs)
    before = copy.deepcopy(model.state_dict())
    expected = unfolded(model, inputs, freezer)
    output = model(inputs)
    assert len(freezer.folding.pairs) == pairs
    tolerance = 1e-12 if dtype is torch.float64 else 1e-5
    assert (output - expected).abs().max() <= tolerance * expected.abs().max()
    convolutions, batch_norms = counted(lambda: unfolded(model, inputs, freezer))
    assert batch_norms == norms
    assert counted(lambda: model(inputs)) == (convolutions, norms - pairs)
    assert_equal(model.state_dict(), before)
    assert not any('forward' in vars(module) for module in model.modules())


def test_only_what_is_frozen_is_folded():
    model, inputs = CifarResNet(8), torch.randn(4, 3, 32, 32)
    freezer = prepared(model, inputs, 3)
    assert counted(lambda: model(inputs)) == (7, 4)
    assert freezer.folding.pairs == {'conv1': 'bn1', 'layer1.0.conv1': 'layer1.0.bn1', 'layer1.0.conv2': 'layer1.0.bn2'}
    # In the first pass those that are new among the frozen ones run as they are, and once more as one.
    #                    layers and norms of the first pass, and of the second
    for frozen, expected in ((5, [(9, 4), (7, 2)]), (2, [(7, 5)] * 2), (0, [(7, 7)] * 2), (7, [(9, 2), (7, 0)])):
        freezer.set_frozen(frozen)
        assert [counted(lambda: model(inputs)) for _ in range(2)] == expected
    model(inputs).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ['fc.weight', 'fc.bias']
    freezer.release()
    model.train()
    assert counted(lambda: model(inputs)) == (7, 7)
    assert not model._forward_pre_hooks and not model._forward_hooks


def test_finding_the_pairs_leaves_no_trace():
    """Statistics that are still moving and the random state, though the pass in between is one in training."""

    def step(fuse_frozen: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        torch.manual_seed(0)
        model, inputs = nn.Sequential(nn.Dropout(0.5), chain(), nn.Dropout(0.1)), torch.randn(4, 3, 8, 8)
        prepared(model, inputs, 1, fuse_frozen)
        model(inputs)
        return model.state_dict(), torch.rand(3)

    (ours, random), (expected, expected_random) = step(True), step(False)
    assert torch.equal(random, expected_random)
    for name, tensor in expected.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-7)
        assert '.bn1.' not in name or torch.equal(ours[name], tensor)


def test_finding_the_pairs_takes_nothing_from_the_batch():
    class Greedy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.chain = chain()

        def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.chain(batch.pop('images').mul_(0.5))

    model, images = Greedy(), torch.randn(4, 3, 8, 8)
    freezer = FrozenPrefix(model.requires_grad_(False), ())
    freezer.folding.fuse([model.chain.bn1.eval(), model.chain.bn2.eval(), model.chain.bn3.eval()])
    output = model({'images': images.clone()})
    assert len(freezer.folding.pairs) == 3
    assert_close(output, unfolded(model.chain, 0.5 * images, freezer))


def test_what_a_run_has_found_is_known_to_one_that_goes_on():
    """It would find them in another batch, with another random state, and round otherwise."""

    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).requires_grad_(False) for _ in range(8)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = block(x) if torch.rand(()) < 0.5 else x
            return x

    def folding(model: Random) -> BatchNormFolding:
        freezer = FrozenPrefix(model, ())
        freezer.folding.fuse([block[1].eval() for block in model.blocks])
        return freezer.folding

    first, second = Random(), Random()
    second.load_state_dict(first.state_dict())
    found, other = folding(first), folding(second)
    first(torch.randn(2, 3, 4, 4))
    assert 0 < len(found.pairs) < 8
    other.learn(found.known())
    inputs = torch.randn(2, 3, 4, 4)
    outputs = []
    for model in (first, second):
        torch.manual_seed(1)
        outputs.append(model(inputs))
    assert other.pairs == found.pairs
    assert torch.equal(*outputs)


def test_the_pass_that_shows_the_pairs_rounds_as_later_ones_do():
    """A run that is resumed shows them once more."""
    model, inputs = CifarResNet(8).train(), torch.randn(4, 3, 32, 32)
    units = partition_model(model, rehearse(model, lambda: model(inputs))).units
    freezer = FrozenPrefix(model, units)
    freezer.set_frozen(len(units) - 1)
    first, second = model(inputs), model(inputs)
    assert len(freezer.folding.pairs) == 7
    assert torch.equal(first, second)
    freezer.folding.fuse(())
    assert not torch.equal(first, model(inputs))  # it does round otherwise


def test_what_a_backward_pass_goes_through_is_not_folded():
    """A gradient by the input, through a checkpoint that runs the layers once more in the backward pass."""

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.ModuleList(
                nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU()) for _ in range(2)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for stage in self.stages:
                x = checkpoint(stage, x, use_reentrant=False)
            return x

    gradients = []
    for fuse_frozen in (True, False):
        torch.manual_seed(0)
        model, plain, inputs = Checkpointed(), torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8, requires_grad=True)
        for stage in model.stages:
            stage[1].running_var.fill_(0.05)
        units = [Unit('0', ('stages.0.0.weight',), ('stages.0.1',)), Unit('1', ('stages.1.0.weight',), ('stages.1.1',))]
        freezer = FrozenPrefix(model.requires_grad_(False), units, fuse_frozen=fuse_frozen)
        freezer.set_frozen(2)
        for _ in range(2):
            model(plain)
        assert not freezer.folding.pairs
        model(inputs).square().sum().backward()
        gradients.append(inputs.grad)
    torch.testing.assert_close(*gradients)


def test_a_layer_that_is_left_out_leaves_the_norm_as_it_is():
    model, inputs = chain(), torch.randn(4, 3, 8, 8)
    freezer = prepared(model, inputs)

    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.skip = model, False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for name, layer in self.net.named_children():
                x = x if self.skip and name == 'conv2' else layer(x)
            return x

    del freezer
    skips = Skips()
    norms = ('net.bn1', 'net.bn2', 'net.bn3')
    around = FrozenPrefix(skips, [Unit('all', tuple(f'net.{n}' for n, _ in model.named_parameters()), norms)])
    around.set_frozen(1)
    for _ in range(2):
        skips(inputs)
    assert list(around.folding.pairs.values()) == list(norms)
    skips.skip = True
    folded_output = skips(inputs)
    around.folding.fuse(())
    torch.testing.assert_close(folded_output, skips(inputs))


def test_a_norm_in_the_place_of_another_is_found_anew():
    model, inputs = Steps(lambda m, x: m.norm(m.layer(x))).requires_grad_(False), torch.randn(4, 3, 8, 8)
    freezer = FrozenPrefix(model, ())
    freezer.folding.fuse([model.norm.eval()])
    model(inputs)
    assert freezer.folding.pairs == {'layer': 'norm'}
    freezer.release()
    model.norm, model.steps = nn.BatchNorm2d(4).requires_grad_(False), lambda m, x: m.norm(m.layer(x).relu())
    freezer.folding.fuse([model.norm.eval()])
    model(inputs)
    assert freezer.folding.pairs == {}


def test_evaluation_is_not_folded():
    model, inputs = chain(), torch.randn(4, 3, 8, 8)
    freezer = prepared(model, inputs)
    model(inputs)
    model.eval()
    assert counted(lambda: model(inputs)) == (3, 3)
    assert torch.equal(model(inputs), unfolded(model, inputs, freezer))


# --- what is folded is what is there


def replace_weight(model: Any) -> None:
    model.conv2.weight = nn.Parameter(torch.randn_like(model.conv2.weight), requires_grad=False)


def replace_data(model: Any) -> None:
    model.bn1.bias.data = torch.randn(4)


def write_in_place(model: Any) -> None:
    model.bn2.running_var.detach().mul_(2.0)


def load(model: Any) -> None:
    model.load_state_dict({name: tensor + 0.5 for name, tensor in model.state_dict().items()})


def train_norm(model: Any) -> None:
    model.bn1.train()(100 * torch.randn(8, 4, 5, 5))
    model.bn1.eval()


@pytest.mark.parametrize(
    'change',
    [replace_weight, replace_data, write_in_place, train_norm, load, nn.Module.double],
)
def test_what_has_been_changed_is_folded_anew(change):
    torch.manual_seed(0)
    model, inputs = chain(), torch.randn(4, 3, 8, 8)
    freezer = prepared(model, inputs)
    before = model(inputs)
    model(inputs)
    assert freezer.folding.refolds == 3
    change(model)
    inputs = inputs.to(model.conv1.weight.dtype)
    output = model(inputs)
    assert output.dtype == inputs.dtype
    assert 4 <= freezer.folding.refolds <= 6
    torch.testing.assert_close(output, unfolded(model, inputs, freezer), rtol=1e-5, atol=1e-6)
    assert change is nn.Module.double or not torch.allclose(output, before, atol=1e-3)


def test_nothing_new_can_lie_where_the_folded_tensors_came_from():
    """Another tensor at the same address would pass for the first one."""
    model, inputs = chain(), torch.randn(4, 3, 8, 8)
    prepared(model, inputs)
    model(inputs)
    storage = StorageWeakRef(model.conv1.weight.untyped_storage())
    model.conv1.weight.data = torch.randn(4, 3, 3, 3)
    assert not storage.expired()
    model(inputs)
    assert storage.expired()


def test_memory_format_is_kept():
    model, inputs = chain().to(memory_format=torch.channels_last), torch.randn(4, 3, 8, 8)
    for layer, norm in ((model.conv1, model.bn1), (model.conv2, model.bn2)):
        weight, bias = fold_batchnorm(layer, norm)
        assert weight.stride() == layer.weight.stride()
        assert not weight.requires_grad and not bias.requires_grad
    freezer = prepared(model, inputs)
    features = nn.Sequential(*list(model)[:9])
    assert features(inputs).is_contiguous(memory_format=torch.channels_last)
    freezer.set_frozen(0)
    model.to(memory_format=torch.contiguous_format)


def test_in_autocast_the_gradients_are_those_of_the_unfolded_model():
    """Weights that autocast keeps from a pass without gradients would have none."""

    def gradients(fuse_frozen: bool, enabled: bool = True) -> torch.Tensor:
        torch.manual_seed(0)
        model, inputs = chain(), torch.randn(4, 3, 8, 8)
        freezer = prepared(model, inputs, 1, fuse_frozen)
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            output = model(inputs)
        assert output.dtype == (torch.bfloat16 if enabled else torch.float32)
        assert bool(freezer.folding.pairs) == fuse_frozen
        output.float().square().sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    exact = gradients(False, enabled=False)
    for fuse_frozen in (True, False):
        assert (gradients(fuse_frozen) - exact).norm() <= 0.02 * exact.norm()


class Doubling(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def fold_doubling(layer: Any, norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    weight, bias = fold_batchnorm(layer, norm)
    return 2 * weight, 2 * bias


def test_another_norm_is_folded_once_it_is_in_the_table(monkeypatch):
    model, inputs = chain(), torch.randn(4, 3, 8, 8)
    model.bn2 = Doubling(4)
    assert 'conv2' not in pairs_of(copy.deepcopy(model), inputs)
    monkeypatch.setitem(NORMS, Doubling, fold_doubling)
    assert pairs_of(model, inputs)['conv2'] == 'bn2'


# --- what stays unfolded


def pairs_of(model: nn.Module, inputs: torch.Tensor | None = None) -> dict[str, str]:
    inputs = torch.randn(4, 3, 8, 8) if inputs is None else inputs
    for module in model.requires_grad_(False).modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    folding = BatchNormFolding(model)
    folding.fuse([module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)])
    model(inputs)
    known = folding.known()
    folding.release()
    return {layer: norm for layer, norm in known.norm_of.items() if layer not in known.apart}


class Steps(nn.Module):
    """A convolution and a BatchNorm, with something of one's own around."""

    def __init__(self, forward: Callable[..., Any], layer: nn.Module | None = None, norm: nn.Module | None = None):
        super().__init__()
        self.layer = layer or nn.Conv2d(3, 4, 3)
        self.norm = norm or nn.BatchNorm2d(4)
        self.steps = forward

    def forward(self, x: torch.Tensor) -> Any:
        return self.steps(self, x)


def keep(model: Steps, x: torch.Tensor) -> torch.Tensor:
    model.kept = model.layer(x)
    return model.norm(model.kept)


def both(model: Steps, x: torch.Tensor) -> torch.Tensor:
    y = model.layer(x)
    return model.norm(y) + y


def returned(model: Steps, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    y = model.layer(x)
    return model.norm(y), y


def view_read(model: Steps, x: torch.Tensor) -> torch.Tensor:
    y = model.layer(x)
    return model.norm(y) + y[:, :, :1, :1]


def dropped(model: Steps, x: torch.Tensor) -> torch.Tensor:
    return model.norm(nn.functional.dropout(model.layer(x), 0.5, model.training))


@pytest.mark.parametrize(
    ('forward', 'pairs'),
    [
        (lambda m, x: m.norm(m.layer(x)), 1),
        (lambda m, x: m.norm(m.layer(x)).relu_(), 1),
        (both, 0),
        (returned, 0),
        (view_read, 0),
        (keep, 0),
        (dropped, 0),
        (lambda m, x: m.norm(m.layer(x).relu()), 0),
        (lambda m, x: m.norm(m.layer(x).relu_()), 0),
        (lambda m, x: m.norm(m.layer(x).view(4, 4, 36, 1)), 0),
        (lambda m, x: m.norm(m.layer(x)) + m.norm(m.layer(x[:2]).repeat(2, 1, 1, 1)), 0),
        (lambda m, x: m.norm(m.norm(m.layer(x))), 1),
        (lambda m, x: m.layer(x), 0),
    ],
    ids=['plain', 'then in place', 'read', 'returned', 'view', 'kept', 'dropout', 'relu', 'in place', 'reshaped',
         'twice', 'norm twice', 'no norm'],
)  # fmt: skip
def test_only_a_layer_that_is_read_by_its_norm_alone(forward, pairs):
    model = Steps(forward)
    assert pairs_of(model) == ({'layer': 'norm'} if pairs else {})
    # And so it is in training.
    inputs = torch.randn(4, 3, 8, 8)
    model.layer.requires_grad_(False)
    freezer = FrozenPrefix(nn.Sequential(model, nn.Identity()), ())
    model.norm.requires_grad_(False).eval()
    freezer.folding.fuse([model.norm])
    torch.manual_seed(1)
    output = freezer.model(inputs)
    assert len(freezer.folding.pairs) == pairs
    torch.manual_seed(1)
    assert_close(output, model(inputs))


def assert_close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ('layer', 'norm', 'shape', 'pairs'),
    [
        (nn.Linear(3, 4), nn.BatchNorm1d(4), (5, 3), 1),
        (nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4, affine=False), (5, 3), 1),
        (nn.Linear(3, 4), nn.BatchNorm1d(4), (5, 4, 3), 0),  # normalises the other dimension
        (nn.Conv1d(3, 4, 3, padding=1, padding_mode='circular'), nn.BatchNorm1d(4), (5, 3, 7), 1),
        (nn.Conv2d(3, 6, 3, 2, groups=3, dilation=2), nn.BatchNorm2d(6, eps=0.1), (5, 3, 7, 7), 1),
        (nn.Conv3d(3, 4, 2), nn.BatchNorm3d(4, momentum=None), (5, 3, 4, 4, 4), 1),
        (nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4), (5, 3, 7, 7), 0),
        (nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, track_running_stats=True), (5, 3, 7, 7), 0),
        (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), (5, 3, 7, 7), 0),
        (type('Own', (nn.Conv2d,), {})(3, 4, 3), nn.BatchNorm2d(4), (5, 3, 7, 7), 0),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), (5, 3, 7, 7), 0),
        (nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.BatchNorm1d(4), (5, 3), 0),
    ],
)
def test_every_kind_of_layer(layer, norm, shape, pairs):
    torch.manual_seed(0)
    model, inputs = nn.Sequential(layer, norm, nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)), torch.randn(shape)
    model(inputs)
    freezer = prepared(model, inputs)
    output = model(inputs)
    assert len(freezer.folding.pairs) == pairs
    assert_close(output, unfolded(model, inputs, freezer))


@pytest.mark.parametrize('where', ['conv1', 'bn1'])
@pytest.mark.parametrize('kind', ['forward_hook', 'forward_pre_hook', 'full_backward_hook', 'full_backward_pre_hook'])
def test_hooks_see_what_they_saw(kind, where):
    model, inputs = chain(), torch.randn(4, 3, 8, 8)
    prepared(model, inputs)
    model(inputs)
    assert counted(lambda: model(inputs)) == (3, 0)
    handle = getattr(getattr(model, where), f'register_{kind}')(lambda *_: None)
    assert counted(lambda: model(inputs)) == (3, 1)
    handle.remove()
    assert counted(lambda: model(inputs)) == (3, 0)


def test_a_forward_method_of_ones_own_stays():
    model, inputs = chain(), torch.randn(4, 3, 8, 8)
    prepared(model, inputs)
    model(inputs)
    model.bn1.forward = own = lambda x: x * 0
    assert counted(lambda: model(inputs)) == (3, 0)
    assert model(inputs).std(0).max() < 1e-6
    assert model.bn1.forward is own


@pytest.mark.parametrize('mode', ['batch', 'update'])
def test_a_norm_that_does_not_use_its_running_statistics(mode):
    model, inputs = chain(), torch.randn(4, 3, 8, 8)
    units = partition_model(model, rehearse(model, lambda: model(inputs))).units
    FrozenPrefix(model.train(), units, mode).set_frozen(3)
    assert counted(lambda: model(inputs)) == (3, 3)
    assert BatchNormFolding not in map(type, owners(model))


def test_a_model_put_into_training_mode_behind_the_freezers_back():
    model, inputs = chain(), torch.randn(4, 3, 8, 8)
    freezer = prepared(model, inputs)
    model.train()
    assert counted(lambda: model(inputs)) == (3, 0)
    freezer.release()
    model.train()
    assert counted(lambda: model(inputs)) == (3, 3)


def test_a_frozen_norm_behind_a_layer_that_trains():
    model, inputs = chain(), torch.randn(4, 3, 8, 8)
    model.bn2.requires_grad_(False)
    freezer = FrozenPrefix(model, ())
    freezer.folding.fuse([model.bn2.eval()])
    model(inputs).sum().backward()
    assert not freezer.folding.pairs and freezer.folding.refolds == 0
    assert model.conv2.weight.grad is not None
    freezer.folding.fuse([model.bn2])
    model.conv2.requires_grad_(False)
    model(inputs).sum().backward()
    assert not freezer.folding.pairs  # what is in front of it still trains, and backward reads its output
    model.requires_grad_(False)
    freezer.folding.fuse([model.bn2])
    model(inputs)
    assert freezer.folding.pairs == {'conv2': 'bn2'}


def test_a_model_without_batchnorm_makes_no_further_pass():
    norms = (nn.InstanceNorm2d(4, affine=True, track_running_stats=True) for _ in range(2))
    model, inputs = nn.Sequential(nn.Conv2d(3, 4, 3), *norms, nn.Conv2d(4, 4, 3)), torch.randn(4, 3, 8, 8)
    freezer = prepared(model, inputs)
    assert len(freezer.frozen_norms) == 2
    assert counted(lambda: model(inputs))[0] == 2


def test_a_forward_pass_that_changes_its_mind():
    """It gets what it asks for, and the layer is left alone from then on."""

    class Fickle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.double = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.bn(2 * y if self.double else y)

    model, inputs = Fickle().requires_grad_(False), torch.randn(4, 3, 8, 8)
    freezer = FrozenPrefix(model, ())
    freezer.folding.fuse([model.bn.eval()])
    model(inputs)
    assert counted(lambda: model(inputs)) == (1, 0)
    model.double = True
    assert torch.equal(model(inputs), model.bn(2 * model.conv(inputs)))
    assert 'forward' not in vars(model.conv)
    model.double = False
    assert counted(lambda: model(inputs)) == (1, 1)


def test_an_error_in_the_forward_pass_leaves_nothing_behind():
    model, inputs = chain(), torch.randn(4, 3, 8, 8)
    prepared(model, inputs)
    model(inputs)
    with pytest.raises(RuntimeError):
        model(inputs[:, :2])
    assert not any('forward' in vars(module) for module in model.modules())
    assert counted(lambda: model(inputs)) == (3, 0)


# --- copies


def test_a_copy_knows_nothing_of_it():
    model, inputs = chain(), torch.randn(4, 3, 8, 8)
    freezer = prepared(model, inputs)
    expected = unfolded(model, inputs, freezer)
    model(inputs)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for same in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert_equal(same.state_dict(), model.state_dict())
        assert counted(lambda same=same: same(inputs)) == (3, 3)
        assert torch.equal(same(inputs), expected)
        assert owners(same) == {None}
    assert {type(found) for found in owners(model)} == {BatchNormFolding, AroundForward}
    assert counted(lambda: model(inputs)) == (3, 0)


def test_a_copy_that_is_made_while_the_model_runs_has_a_forward_method_of_its_own():
    model, inputs = chain(), torch.randn(4, 3, 8, 8)
    prepared(model, inputs)
    copies: list[Any] = []
    model.relu1.forward = lambda x: (copies.append(copy.deepcopy((model.conv2, model.bn2))), x.relu())[1]
    model(inputs)
    for copied in copies[0]:
        assert (copied.forward.func, copied.forward.args) == (type(copied).forward, (copied,))


def test_no_tensor_is_added_to_the_model():
    model, inputs = chain(), torch.randn(4, 3, 8, 8)
    names = list(model.state_dict()), list(dict(model.named_parameters())), list(dict(model.named_buffers()))
    prepared(model, inputs)
    model(inputs)
    assert (list(model.state_dict()), list(dict(model.named_parameters())), list(dict(model.named_buffers()))) == names


# --- in training


@pytest.fixture
def nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def whole(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend='eager', fullgraph=True)


def forward_method(model: nn.Module) -> nn.Module:
    model.forward = torch.compile(model.forward, backend='eager')
    return model


def one_module(model: nn.Module) -> nn.Module:
    model.conv1.compile(backend='eager')
    return model


@pytest.mark.parametrize('compiled', [whole, forward_method, one_module])
def test_compiled_models_are_not_folded(compiled, nothing_compiled):
    model, inputs = chain(), torch.randn(4, 3, 8, 8)
    freezer = prepared(model, inputs)
    expected = unfolded(model, inputs, freezer)
    # As after a resume: compiled when something has been frozen already.
    assert torch.equal(compiled(model)(inputs), expected)


def test_a_loop_with_layers():
    """No example batch is needed: the first pass with something frozen is looked at."""
    model, inputs = chain(), torch.randn(4, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    freezer = apply_freezeout(model, optimizer, layers=['(conv|bn)1', '(conv|bn)[23]', 'head'], t_0=0.5)
    for progress, batch_norms in ((0.0, 3), (0.2, 3), (0.25, 2), (0.9, 2), (0.95, 0)):
        freezer.batch_start(progress)
        assert counted(lambda: model(inputs))[1] == batch_norms
    plain = chain()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    freezer = apply_freezeout(plain, optimizer, layers=['(conv|bn).*', 'head'], fuse_frozen=False, t_0=0.5)
    freezer.batch_start(0.9)
    assert counted(lambda: plain(inputs)) == (3, 3)


def test_in_a_trainer():
    """The same learning to rounding, with the settings' checks and without a hook left at the end."""
    weights = []
    for fuse_frozen in (True, False):
        model, freezeout = classifier(), FreezeOut(0.5, fuse_frozen=fuse_frozen)
        trainer(model, [freezeout]).fit()
        assert [row['frozen_at_batch'] for row in freezeout.unit_table()] == [2, 5, 10, None]
        assert not model._forward_hooks and not model._forward_pre_hooks
        weights.append(model.state_dict())
    for name, tensor in weights[1].items():
        torch.testing.assert_close(weights[0][name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    assert not torch.equal(weights[0]['module.head.weight'], weights[1]['module.head.weight'])
    assert torch.equal(weights[0]['module.bn1.running_mean'], weights[1]['module.bn1.running_mean'])


def test_bad_switch_is_refused():
    with pytest.raises(TypeError, match="fuse_frozen must be True or False, got 'yes'"):
        FreezeOut(fuse_frozen='yes')


# --- attention


class Attention(nn.Module):
    """Two blocks of attention, and a head."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.MultiheadAttention(8, 2, dropout, batch_first=True)
        self.second = nn.MultiheadAttention(8, 2, dropout, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        for block in (self.first, self.second):
            tokens = tokens + block(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(tokens.mean(1))


def fuse_attention(frozen: int, dropout: float = 0.0, fuse: bool = True) -> tuple[Attention, LayerFreezer]:
    torch.manual_seed(0)
    model = Attention(dropout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    freezer = apply_freezeout(model, optimizer, layers=['first', 'second', 'head'], fuse_frozen=fuse)
    model.train()
    freezer.batch_start((0.0, *freezer.freeze_times)[frozen])
    return model, freezer


TOKENS = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(1))


def fused_attention(model: nn.Module) -> int:
    """How often attention ran as one operator in a training step."""
    with Operators() as operators:
        model(TOKENS).sum().backward()
    return operators.counts['multi_head_attention']


@pytest.mark.parametrize('frozen', [0, 1, 2])
def test_frozen_attention_is_one_operator(frozen):
    fused, plain = (fuse_attention(frozen, fuse=fuse)[0] for fuse in (True, False))
    assert (fused_attention(fused), fused_attention(plain)) == (frozen, 0)
    # Other operators round otherwise.
    torch.testing.assert_close(fused(TOKENS), plain(TOKENS))
    torch.testing.assert_close(fused.head.weight.grad, plain.head.weight.grad)


def test_attention_with_dropout_goes_on_dropping():
    model, _ = fuse_attention(2, dropout=0.5)
    assert model.first.training and model.second.training
    assert fused_attention(model) == 0


@pytest.mark.parametrize('positional', [False, True])
def test_attention_with_a_mask_is_that_of_training(positional):
    """Where a whole row is masked, the one operator of evaluation gives not a number."""
    padded = torch.zeros(4, 5, dtype=torch.bool)
    padded[0, 3:] = padded[1] = True

    class Masked(Attention):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            for block in (self.first, self.second):
                rest = (padded, False) if positional else ()
                given = {} if positional else {'key_padding_mask': padded, 'need_weights': False}
                tokens = tokens + block(tokens, tokens, tokens, *rest, **given)[0]
            return self.head(tokens.mean(1))

    outputs = []
    for fuse in (True, False):
        torch.manual_seed(0)
        model = Masked()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        freezer = apply_freezeout(model, optimizer, layers=['first', 'second', 'head'], fuse_frozen=fuse)
        model.train()
        freezer.batch_start(freezer.freeze_times[1])
        model(TOKENS)
        outputs.append(model(TOKENS))
        assert model.first.training != fuse
        model.eval()
        model(TOKENS)
        assert not model.first.training
    assert torch.equal(*outputs)


def test_attention_of_an_evaluation_and_after_training():
    model, freezer = fuse_attention(1)
    assert not model.first.training and model.second.training
    model.eval()
    model.train()
    freezer.prefix.hold_modes()
    assert not model.first.training
    freezer.prefix.release()
    assert model.first.training
    freezer.batch_start(freezer.freeze_times[0])
    assert not model.first.training
    freezer.batch_start(0.0)
    assert model.first.training


def test_compiled_attention_is_left_alone():
    torch.manual_seed(0)
    model = Attention()
    model.compile(backend='eager')
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    freezer = apply_freezeout(model, optimizer, lambda: model(TOKENS), layers=['first', 'second', 'head'])
    freezer.batch_start(freezer.freeze_times[1])
    assert model.first.training


# --- what others do with the output of a frozen layer


@pytest.mark.parametrize('reader', [lambda y: y.as_subclass(torch.Tensor), nn.Parameter, lambda y: y.detach().numpy()])
def test_an_output_can_be_made_something_else(reader):
    model = Steps(lambda m, x: m.norm(m.layer(x)) * float(reader(m.layer(x)).sum()))
    freezer = FrozenPrefix(model.requires_grad_(False), ())
    freezer.folding.fuse([model.norm.eval()])
    inputs = torch.randn(4, 3, 8, 8)
    outputs = [model(inputs) for _ in range(2)]
    freezer.folding.release()
    for output in outputs:
        torch.testing.assert_close(output, model(inputs))


def test_what_trains_and_is_written_into_an_output_gets_its_gradient():
    """A mask token, say; what comes behind asks in C++ whether the tensor requires a gradient."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm, self.token = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Parameter(torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.layer(x)
            y[0] = self.token
            return checkpoint(torch.square, y, use_reentrant=True)

    model = Masked()
    model.layer.requires_grad_(False)
    freezer = FrozenPrefix(model, ())
    freezer.folding.fuse([model.norm.requires_grad_(False).eval()])
    for _ in range(2):
        model.token.grad = None
        model(torch.ones(2, 3)).sum().backward()
        assert torch.equal(model.token.grad, torch.full((4,), 2.0))
