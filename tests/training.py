"""A real Trainer on small data, and what to look at while it runs."""

from collections.abc import Iterable
from typing import Any

import torch
from composer import Callback, Trainer
from composer.core import State
from composer.loggers import Logger
from composer.models import ComposerClassifier, ComposerModel
from composer.optim import DecoupledAdamW, DecoupledSGDW
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from .networks import chain

CLASSES = 4
BATCH_SIZE = 4


def images(samples: int = 16, size: int = 8, shuffle: bool = False) -> DataLoader:
    """Seeded random images; 4 batches an epoch unless told otherwise."""
    generator = torch.Generator().manual_seed(1)
    dataset = TensorDataset(
        torch.randn(samples, 3, size, size, generator=generator),
        torch.randint(0, CLASSES, (samples,), generator=generator),
    )
    return DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=shuffle)


def classifier(network: nn.Module | None = None, seed: int = 0) -> ComposerClassifier:
    """A seeded network as a ComposerModel."""
    if network is None:
        torch.manual_seed(seed)
        network = chain(classes=CLASSES)
    return ComposerClassifier(network, num_classes=CLASSES)


def trainer(
    model: ComposerModel, algorithms: Iterable[Any], optimizer: Optimizer | None = None, **arguments: Any
) -> Trainer:
    """A quiet Trainer on the CPU; SGD with momentum and 4 epochs of 4 batches unless told otherwise."""
    return Trainer(
        **{
            'model': model,
            'train_dataloader': images(),
            'max_duration': '4ep',
            'optimizers': optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
            'algorithms': list(algorithms),
            'device': 'cpu',
            'progress_bar': False,
            'seed': 3,
            **arguments,
        }
    )


OPTIMIZERS = {
    'sgd': lambda p: SGD(p, lr=0.1),
    'sgd-momentum': lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    'sgd-foreach': lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3, foreach=True),
    'adamw': lambda p: AdamW(p, lr=0.01),
    'adamw-foreach': lambda p: AdamW(p, lr=0.01, foreach=True),
    'decoupled-sgdw': lambda p: DecoupledSGDW(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    'decoupled-adamw': lambda p: DecoupledAdamW(p, lr=0.01),
}


def make_optimizer(name: str, model: nn.Module, grouped: bool = False) -> Optimizer:
    """An optimizer of every kind that a run may be resumed with; `grouped`, with another decay for vectors."""
    parameters: Any = list(model.parameters())
    if grouped:
        vectors = [p for p in parameters if p.ndim == 1]
        parameters = [{'params': [p for p in parameters if p.ndim > 1]}, {'params': vectors, 'weight_decay': 0.0}]
    return OPTIMIZERS[name](parameters)


class StepTrace(Callback):
    """Learning rates of each optimizer step, by parameter name; None where it is not in the optimizer.

    Behind the step: a Trainer runs the model within it, in a closure, and the first pass shows the units.
    """

    def __init__(self) -> None:
        self.steps: list[dict[str, float | None]] = []

    def after_load(self, state: State, logger: Logger) -> None:
        names = {id(p): name for name, p in state.model.named_parameters()}

        def record(optimizer: Optimizer, *_: object) -> None:
            rates = {names[id(p)]: float(group['lr']) for group in optimizer.param_groups for p in group['params']}
            self.steps.append({name: rates.get(name) for name in names.values()})

        state.optimizers[0].register_step_post_hook(record)
