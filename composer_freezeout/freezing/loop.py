"""FreezeOut in a training loop without a trainer."""

import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from composer_freezeout.freezing.checkpoint import Saved, check_same_settings
from composer_freezeout.freezing.execution.find import execution_of
from composer_freezeout.freezing.freezer import LayerFreezer
from composer_freezeout.freezing.hooks import UncopiedHook
from composer_freezeout.freezing.lifecycle import Lifecycle, agreed
from composer_freezeout.freezing.observing.head import check_head
from composer_freezeout.freezing.observing.observer import refuse_scripted
from composer_freezeout.freezing.observing.partition import Partition, completed, partition_model
from composer_freezeout.freezing.optimizer.check import check_optimizer
from composer_freezeout.freezing.optimizer.groups import UnitGroups
from composer_freezeout.freezing.prefix.prefix import FrozenPrefix, release_earlier
from composer_freezeout.method.schedule import check_progress
from composer_freezeout.method.settings import Settings

__all__ = ['FreezeOutLoop']


class FreezeOutLoop:
    """Does in a loop what the algorithm does in a Trainer; made by :func:`.apply_freezeout`.

    Call :meth:`batch_start` before each batch and :meth:`epoch_end` after each epoch.

    Args:
        model (nn.Module): The model as it is trained, with its data-parallel wrapper.
        optimizer (Optimizer): Its optimizer.
        forward (Callable[[], object], optional): Runs the model on an example batch.
        settings (Settings): What the user has chosen.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        forward: Callable[[], object] | None,
        settings: Settings,
    ) -> None:
        self._wrapped = model
        self._execution = execution_of(model)
        self._model = self._execution.module
        self._optimizer = optimizer
        self._life = Lifecycle(settings)
        self._to_observe = False
        self._now: tuple[float, float] | None = None
        self._batches = 0
        self._ran_eagerly = False
        self._trained = 0  # batches since units froze
        refuse_scripted(self._model)
        release_earlier(self._model)
        self._model.register_forward_pre_hook(_noting_eager(self))
        if forward is not None:
            observed = self._life.rehearse(self._execution, forward)
            self._life.set_up(
                self._execution, optimizer, self._life.partition(self._model, observed), observed=observed
            )
            return
        check_optimizer(optimizer, (p for p in self._model.parameters() if p.requires_grad))
        if not self._execution.shows_steps:
            raise ValueError(
                'a compiled model cannot be watched while it trains; give `forward`, a function that runs it on an '
                'example batch, such as `lambda: model(example_inputs)`'
            )
        if settings.layers is not None:
            partition = partition_model(self._model, layers=settings.layers, head=settings.head)
            self._life.set_up(self._execution, optimizer, partition)
        elif settings.head is not None:
            check_head(self._model, settings.head)
        self._to_observe = True
        self._first_step = optimizer.register_step_pre_hook(self._before_first_step)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            'what apply_freezeout returns belongs to a model and an optimizer, and cannot be copied or pickled: copy '
            'these two, call apply_freezeout for the copies, and give its load_state_dict the state_dict() of this one'
        )

    @property
    def partition(self) -> Partition | None:
        """The units; None until the model has run for the first time, unless ``forward`` or ``layers`` tells them."""
        return None if self._life.freezer is None else self._life.freezer.partition

    @property
    def freeze_times(self) -> tuple[float, ...]:
        """Progress at which each unit freezes, in ``(0, 1]``; empty as long as the units are not known."""
        return () if self._life.freezer is None else self._life.freezer.freeze_times

    @property
    def units_frozen(self) -> int:
        """Number of frozen units, in ``[0, n)``."""
        return 0 if self._life.freezer is None else self._life.freezer.units_frozen

    @property
    def fraction_frozen(self) -> float:
        """Share of the trainable parameters that is frozen, in ``[0, 1)``."""
        return 0.0 if self._life.freezer is None else self._life.freezer.fraction_frozen

    @property
    def prefix(self) -> FrozenPrefix:
        """What keeps the units frozen.

        Raises:
            ValueError: If the units are not known yet.
        """
        return self._known().prefix

    @property
    def freezer(self) -> FrozenPrefix:
        """Another name of :attr:`prefix`, which loops written for it use."""
        return self.prefix

    @property
    def groups(self) -> UnitGroups:
        """The optimizer's groups.

        Raises:
            ValueError: If the units are not known yet.
        """
        return self._known().groups

    def batch_start(self, progress: float, warmup: float = 0.0) -> bool:
        """Sets the learning rates of the next batch, and freezes the units whose time has come.

        Where the first batch has to show what the units are, the rates are set once the model has run on it.

        Args:
            progress (float): Batches done over batches in all, in ``[0, 1)``.
            warmup (float): Progress at which the warm-up ends, in ``[0, freeze_times[0])``; 0 for none.

        Returns:
            bool: Whether the set of frozen units has changed.

        Raises:
            ValueError: If ``progress`` or ``warmup`` is out of range.
        """
        check_progress(progress)
        self._trained += self._now is not None
        self._now = progress, warmup
        self._batches += 1
        if self._to_observe:
            # Not before: what runs ahead of the training, like an evaluation with gradients, is no step of it.
            self._life.observe(self._model, self._observed)
        if self._life.freezer is None or not self._life.batch_start(progress, warmup, self._batches - 1):
            return False
        self._follow()
        return True

    def epoch_end(self) -> None:
        """Takes the frozen units out of the optimizer and releases their optimizer state."""
        if self._life.freezer is not None:
            self._life.freezer.epoch_end()

    def release(self) -> None:
        """Gives the layers of frozen units their own behaviour back, once training is over; they stay frozen."""
        if self._life.freezer is not None:
            self._life.freezer.prefix.release()

    def learning_rates(self) -> dict[str, float]:
        """Learning rate of every unit, 0 for those that have left the optimizer."""
        return {} if self._life.freezer is None else self._life.freezer.learning_rates()

    def unit_table(self) -> list[dict[str, Any]]:
        """One row per unit: ``name``, ``parameters`` (count), ``t_i`` and ``frozen``.

        Empty before the units are known, as a message says; :func:`.plan` tells them before training.
        """
        return self._life.unit_table()

    # --- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The settings, the units, and what has been frozen and removed, as plain lists and numbers.

        Save it with the state dicts of the model and the optimizer, and the run goes on as if it had not been
        interrupted.
        """
        settings = self._life.settings.state_dict()
        return {'settings': settings, 'batches': self._batches, **self._life.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Freezes and removes what was frozen and removed; before or after the optimizer's state is loaded.

        Args:
            state (Mapping[str, Any]): From :meth:`state_dict`.

        Raises:
            ValueError: If it comes from other settings or another model, or is damaged.
        """
        check_same_settings(state.get('settings') or {}, self._life.settings.state_dict())
        self._batches = state.get('batches', 0)
        if 'units' not in state:
            return
        saved = Saved.from_state_dict(state)
        known = self._life.freezer
        if known is None:
            saved.check_fit(self._model, self._optimizer)
        if known is None or self._shows_other_units(saved, known):
            self._life.set_up(self._execution, self._optimizer, saved.partition)
        elif not saved.partition.is_same(known.partition):
            raise ValueError('the saved FreezeOut units are not those of this model; build the same model and `layers`')
        self._observing_is_over()
        if self._life.restore(saved):
            self._follow()

    def _shows_other_units(self, saved: Saved, known: LayerFreezer) -> bool:
        """Whether the checkpoint's model is this one, which had a group added before training, or layers frozen."""
        if self._now is not None or not (saved.groups_added or saved.frozen_at):
            return False
        try:
            saved.check_fit(self._model, self._optimizer)
        except ValueError:
            return False
        return not saved.partition.is_same(known.partition)

    # --- set-up

    def _observed(self) -> None:
        observed, parameters = self._life.observed()
        self._observing_is_over()
        if (freezer := self._life.freezer) is not None:
            known = freezer.partition
            settings = self._life.settings
            partition = completed(known, self._model, observed, settings.layers, settings.head)
            if freezer.units_frozen:  # of frozen units the graph doesn't tell
                partition = replace(partition, cuts=known.cuts)
            freezer.learn(agreed(partition))
            return
        partition = self._life.partition(self._model, observed)
        self._life.set_up(self._execution, self._optimizer, partition, observed=observed, parameters=parameters)
        if self._now is not None:
            self._life.batch_start(*self._now, self._batches - 1, running=True)

    def _observing_is_over(self) -> None:
        self._life.stop_observing()
        if self._to_observe:
            self._to_observe = False
            self._first_step.remove()

    def _before_first_step(self, *_: object) -> None:
        if self._life.is_observing and self._now is not None:
            raise ValueError(
                'the optimizer takes a step, but the model has not been seen to run, so its units are unknown: call '
                'the model itself in training, not only parts of it and not a compiled version of it, or give '
                '`forward`, a function that runs what the loop runs'
            )

    def _known(self) -> LayerFreezer:
        if self._life.freezer is None:
            raise ValueError('the units are not known before the model has run for the first time; give `forward`')
        return self._life.freezer

    def _follow(self) -> None:
        # Of a compiled version that was made outside, the model shows nothing but that it never runs itself.
        never_ran = self._trained > 0 and not self._ran_eagerly
        self._ran_eagerly, self._trained = False, 0
        self._known().follow(execution_of(self._wrapped, compiled=never_ran))


def _noting_eager(loop: FreezeOutLoop) -> UncopiedHook:
    """A hook that tells a loop, as long as there is one, that its model has run as written, and not compiled."""
    reference = weakref.ref(loop)  # the model must not keep the loop alive

    def note(module: nn.Module, _: object) -> None:
        if torch.compiler.is_compiling() or not module.training:
            return
        alive = reference()
        if alive is not None:
            alive._ran_eagerly = True

    return UncopiedHook(note)
