"""Networks by name."""

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from composer_freezeout.freezing.observing.partition import partition_model
from composer_freezeout.freezing.observing.rehearsal import rehearse
from composer_freezeout.run.cifar_networks import CifarResNet
from composer_freezeout.run.config import ModelConfig
from composer_freezeout.run.faults import ConfigError
from composer_freezeout.run.models import build_model

DENSENET = {'name': 'densenet_bc', 'depth': 76, 'growth_rate': 12}
WRN = {'name': 'wrn', 'depth': 40, 'widen_factor': 4}
VGG16 = {'name': 'vgg16_cifar'}


def model(name: str, num_classes: int = 10, **arguments):
    config = ModelConfig.model_validate({'name': name, 'num_classes': num_classes, **arguments})
    return build_model(config)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# Table 6 of He et al., 2015.
@pytest.mark.parametrize(('depth', 'millions'), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_parameters_are_those_of_the_paper(depth, millions):
    count = parameters(model(f'resnet{depth}')) / 1e6
    assert round(count, 1 if depth == 110 else 2) == millions


# Table 2 of Huang et al., 2017, which rounds to one place; table 4 of Zagoruyko and Komodakis, 2016.
@pytest.mark.parametrize(
    ('arguments', 'millions'),
    [
        ({'name': 'densenet_bc', 'depth': 100, 'growth_rate': 12}, 0.8),
        ({'name': 'densenet_bc', 'depth': 250, 'growth_rate': 24}, 15.3),
        ({'name': 'wrn', 'depth': 40, 'widen_factor': 1}, 0.6),
        ({'name': 'wrn', 'depth': 40, 'widen_factor': 4}, 8.9),
        ({'name': 'wrn', 'depth': 16, 'widen_factor': 8}, 11.0),
        ({'name': 'wrn', 'depth': 28, 'widen_factor': 10}, 36.5),
    ],
)
def test_parameters_of_other_networks_are_those_of_their_papers(arguments, millions):
    with torch.device('meta'):
        count = parameters(model(**arguments)) / 1e6
    assert round(count, 1) == millions


def densenet_by_hand(layers: int, growth: int, classes: int) -> tuple[int, int]:
    """Parameters, and multiply-adds for 32x32 pixels, of DenseNet-BC with so many layers in each of three blocks."""
    channels, pixels = 2 * growth, 32 * 32
    weights = 3 * channels * 9
    products, others = weights * pixels, 0
    for block in range(3):
        for _ in range(layers):
            layer = channels * 4 * growth + 4 * growth * growth * 9
            weights, products = weights + layer, products + layer * pixels
            others += 2 * channels + 2 * 4 * growth
            channels += growth
        others += 2 * channels
        if block < 2:
            transition = channels * (channels // 2)
            weights, products = weights + transition, products + transition * pixels
            channels, pixels = channels // 2, pixels // 4
    return weights + others + (channels + 1) * classes, products + channels * classes


def wrn_by_hand(blocks: int, widen: int, classes: int) -> tuple[int, int]:
    """Parameters, and multiply-adds for 32x32 pixels, of WRN with so many blocks in each of three stages."""
    channels, pixels = 16, 32 * 32
    weights = 3 * 16 * 9
    products, others = weights * pixels, 0
    for stage in range(3):
        width = 16 * widen * 2**stage
        pixels = pixels // 4 if stage else pixels
        first = channels * width * 9 + width * width * 9 + channels * width
        rest = (blocks - 1) * 2 * width * width * 9
        weights, products = weights + first + rest, products + (first + rest) * pixels
        others += 2 * (channels + width) + (blocks - 1) * 4 * width
        channels = width
    return weights + others + 2 * channels + (channels + 1) * classes, products + channels * classes


def resnet_by_hand(blocks: int, classes: int) -> tuple[int, int]:
    """Parameters, and multiply-adds for 32x32 pixels, of a ResNet with so many blocks in each of three stages."""
    stages = [2 * blocks * 16 * 16 * 9] + [(w // 2 * w + (2 * blocks - 1) * w * w) * 9 for w in (32, 64)]
    products = 3 * 16 * 9 * 1024 + sum(weights * 1024 // 4**stage for stage, weights in enumerate(stages))
    norms = 2 * (16 + 2 * blocks * (16 + 32 + 64))
    return 3 * 16 * 9 + sum(stages) + norms + 65 * classes, products + 64 * classes


def vgg_by_hand(classes: int) -> tuple[int, int]:
    """Parameters, and multiply-adds for 32x32 pixels, of VGG-16 with a classifier of 512 features."""
    widths = [[64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3]
    channels, count, products = 3, 0, 0
    for stage, of_stage in enumerate(widths):
        for width in of_stage:
            count += channels * width * 9 + 2 * width
            products += channels * width * 9 * 1024 // 4**stage
            channels = width
    hidden = 2 * 512 * 512
    return count + hidden + 2 * 3 * 512 + 513 * classes, products + hidden + 512 * classes


@pytest.mark.parametrize(
    ('arguments', 'by_hand', 'millions'),
    [
        (DENSENET, densenet_by_hand(12, 12, 100), 187.2),
        (WRN, wrn_by_hand(6, 4, 100), 1298.6),
        ({'name': 'resnet56'}, resnet_by_hand(9, 100), 125.5),
        (VGG16, vgg_by_hand(100), 313.8),
    ],
    ids=['densenet_bc', 'wrn', 'resnet56', 'vgg16_cifar'],
)
def test_parameters_and_multiply_adds_are_those_counted_by_hand(arguments, by_hand, millions):
    with torch.device('meta'):
        network = model(num_classes=100, **arguments).module.eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, 32, 32))
    count, products = by_hand
    assert parameters(network) == count
    assert counter.get_total_flops() == 2 * products
    assert round(products / 1e6, 1) == millions


@pytest.mark.parametrize(
    ('arguments', 'units', 'blocks'),
    [
        # Convolutions and linear layers; a WRN's depth is the number of its convolutions alone.
        (DENSENET, 76, 1 + 36 + 2 + 1),
        (WRN, 40 + 1, 1 + 18 + 1),
        ({'name': 'resnet56'}, 56, 1 + 27 + 1),
        (VGG16, 16, 16),
    ],
    ids=['densenet_bc', 'wrn', 'resnet56', 'vgg16_cifar'],
)
def test_units_freeze_in_forward_order_and_every_cut_is_clean(arguments, units, blocks):
    network = model(**arguments).module
    observed = rehearse(network, lambda: network(torch.randn(2, 3, 32, 32)))
    partition = partition_model(network, observed)
    assert len(partition.units) == units
    assert partition.describe_bad_cuts() is None
    uses = [observed.uses[unit.parameters[0]].position for unit in partition.units]
    assert uses == sorted(uses)
    by_block = partition_model(network, observed, granularity='block')
    assert len(by_block.units) == blocks and by_block.describe_bad_cuts() is None


@pytest.mark.parametrize('arguments', [{'name': 'densenet_bc', 'depth': 10}, {'name': 'wrn', 'depth': 10}, VGG16])
def test_networks_for_small_images_take_any_channels_and_classes(arguments):
    network = model(num_classes=7, in_channels=1, **arguments).module
    assert network(torch.randn(2, 1, 32, 32)).shape == (2, 7)


def test_a_densenet_keeps_the_resolution_until_its_first_transition():
    features = model(**DENSENET).module.features
    assert [name for name, _ in features.named_children()][:2] == ['conv0', 'denseblock1']
    x = torch.randn(1, 3, 32, 32)
    assert features.conv0(x).shape == (1, 24, 32, 32)
    shapes = []
    features.transition2.register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    assert features(x).shape[2:] == (8, 8)
    # 24 + 12·12 = 168 → 84, 84 + 144 = 228 → 114.
    assert shapes == [(1, 114, 8, 8)]


def test_a_wide_residual_block_adds_to_what_it_was_given():
    block = model('wrn', depth=16, widen_factor=2).module.layer1
    x = torch.randn(2, 16, 8, 8)
    nn.init.zeros_(block[0].conv2.weight)
    nn.init.zeros_(block[1].conv2.weight)
    widened = block[0](x)
    assert torch.equal(widened, block[0].shortcut(torch.relu(block[0].bn1(x))))
    assert torch.equal(block[1](widened), widened)  # not activated


def test_dropout_is_off_unless_asked_for():
    def probabilities(**arguments):
        network = model('wrn', depth=10, widen_factor=1, **arguments).module
        return {m.p for m in network.modules() if isinstance(m, nn.Dropout)}

    assert probabilities() == {0.0}
    assert probabilities(dropout=0.3) == {0.3}


@pytest.mark.parametrize('depth', [8, 14, 20, 110])
def test_depth_counts_the_weight_layers(depth):
    network = model(f'resnet{depth}').module
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in network.modules()) == depth


@pytest.mark.parametrize(('channels', 'size'), [(1, 8), (3, 32), (4, 33)])
def test_any_channels_and_size(channels, size):
    network = CifarResNet(8, num_classes=7, in_channels=channels)
    assert network(torch.randn(2, channels, size, size)).shape == (2, 7)


def test_the_shortcut_subsamples_and_fills_with_zeros():
    shortcut = CifarResNet(8).layer2[0].downsample
    x = torch.randn(1, 16, 4, 4)
    y = shortcut(x)
    assert torch.equal(y[:, :16], x[:, :, ::2, ::2])
    assert y.shape == (1, 32, 2, 2) and y[:, 16:].count_nonzero() == 0


def test_convolutions_are_initialised_after_he():
    weight = CifarResNet(20).layer3[1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


def test_torchvision_wins_where_both_have_the_name():
    assert isinstance(model('resnet50').module, torchvision.models.ResNet)
    assert isinstance(model('resnet110').module, CifarResNet)
    assert isinstance(model('cifar_resnet50').module, CifarResNet)


@pytest.mark.parametrize('name', ['googlenet', 'inception_v3'])
def test_networks_with_auxiliary_heads_give_logits(name):
    network = model(name, num_classes=3)
    images = torch.randn(2, 3, 80, 80)
    assert network((images, None)).shape == (2, 3)


def test_arguments_reach_torchvision():
    network = model('vit_b_32', num_classes=3, image_size=64, dropout=0.5).module
    assert network.image_size == 64 and network.dropout == 0.5


@pytest.mark.parametrize('name', ['resnet18', 'resnet8'])
def test_metrics_know_the_number_of_classes(name):
    metrics = model(name, num_classes=4).get_metrics(is_train=False)
    assert set(metrics) == {'CrossEntropy', 'MulticlassAccuracy'}
    assert metrics['MulticlassAccuracy'].num_classes == 4


@pytest.mark.parametrize(
    ('name', 'arguments', 'path', 'part'),
    [
        ('resnet21', {}, 'model.name', '6n+2'),
        ('resnet2', {}, 'model.name', 'got 2'),
        ('resnet', {}, 'model.name', "did you mean 'resnet"),
        ('vit_b16', {}, 'model.name', "did you mean 'vit_b_16'?"),
        ('fcn_resnet50', {}, 'model.name', 'unknown name'),  # segmentation
        ('resnet18', {'in_channels': 1}, 'model.in_channels', 'must be 3'),
        ('resnet18', {'drop_out': 1}, 'model.drop_out', 'has no argument'),
        ('resnet20', {'dropout': 0.5}, 'model.dropout', 'resnet20 has no argument'),
        ('densenet_bc', {'depth': 75}, 'model.depth', '6n+4 with n of at least 1 (10, 16, 22'),
        ('densenet_bc', {'growth_rate': 0}, 'model.growth_rate', 'in [1, ∞), got 0'),
        ('wrn', {'depth': 4}, 'model.depth', 'got 4'),
        ('wrn', {'widen_factor': 0}, 'model.widen_factor', 'in [1, ∞), got 0'),
        ('wrn', {'widen_factor': 2.5}, 'model.widen_factor', '2.5 (number)'),
        ('wrn', {'width': 4}, 'model.width', "has no argument 'width'"),
        ('wrn', {'dropout': 1.5}, 'model.dropout', 'in [0, 1], got 1.5'),
        ('vgg16_cifar', {'depth': 16}, 'model.depth', "has no argument 'depth'"),
        ('vgg16_cifar', {'dropout': -0.1}, 'model.dropout', 'in [0, 1], got -0.1'),
        ('vgg_16cifar', {}, 'model.name', "did you mean 'vgg16_cifar'?"),
        ('alexnet', {'dropout': 'much'}, 'model.dropout', "'much' (string)"),
        ('resnet18', {'layers': [1, 1, 1, 1]}, 'model', 'layers'),
        ('googlenet', {'aux_logits': True}, 'model.aux_logits', 'fixed to False'),
    ],
)
def test_refusals(name, arguments, path, part):
    with pytest.raises(ConfigError) as caught:
        model(name, **arguments)
    (fault,) = caught.value.faults
    assert fault.path == path
    assert part in fault.message
