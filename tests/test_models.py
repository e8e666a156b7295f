"""Networks by name."""

import pytest
import torch
import torchvision
from torch import nn

from composer_freezeout.config import ConfigError, ModelConfig
from composer_freezeout.models import CifarResNet, build_model


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
