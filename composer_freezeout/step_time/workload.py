"""What is trained in the steps that ``step_time.py`` measures, and what all ways of doing them have in common."""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torchvision
from composer.core import Precision, get_precision_context
from composer.models import ComposerClassifier
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer

from composer_freezeout.algorithm.freezeout import FreezeOut
from composer_freezeout.freezing.observing.units import Unit
from composer_freezeout.run.config import ModelConfig
from composer_freezeout.run.models import build_model
from composer_freezeout.run.predicted import partition_for

__all__ = ['OPTIMIZERS', 'TRANSFORMER', 'Probe', 'Variant', 'Workload', 'make_workload']

TRANSFORMER = 'vit_small'

# Above zero, so that groups differ in it as they do in training; too small to change what is computed.
_LR = 1e-6
OPTIMIZERS = {
    'sgd': partial(SGD, lr=_LR, momentum=0.9, weight_decay=1e-4),
    'adamw': partial(AdamW, lr=_LR),
}
_SAMPLES = 64  # of which BatchNorm's statistics are taken


class Probe:
    """Told by a variant where it is within a step. This one ignores it."""

    def begin(self) -> None:
        """The batch is there."""

    def computed(self, loss: Tensor) -> None:
        """The forward pass is over."""

    def backpropagated(self) -> None:
        """The gradients are there."""

    def stepped(self) -> None:
        """The parameters have been updated."""

    def end(self) -> None:
        """The step is over."""


class Variant(Protocol):
    """A way of doing steps with a fixed number of frozen units."""

    @property
    def model(self) -> nn.Module:
        """What is trained."""
        ...

    @property
    def wrapper(self) -> DistributedDataParallel | None:
        """What exchanges its gradients with other processes; None in a single one."""
        ...

    def visit(self, probe: Probe) -> None:
        """Does :attr:`Workload.steps` steps.

        Args:
            probe (Probe): Told where each of them is.
        """
        ...

    def close(self) -> None:
        """Ends it; to be called once it won't be visited again."""
        ...


@dataclass(frozen=True)
class Workload:
    """What is trained.

    Attributes:
        model (ComposerClassifier): To be copied for each variant; on the CPU.
        batch (tuple[Tensor, Tensor]): Images ``(n, 3, size, size)`` and labels ``(n,)``, on the device.
        units (tuple[Unit, ...]): The units that FreezeOut makes of the model.
        device (torch.device): Where it is trained.
        precision (str): Composer's name of the precision.
        channels_last (bool): Memory format of images and weights.
        compile_backend (str, optional): Of ``torch.compile``; None for eager execution.
        optimizer (str): A key of :data:`OPTIMIZERS`.
        foreach (bool, optional): Whether the optimizer handles a group in multi-tensor calls; None for torch's choice.
        steps (int): Steps of a visit, in ``[1, ∞)``.
    """

    model: ComposerClassifier
    batch: tuple[Tensor, Tensor]
    units: tuple[Unit, ...]
    device: torch.device
    precision: str
    channels_last: bool
    compile_backend: str | None
    optimizer: str
    foreach: bool | None
    steps: int

    def copy_model(self) -> ComposerClassifier:
        """A copy of the model on the device, in training mode."""
        model = copy.deepcopy(self.model).to(self.device).train()
        if self.channels_last:
            # The signature that this has is not among those that are declared.
            model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        for module in (model, model.module):
            # torch.compile shares code among modules of a class: a variant would run what another has compiled.
            distinct: Any = type(type(module).__name__, (type(module),), {})
            module.__class__ = distinct
        return model

    def make_optimizer(self, parameters: Sequence[nn.Parameter]) -> Optimizer:
        """An optimizer with one group."""
        return OPTIMIZERS[self.optimizer](parameters, foreach=self.foreach)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of forward passes."""
        return get_precision_context(Precision(self.precision))


def make_workload(
    model: str,
    *,
    batch_size: int,
    image_size: int,
    num_classes: int,
    device: torch.device,
    precision: str,
    channels_last: bool,
    compile_backend: str | None,
    optimizer: str,
    steps: int,
    seed: int,
) -> Workload:
    """Builds a model and a batch of random images.

    Args:
        model (str): A name of :func:`composer_freezeout.run.models.build_model`, or :data:`TRANSFORMER`.
        batch_size (int): In ``[2, ∞)``.
        image_size (int): In pixels, in ``[1, ∞)``.
        num_classes (int): In ``[2, ∞)``.
        device (torch.device): Where it is trained.
        precision (str): Composer's name of the precision.
        channels_last (bool): Memory format of images and weights.
        compile_backend (str, optional): Of ``torch.compile``; None for eager execution.
        optimizer (str): A key of :data:`OPTIMIZERS`.
        steps (int): Steps of a visit, in ``[1, ∞)``.
        seed (int): Of weights and images.

    Returns:
        Workload: Ready to be measured.

    Raises:
        ConfigError: If there is no such model.
        ValueError: If the model can't handle images of this size.
    """
    torch.manual_seed(seed)
    if model == TRANSFORMER:
        network = torchvision.models.VisionTransformer(
            image_size=image_size,
            patch_size=max(1, image_size // 8),
            num_layers=6,
            num_heads=4,
            hidden_dim=128,
            mlp_dim=512,
            num_classes=num_classes,
        )
        # Zeros at the start, which would leave all that is before it without a gradient.
        nn.init.normal_(network.heads[-1].weight, std=0.02)  # pyright: ignore[reportArgumentType, reportIndexIssue]
        classifier = ComposerClassifier(network, num_classes=num_classes)
    else:
        classifier = build_model(ModelConfig(name=model, num_classes=num_classes))
    images = torch.randn(batch_size, 3, image_size, image_size)
    labels = torch.randint(num_classes, (batch_size,))
    try:
        units = partition_for(classifier, (images[:2], labels[:2]), FreezeOut()).units
    except RuntimeError as error:
        raise ValueError(f'{model} cannot handle images of {image_size}x{image_size} pixels: {error}') from None
    _set_statistics(classifier, images[:_SAMPLES])
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return Workload(
        model=classifier,
        batch=(images.to(device), labels.to(device)),
        units=units,
        device=device,
        precision=precision,
        channels_last=channels_last,
        compile_backend=compile_backend,
        optimizer=optimizer,
        foreach=None,
        steps=steps,
    )


def _set_statistics(model: ComposerClassifier, images: Tensor) -> None:
    """Gives BatchNorm the statistics of some images: with those that it begins with deep networks overflow."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()((images, None))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
