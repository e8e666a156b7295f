"""The networks of the YAML runner, by name.

``resnet<6n+2>`` (``resnet8``, ``resnet20``, ``resnet56``, ``resnet110``, …) is the CIFAR network of
`He et al., 2015 <https://arxiv.org/abs/1512.03385>`_, section 4.2, with parameter-free shortcuts (option A).
``densenet_bc``, ``wrn`` and ``vgg16_cifar`` are the other networks for small images that FreezeOut was published with.
Any other name is a classification network of torchvision, with random weights, or a model of the user's own
(:mod:`composer_freezeout.run.own_models`). Where both families have the name (``resnet50`` is 6·8 + 2) it is
torchvision's; ``cifar_resnet50`` is the other.
"""

import inspect
import re
from typing import Any

import torch
import torchvision
from composer.models import ComposerClassifier, ComposerModel
from torch import nn

from composer_freezeout.run.cifar_networks import CifarDenseNet, CifarResNet, CifarVGG16, CifarWideResNet
from composer_freezeout.run.config import ModelConfig
from composer_freezeout.run.faults import ConfigError, Fault, suggest
from composer_freezeout.run.frozen import freeze
from composer_freezeout.run.memory import check_memory
from composer_freezeout.run.own_models import build_own_model
from composer_freezeout.run.registered import MODELS
from composer_freezeout.run.registry import constructed
from composer_freezeout.run.signatures import check_arguments

__all__ = ['build_model', 'is_built_in']

_CIFAR_RESNET = re.compile(r'(?:cifar_)?resnet(\d+)')


_CIFAR_NETWORKS: dict[str, type[nn.Module]] = {
    'densenet_bc': CifarDenseNet,
    'vgg16_cifar': CifarVGG16,
    'wrn': CifarWideResNet,
}


def is_built_in(name: str) -> bool:
    """Whether a name is that of a network that comes with this package or with torchvision."""
    return name in _CIFAR_NETWORKS or _CIFAR_RESNET.fullmatch(name) is not None or name in _torchvision_names()


def _torchvision_names() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models)


def build_model(config: ModelConfig, path: str = 'model') -> ComposerModel:
    """Builds a network, with random weights if it is none of the user's own, and freezes of it what never trains.

    Args:
        config (ModelConfig): Name, classes, channels, and arguments of the network.
        path (str): Key path of the section, for errors.

    Returns:
        ComposerModel: The network with its loss and metrics: cross entropy and accuracy, unless it has its own.

    Raises:
        ConfigError: If the name or an argument is unknown or refused, memory cannot hold the network, or what is to be
            frozen is not in it.
    """
    if config.registered:
        model = build_own_model(config, path)
    else:
        _check_size(config, path)
        model = ComposerClassifier(_network(config, path), num_classes=config.num_classes)
    if config.freeze:
        freeze(model, config.freeze, f'{path}.freeze')
    return model


def _check_size(config: ModelConfig, path: str) -> None:
    try:
        with torch.random.fork_rng(devices=[]), torch.device('meta'):
            size = sum(parameter.nbytes for parameter in _network(config, path).parameters())
    except NotImplementedError:  # RegNets compute their widths with tensors
        return
    check_memory(2 * size, path, f'weights and gradients of {config.name}', 'choose a smaller network')


def _network(config: ModelConfig, path: str) -> nn.Module:
    torchvision_names = _torchvision_names()
    if config.name in torchvision_names:
        return _torchvision(config, path)
    if config.name in _CIFAR_NETWORKS:
        return _cifar_network(_CIFAR_NETWORKS[config.name], config, path)
    if match := _CIFAR_RESNET.fullmatch(config.name):
        return _cifar_resnet(int(match[1]), config, path)
    cifar_names = [*(f'resnet{depth}' for depth in (8, 14, 20, 32, 44, 56, 110)), *_CIFAR_NETWORKS]
    fault = f'unknown name {config.name!r}; {suggest(config.name, [*cifar_names, *torchvision_names, *MODELS])}'
    raise ConfigError([Fault(f'{path}.name', fault)])


def _classes(config: ModelConfig) -> int:
    assert config.num_classes is not None, 'checked with the configuration'
    return config.num_classes


def _cifar_resnet(depth: int, config: ModelConfig, path: str) -> nn.Module:
    if config.arguments:
        valid = ModelConfig.model_fields
        raise ConfigError(
            Fault(f'{path}.{key}', f'{config.name} has no argument {key!r}; {suggest(key, valid)}')
            for key in config.arguments
        )
    with constructed(f'{path}.name', {}):
        return CifarResNet(depth, _classes(config), config.in_channels)


def _cifar_network(network_class: type[nn.Module], config: ModelConfig, path: str) -> nn.Module:
    check_arguments(network_class, config.arguments, path)
    with constructed(path, config.arguments):
        return network_class(num_classes=_classes(config), in_channels=config.in_channels, **config.arguments)


def _torchvision(config: ModelConfig, path: str) -> nn.Module:
    if config.in_channels != 3:
        fault = f"must be 3 for {config.name}, which is torchvision's, got {config.in_channels}"
        raise ConfigError([Fault(f'{path}.in_channels', fault)])
    builder = torchvision.models.get_model_builder(config.name)
    # Builders pass on what they do not know themselves: the arguments are those of the class that they return.
    network_class = inspect.signature(builder).return_annotation
    check_arguments(network_class, config.arguments, path, partial=True)
    fixed: dict[str, Any] = {'num_classes': _classes(config)}
    parameters = inspect.signature(network_class).parameters
    if 'aux_logits' in parameters:
        fixed['aux_logits'] = False  # an auxiliary head changes the type of the output in training
    if 'init_weights' in parameters:
        fixed['init_weights'] = True
    if clash := sorted(fixed.keys() & config.arguments.keys()):
        raise ConfigError(Fault(f'{path}.{key}', f'is fixed to {fixed[key]} here; remove it') for key in clash)
    with constructed(path, config.arguments):
        return builder(weights=None, **fixed, **config.arguments)
