"""A copy of a model on the real device, whose training steps are timed part by part."""

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from composer.core import Precision, get_precision_context
from composer.models import ComposerModel
from torch import nn
from torch.optim import Optimizer

from composer_freezeout.costs.batches import first_samples, samples_of
from composer_freezeout.freezing.observing.units import Unit
from composer_freezeout.freezing.prefix.prefix import FrozenPrefix
from composer_freezeout.method.settings import BatchNormMode

__all__ = ['Bench', 'StepSeconds']

_SMALLEST_BATCH = 2  # of which BatchNorm still has statistics


@dataclass(frozen=True)
class StepSeconds:
    """What one training step takes.

    Attributes:
        forward (float): Seconds of the forward pass and the loss.
        backward (float): Seconds of the backward pass.
        optimizer (float): Seconds of the optimizer's step.
    """

    forward: float
    backward: float
    optimizer: float

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return self.forward + self.backward + self.optimizer


class Bench:
    """A copy of a model that trains without moving: its learning rates are 0.

    Args:
        model (ComposerModel): The model, with nothing frozen by an algorithm yet. It is not changed.
        units (Sequence[Unit]): Its ``n`` units, first to freeze first.
        make_optimizer (Callable[[Any], Optimizer]): From param groups, one per unit, to the optimizer.
        device (torch.device): Where it trains.
        precision (str): Composer's name of the precision.
        batchnorm (str): ``'eval'``, ``'batch'`` or ``'update'``.
    """

    def __init__(
        self,
        model: ComposerModel,
        units: Sequence[Unit],
        make_optimizer: Callable[[Any], Optimizer],
        device: torch.device,
        precision: str,
        batchnorm: BatchNormMode,
    ) -> None:
        self.device = device
        self.precision = Precision(precision)
        self.model = copy.deepcopy(model).to(device).train()
        self.modules = [_modules_of(self.model, unit) for unit in units]
        self.prefix = FrozenPrefix(self.model, units, batchnorm)
        groups = [{'params': [self.model.get_parameter(name) for name in unit.parameters]} for unit in units]
        self.optimizer = make_optimizer(groups)
        for group in self.optimizer.param_groups:
            group['lr'] = 0.0

    def step(self, batch: Any, units_frozen: int = 0) -> StepSeconds:
        """Does a training step.

        Args:
            batch (Any): The batch, on the device.
            units_frozen (int): In ``[0, n)``. Default: 0.

        Returns:
            StepSeconds: What it took.
        """
        self.prefix.set_frozen(units_frozen)
        self.prefix.hold_modes()
        times = [self._now()]
        with get_precision_context(self.precision):
            loss: Any = self.model.loss(self.model(batch), batch)
        times.append(self._now())
        loss.backward()
        times.append(self._now())
        self.optimizer.step()
        times.append(self._now())
        # As in training, at no cost: gradients are released, not filled with zeros.
        self.optimizer.zero_grad(set_to_none=True)
        return StepSeconds(*(after - before for before, after in pairwise(times)))

    def largest_part(self, batch: Any, seconds: float) -> Any:
        """The first samples of a batch, as many as a step can handle within some seconds and the device's memory.

        Args:
            batch (Any): The batch, on the device.
            seconds (float): For a step; two samples are taken in any case.

        Returns:
            Any: At least two samples, if the batch has them.
        """
        size = min(_SMALLEST_BATCH, samples_of(batch))
        self.step(first_samples(batch, size))  # whatever happens only once
        while size < samples_of(batch):
            larger = min(2 * size, samples_of(batch))
            taken = self.step(first_samples(batch, size)).total
            if taken * larger / size > seconds:
                break
            try:
                self.step(first_samples(batch, larger))
            except torch.OutOfMemoryError:
                self.optimizer.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
                break
            size = larger
        return first_samples(batch, size)

    def unit_forward(self, batch: Any, repeats: int) -> tuple[float, ...]:
        """Median seconds of each unit's modules in a forward pass.

        Args:
            batch (Any): The batch, on the device.
            repeats (int): Of how many passes, in ``[1, ∞)``.

        Returns:
            tuple[float, ...]: ``n`` numbers.
        """
        self.prefix.set_frozen(0)
        rounds = []
        for _ in range(repeats):
            with self._timed_modules() as seconds, get_precision_context(self.precision):
                self.model(batch)
            rounds.append(list(seconds))
        return tuple(statistics.median(times) for times in zip(*rounds, strict=True))

    @contextmanager
    def _timed_modules(self) -> Iterator[list[float]]:
        seconds = [0.0] * len(self.modules)
        handles = []

        def time_module(module: nn.Module, unit: int) -> None:
            entered: list[float] = []
            handles.append(module.register_forward_pre_hook(lambda *_: entered.append(self._now())))

            def leave(*_: object) -> None:
                seconds[unit] += self._now() - entered.pop()

            handles.append(module.register_forward_hook(leave))

        for index, modules in enumerate(self.modules):
            for module in modules:
                time_module(module, index)
        try:
            yield seconds
        finally:
            for handle in handles:
                handle.remove()

    def _now(self) -> float:
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _modules_of(model: nn.Module, unit: Unit) -> list[nn.Module]:
    """The outermost modules all of whose parameters belong to a unit."""
    own, chosen = set(unit.parameters), {}
    for name, module in model.named_modules():
        held = {f'{name}.{local}' if name else local for local, _ in module.named_parameters()}
        within = any(name.startswith(f'{other}.') for other in chosen)
        if not within and ((held and held <= own) or name in unit.norms):
            chosen[name] = module
    return list(chosen.values())
