"""FreezeOut as a Composer algorithm: events in, calls out."""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from composer.core import Algorithm, Event, Precision, State, Time, get_precision_context
from composer.loggers import Logger
from torch import nn

from composer_freezeout.algorithm.checks import check_batches, check_early
from composer_freezeout.algorithm.lengthening import Lengthening
from composer_freezeout.algorithm.messages import describe_end, describe_start, follow_composer
from composer_freezeout.algorithm.metrics import log_batch
from composer_freezeout.algorithm.progress import as_progress, parse_warmup, progress
from composer_freezeout.algorithm.rivals import refuse_rivals, warn_of_schedulers
from composer_freezeout.algorithm.saving import Saving
from composer_freezeout.costs.flops import losses_of
from composer_freezeout.freezing.checkpoint import ADOPT, Saved, check_same_settings
from composer_freezeout.freezing.execution.execution import Execution
from composer_freezeout.freezing.execution.find import execution_of
from composer_freezeout.freezing.freezer import LayerFreezer
from composer_freezeout.freezing.lifecycle import Lifecycle
from composer_freezeout.freezing.observing.observation import Observation
from composer_freezeout.freezing.observing.partition import Partition
from composer_freezeout.freezing.optimizer.check import check_optimizer
from composer_freezeout.freezing.prefix.around_forward import anchored
from composer_freezeout.freezing.prefix.prefix import release_earlier
from composer_freezeout.method.allocation import COST_SHIFT
from composer_freezeout.method.presets import Preset, takes_preset
from composer_freezeout.method.schedule import Anneal, HowScale
from composer_freezeout.method.settings import BatchNormMode, Granularity, Settings

__all__ = ['FreezeOut']

log = logging.getLogger(__name__)

# Composer asks in every event of every batch, and its enumerations are slow to compare other than by identity.
_EVENTS = frozenset(
    {
        Event.INIT,
        Event.AFTER_LOAD,
        Event.FIT_START,
        Event.BEFORE_DATALOADER,
        Event.BATCH_START,
        Event.BEFORE_FORWARD,
        Event.AFTER_LOSS,
        Event.AFTER_BACKWARD,
        Event.AFTER_TRAIN_BATCH,
        Event.EPOCH_END,
        Event.FIT_END,
    }
)


class FreezeOut(Algorithm):
    """Anneals each layer's learning rate to zero, first layers first, and freezes what has reached it.

    After `FreezeOut <https://arxiv.org/abs/1706.04983>`_ (Brock et al., 2017). A frozen layer has no gradient, no
    update and no drifting statistics; the backward pass ends at the first layer that still trains, which is what saves
    time. At the end of the epoch its parameters and their state leave the optimizer.

    FreezeOut owns the learning rate: give the optimizer the peak rate, and no scheduler. A group that is added to the
    optimizer while it trains keeps the rate that it comes with.

    A copy, or what has been pickled, has the same settings and has not begun.

    Runs on :attr:`.Event.INIT`, :attr:`.Event.AFTER_LOAD`, :attr:`.Event.FIT_START`,
    :attr:`.Event.BEFORE_DATALOADER`, :attr:`.Event.BATCH_START`, :attr:`.Event.BEFORE_FORWARD`,
    :attr:`.Event.AFTER_LOSS`, :attr:`.Event.AFTER_BACKWARD`, :attr:`.Event.AFTER_TRAIN_BATCH`,
    :attr:`.Event.EPOCH_END` and :attr:`.Event.FIT_END`.

    The first forward pass of the training, of which nothing is changed, shows the units and their order. Compiled code
    can't be watched: there a pass of its own is run before, on a copy of the batch, and everything is put back.

    Logs ``freezeout/progress``, ``freezeout/units_frozen`` and ``freezeout/fraction_frozen`` (of the parameters) for
    every batch, and ``freezeout/lr/<unit>`` to all loggers but the console's; the progress bar shows how many units are
    frozen. What was found, what freezes and what was frozen is told where Composer's own messages are, with
    ``Trainer(python_log_level='info')``.

    Attributes:
        settings (Settings): The arguments that :func:`.apply_freezeout` takes, too.
        t_warmup (Time, optional): As given.
        const_time (bool): As given.

    Example:
        .. code-block:: python

            from composer import Trainer
            from composer_freezeout import FreezeOut

            trainer = Trainer(
                model=model,
                train_dataloader=train_dataloader,
                max_duration='20ep',
                optimizers=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
                algorithms=[FreezeOut()],
            )

    Args:
        t_0 (float, optional): Freeze time of the first unit before scaling, as a fraction of training, in ``(0, 1]``.
            Smaller saves more and costs more accuracy; at 1 nothing freezes and all units follow one cosine. Default:
            ``0.8``.
        how_scale (str, optional): How freeze times depend on ``t_0``: ``'linear'``, ``'squared'`` or ``'cubic'``.
            Default: ``'cubic'``, with which the first unit freezes at ``t_0 ** 3``.
        scale_lr (bool, optional): Whether to scale each unit's learning rate by ``1 / t_i``, so that units that freeze
            early travel as far as the others. Default: ``True``.
        layers (Sequence[str], optional): The units: regular expressions over module names, first to freeze first. A
            module belongs to the unit whose expression matches its full name or that of a module around it. Default:
            ``None``, a unit for each module that owns parameters, with the normalisation that follows it, in the order
            of the forward pass.
        granularity (str, optional): ``'module'``, or ``'block'`` for one unit per residual, dense or transformer block.
            Default: ``'module'``.
        batchnorm (str, optional): What a frozen BatchNorm does in training: ``'eval'`` normalises by its running
            statistics, ``'batch'`` by those of the batch without updating the running ones, ``'update'`` goes on as
            before. Default: ``'eval'``.
        t_warmup (str | Time, optional): How long all units warm up linearly, as a Composer time string such as
            ``'5ep'`` or ``'0.05dur'``. Freeze times don't move. Default: ``None``.
        max_stages (int, optional): How often units may freeze, in ``[1, ∞)``. The units of a stage freeze together when
            the last of them is due; until then they stand still, all but their BatchNorm's statistics. Default:
            ``None``: no limit, or 4 if the model is compiled, as each stage is compiled anew.
        const_time (bool, optional): Whether to lengthen the training, so that it takes the time that it would take
            without FreezeOut: ``max_duration`` is divided by ``1 - s`` at the first batch, where ``s`` is the share of
            the FLOPs that freezing saves. Default: ``False``.
        fuse_frozen (bool, optional): Whether a frozen prefix runs with the operators of inference while the model
            trains: BatchNorm folded into the convolution before it, attention without dropout in one operator. Faster,
            and equal to rounding. Compiled and sharded models run as they are. Default: ``True``.
        unit_costs (Sequence[float], optional): What freezing each unit saves of a step, in any unit of cost, one number
            per unit, first unit first; the last one, which never freezes, is not used. Expensive units then freeze
            earlier and cheap ones later, with the same mean, and none before the paper's first. Not the paper's
            FreezeOut. Default: ``None``, the paper's freeze times.
        cost_shift (float, optional): How much earlier a unit freezes that costs twice the average, as a fraction of
            training, in ``(0, 1]``, as far as order and bounds permit. Default: ``0.25``.
        head (Sequence[str], optional): What trains to the end, such as a new head of several layers: regular
            expressions over module names, as in ``layers``, where the ``module.`` of a wrapper may be left out. Its
            learning rate follows one cosine to the end of training. The other units freeze as if the head were the
            paper's last layer. Default: ``None``, the last unit, and others that no unit comes behind.
        anneal (str, optional): ``'shared'`` has the learning rates of all units fall along one cosine to the end of
            training, which freezing breaks off; ``scale_lr`` then stands for the factor under which units travel
            equally far. Not the paper's FreezeOut. Default: ``None``, a cosine for each unit, which ends when it
            freezes.
        preset (str, optional): ``'fine_tuning'`` takes the settings of :data:`.FINE_TUNING`, for training that begins
            with trained weights; what is given besides stands. Default: ``None``, the defaults above.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument has the wrong type.
    """

    @takes_preset
    def __init__(
        self,
        t_0: float = 0.8,
        how_scale: HowScale = 'cubic',
        scale_lr: bool = True,
        layers: Sequence[str] | None = None,
        granularity: Granularity = 'module',
        batchnorm: BatchNormMode = 'eval',
        t_warmup: str | Time | None = None,
        max_stages: int | None = None,
        const_time: bool = False,
        fuse_frozen: bool = True,
        unit_costs: Sequence[float] | None = None,
        cost_shift: float = COST_SHIFT,
        head: Sequence[str] | None = None,
        *,
        anneal: Anneal | None = None,
        preset: Preset | None = None,
    ) -> None:
        self.settings = Settings(
            t_0=t_0,
            how_scale=how_scale,
            scale_lr=scale_lr,
            layers=layers,
            granularity=granularity,
            batchnorm=batchnorm,
            max_stages=max_stages,
            fuse_frozen=fuse_frozen,
            unit_costs=unit_costs,
            cost_shift=cost_shift,
            head=head,
            anneal=anneal,
        )
        self.t_warmup = None if t_warmup is None else parse_warmup(t_warmup)
        if not isinstance(const_time, bool):
            raise TypeError(f'const_time must be True or False, got {const_time!r}')
        self.const_time = const_time
        self._begin(None)

    def _begin(self, state: State | None) -> None:
        # Kept for `load_state_dict`, which is not given it.
        self._state = state
        self._life = Lifecycle(self.settings, called_whole=True)
        self._loaded: Saved | None = None
        self._lengthening = Lengthening()
        self._warmup = 0.0
        self._execution: Execution | None = None
        self._told = False
        self._saving = Saving()

    @property
    def _freezer(self) -> LayerFreezer | None:
        return self._life.freezer

    def __getstate__(self) -> dict[str, Any]:
        # What copies and pickles are made of: the settings. The run is that of one model and one optimizer.
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        other._begin(None)
        return vars(other)

    def __repr__(self) -> str:
        arguments = {**self._settings(), 'fuse_frozen': self.settings.fuse_frozen}
        return f'FreezeOut({", ".join(f"{name}={value!r}" for name, value in arguments.items())})'

    def __str__(self) -> str:
        # Composer writes it for each event that the algorithm runs on.
        return type(self).__name__

    def match(self, event: Event, state: State) -> bool:
        """Runs on the events named in the description of the class, on some of them only while there is need to."""
        if event not in _EVENTS:
            return False
        freezer = self._life.freezer
        if event is Event.AFTER_LOSS:
            return freezer is None or not getattr(state.loss, 'requires_grad', False)
        if event is Event.AFTER_TRAIN_BATCH:
            return freezer is not None and freezer.is_watching
        if event is Event.BEFORE_FORWARD or event is Event.BEFORE_DATALOADER:
            return freezer is None or not freezer.prefix.holds_itself
        return True

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Translates the event into calls of :class:`.LayerFreezer`."""
        if event is Event.INIT:
            follow_composer()
            refuse_rivals(state.algorithms, FreezeOut)
            release_earlier(execution_of(state.model).module)
            self._begin(state)  # in another Trainer everything starts anew
        elif event is Event.AFTER_LOAD:
            self._restore(state)
            check_early(state, self.settings, self.t_warmup)
        elif event is Event.FIT_START:
            self._fit_start(state)
        elif event is Event.BATCH_START:
            self._restore(state)
            if self._freezer is not None:
                self._batch_start(state, logger)
        elif self._freezer is None:
            self._find_units(event, state, logger)
        else:
            self._train(event, state, self._freezer)

    def _train(self, event: Event, state: State, freezer: LayerFreezer) -> None:
        """What is to be done between the starts of batches."""
        if event is Event.BEFORE_DATALOADER or event is Event.BEFORE_FORWARD:
            # Not at BATCH_START alone: training metrics switch the mode between microbatches, and algorithms that
            # choose samples run the model as soon as the batch is there.
            freezer.prefix.hold()
        elif event is Event.AFTER_LOSS:
            if freezer.units_frozen:
                state.loss = anchored(state.loss)
        elif event is Event.AFTER_BACKWARD:
            # Composer's closures come here within the optimizer's step, behind its own hook.
            freezer.groups.split()
        elif event is Event.AFTER_TRAIN_BATCH:
            freezer.check_gradients()
        elif event is Event.EPOCH_END:
            freezer.epoch_end()
        elif event is Event.FIT_END:
            freezer.prefix.release()
            batches = int(state.timestamp.batch)
            log.info('%s.', describe_end(freezer, self._life.frozen_at, batches, self._predicted_saving))

    def freeze_times(self, num_units: int, t_0: float | None = None, heads: int = 1) -> tuple[float, ...]:
        """Progress at which each unit of a model will freeze.

        Args:
            num_units (int): Number of units ``n``, in ``[1, ∞)``.
            t_0 (float, optional): Another ``t_0``, in ``(0, 1]``. Default: ``None``, that of the algorithm.
            heads (int): How many of the last units train to the end, in ``[1, num_units]``. Default: ``1``.

        Returns:
            tuple[float, ...]: ``n`` times in ``(0, 1]``, ascending; those of the heads are exactly 1.

        Raises:
            ValueError: If there is not one of ``unit_costs`` per unit.
        """
        settings = self.settings if t_0 is None else replace(self.settings, t_0=t_0)
        return settings.freeze_times(num_units, heads)

    @property
    def partition(self) -> Partition | None:
        """The units; None until the first batch shows them, or a checkpoint tells them."""
        return None if self._freezer is None else self._freezer.partition

    def unit_table(self) -> list[dict[str, Any]]:
        """One row per unit, first to freeze first.

        Empty before the first batch, as a message says; :func:`.plan` tells the units before that.

        Returns:
            list[dict[str, Any]]: ``name``, ``parameters`` (count), ``t_i`` (progress in ``(0, 1]``), ``frozen`` and
            ``frozen_at_batch`` (batches trained before it froze, None while it trains).
        """
        rows, frozen_at = self._life.unit_table(), self._life.frozen_at
        for index, row in enumerate(rows):
            row['frozen_at_batch'] = frozen_at[index] if index < len(frozen_at) else None
        return rows

    # --- events

    def _fit_start(self, state: State) -> None:
        check_batches(state)
        self._set_warmup(state)
        self._told = False
        self._execution = execution_of(state.model)
        self._restore(state)
        trainable = [p for p in state.model.parameters() if p.requires_grad]
        if self._freezer is None and state.optimizers and trainable:
            check_optimizer(state.optimizers[0], trainable)
        if self._freezer is not None:
            self._freezer.groups.track_optimizer(state.optimizers[0])
            self._freezer.groups.track_schedulers(state.schedulers)
            self._life.limit_stages(self._execution)
        if self.const_time:
            self._lengthening.at_fit_start(state)
            self._set_warmup(state)
        warn_of_schedulers(state.schedulers)

    def _find_units(self, event: Event, state: State, logger: Logger) -> None:
        """Has the first batch, or a pass before it, show the units; in time for the optimizer's first step."""
        assert self._execution is not None
        if event is Event.BEFORE_FORWARD and not self._execution.shows_steps:
            observed = self._life.rehearse(self._execution, self._forward_on_copy(state))
            self._set_up(state, self._execution, observed)
            self._batch_start(state, logger)
        elif event is Event.BEFORE_FORWARD:
            # `const_time` counts on a copy, and needs no other count.
            recorder = None if self.const_time else self._saving.recorder(self._execution)
            self._life.observe(self._execution.module, recorder=recorder)
        elif event is Event.AFTER_LOSS and self._life.is_observing:
            losses = losses_of(state.loss)
            observed, parameters = self._life.observed(losses)
            self._saving.from_step(losses, parameters, self._set_up(state, self._execution, observed, parameters))
            self._batch_start(state, logger, running=True)

    def _forward_on_copy(self, state: State) -> Callable[[], object]:
        assert self._execution is not None
        model: Any = self._execution.module
        batch = copy.deepcopy(state.batch)

        def forward() -> object:
            with get_precision_context(Precision(state.precision), state.precision_config):
                return list(losses_of(model.loss(model(batch), batch)))

        return forward

    def _set_up(
        self,
        state: State,
        execution: Execution,
        observed: Observation,
        parameters: Mapping[str, nn.Parameter] | None = None,
    ) -> LayerFreezer:
        return self._life.set_up(
            execution,
            state.optimizers[0],
            self._life.partition(execution.module, observed),
            schedulers=state.schedulers,
            observed=observed,
            parameters=parameters,
        )

    def _set_warmup(self, state: State) -> None:
        self._warmup = 0.0 if self.t_warmup is None else as_progress(self.t_warmup, state)

    def _batch_start(self, state: State, logger: Logger, running: bool = False) -> None:
        freezer = self._freezer
        assert freezer is not None and self._execution is not None
        if self.const_time and self._lengthening.at_first_batch(
            state, logger, partial(self._saving.from_copy, self._execution, state.batch, freezer)
        ):
            self._set_warmup(state)
        self._tell_start(state, freezer)
        done, before = progress(state), freezer.units_frozen
        if self._life.batch_start(done, self._warmup, int(state.timestamp.batch), running):
            now = freezer.units_frozen
            names = ', '.join(unit.name for unit in freezer.partition.units[min(before, now) : max(before, now)])
            log.info('FreezeOut %s %s at progress %.4f', 'froze' if now > before else 'thawed', names, done)
            freezer.follow(self._execution)
        if logger.destinations:
            log_batch(state, logger, freezer, self._execution, done)

    def _tell_start(self, state: State, freezer: LayerFreezer) -> None:
        """Says once in each `fit` what there is to freeze, as soon as it is known."""
        if not self._told:
            self._told = True
            log.info('%s.', describe_start(freezer, type(state.optimizers[0]).__name__, self._predicted_saving))

    @property
    def _predicted_saving(self) -> float | None:
        return self._lengthening.saving if self._saving.share is None else self._saving.share

    # --- checkpoints

    def _settings(self) -> dict[str, Any]:
        t_warmup = None if self.t_warmup is None else self.t_warmup.to_timestring()
        return {**self.settings.state_dict(), 't_warmup': t_warmup, 'const_time': self.const_time}

    def state_dict(self) -> dict[str, Any]:
        """The settings, the partition, and what has been frozen and removed."""
        if self._freezer is not None:
            # Composer has asked for the optimizer's state before this, which joins its groups.
            self._freezer.groups.split()
        state_dict = {**super().state_dict(), 'settings': self._settings(), **self._life.state_dict()}
        if self._lengthening.stretch is not None:
            state_dict['stretch'] = self._lengthening.stretch
        return state_dict

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes in what the checkpoint says; it is carried out once the optimizer's state has been loaded, too.

        Raises:
            ValueError: If the checkpoint comes from other settings, or is damaged.
        """
        check_same_settings(state.get('settings') or {}, self._settings())
        if 'units' in state:
            self._loaded = Saved.from_state_dict(state)
            if self._freezer is None and self._state is not None:
                # Before Composer tries to fit the optimizer's state to another model.
                self._loaded.check_fit(execution_of(self._state.model).module, self._state.optimizers[0])
        if self._freezer is not None:
            # The checkpoint has the shape of the original groups.
            self._freezer.groups.join()
        if self.const_time:
            self._lengthening.load(state.get('stretch'), self._state)

    def _restore(self, state: State) -> None:
        """Freezes what was frozen, and removes what was removed, when the checkpoint was made."""
        if self._loaded is None:
            return
        saved, self._loaded = self._loaded, None
        execution = execution_of(state.model)
        if self._freezer is None:
            saved.check_fit(execution.module, state.optimizers[0])
            self._life.set_up(execution, state.optimizers[0], saved.partition, schedulers=state.schedulers)
        elif not saved.partition.is_same(self._freezer.partition):
            raise ValueError(
                "the checkpoint's FreezeOut units are not those of this run; load it into a new Trainer, or adopt the "
                f"run's units with {ADOPT}"
            )
        if self._life.restore(saved) and self._freezer is not None:
            self._freezer.follow(execution)
