"""FreezeOut on one model and one optimizer, in any training loop."""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from composer_freezeout import schedule
from composer_freezeout.allocation import COST_SHIFT, check_unit_costs
from composer_freezeout.freezing import BatchNormMode, UnitFreezer, check_batchnorm
from composer_freezeout.groups import UnitGroups
from composer_freezeout.partition import (
    Granularity,
    Partition,
    check_granularity,
    check_layers,
    partition_model,
    trace_usage,
)
from composer_freezeout.schedule import HowScale

__all__ = ['LayerFreezer', 'apply_freezeout', 'check_settings', 'check_warmup']


def check_settings(
    t_0: float,
    how_scale: str,
    scale_lr: bool,
    layers: Sequence[str] | None,
    granularity: str,
    batchnorm: str,
    fuse_frozen: bool = True,
    unit_costs: Sequence[float] | None = None,
    cost_shift: float = COST_SHIFT,
) -> None:
    """Checks the arguments that :func:`apply_freezeout` and the algorithm have in common.

    Raises:
        TypeError: If one has the wrong type.
        ValueError: If one is out of range, or two contradict each other.
    """
    schedule.check_schedule(t_0, how_scale)
    check_unit_costs(unit_costs, cost_shift)
    check_granularity(granularity)
    check_batchnorm(batchnorm)
    for name, value in (('scale_lr', scale_lr), ('fuse_frozen', fuse_frozen)):
        if not isinstance(value, bool):
            raise TypeError(f'{name} must be True or False, got {value!r}')
    if layers is not None:
        check_layers(layers)
        if granularity != 'module':
            raise ValueError(f'layers already says what the units are; leave out granularity={granularity!r}')


class LayerFreezer:
    """Anneals and freezes the units of a model as training progresses.

    Call :meth:`batch_start` before each batch and :meth:`epoch_end` after each epoch. Between the two a unit that has
    frozen is out of the backward pass; from the end of the epoch it is out of the optimizer, too. What is frozen
    depends on the progress alone: if it falls back, because training was extended, units thaw.

    Args:
        model (nn.Module): The model, without a data-parallel wrapper.
        optimizer (Optimizer): Its optimizer; its param groups are split in place.
        partition (Partition): The model's units.
        t_0 (float): In ``(0, 1]``.
        how_scale (str): ``'linear'``, ``'squared'`` or ``'cubic'``.
        scale_lr (bool): Whether learning rates are scaled by ``1 / t_i``.
        batchnorm (str): ``'eval'``, ``'batch'`` or ``'update'``.
        fuse_frozen (bool): Whether a frozen prefix runs with the operators of inference.
        unit_costs (Sequence[float], optional): What freezing each unit saves of a step; freeze times are shifted by it.
        cost_shift (float): How far, in ``(0, 1]``.
        schedulers (Iterable[LRScheduler]): Schedulers of the optimizer, kept aligned with its groups.

    Attributes:
        freeze_times (tuple[float, ...]): Progress at which each unit freezes, in ``(0, 1]``.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        partition: Partition,
        *,
        t_0: float = 0.8,
        how_scale: HowScale = 'cubic',
        scale_lr: bool = True,
        batchnorm: BatchNormMode = 'eval',
        fuse_frozen: bool = True,
        unit_costs: Sequence[float] | None = None,
        cost_shift: float = COST_SHIFT,
        schedulers: Iterable[LRScheduler] = (),
    ) -> None:
        self.partition = partition
        self.scale_lr = scale_lr
        self.freeze_times = schedule.freeze_times(len(partition.units), t_0, how_scale, unit_costs, cost_shift)
        self.stages = schedule.freeze_stages(len(partition.units))
        self.freezer = UnitFreezer(model, partition.units, batchnorm, fuse_frozen)
        initial_factors = schedule.lr_factors(0.0, self.freeze_times, scale_lr)
        self.groups = UnitGroups(optimizer, model, partition.units, initial_factors, schedulers)
        self._sizes = [sum(model.get_parameter(p).numel() for p in unit.parameters) for unit in partition.units]
        self._shares = [size / sum(self._sizes) for size in accumulate(self._sizes, initial=0)]

    def limit_stages(self, max_stages: int | None) -> None:
        """Freezes units in stages from now on.

        Args:
            max_stages (int, optional): How often units may freeze in a training, in ``[1, ∞)``; None for no limit.

        Raises:
            ValueError: If it is out of range.
        """
        self.stages = schedule.freeze_stages(len(self.partition.units), max_stages)

    @property
    def units_frozen(self) -> int:
        """Number of frozen units, in ``[0, n)``."""
        return self.freezer.units_frozen

    @property
    def fraction_frozen(self) -> float:
        """Share of the trainable parameters that is frozen, in ``[0, 1)``."""
        return self._shares[self.units_frozen]

    def batch_start(self, progress: float, warmup: float = 0.0) -> bool:
        """Sets the learning rates of the next batch, and freezes the units whose time has come.

        Args:
            progress (float): Batches done over batches in all, in ``[0, 1)``.
            warmup (float): Progress at which the warm-up ends, in ``[0, freeze_times[0])``; 0 for none.

        Returns:
            bool: Whether the set of frozen units has changed.

        Raises:
            ValueError: If ``progress`` or ``warmup`` is out of range.
        """
        check_warmup(warmup, self.freeze_times[0])
        count = schedule.units_frozen(progress, self.freeze_times, self.stages)
        if count < self.groups.units_removed:
            self.groups.set_removed(count)
        changed = self.freezer.set_frozen(count)
        self.groups.set_learning_rates(schedule.lr_factors(progress, self.freeze_times, self.scale_lr, warmup))
        if changed:
            self.groups.forget_wrappers(count)
        return changed

    def epoch_end(self) -> None:
        """Takes the frozen units out of the optimizer and releases their optimizer state."""
        self.groups.set_removed(self.units_frozen)

    def learning_rates(self) -> dict[str, float]:
        """Learning rate of every unit, 0 for those that have left the optimizer."""
        rates = {unit.name: 0.0 for unit in self.partition.units[: self.groups.units_removed]}
        rates.update(self.groups.learning_rates())
        return rates

    def unit_table(self) -> list[dict[str, Any]]:
        """One row per unit: ``name``, ``parameters`` (count), ``t_i`` and ``frozen``."""
        return [
            {'name': unit.name, 'parameters': size, 't_i': t_i, 'frozen': index < self.units_frozen}
            for index, (unit, size, t_i) in enumerate(
                zip(self.partition.units, self._sizes, self.freeze_times, strict=True)
            )
        ]


def check_warmup(warmup: float, first_freeze: float) -> None:
    """Checks that the warm-up is over before anything freezes.

    Args:
        warmup (float): Progress at which it ends, in ``[0, first_freeze)``.
        first_freeze (float): Freeze time of the first unit, in ``(0, 1]``.

    Raises:
        ValueError: If it is not.
    """
    if not 0 <= warmup < first_freeze:
        raise ValueError(
            f'the warm-up must end before the first unit freezes, at progress {first_freeze:.4g}, but it ends at '
            f'{warmup:.4g}; shorten t_warmup or raise t_0'
        )


def apply_freezeout(
    model: nn.Module,
    optimizer: Optimizer,
    forward: Callable[[], object] | None = None,
    t_0: float = 0.8,
    how_scale: HowScale = 'cubic',
    scale_lr: bool = True,
    layers: Sequence[str] | None = None,
    granularity: Granularity = 'module',
    batchnorm: BatchNormMode = 'eval',
    fuse_frozen: bool = True,
    unit_costs: Sequence[float] | None = None,
    cost_shift: float = COST_SHIFT,
) -> LayerFreezer:
    """Sets up `FreezeOut <https://arxiv.org/abs/1706.04983>`_ for a training loop without a trainer.

    Splits the optimizer's param groups in place, one per unit, and returns the object that anneals and freezes them.

    Example:
        .. code-block:: python

            freezer = apply_freezeout(model, optimizer, lambda: model(example_inputs))
            for epoch in range(epochs):
                model.train()
                for batch, (inputs, targets) in enumerate(loader):
                    freezer.batch_start((epoch * len(loader) + batch) / (epochs * len(loader)))
                    optimizer.zero_grad()
                    loss_fn(model(inputs), targets).backward()
                    optimizer.step()
                freezer.epoch_end()

    Args:
        model (nn.Module): The model.
        optimizer (Optimizer): Its optimizer.
        forward (Callable[[], object], optional): Runs the model once on an example batch, to see in which order it uses
            its parameters. May be left out if ``layers`` gives the order.
        t_0 (float): Freeze time of the first unit before scaling, in ``(0, 1]``. Default: ``0.8``.
        how_scale (str): ``'linear'``, ``'squared'`` or ``'cubic'``. Default: ``'cubic'``.
        scale_lr (bool): Whether learning rates are scaled by ``1 / t_i``. Default: ``True``.
        layers (Sequence[str], optional): Regular expressions over module names, one unit each, first to freeze first.
        granularity (str): ``'module'`` or ``'block'``. Default: ``'module'``.
        batchnorm (str): What a frozen BatchNorm does in training: ``'eval'``, ``'batch'`` or ``'update'``.
            Default: ``'eval'``.
        fuse_frozen (bool): Whether a frozen prefix runs with the operators of inference while the model trains:
            BatchNorm folded into the convolution before it, attention without dropout in one operator. Faster, and
            equal to rounding. Default: ``True``.
        unit_costs (Sequence[float], optional): What freezing each unit saves of a step, in any unit of cost, first unit
            first; expensive units then freeze earlier and cheap ones later, which is not the paper's schedule. Default:
            ``None``, the paper's.
        cost_shift (float): How much earlier a unit freezes that costs twice the average, as a fraction of training, in
            ``(0, 1]``. Default: ``0.25``.

    Returns:
        LayerFreezer: To be called at the start of each batch and at the end of each epoch.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range or the model can't be split as asked.
    """
    check_settings(t_0, how_scale, scale_lr, layers, granularity, batchnorm, fuse_frozen, unit_costs, cost_shift)
    if not isinstance(model, nn.Module) or isinstance(model, (DistributedDataParallel, nn.DataParallel)):
        raise TypeError(f'model must be a module, without a data-parallel wrapper, got {type(model).__name__}')
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f'optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}')
    if forward is not None and (not callable(forward) or forward is model):
        raise TypeError('forward must be a function without arguments, such as `lambda: model(example_inputs)`')
    usage = trace_usage(model, forward) if forward is not None else None
    return LayerFreezer(
        model,
        optimizer,
        partition_model(model, usage, layers, granularity),
        t_0=t_0,
        how_scale=how_scale,
        scale_lr=scale_lr,
        batchnorm=batchnorm,
        fuse_frozen=fuse_frozen,
        unit_costs=unit_costs,
        cost_shift=cost_shift,
    )
