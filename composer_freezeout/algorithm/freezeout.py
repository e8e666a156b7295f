"""FreezeOut as a Composer algorithm: events in, calls out."""

import copy
import functools
import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from composer.algorithms import SWA, LayerFreezing
from composer.core import Algorithm, Event, Precision, State, Time, get_precision_context
from composer.loggers import Logger, ProgressBarLogger
from composer.optim import ConstantScheduler
from torch import nn
from torch.compiler import set_stance
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler

from composer_freezeout.algorithm.progress import as_progress, lengthened, parse_warmup, progress
from composer_freezeout.costs.flops import losses_of, step_flops_by_units_frozen
from composer_freezeout.costs.saving import in_stages, predicted_saving
from composer_freezeout.freezing.checkpoint import ADOPT, Saved, check_same_settings
from composer_freezeout.freezing.execution.compilation import compile_seconds, is_compiled, stage_limit
from composer_freezeout.freezing.execution.distributed import reshard
from composer_freezeout.freezing.freezer import LayerFreezer, agreed
from composer_freezeout.freezing.observing.observation import Observation
from composer_freezeout.freezing.observing.observer import Observer
from composer_freezeout.freezing.observing.partition import Partition, partition_model
from composer_freezeout.freezing.observing.rehearsal import rehearse
from composer_freezeout.freezing.optimizer.check import check_optimizer
from composer_freezeout.freezing.prefix.prefix import anchored, release_earlier
from composer_freezeout.method.allocation import COST_SHIFT
from composer_freezeout.method.schedule import HowScale, check_warmup
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

    Logs ``freezeout/progress``, ``freezeout/units_frozen``, ``freezeout/fraction_frozen`` (of the parameters) and
    ``freezeout/lr/<unit>`` for every batch.

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

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument has the wrong type.
    """

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
        )
        self.t_warmup = None if t_warmup is None else parse_warmup(t_warmup)
        if not isinstance(const_time, bool):
            raise TypeError(f'const_time must be True or False, got {const_time!r}')
        self.const_time = const_time
        self._begin(None)

    def _begin(self, state: State | None) -> None:
        # Kept for `load_state_dict`, which is not given it.
        self._state = state
        self._freezer: LayerFreezer | None = None
        self._observer: Observer | None = None
        self._loaded: Saved | None = None
        self._frozen_at: list[int] = []
        self._stretch: float | None = None
        self._lengthened_to: Time | None = None
        self._warmup = 0.0
        self._compiled = False

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
        if event is Event.AFTER_LOSS:
            return self._freezer is None or not getattr(state.loss, 'requires_grad', False)
        if event is Event.AFTER_TRAIN_BATCH:
            return self._freezer is not None and self._freezer.is_watching
        if event is Event.BEFORE_FORWARD or event is Event.BEFORE_DATALOADER:
            return self._freezer is None or not self._freezer.freezer.holds_itself
        return True

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Translates the event into calls of :class:`.LayerFreezer`."""
        if event is Event.INIT:
            _refuse_rivals(state)
            release_earlier(_unwrap(state.model))
            self._begin(state)  # in another Trainer everything starts anew
        elif event is Event.AFTER_LOAD:
            self._restore(state)
            self._check_early(state)
        elif event is Event.FIT_START:
            self._fit_start(state)
        elif event is Event.BATCH_START:
            self._restore(state)
            if self._freezer is not None:
                self._batch_start(state, logger)
        elif self._freezer is None:
            self._set_up(event, state, logger)
        elif event is Event.BEFORE_DATALOADER or event is Event.BEFORE_FORWARD:
            # Not at BATCH_START alone: training metrics switch the mode between microbatches, and algorithms that
            # choose samples run the model as soon as the batch is there.
            self._freezer.freezer.hold()
        elif event is Event.AFTER_LOSS:
            if self._freezer.units_frozen:
                state.loss = anchored(state.loss)
        elif event is Event.AFTER_BACKWARD:
            # Composer's closures come here within the optimizer's step, behind its own hook.
            self._freezer.groups.split()
        elif event is Event.AFTER_TRAIN_BATCH:
            self._freezer.check_gradients()
        elif event is Event.EPOCH_END:
            self._freezer.epoch_end()
        elif event is Event.FIT_END:
            self._freezer.freezer.release()

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

    def unit_table(self) -> list[dict[str, Any]]:
        """One row per unit, first to freeze first; empty before the first batch.

        Returns:
            list[dict[str, Any]]: ``name``, ``parameters`` (count), ``t_i`` (progress in ``(0, 1]``), ``frozen`` and
            ``frozen_at_batch`` (batches trained before it froze, None while it trains).
        """
        if self._freezer is None:
            return []
        rows = self._freezer.unit_table()
        for index, row in enumerate(rows):
            row['frozen_at_batch'] = self._frozen_at[index] if index < len(self._frozen_at) else None
        return rows

    # --- events

    def _check_early(self, state: State) -> None:
        """Tells what can be told before training: all surgery is done, and the duration may be known."""
        model = _unwrap(state.model)
        if self.settings.layers is not None:
            self.freeze_times(len(partition_model(model, layers=self.settings.layers).units))
        if self.t_warmup is not None and state.max_duration is not None and state.dataloader_len is not None:
            holders = sum(any(p.requires_grad for p in m.parameters(recurse=False)) for m in model.modules())
            num_units = max(1, holders) if self.settings.unit_costs is None else len(self.settings.unit_costs)
            check_warmup(as_progress(self.t_warmup, state), self.freeze_times(num_units)[0])

    def _fit_start(self, state: State) -> None:
        if state.dataloader_len is not None and state.dataloader_len.value == 0:
            raise ValueError(
                'the train dataloader has no batches: its data set is empty, or smaller than a batch with '
                'drop_last=True, or train_subset_num_batches is 0; give it at least one batch'
            )
        self._set_warmup(state)
        self._compiled = is_compiled(state.model)
        self._restore(state)
        trainable = [p for p in state.model.parameters() if p.requires_grad]
        if self._freezer is None and state.optimizers and trainable:
            check_optimizer(state.optimizers[0], trainable)
        if self._freezer is not None:
            self._freezer.groups.track_optimizer(state.optimizers[0])
            self._freezer.groups.track_schedulers(state.schedulers)
            self._freezer.limit_stages(stage_limit(self.settings.max_stages, self._compiled))
        if self.const_time:
            self._check_lengthened(state)
        rivals = [name for name in map(_describe_scheduler, state.schedulers) if name is not None]
        if rivals:
            log.warning(
                'FreezeOut sets the learning rate of every unit itself, so %s has no effect on training and only '
                'changes what monitors read at the end of a batch. Remove it from `schedulers`; for a warm-up use '
                "FreezeOut(t_warmup='5ep').",
                ' and '.join(rivals),
            )

    def _set_up(self, event: Event, state: State, logger: Logger) -> None:
        model = _unwrap(state.model)
        if event is Event.BEFORE_FORWARD and self._compiled:
            self._make_units(state, logger, self._rehearse(state), running=False)
        elif event is Event.BEFORE_FORWARD:
            # Anew, where the pass of an earlier one has failed.
            self._stop_observing()
            self._observer = Observer(model)
            self._observer.start()
        elif event is Event.AFTER_LOSS and self._observer is not None:
            observed, parameters = self._observer.finish(losses_of(state.loss)), self._observer.parameters
            self._observer = None
            self._make_units(state, logger, observed, running=True, parameters=parameters)

    def _stop_observing(self) -> None:
        if self._observer is not None:
            self._observer.stop()
            self._observer = None

    def _make_units(
        self,
        state: State,
        logger: Logger,
        observed: Observation,
        running: bool,
        parameters: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        """Splits the optimizer's groups, in time for its first step."""
        layers, granularity = self.settings.layers, self.settings.granularity
        partition = agreed(partition_model(_unwrap(state.model), observed, layers, granularity))
        self._freezer = self._make_freezer(state, partition, observed, parameters)
        self._freezer.limit_stages(stage_limit(self.settings.max_stages, self._compiled))
        self._batch_start(state, logger, running)

    def _rehearse(self, state: State) -> Observation:
        model = _unwrap(state.model)
        batch = copy.deepcopy(state.batch)

        def forward() -> Any:
            # Compiled forwards would hide the operators.
            with set_stance('force_eager'), get_precision_context(Precision(state.precision), state.precision_config):
                return list(losses_of(model.loss(model(batch), batch)))

        observed = rehearse(model, forward)
        reshard(model)
        return observed

    def _set_warmup(self, state: State) -> None:
        self._warmup = 0.0 if self.t_warmup is None else as_progress(self.t_warmup, state)

    def _batch_start(self, state: State, logger: Logger, running: bool = False) -> None:
        assert self._freezer is not None
        if self.const_time and self._lengthened_to is None:
            self._lengthen(state)
            _renew_progress_bars(state, logger)
        done = progress(state)
        if self._freezer.batch_start(done, self._warmup, running):
            before, now = len(self._frozen_at), self._freezer.units_frozen
            del self._frozen_at[now:]
            self._frozen_at += [int(state.timestamp.batch)] * (now - len(self._frozen_at))
            names = ', '.join(unit.name for unit in self._freezer.partition.units[min(before, now) : max(before, now)])
            log.info('FreezeOut %s %s at progress %.4f', 'froze' if now > before else 'thawed', names, done)
            self._follow(state)
        if logger.destinations:
            self._log(done, logger)

    def _log(self, done: float, logger: Logger) -> None:
        assert self._freezer is not None
        metrics = {
            'freezeout/progress': done,
            'freezeout/units_frozen': self._freezer.units_frozen,
            'freezeout/fraction_frozen': self._freezer.fraction_frozen,
        }
        if self._compiled:
            metrics['freezeout/compile_seconds'] = compile_seconds()
        rates = self._freezer.learning_rates()
        metrics.update(zip(map(_lr_metric, rates), rates.values(), strict=True))
        logger.log_metrics(metrics)

    # --- set-up

    def _make_freezer(
        self,
        state: State,
        partition: Partition,
        observed: Observation | None = None,
        parameters: Mapping[str, nn.Parameter] | None = None,
    ) -> LayerFreezer:
        freezer = LayerFreezer.from_settings(
            _unwrap(state.model),
            state.optimizers[0],
            partition,
            self.settings,
            schedulers=state.schedulers,
            observed=observed,
            parameters=parameters,
        )
        freezer.freezer.called_whole = True
        return freezer

    # --- constant time

    def _check_lengthened(self, state: State) -> None:
        """A training is lengthened once, at its first batch; one that goes on has been lengthened already."""
        if self._is_lengthened(state):
            return
        if state.timestamp.batch == 0:
            self._lengthened_to = None
        elif self._stretch is not None and self._lengthened_to is None:
            self._lengthen(state)  # of a checkpoint that was loaded before the length of an epoch was known
        else:
            raise ValueError(
                'const_time lengthens a training at its first batch, and this one has begun without it or is given '
                'another duration by `fit`; use const_time=False and the duration that you want'
            )

    def _is_lengthened(self, state: State) -> bool:
        # Composer refuses to compare times of different units.
        duration, ours = state.max_duration, self._lengthened_to
        return duration is not None and ours is not None and duration.to_timestring() == ours.to_timestring()

    def _lengthen(self, state: State) -> None:
        assert state.max_duration is not None
        if self._stretch is None:
            self._stretch = 1 / (1 - self._predicted_saving(state))
        self._lengthened_to = lengthened(state, self._stretch)
        log.info('FreezeOut lengthens the training from %s to %s', state.max_duration, self._lengthened_to)
        state.max_duration = self._lengthened_to
        self._set_warmup(state)

    def _predicted_saving(self, state: State) -> float:
        assert self._freezer is not None
        model, units = _unwrap(state.model), self._freezer.partition.units
        if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            raise ValueError(
                'const_time cannot count the FLOPs of a model that is sharded by FSDP; use const_time=False and divide '
                'max_duration by 1 - s, where s is the saving that `composer-freezeout plan` predicts'
            )
        with set_stance('force_eager'):
            costs = step_flops_by_units_frozen(model, state.batch, units)
        return predicted_saving(in_stages(costs, self._freezer.stages), self._freezer.freeze_times)

    # --- checkpoints

    def _settings(self) -> dict[str, Any]:
        t_warmup = None if self.t_warmup is None else self.t_warmup.to_timestring()
        return {**self.settings.state_dict(), 't_warmup': t_warmup, 'const_time': self.const_time}

    def state_dict(self) -> dict[str, Any]:
        """The settings, the partition, and what has been frozen and removed."""
        state_dict: dict[str, Any] = {**super().state_dict(), 'settings': self._settings()}
        if self._freezer is not None:
            # Composer has asked for the optimizer's state before this, which joins its groups.
            self._freezer.groups.split()
            state_dict |= self._freezer.saved(self._frozen_at).state_dict()
        if self._stretch is not None:
            state_dict['stretch'] = self._stretch
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
                self._loaded.check_fit(_unwrap(self._state.model), self._state.optimizers[0])
        if self._freezer is not None:
            # The checkpoint has the shape of the original groups.
            self._freezer.groups.join()
        if self.const_time:
            self._stretch = state.get('stretch')
            # Before Composer asks whether there is anything left to train.
            now = self._state
            known = now is not None and now.max_duration is not None and now.dataloader_len is not None
            if now is not None and known and self._stretch is not None and not self._is_lengthened(now):
                self._lengthen(now)

    def _restore(self, state: State) -> None:
        """Freezes what was frozen, and removes what was removed, when the checkpoint was made."""
        if self._loaded is None:
            return
        saved, self._loaded = self._loaded, None
        if self._freezer is None:
            saved.check_fit(_unwrap(state.model), state.optimizers[0])
            self._freezer = self._make_freezer(state, saved.partition)
        elif not saved.partition.is_same(self._freezer.partition):
            raise ValueError(
                "the checkpoint's FreezeOut units are not those of this run; load it into a new Trainer, or adopt the "
                f"run's units with {ADOPT}"
            )
        self._frozen_at = list(saved.frozen_at)
        if self._freezer.restore(saved):
            self._follow(state)

    def _follow(self, state: State) -> None:
        assert self._freezer is not None
        self._freezer.follow(state.model, self._compiled)


@functools.cache
def _lr_metric(unit: str) -> str:
    return f'freezeout/lr/{unit}'


def _renew_progress_bars(state: State, logger: Logger) -> None:
    # They are made for one unit of the duration.
    for destination in logger.destinations:
        if isinstance(destination, ProgressBarLogger) and destination.train_pbar:
            destination.train_pbar.close()
            destination.train_pbar = None
            destination.epoch_start(state, logger)


def _unwrap(model: nn.Module) -> Any:
    return model.module if isinstance(model, DistributedDataParallel) else model


def _refuse_rivals(state: State) -> None:
    """Raises where another algorithm can't do its work next to FreezeOut."""
    for algorithm in state.algorithms:
        if isinstance(algorithm, SWA) and algorithm.schedule_swa_lr:
            raise ValueError(
                'FreezeOut and SWA(schedule_swa_lr=True) both set the learning rate, and SWA knows a single one only; '
                'use SWA(schedule_swa_lr=False)'
            )
        if isinstance(algorithm, LayerFreezing):
            raise ValueError('FreezeOut and LayerFreezing both freeze layers; use one of them')
    if sum(isinstance(algorithm, FreezeOut) for algorithm in state.algorithms) > 1:
        raise ValueError('FreezeOut stands more than once in `algorithms`; give it once')


def _describe_scheduler(scheduler: LRScheduler) -> str | None:
    """Name of a scheduler as the user knows it, or None if it leaves the learning rate alone."""
    # Composer compiles its schedulers to a LambdaLR around a closure.
    functions = getattr(scheduler, 'lr_lambdas', [None])
    closure = inspect.getclosurevars(functions[0]).nonlocals if inspect.isfunction(functions[0]) else {}
    original = closure.get('scheduler', scheduler)
    if isinstance(original, ConstantScheduler) and original.alpha == 1.0:
        return None
    return getattr(original, '__name__', type(original).__name__)
