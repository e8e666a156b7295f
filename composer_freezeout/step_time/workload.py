"""What is trained in the steps that are measured, and what all ways of doing them have in common."""

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

from composer_freezeout.costs.activations import saved_bytes
from composer_freezeout.costs.predict import partition_for
from composer_freezeout.freezing.observing.units import Unit
from composer_freezeout.method.settings import Settings
from composer_freezeout.run.config import ModelConfig
from composer_freezeout.run.faults import ConfigError, Refused
from composer_freezeout.run.memory import check_memory
from composer_freezeout.run.models import build_model
from composer_freezeout.step_time.command_line import TRANSFORMER
from composer_freezeout.step_time.record import Conditions

__all__ = ['OPTIMIZERS', 'Probe', 'Variant', 'Workload', 'make_workload']

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

    def notes(self) -> dict[str, Any]:
        """What the record says of it, besides what is counted and timed: keys of a ``Row``."""
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


def make_workload(given: Conditions, device: torch.device, steps: int) -> Workload:
    """Builds a model and a batch of random images.

    Args:
        given (Conditions): What was asked for.
        device (torch.device): Where it is trained.
        steps (int): Steps of a visit, in ``[1, ∞)``.

    Returns:
        Workload: Ready to be measured.

    Raises:
        ConfigError: If there is no such model, or no memory for a step.
        Refused: If the model can't handle images of this size.
    """
    torch.manual_seed(given.seed)
    try:
        classifier = _build(given)
        if device.type == 'cpu':
            _check_step(classifier, given)
        images = torch.randn(given.batch_size, 3, given.image_size, given.image_size)
        labels = torch.randint(given.num_classes, (given.batch_size,))
        units = partition_for(classifier, (images[:2], labels[:2]), Settings()).units
        _set_statistics(classifier, images[:_SAMPLES])
    except ConfigError:
        raise
    except (AssertionError, RuntimeError, ValueError) as error:
        size, message = given.image_size, ' '.join(str(error).split())[:200]
        raise Refused(f'--model: {given.model} cannot handle images of {size}x{size} pixels: {message}') from None
    if given.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return Workload(
        model=classifier,
        batch=(images.to(device), labels.to(device)),
        units=units,
        device=device,
        precision=given.precision,
        channels_last=given.channels_last,
        compile_backend=given.compile,
        optimizer=given.optimizer,
        foreach=None,
        steps=steps,
    )


def _build(given: Conditions) -> ComposerClassifier:
    if given.model != TRANSFORMER:
        classifier = build_model(ModelConfig(name=given.model, num_classes=given.num_classes))
        assert isinstance(classifier, ComposerClassifier), 'no model of a user has been registered'
        return classifier
    network = torchvision.models.VisionTransformer(
        image_size=given.image_size,
        patch_size=max(1, given.image_size // 8),
        num_layers=6,
        num_heads=4,
        hidden_dim=128,
        mlp_dim=512,
        num_classes=given.num_classes,
    )
    # Zeros at the start, which would leave all that is before it without a gradient.
    nn.init.normal_(network.heads[-1].weight, std=0.02)  # pyright: ignore[reportArgumentType, reportIndexIssue]
    return ComposerClassifier(network, num_classes=given.num_classes)


def _check_step(model: ComposerClassifier, given: Conditions) -> None:
    """Makes sure that there is memory for a batch and what the forward pass of a step keeps, before any is taken."""
    size, samples = given.image_size, given.batch_size
    example = torch.empty(2, 3, size, size, device='meta'), torch.empty(2, dtype=torch.long, device='meta')
    image = example[0].nbytes + saved_bytes(model, example)
    what = f'{samples} images of {size}x{size} and their activations in a step of {given.model}'
    check_memory(image * samples // 2, '--batch-size', what, 'choose fewer or smaller ones')


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
