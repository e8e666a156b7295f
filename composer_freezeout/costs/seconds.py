"""Measures on the real device what a training step takes with ``k`` frozen units."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from composer.models import ComposerModel
from torch.optim import Optimizer

from composer_freezeout.costs.batches import map_tensors, samples_of
from composer_freezeout.costs.bench import Bench, StepSeconds
from composer_freezeout.freezing.observing.units import Unit
from composer_freezeout.method.settings import BatchNormMode

__all__ = ['StepProfile', 'counts_to_measure', 'profile_steps']

# Up to so many units each number of frozen ones is measured, above that so many evenly spread ones.
_ALL_OF, _SPREAD = 12, 10


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
    bench = Bench(model, units, make_optimizer, device, precision, batchnorm)
    counts = counts_to_measure(len(units)) if counts is None else counts
    batch = map_tensors(batch, lambda tensor: tensor.to(device))
    # The warm-up and the rounds; a frozen model's steps are cheaper, which leaves a reserve.
    steps = (1 + min(repeats, 3)) * len(counts)
    batch = bench.largest_part(batch, (budget_seconds - (time.perf_counter() - started)) / steps)
    samples = _rounds(bench, batch, counts, repeats, until=started + budget_seconds)
    return StepProfile(
        steps={count: _median(steps) for count, steps in samples.items()},
        unit_forward=bench.unit_forward(batch, len(samples[0])),
        batch_size=samples_of(batch),
        repeats=len(samples[0]),
        device=device,
        precision=precision,
    )


def _rounds(
    bench: Bench, batch: Any, counts: Sequence[int], repeats: int, until: float
) -> dict[int, list[StepSeconds]]:
    """Steps by number of frozen units, which take turns; a round that would last too long is not begun."""
    for count in counts:
        bench.step(batch, count)
    samples: dict[int, list[StepSeconds]] = defaultdict(list)
    for _ in range(repeats):
        before = time.perf_counter()
        for count in counts:
            samples[count].append(bench.step(batch, count))
        now = time.perf_counter()
        if now + (now - before) > until:
            break
    return samples


def _median(steps: Sequence[StepSeconds]) -> StepSeconds:
    return StepSeconds(
        forward=statistics.median(step.forward for step in steps),
        backward=statistics.median(step.backward for step in steps),
        optimizer=statistics.median(step.optimizer for step in steps),
    )
