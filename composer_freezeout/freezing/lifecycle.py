"""The units of one training, from the first pass, which shows them, to the checkpoint.

What the algorithm and the loop have in common.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from composer_freezeout.freezing.checkpoint import Saved
from composer_freezeout.freezing.execution.execution import Execution
from composer_freezeout.freezing.execution.ranks import agree_on
from composer_freezeout.freezing.freezer import LayerFreezer
from composer_freezeout.freezing.observing.observation import Observation
from composer_freezeout.freezing.observing.observer import Observer
from composer_freezeout.freezing.observing.partition import Partition, partition_model
from composer_freezeout.freezing.observing.recorder import Recorder
from composer_freezeout.freezing.observing.rehearsal import rehearse
from composer_freezeout.method.settings import Settings

__all__ = ['Lifecycle', 'agreed']

log = logging.getLogger(__name__)


class Lifecycle:
    """Finds the units, has them frozen one after another, and keeps what a checkpoint has to hold.

    Args:
        settings (Settings): What the user has chosen.
        called_whole (bool): Whether the model is always called itself, and never by its parts.

    Attributes:
        settings (Settings): The same.
        freezer (LayerFreezer, optional): What freezes the units; None until they are known.
        frozen_at (list[int]): Batches trained before each frozen unit froze, one per frozen unit.
    """

    def __init__(self, settings: Settings, called_whole: bool = False) -> None:
        self.settings = settings
        self.freezer: LayerFreezer | None = None
        self.frozen_at: list[int] = []
        self._called_whole = called_whole
        self._observer: Observer | None = None

    # --- finding the units

    @property
    def is_observing(self) -> bool:
        """Whether the model is being watched."""
        return self._observer is not None

    def observe(
        self, model: nn.Module, done: Callable[[], None] | None = None, recorder: Recorder | None = None
    ) -> None:
        """Watches the model from now on; anew, where an earlier pass has failed.

        Args:
            model (nn.Module): The model, without a wrapper.
            done (Callable[[], None], optional): Called once it has run.
            recorder (Recorder, optional): What sees the operators.
        """
        self.stop_observing()
        self._observer = Observer(model, recorder)
        self._observer.start(done)

    def stop_observing(self) -> None:
        """Leaves the model alone."""
        if self._observer is not None:
            self._observer.stop()
            self._observer = None

    def observed(self, losses: Iterable[Tensor] | None = None) -> tuple[Observation, Mapping[str, nn.Parameter]]:
        """What was seen, and the parameters by name; the model is watched no longer.

        Args:
            losses (Iterable[Tensor], optional): The losses; None where nobody knows them.
        """
        assert self._observer is not None
        observer, self._observer = self._observer, None
        return observer.finish(observer.outputs if losses is None else losses), observer.parameters

    def rehearse(self, execution: Execution, forward: Callable[[], object]) -> Observation:
        """What a pass of its own shows, which leaves no trace.

        Args:
            execution (Execution): How the model runs.
            forward (Callable[[], object]): Runs the model on a batch, and returns the losses or the outputs.
        """
        with execution.rehearsing():
            return rehearse(execution.module, forward)

    def partition(self, model: nn.Module, observed: Observation) -> Partition:
        """The units that a pass has shown, the same on all ranks.

        Args:
            model (nn.Module): The model, without a wrapper.
            observed (Observation): What was seen.
        """
        settings = self.settings
        return agreed(partition_model(model, observed, settings.layers, settings.granularity, settings.head))

    def set_up(
        self,
        execution: Execution,
        optimizer: Optimizer,
        partition: Partition,
        *,
        schedulers: Iterable[LRScheduler] = (),
        observed: Observation | None = None,
        parameters: Mapping[str, nn.Parameter] | None = None,
    ) -> LayerFreezer:
        """Splits the optimizer's groups, one for each unit; arguments are those of :class:`.LayerFreezer`."""
        self.freezer = LayerFreezer.from_settings(
            execution.module,
            optimizer,
            partition,
            self.settings,
            schedulers=schedulers,
            observed=observed,
            parameters=parameters,
        )
        self.freezer.prefix.called_whole = self._called_whole
        self.limit_stages(execution)
        return self.freezer

    def limit_stages(self, execution: Execution) -> None:
        """Freezes units as often as is worth while for how the model runs.

        Args:
            execution (Execution): How it runs.
        """
        assert self.freezer is not None
        self.freezer.limit_stages(execution.stage_limit(self.settings.max_stages))

    def unit_table(self) -> list[dict[str, Any]]:
        """That of :meth:`.LayerFreezer.unit_table`; before the units are known it is empty, and a message says why."""
        if self.freezer is None:
            log.warning(
                'FreezeOut: the units are not known before the first batch; composer_freezeout.plan(model, batch, '
                'optimizer, duration) tells them, and what freezing them saves, before training.'
            )
            return []
        return self.freezer.unit_table()

    # --- training

    def batch_start(self, progress: float, warmup: float, batches: int, running: bool = False) -> bool:
        """Calls :meth:`.LayerFreezer.batch_start`, and notes when units freeze.

        Args:
            progress (float): In ``[0, 1)``.
            warmup (float): Progress at which the warm-up ends.
            batches (int): Batches trained so far, in ``[0, ∞)``.
            running (bool): Whether the batch has run forward already.

        Returns:
            bool: Whether the set of frozen units has changed; then :meth:`.LayerFreezer.follow` has to be called.
        """
        assert self.freezer is not None
        if not self.freezer.batch_start(progress, warmup, running):
            return False
        frozen = self.freezer.units_frozen
        del self.frozen_at[frozen:]
        self.frozen_at += [batches] * (frozen - len(self.frozen_at))
        return True

    # --- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The units, and what has been frozen and removed; empty before the units are known."""
        return {} if self.freezer is None else self.freezer.saved(self.frozen_at).state_dict()

    def restore(self, saved: Saved) -> bool:
        """Freezes what was frozen, and removes what was removed, when a checkpoint was made.

        Args:
            saved (Saved): What it holds; its units are these.

        Returns:
            bool: As :meth:`batch_start`.
        """
        assert self.freezer is not None
        self.frozen_at = list(saved.frozen_at)
        return self.freezer.restore(saved)


def agreed(partition: Partition) -> Partition:
    """The units of the first rank, on all of them, with a word on what the user should know of them.

    Args:
        partition (Partition): Those of this rank.
    """
    partition = agree_on(partition)
    for problem in partition.problems():
        log.warning('FreezeOut: %s.', problem)
    return partition
