"""Measures on the real device what a training step takes with ``k`` frozen units, and what it waits for."""

import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import torch
from composer.core import Precision, get_precision_context
from composer.models import ComposerModel
from composer.utils import map_collection
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from composer_freezeout.freezing.observing.units import Unit
from composer_freezeout.freezing.prefix.prefix import BatchNormMode, UnitFreezer

__all__ = ['Loading', 'StepProfile', 'StepSeconds', 'counts_to_measure', 'profile_loading', 'profile_steps']

# Up to so many units each number of frozen ones is measured, above that so many evenly spread ones.
_ALL_OF, _SPREAD = 12, 10
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


@dataclass(frozen=True)
class StepProfile:
    """Training steps, measured.

    Attributes:
        steps (dict[int, StepSeconds]): Median step by number of frozen units, ascending from 0 to ``n - 1``.
        unit_forward (tuple[float, ...]): Seconds that each unit's modules take in the forward pass of a step; what is
            between units (activations, pooling) isn't in them.
        batch_size (int): Samples of the measured steps.
        repeats (int): Steps that each median is of.
        device (torch.device): Where it was measured.
        precision (str): Composer's name of the precision.
    """

    steps: dict[int, StepSeconds]
    unit_forward: tuple[float, ...]
    batch_size: int
    repeats: int
    device: torch.device
    precision: str

    def scaled(self, batch_size: int) -> dict[int, StepSeconds]:
        """The steps of another batch size: passes take time in proportion to it, the optimizer doesn't.

        Args:
            batch_size (int): Samples of a step, in ``[1, ∞)``.

        Returns:
            dict[int, StepSeconds]: By number of frozen units.
        """
        factor = batch_size / self.batch_size
        return {
            count: StepSeconds(factor * step.forward, factor * step.backward, step.optimizer)
            for count, step in self.steps.items()
        }


@dataclass(frozen=True)
class Loading:
    """How fast batches can be loaded.

    Attributes:
        seconds (float): Mean seconds from one batch to the next while nothing else is done, in ``[0, ∞)``.
        batches (int): Batches that this is the mean of.
        overlapped (bool): Whether worker processes load during the steps.
    """

    seconds: float
    batches: int
    overlapped: bool


def counts_to_measure(num_units: int) -> list[int]:
    """Numbers of frozen units at which steps are measured.

    Args:
        num_units (int): Number of units ``n``, in ``[1, ∞)``.

    Returns:
        list[int]: Ascending from 0 to ``n - 1``: all of them up to 12 units, else 10, evenly spread.
    """
    if num_units <= _ALL_OF:
        return list(range(num_units))
    return [round((num_units - 1) * point / (_SPREAD - 1)) for point in range(_SPREAD)]


def profile_steps(
    model: ComposerModel,
    batch: Any,
    units: Sequence[Unit],
    make_optimizer: Callable[[Any], Optimizer],
    *,
    device: str | torch.device = 'cpu',
    precision: str = 'fp32',
    batchnorm: BatchNormMode = 'eval',
    repeats: int = 5,
    budget_seconds: float = 30.0,
    counts: Sequence[int] | None = None,
) -> StepProfile:
    """Times training steps of a copy of the model with more and more of its units frozen.

    The numbers of frozen units take turns, so that a machine that slows down doesn't favour one of them; each number's
    first step is for warming up. The learning rate is 0: the work is the same, and nothing diverges. If the steps of
    the whole batch don't fit into the budget, or into memory, they are done with its first samples.

    Args:
        model (ComposerModel): The model, with nothing frozen by an algorithm yet. It is not changed.
        batch (Any): A whole batch of a training step, in any nesting of tensors with the samples in front.
        units (Sequence[Unit]): Its ``n`` units, first to freeze first.
        make_optimizer (Callable[[Any], Optimizer]): From param groups, one per unit, to the optimizer.
        device (str | torch.device): Where to measure. Default: ``'cpu'``.
        precision (str): Composer's name of the precision. Default: ``'fp32'``.
        batchnorm (str): ``'eval'``, ``'batch'`` or ``'update'``. Default: ``'eval'``.
        repeats (int): Measured steps for each number of frozen units, in ``[1, ∞)``; fewer where time runs out.
            Default: 5.
        budget_seconds (float): About how long it may take, above 0; one step of two samples for each number of frozen
            units is measured in any case. Default: 30.
        counts (Sequence[int], optional): Numbers of frozen units, ascending from 0 to ``n - 1``. Default: ``None``,
            those of :func:`counts_to_measure`.

    Returns:
        StepProfile: The medians.

    Raises:
        ValueError: If ``repeats`` or ``budget_seconds`` is out of range.
    """
    if repeats < 1:
        raise ValueError(f'repeats must be at least 1, got {repeats}; a median of 5 or more is steadier')
    if not budget_seconds > 0:
        raise ValueError(f'budget_seconds must be above 0, got {budget_seconds}')
    device = torch.device(device)
    started = time.perf_counter()
    bench = _Bench(model, units, make_optimizer, device, precision, batchnorm)
    counts = counts_to_measure(len(units)) if counts is None else counts
    batch = map_collection(batch, lambda tensor: tensor.to(device))
    # The warm-up and the rounds; a frozen model's steps are cheaper, which leaves a reserve.
    steps = (1 + min(repeats, 3)) * len(counts)
    batch = bench.largest_part(batch, (budget_seconds - (time.perf_counter() - started)) / steps)
    for count in counts:
        bench.step(batch, count)
    samples: dict[int, list[StepSeconds]] = defaultdict(list)
    for done in range(repeats):
        before = time.perf_counter()
        for count in counts:
            samples[count].append(bench.step(batch, count))
        now = time.perf_counter()
        if done + 1 < repeats and now - started + (now - before) > budget_seconds:
            break
    return StepProfile(
        steps={count: _median(steps) for count, steps in samples.items()},
        unit_forward=bench.unit_forward(batch, len(samples[0])),
        batch_size=_size(batch),
        repeats=len(samples[0]),
        device=device,
        precision=precision,
    )


def profile_loading(loader: Iterable[Any], batches: int = 20, budget_seconds: float = 5.0) -> Loading:
    """Times how fast a loader brings batches while nobody else needs the machine.

    Args:
        loader (Iterable[Any]): The loader of the training; a ``DataLoader`` says whether it has workers.
        batches (int): How many to time, in ``[1, ∞)``; fewer where the epoch is shorter. Default: 20.
        budget_seconds (float): After how long no further batch is begun. Default: 5.

    Returns:
        Loading: The mean. The first batch, for which workers have to start, doesn't count if there is a second.

    Raises:
        ValueError: If the loader has no batches.
    """
    iterator = iter(loader)
    started = time.perf_counter()
    if next(iterator, None) is None:
        raise ValueError('the loader has no batches; give it at least one')
    first = time.perf_counter()
    loaded, last = 0, first
    for _ in islice(iterator, batches):
        loaded, last = loaded + 1, time.perf_counter()
        if last - started > budget_seconds:
            break
    workers = loader.num_workers if isinstance(loader, DataLoader) else 0
    seconds = (last - first) / loaded if loaded else first - started
    return Loading(seconds, max(1, loaded), workers > 0)


class _Bench:
    """A copy of the model that trains without moving."""

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
        self.freezer = UnitFreezer(self.model, units, batchnorm)
        groups = [{'params': [self.model.get_parameter(name) for name in unit.parameters]} for unit in units]
        self.optimizer = make_optimizer(groups)
        for group in self.optimizer.param_groups:
            group['lr'] = 0.0

    def step(self, batch: Any, units_frozen: int = 0) -> StepSeconds:
        self.freezer.set_frozen(units_frozen)
        self.freezer.hold_modes()
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
        """The first samples of a batch, as many as a step can handle within some seconds and the device's memory."""
        size = min(_SMALLEST_BATCH, _size(batch))
        self.step(_first(batch, size))  # whatever happens only once
        while size < _size(batch):
            larger = min(2 * size, _size(batch))
            taken = self.step(_first(batch, size)).total
            if taken * larger / size > seconds:
                break
            try:
                self.step(_first(batch, larger))
            except torch.OutOfMemoryError:
                self.optimizer.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
                break
            size = larger
        return _first(batch, size)

    def unit_forward(self, batch: Any, repeats: int) -> tuple[float, ...]:
        """Median seconds of each unit's modules in a forward pass."""
        self.freezer.set_frozen(0)
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


def _median(steps: Sequence[StepSeconds]) -> StepSeconds:
    return StepSeconds(
        forward=statistics.median(step.forward for step in steps),
        backward=statistics.median(step.backward for step in steps),
        optimizer=statistics.median(step.optimizer for step in steps),
    )


def _size(batch: Any) -> int:
    sizes: list[int] = []
    map_collection(batch, lambda tensor: sizes.append(len(tensor)))
    return sizes[0]


def _first(batch: Any, samples: int) -> Any:
    def part(tensor: Tensor) -> Tensor:
        return tensor[:samples]

    return map_collection(batch, part)
