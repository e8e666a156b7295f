"""FreezeOut on one model and one optimizer, in any training loop."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from composer_freezeout.freezing.checkpoint import Saved
from composer_freezeout.freezing.execution.execution import Execution
from composer_freezeout.freezing.observing.norms import place_norms
from composer_freezeout.freezing.observing.observation import Observation
from composer_freezeout.freezing.observing.partition import Partition
from composer_freezeout.freezing.optimizer.groups import UnitGroups
from composer_freezeout.freezing.prefix.buffers import BufferWatch
from composer_freezeout.freezing.prefix.prefix import FrozenPrefix
from composer_freezeout.freezing.prefix.starvation import GradientWatch
from composer_freezeout.method import schedule
from composer_freezeout.method.allocation import COST_SHIFT
from composer_freezeout.method.schedule import Anneal, HowScale
from composer_freezeout.method.settings import BatchNormMode, Settings

__all__ = ['LayerFreezer']


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
        anneal (str, optional): ``'shared'`` for one cosine for all units.
        schedulers (Iterable[LRScheduler]): Schedulers of the optimizer, kept aligned with its groups.
        observed (Observation, optional): What the step has shown that the units come from, if it is one of training.
        parameters (Mapping[str, nn.Parameter], optional): The model's parameters by name, where it shows others now, as
            a sharded one does between its forward and backward pass.

    Attributes:
        partition (Partition): The units.
        freeze_times (tuple[float, ...]): Progress at which each unit freezes, in ``(0, 1]``.
        stages (tuple[int, ...]): The numbers of frozen units that the training passes through.
        prefix (FrozenPrefix): What keeps the units frozen.
        groups (UnitGroups): The optimizer's groups.

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
        anneal: Anneal | None = None,
        schedulers: Iterable[LRScheduler] = (),
        observed: Observation | None = None,
        parameters: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        settings = Settings(
            t_0=t_0,
            how_scale=how_scale,
            scale_lr=scale_lr,
            batchnorm=batchnorm,
            fuse_frozen=fuse_frozen,
            unit_costs=unit_costs,
            cost_shift=cost_shift,
            anneal=anneal,
        )
        self._set_up(model, optimizer, partition, settings, schedulers, observed, parameters)

    @classmethod
    def from_settings(
        cls,
        model: nn.Module,
        optimizer: Optimizer,
        partition: Partition,
        settings: Settings,
        *,
        schedulers: Iterable[LRScheduler] = (),
        observed: Observation | None = None,
        parameters: Mapping[str, nn.Parameter] | None = None,
    ) -> 'LayerFreezer':
        """The same, of settings that have been checked. Units freeze each by itself: see :meth:`limit_stages`."""
        freezer = cls.__new__(cls)
        freezer._set_up(model, optimizer, partition, settings, schedulers, observed, parameters)
        return freezer

    def _set_up(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        partition: Partition,
        settings: Settings,
        schedulers: Iterable[LRScheduler],
        observed: Observation | None,
        parameters: Mapping[str, nn.Parameter] | None,
    ) -> None:
        parameters = dict(model.named_parameters()) if parameters is None else parameters
        self.partition = partition
        self._settings = settings
        self.freeze_times = settings.freeze_times(len(partition.units), partition.heads)
        self.limit_stages(None)
        self.prefix = FrozenPrefix(model, partition.units, settings.batchnorm, settings.fuse_frozen, parameters)
        initial_factors = settings.lr_factors(0.0, self.freeze_times)
        self.groups = UnitGroups(
            optimizer,
            parameters,
            partition.units,
            initial_factors,
            schedulers,
            lambda: self.check_gradients(finished=False),
        )
        self._model = model
        self._head = settings.head
        self._observed = Observation() if observed is None else observed
        self._buffers = BufferWatch(model, (norm for unit in partition.units for norm in unit.norms))
        self._watch = GradientWatch(model, parameters, observed)
        self._watch.start(self._trained())
        self._sizes = [sum(parameters[name].numel() for name in unit.parameters) for unit in partition.units]
        self._shares = [size / sum(self._sizes) for size in accumulate(self._sizes, initial=0)]

    def limit_stages(self, max_stages: int | None) -> None:
        """Freezes units in stages from now on.

        Args:
            max_stages (int, optional): How often units may freeze in a training, in ``[1, ∞)``; None for no limit.

        Raises:
            ValueError: If it is out of range.
        """
        freezing = len(self.partition.units) - self.partition.heads
        self.stages = schedule.freeze_stages(freezing + 1, max_stages)

    def learn(self, partition: Partition) -> None:
        """Takes in what training has shown of units that were known before.

        Args:
            partition (Partition): The same units, with the modules that have to stand still.
        """
        self.partition = partition
        self.prefix.learn(partition.units)

    def _learn_norms(self) -> None:
        """Finds modules whose buffers training has begun to change, as BatchNorm's after a time in evaluation."""
        if new := self._buffers.changed():
            known = frozenset(norm for unit in self.partition.units for norm in unit.norms)
            observed = replace(self._observed, changed=known | new)
            units = place_norms(self._model, self.partition.units, observed, head=self._head)
            self.learn(replace(self.partition, units=tuple(units)))

    def saved(self, frozen_at: Sequence[int]) -> Saved:
        """What a checkpoint has to hold.

        Args:
            frozen_at (Sequence[int]): Batches trained before each frozen unit froze, one per frozen unit.
        """
        self._learn_norms()
        groups = self.groups
        return Saved(
            self.partition,
            tuple(frozen_at),
            groups.units_removed,
            self.prefix.folding.known(),
            self._watch.known(),
            groups.added,
            groups.own_values(),
        )

    def restore(self, saved: Saved) -> bool:
        """Freezes what was frozen, and removes what was removed, when a checkpoint was made.

        Args:
            saved (Saved): What it holds; its units are these.

        Returns:
            bool: Whether the set of frozen units has changed.
        """
        self.groups.split()
        self.groups.set_added(saved.groups_added)
        self.groups.set_removed(saved.units_removed)
        self.groups.set_own_values(saved.own_values)
        self.learn(saved.partition)
        changed = self.prefix.set_frozen(len(saved.frozen_at))
        self.prefix.folding.learn(saved.folding)
        self._watch.learn(saved.gradients)
        if changed:
            self._watch.start(self._trained())
        return changed

    @property
    def units_frozen(self) -> int:
        """Number of frozen units, in ``[0, n)``."""
        return self.prefix.units_frozen

    @property
    def fraction_frozen(self) -> float:
        """Share of the trainable parameters that is frozen, in ``[0, 1)``."""
        return self._shares[self.units_frozen]

    def batch_start(self, progress: float, warmup: float = 0.0, running: bool = False) -> bool:
        """Sets the learning rates of the next batch, and freezes the units whose time has come.

        Args:
            progress (float): Batches done over batches in all, in ``[0, 1)``.
            warmup (float): Progress at which the warm-up ends, in ``[0, freeze_times[0])``; 0 for none.
            running (bool): Whether the batch has run forward already. Then units freeze with the next one, and those
                whose time has come have a learning rate of zero until then.

        Returns:
            bool: Whether the set of frozen units has changed.

        Raises:
            ValueError: If ``progress`` or ``warmup`` is out of range.
        """
        schedule.check_warmup(warmup, self.freeze_times[0])
        count = schedule.units_frozen(progress, self.freeze_times, self.stages)
        factors = self._settings.lr_factors(progress, self.freeze_times, warmup)
        if running:
            self.groups.set_learning_rates(factors)
            return False
        self.check_gradients()
        if count < self.groups.units_removed:
            self.groups.set_removed(count)
        if count > self.units_frozen:
            self._learn_norms()
        changed = self.prefix.set_frozen(count)
        self.groups.set_learning_rates(factors)
        if changed:
            if self.groups.moves_what_has_no_gradient:
                self.groups.set_removed(count)
            self._watch.start(self._trained())
        return changed

    def follow(self, execution: Execution) -> None:
        """Lets what surrounds the model know that other parameters are trainable now.

        Args:
            execution (Execution): How the model runs.
        """
        execution.after_freeze(self.prefix.frozen_norms)
        if not execution.runs_hooks:
            self._watch.stop()

    def epoch_end(self) -> None:
        """Takes the frozen units out of the optimizer and releases their optimizer state."""
        self.groups.set_removed(self.units_frozen)
        self.prefix.rest()

    def _trained(self) -> list[str]:
        return [name for unit in self.partition.units[self.units_frozen :] for name in unit.parameters]

    @property
    def is_watching(self) -> bool:
        """Whether the gradients of a batch have not been looked at yet, of those that are."""
        return self._watch.is_watching

    def check_gradients(self, finished: bool = True) -> None:
        """Makes sure, in the first batch after a freeze, that what still trains has got its gradients.

        Args:
            finished (bool): Whether the backward pass is over. If not, and there are none, they may be computed yet.

        Raises:
            ValueError: If a parameter has got none, although it has a part in the batch.
        """
        if self._watch.is_watching:
            frozen = self.partition.units[: self.units_frozen]
            self._watch.check(repr(frozen[-1].name) if frozen else 'nothing', finished)

    def learning_rates(self) -> dict[str, float]:
        """Learning rate of every unit, 0 for those that have left the optimizer; the names stay the same."""
        return self.groups.learning_rates()

    def unit_table(self) -> list[dict[str, Any]]:
        """One row per unit: ``name``, ``parameters`` (count), ``t_i`` and ``frozen``."""
        return [
            {'name': unit.name, 'parameters': size, 't_i': t_i, 'frozen': index < self.units_frozen}
            for index, (unit, size, t_i) in enumerate(
                zip(self.partition.units, self._sizes, self.freeze_times, strict=True)
            )
        ]
