"""The package ends where FreezeOut in plain PyTorch does, with the same bits."""

import ast
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from composer_freezeout import FreezeOut, apply_freezeout

from . import reference
from .comparing import assert_equal
from .networks import ResidualNet, Transformer, chain
from .training import classifier, images, trainer

EPOCHS = 4
OPTIMIZERS: dict[str, Any] = {
    'sgd': lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    'adamw': lambda p: AdamW(p, lr=0.01),
}
# Of each network the layers by hand, in the order in which they run; a norm belongs to the layer before it. The package
# finds them itself, but for the transformer's: it would split attention into its two projections.
NETWORKS: dict[str, tuple[Any, list[list[str]]]] = {
    'chain': (chain, [*([f'conv{i}', f'bn{i}'] for i in (1, 2, 3)), ['head']]),
    'residual': (
        ResidualNet,
        [
            ['stem', 'stem_bn'],
            *([f'blocks.{block}.conv{i}', f'blocks.{block}.bn{i}'] for block in range(3) for i in (1, 2)),
            ['head'],
        ],
    ),
    'transformer': (
        Transformer,
        [
            ['embedding', 'blocks.0.ln1'],
            ['blocks.0.attention', 'blocks.0.ln2'],
            ['blocks.0.mlp.0'],
            ['blocks.0.mlp.2', 'blocks.1.ln1'],
            ['blocks.1.attention', 'blocks.1.ln2'],
            ['blocks.1.mlp.0'],
            ['blocks.1.mlp.2'],
            ['lm_head'],
        ],
    ),
}


def made(name: str) -> tuple[nn.Module, list[nn.Module]]:
    torch.manual_seed(0)
    build, names = NETWORKS[name]
    network = build()
    return network, [nn.ModuleList(network.get_submodule(part) for part in layer) for layer in names]


def batches(name: str) -> list[Any]:
    if name != 'transformer':
        return list(images())
    tokens = torch.randint(0, 11, (16, 5), generator=torch.Generator().manual_seed(1))
    return [(part, part) for part in tokens.split(4)]


def train(network: nn.Module, optimizer: Any, freezer: Any, data: list[Any], loss: Any) -> None:
    for epoch in range(EPOCHS):
        network.train()
        for index, (inputs, targets) in enumerate(data):
            freezer.batch_start((epoch * len(data) + index) / (EPOCHS * len(data)))
            optimizer.zero_grad()
            loss(network(inputs), targets).backward()
            optimizer.step()
        freezer.epoch_end()


def cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def trained_by_reference(
    network: str, optimizer: str, settings: dict[str, Any], loss: Any = cross_entropy
) -> nn.Module:
    model, layers = made(network)
    optimizing = OPTIMIZERS[optimizer]([{'params': list(layer.parameters())} for layer in layers])
    train(model, optimizing, reference.FreezeOut(layers, optimizing, **settings), batches(network), loss)
    return model


SETTINGS = [
    {'t_0': 0.3 if how_scale == 'linear' else 0.6, 'how_scale': how_scale, 'scale_lr': scale_lr}
    for how_scale, scale_lr in itertools.product(['linear', 'squared', 'cubic'], [True, False])
]


@pytest.mark.parametrize('settings', SETTINGS, ids=lambda settings: '-'.join(map(str, settings.values())))
@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('network', NETWORKS)
def test_a_loop_ends_with_the_same_bits(network, optimizer, settings):
    model, layers = made(network)
    optimizing = OPTIMIZERS[optimizer](model.parameters())
    named = ['|'.join(map(re.escape, names)) for names in NETWORKS[network][1]] if network == 'transformer' else None
    freezer = apply_freezeout(model, optimizing, fuse_frozen=False, layers=named, **settings)
    train(model, optimizing, freezer, batches(network), cross_entropy)
    assert freezer.units_frozen == len(layers) - 1
    assert_equal(model.state_dict(), trained_by_reference(network, optimizer, settings).state_dict())


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('network', ['chain', 'residual'])
def test_a_trainer_ends_with_the_same_bits(network, optimizer):
    model = classifier(made(network)[0])
    settings = {'t_0': 0.6, 'how_scale': 'squared'}
    algorithm = FreezeOut(fuse_frozen=False, **settings)
    trainer(model, [algorithm], OPTIMIZERS[optimizer](model.parameters()), max_duration=f'{EPOCHS}ep').fit()

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> Any:
        return model.loss(outputs, (None, targets))

    expected = trained_by_reference(network, optimizer, settings, loss)
    assert_equal(model.module.state_dict(), expected.state_dict())


def test_other_settings_end_elsewhere():
    """So that equal bits say something."""
    ends = [trained_by_reference('chain', 'sgd', settings).state_dict()['conv1.weight'] for settings in SETTINGS]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(ends, 2))


def test_the_reference_is_plain_and_short():
    text = Path(reference.__file__).read_text(encoding='utf-8')
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = [alias.name for node in imports for alias in node.names] + [str(getattr(n, 'module', '')) for n in imports]
    assert not [name for name in names if 'composer' in name]
    assert len(text.splitlines()) < 80


def test_what_is_frozen_leaves_the_reference_s_optimizer_with_the_epoch():
    _, layers = made('chain')
    optimizer = SGD([{'params': list(layer.parameters())} for layer in layers], lr=0.1)
    freezer = reference.FreezeOut(layers, optimizer, t_0=0.5, how_scale='linear')
    freezer.batch_start(0.7)
    assert [group['lr'] > 0 for group in optimizer.param_groups] == [False, False, True, True]
    assert [all(p.requires_grad for p in layer.parameters()) for layer in layers] == [False, False, True, True]
    freezer.epoch_end()
    assert len(optimizer.param_groups) == 2
