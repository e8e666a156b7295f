"""The networks of the YAML runner, by name.

``resnet<6n+2>`` (``resnet8``, ``resnet20``, ``resnet56``, ``resnet110``, …) is the CIFAR network of
`He et al., 2015 <https://arxiv.org/abs/1512.03385>`_, section 4.2, with parameter-free shortcuts (option A). Any other
name is a classification network of torchvision, with random weights. Where both families have the name (``resnet50`` is
6·8 + 2) it is torchvision's; ``cifar_resnet50`` is the other.
"""

import inspect
import re
from typing import Any

import torch.nn.functional as F
import torchvision
from composer.models import ComposerClassifier
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from composer_freezeout.config import ConfigError, Fault, ModelConfig, suggest
from composer_freezeout.registry import check_arguments, constructed

__all__ = ['CifarResNet', 'build_model']

_CIFAR_RESNET = re.compile(r'(?:cifar_)?resnet(\d+)')


class _ShortcutA(nn.Module):
    """Option A of He et al.: skip every other pixel, and fill the new channels with zeros."""

    def __init__(self, new_channels: int):
        super().__init__()
        self.new_channels = new_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.new_channels))


class CifarResNet(nn.Module):
    """Residual network for small images: three stages of ``n`` basic blocks with 16, 32 and 64 channels.

    Shortcuts across stages have no parameters (option A: subsampling and zero padding), as in the paper.

    Args:
        depth (int): ``6n + 2`` with ``n`` in ``[1, ∞)``.
        num_classes (int): In ``[2, ∞)``.
        in_channels (int): In ``[1, ∞)``.

    Raises:
        ValueError: If ``depth`` is not of that form.
    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3):
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f'depth must be 6n+2 with n of at least 1 (8, 14, 20, …), got {depth}')
        self.conv1 = nn.Conv2d(in_channels, 16, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._stage(16, 16, blocks)
        self.layer2 = self._stage(16, 32, blocks)
        self.layer3 = self._stage(32, 64, blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')

    @staticmethod
    def _stage(inplanes: int, planes: int, blocks: int) -> nn.Sequential:
        widened = planes - inplanes
        first = BasicBlock(inplanes, planes, 2, _ShortcutA(widened)) if widened else BasicBlock(inplanes, planes)
        return nn.Sequential(first, *(BasicBlock(planes, planes) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


def build_model(config: ModelConfig, path: str = 'model') -> ComposerClassifier:
    """Builds a network with random weights.

    Args:
        config (ModelConfig): Name, classes, channels, and arguments of a torchvision network.
        path (str): Key path of the section, for errors.

    Returns:
        ComposerClassifier: The network with cross entropy and accuracy.

    Raises:
        ConfigError: If the name or an argument is unknown or refused.
    """
    torchvision_names = torchvision.models.list_models(module=torchvision.models)
    if config.name in torchvision_names:
        network = _torchvision(config, path)
    elif match := _CIFAR_RESNET.fullmatch(config.name):
        network = _cifar_resnet(int(match[1]), config, path)
    else:
        cifar_names = [f'resnet{depth}' for depth in (8, 14, 20, 32, 44, 56, 110)]
        fault = f'unknown name {config.name!r}; {suggest(config.name, [*cifar_names, *torchvision_names])}'
        raise ConfigError([Fault(f'{path}.name', fault)])
    return ComposerClassifier(network, num_classes=config.num_classes)


def _cifar_resnet(depth: int, config: ModelConfig, path: str) -> nn.Module:
    if config.arguments:
        valid = ModelConfig.model_fields
        raise ConfigError(
            Fault(f'{path}.{key}', f'{config.name} has no argument {key!r}; {suggest(key, valid)}')
            for key in config.arguments
        )
    with constructed(f'{path}.name', {}):
        return CifarResNet(depth, config.num_classes, config.in_channels)


def _torchvision(config: ModelConfig, path: str) -> nn.Module:
    if config.in_channels != 3:
        fault = f"must be 3 for {config.name}, which is torchvision's, got {config.in_channels}"
        raise ConfigError([Fault(f'{path}.in_channels', fault)])
    builder = torchvision.models.get_model_builder(config.name)
    # Builders pass on what they do not know themselves: the arguments are those of the class that they return.
    network_class = inspect.signature(builder).return_annotation
    check_arguments(network_class, config.arguments, path, partial=True)
    fixed: dict[str, Any] = {'num_classes': config.num_classes}
    parameters = inspect.signature(network_class).parameters
    if 'aux_logits' in parameters:
        fixed['aux_logits'] = False  # an auxiliary head changes the type of the output in training
    if 'init_weights' in parameters:
        fixed['init_weights'] = True
    if clash := sorted(fixed.keys() & config.arguments.keys()):
        raise ConfigError(Fault(f'{path}.{key}', f'is fixed to {fixed[key]} here; remove it') for key in clash)
    with constructed(path, config.arguments):
        return builder(weights=None, **fixed, **config.arguments)
