"""FreezeOut in a training loop without a trainer."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.compiler import set_stance
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from composer_freezeout.freezing.checkpoint import Saved, check_same_settings
from composer_freezeout.freezing.execution.compilation import is_compiled, stage_limit
from composer_freezeout.freezing.execution.distributed import reshard
from composer_freezeout.freezing.freezer import LayerFreezer, agreed
from composer_freezeout.freezing.observing.observation import Observation
from composer_freezeout.freezing.observing.observer import Observer, refuse_scripted
from composer_freezeout.freezing.observing.partition import Partition, completed, partition_model
from composer_freezeout.freezing.observing.rehearsal import rehearse
from composer_freezeout.freezing.optimizer.check import check_optimizer
from composer_freezeout.freezing.optimizer.groups import UnitGroups
from composer_freezeout.freezing.prefix.prefix import UnitFreezer, release_earlier
from composer_freezeout.method.allocation import COST_SHIFT
from composer_freezeout.method.schedule import HowScale, check_progress
from composer_freezeout.method.settings import BatchNormMode, Granularity, Settings

__all__ = ['FreezeOutLoop', 'apply_freezeout']


class FreezeOutLoop:
    """Does in a loop what the algorithm does in a Trainer; made by :func:`apply_freezeout`.

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
        self._model: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
        self._optimizer = optimizer
        self._settings = settings
        self._layer_freezer: LayerFreezer | None = None
        self._to_observe = False
        self._observer: Observer | None = None
        self._now: tuple[float, float] | None = None
        self._batches = 0
        self._frozen_at: list[int] = []
        self._compiled = is_compiled(model)
        self._ran_eagerly = False
        self._trained = 0  # batches since units froze
        refuse_scripted(self._model)
        release_earlier(self._model)
        self._model.register_forward_pre_hook(_NoteEager(self))
        if forward is not None:
            with set_stance('force_eager'):  # compiled forwards would hide the operators
                observed = rehearse(self._model, forward)
            reshard(self._model)
            self._set_up(self._partition(observed), observed)
            return
        check_optimizer(optimizer, (p for p in self._model.parameters() if p.requires_grad))
        if self._compiled:
            raise ValueError(
                'a compiled model cannot be watched while it trains; give `forward`, a function that runs it on an '
                'example batch, such as `lambda: model(example_inputs)`'
            )
        if settings.layers is not None:
            self._set_up(partition_model(self._model, layers=settings.layers))
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
        return None if self._layer_freezer is None else self._layer_freezer.partition

    @property
    def freeze_times(self) -> tuple[float, ...]:
        """Progress at which each unit freezes, in ``(0, 1]``; empty as long as the units are not known."""
        return () if self._layer_freezer is None else self._layer_freezer.freeze_times

    @property
    def units_frozen(self) -> int:
        """Number of frozen units, in ``[0, n)``."""
        return 0 if self._layer_freezer is None else self._layer_freezer.units_frozen

    @property
    def fraction_frozen(self) -> float:
        """Share of the trainable parameters that is frozen, in ``[0, 1)``."""
        return 0.0 if self._layer_freezer is None else self._layer_freezer.fraction_frozen

    @property
    def freezer(self) -> UnitFreezer:
        """What keeps the units frozen.

        Raises:
            ValueError: If the units are not known yet.
        """
        return self._known().freezer

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
            self._stop_observing()
            self._observer = Observer(self._model)
            self._observer.start(self._observed)
        if self._layer_freezer is None or not self._layer_freezer.batch_start(progress, warmup):
            return False
        self._follow()
        frozen = self._layer_freezer.units_frozen
        del self._frozen_at[frozen:]
        self._frozen_at += [self._batches - 1] * (frozen - len(self._frozen_at))
        return True

    def epoch_end(self) -> None:
        """Takes the frozen units out of the optimizer and releases their optimizer state."""
        if self._layer_freezer is not None:
            self._layer_freezer.epoch_end()

    def release(self) -> None:
        """Gives the layers of frozen units their own behaviour back, once training is over; they stay frozen."""
        if self._layer_freezer is not None:
            self._layer_freezer.freezer.release()

    def learning_rates(self) -> dict[str, float]:
        """Learning rate of every unit, 0 for those that have left the optimizer."""
        return {} if self._layer_freezer is None else self._layer_freezer.learning_rates()

    def unit_table(self) -> list[dict[str, Any]]:
        """One row per unit: ``name``, ``parameters`` (count), ``t_i`` and ``frozen``; empty before they are known."""
        return [] if self._layer_freezer is None else self._layer_freezer.unit_table()

    # --- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The settings, the units, and what has been frozen and removed, as plain lists and numbers.

        Save it with the state dicts of the model and the optimizer, and the run goes on as if it had not been
        interrupted.
        """
        state: dict[str, Any] = {'settings': self._settings.state_dict(), 'batches': self._batches}
        if self._layer_freezer is not None:
            state |= self._layer_freezer.saved(self._frozen_at).state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Freezes and removes what was frozen and removed; before or after the optimizer's state is loaded.

        Args:
            state (Mapping[str, Any]): From :meth:`state_dict`.

        Raises:
            ValueError: If it comes from other settings or another model, or is damaged.
        """
        check_same_settings(state.get('settings') or {}, self._settings.state_dict())
        self._batches = state.get('batches', 0)
        if 'units' not in state:
            return
        saved = Saved.from_state_dict(state)
        known = self._layer_freezer
        if known is None:
            saved.check_fit(self._model, self._optimizer)
        if known is None or self._shows_other_units(saved, known):
            self._set_up(saved.partition)
        elif not saved.partition.is_same(known.partition):
            raise ValueError('the saved FreezeOut units are not those of this model; build the same model and `layers`')
        self._observing_is_over()
        self._frozen_at = list(saved.frozen_at)
        if self._known().restore(saved):
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
        assert self._observer is not None
        observed, parameters = self._observer.finish(self._observer.outputs), self._observer.parameters
        self._observing_is_over()
        if self._layer_freezer is not None:
            known = self._layer_freezer.partition
            partition = completed(known, self._model, observed, self._settings.layers)
            if self._layer_freezer.units_frozen:  # of frozen units the graph doesn't tell
                partition = replace(partition, cuts=known.cuts)
            self._layer_freezer.learn(agreed(partition))
            return
        self._set_up(self._partition(observed), observed, parameters)
        if self._now is not None:
            self._known().batch_start(*self._now, running=True)

    def _partition(self, observed: Observation) -> Partition:
        return agreed(partition_model(self._model, observed, self._settings.layers, self._settings.granularity))

    def _set_up(
        self,
        partition: Partition,
        observed: Observation | None = None,
        parameters: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        self._layer_freezer = LayerFreezer.from_settings(
            self._model, self._optimizer, partition, self._settings, observed=observed, parameters=parameters
        )
        self._layer_freezer.limit_stages(stage_limit(self._settings.max_stages, self._compiled))

    def _stop_observing(self) -> None:
        if self._observer is not None:
            self._observer.stop()
            self._observer = None

    def _observing_is_over(self) -> None:
        self._stop_observing()
        if self._to_observe:
            self._to_observe = False
            self._first_step.remove()

    def _before_first_step(self, *_: object) -> None:
        if self._observer is not None and self._now is not None:
            raise ValueError(
                'the optimizer takes a step, but the model has not been seen to run, so its units are unknown: call '
                'the model itself in training, not only parts of it and not a compiled version of it, or give '
                '`forward`, a function that runs what the loop runs'
            )

    def _known(self) -> LayerFreezer:
        if self._layer_freezer is None:
            raise ValueError('the units are not known before the model has run for the first time; give `forward`')
        return self._layer_freezer

    def _follow(self) -> None:
        # Of a compiled version that was made outside, the model shows nothing but that it never runs itself.
        never_ran = self._trained > 0 and not self._ran_eagerly
        compiled = self._compiled or is_compiled(self._wrapped) or never_ran
        self._ran_eagerly, self._trained = False, 0
        self._known().follow(self._wrapped, compiled)


class _NoteEager:
    """Tells a loop, as long as there is one, that its model has run as it stands there, and not compiled."""

    def __init__(self, loop: FreezeOutLoop | None = None) -> None:
        self._loop = None if loop is None else weakref.ref(loop)

    def __reduce__(self) -> tuple[Any, ...]:
        return _NoteEager, ()

    def __call__(self, module: nn.Module, _: object) -> None:
        if torch.compiler.is_compiling() or not module.training:
            return
        loop = None if self._loop is None else self._loop()
        if loop is not None:
            loop._ran_eagerly = True


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
    max_stages: int | None = None,
) -> FreezeOutLoop:
    """Sets up `FreezeOut <https://arxiv.org/abs/1706.04983>`_ for a training loop without a trainer.

    Splits the optimizer's param groups in place, one per unit, and returns the object that anneals and freezes them.
    Which units the model has, and in which order, shows in its first training pass; with ``forward``, in a pass of its
    own that leaves no trace.

    Example:
        .. code-block:: python

            freezer = apply_freezeout(model, optimizer)
            for epoch in range(epochs):
                model.train()
                for batch, (inputs, targets) in enumerate(loader):
                    freezer.batch_start((epoch * len(loader) + batch) / (epochs * len(loader)))
                    optimizer.zero_grad()
                    loss_fn(model(inputs), targets).backward()
                    optimizer.step()
                freezer.epoch_end()

    Args:
        model (nn.Module): The model as it is trained: a ``DistributedDataParallel`` wrapper is started anew whenever
            units freeze, and a compiled model is compiled anew.
        optimizer (Optimizer): Its optimizer.
        forward (Callable[[], object], optional): Runs the model once on an example batch, as in training, and returns
            the loss or the outputs. Needed for compiled models; otherwise it tells the units before training begins.
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
        fuse_frozen (bool, optional): Whether a frozen prefix runs with the operators of inference while the model
            trains: BatchNorm folded into the convolution before it, attention without dropout in one operator. Faster,
            and equal to rounding. Compiled and sharded models run as they are. Default: ``True``.
        unit_costs (Sequence[float], optional): What freezing each unit saves of a step, in any unit of cost, one number
            per unit, first unit first; the last one, which never freezes, is not used. Expensive units then freeze
            earlier and cheap ones later, with the same mean, and none before the paper's first. Not the paper's
            FreezeOut. Default: ``None``, the paper's freeze times.
        cost_shift (float, optional): How much earlier a unit freezes that costs twice the average, as a fraction of
            training, in ``(0, 1]``, as far as order and bounds permit. Default: ``0.25``.
        max_stages (int, optional): How often units may freeze, in ``[1, ∞)``. The units of a stage freeze together when
            the last of them is due; until then they stand still, all but their BatchNorm's statistics. Default:
            ``None``: no limit, or 4 if the model is compiled, as each stage is compiled anew.

    Returns:
        FreezeOutLoop: To be called at the start of each batch and at the end of each epoch.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range or the model can't be split as asked.
    """
    settings = Settings(
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
    if not isinstance(model, nn.Module) or isinstance(model, nn.DataParallel):
        raise TypeError(f'model must be a module, which DistributedDataParallel may wrap, got {type(model).__name__}')
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f'optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}')
    if forward is not None and (not callable(forward) or forward is model):
        raise TypeError('forward must be a function without arguments, such as `lambda: model(example_inputs)`')
    return FreezeOutLoop(model, optimizer, forward, settings)
