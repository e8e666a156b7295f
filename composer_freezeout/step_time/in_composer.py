"""Steps of Composer's Trainer, with and without algorithms that freeze."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Literal

import torch
from composer import Callback, Trainer
from composer.algorithms import LayerFreezing
from composer.algorithms.layer_freezing.layer_freezing import _get_layers, freeze_layers
from composer.core import Algorithm, Event, State, Time, Timestamp
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from composer_freezeout.algorithm.freezeout import FreezeOut
from composer_freezeout.freezing.checkpoint import Saved
from composer_freezeout.freezing.observing.partition import Partition
from composer_freezeout.freezing.observing.units import Unit
from composer_freezeout.method.schedule import freeze_times
from composer_freezeout.step_time.workload import Probe, Workload

__all__ = ['InComposer', 'VariantName']

VariantName = Literal['loop', 'bound', 'freezeout', 'layer_freezing', 'composer']
# Batches of a training, so many that progress stands still while steps are timed.
_DURATION = 10**9


class InComposer:
    """Steps of ``Trainer.fit``.

    What FreezeOut freezes depends on the progress alone, so progress is held between the freeze times of two units: the
    training has a billion batches, and each visit begins in the middle between the two. A visit is an epoch, which
    takes frozen units out of the optimizer; the first visit is not yet without them.

    A step begins when the batch is there, which is before any algorithm is told of it, and ends when algorithms have
    been told that it is over.

    Args:
        workload (Workload): What is trained.
        name (str): ``'freezeout'``, ``'layer_freezing'`` or ``'composer'``.
        units_frozen (int): How many of FreezeOut's units are frozen, in ``[0, n)``; ``'layer_freezing'`` freezes as
            many layers as come next to their share of the parameters.

    Attributes:
        model (ComposerClassifier): The model.
        layers_frozen (int, optional): How many layers ``'layer_freezing'`` has frozen.
        algorithm_seconds (list[float]): Python time of FreezeOut in each step, from the end of the one before.
    """

    def __init__(self, workload: Workload, name: VariantName, units_frozen: int) -> None:
        self.model = workload.copy_model()
        self.layers_frozen: int | None = None
        self._batch = 0
        optimizer = workload.make_optimizer(list(self.model.parameters()))
        timed: list[_TimedFreezeOut] = []
        algorithms: list[Algorithm] = []
        if name == 'freezeout':
            # Each number of units can be a stage, also of a compiled model.
            timed.append(_TimedFreezeOut(max_stages=max(1, len(workload.units) - 1)))
            times = (0.0, *freeze_times(len(workload.units)))
            self._batch = round(_DURATION * (times[units_frozen] + times[units_frozen + 1]) / 2)
        elif name == 'layer_freezing' and dist.get_world_size() > 1:
            # Freezes nothing itself: DDP is made as it asks for.
            algorithms.append(LayerFreezing(freeze_start=1.0))
        self._relay = _Relay(timed)
        compiling = None if workload.compile_backend is None else {'backend': workload.compile_backend}
        self._trainer = Trainer(
            model=self.model,
            train_dataloader=_Batches(workload.batch, workload.steps),
            max_duration=Time.from_batch(_DURATION),
            optimizers=optimizer,
            algorithms=[*timed, *algorithms],
            callbacks=[self._relay],
            # What FreezeOut tells of every batch is part of its time.
            loggers=[LoggerDestination()],
            device='gpu' if workload.device.type == 'cuda' else 'cpu',
            precision=workload.precision,
            compile_config=compiling,
            progress_bar=False,
            log_to_console=False,
            seed=0,
        )
        for freezeout in timed:
            # As in a run that is resumed: its first step has no units to find any more.
            known = Partition(tuple(workload.units), tuple(range(len(workload.units) + 1)))
            freezeout.load_state_dict(Saved(known, frozen_at=(), units_removed=0).state_dict())
        if name == 'layer_freezing':
            # Not before, as in a training: what DDP exchanges has been settled when the first layer freezes.
            share = _share(self.model, workload.units, units_frozen)
            self.layers_frozen = _freeze_as_many(self.model, optimizer, share)

    @property
    def wrapper(self) -> DistributedDataParallel | None:
        """What exchanges gradients with other processes."""
        model = self._trainer.state.model
        return model if isinstance(model, DistributedDataParallel) else None

    @property
    def algorithm_seconds(self) -> list[float]:
        """Seconds of the algorithm in each step so far."""
        return self._relay.algorithm_seconds

    def algorithm_alone(self, times: int = 200) -> list[float]:
        """Seconds of FreezeOut for the events of a step, with nothing computed between them.

        Computation on a CPU empties its caches, which on a GPU it doesn't.

        Args:
            times (int): How often, in ``[1, ∞)``.

        Returns:
            list[float]: As many.
        """
        state, logger = self._trainer.state, self._trainer.logger
        self._rewind(state)
        seconds = []
        for algorithm in self._relay.algorithms:
            for _ in range(times):
                start = time.perf_counter()
                for event in self._relay.events:
                    if FreezeOut.match(algorithm, event, state):
                        FreezeOut.apply(algorithm, event, state, logger)
                seconds.append(time.perf_counter() - start)
        return seconds

    def synchronizations(self) -> int:
        """How often FreezeOut waits for the GPU in the steps of a visit, in ``[0, ∞)``."""
        for algorithm in self._relay.algorithms:
            algorithm.synchronizations = 0
        self.visit(Probe())
        found = sum(algorithm.synchronizations or 0 for algorithm in self._relay.algorithms)
        for algorithm in self._relay.algorithms:
            algorithm.synchronizations = None
        return found

    def visit(self, probe: Probe) -> None:
        """Does the steps of a visit."""
        self._relay.probe = probe
        self._rewind(self._trainer.state)
        self._trainer.fit()

    def close(self) -> None:
        """Ends the Trainer."""
        self._trainer.close()

    def _rewind(self, state: State) -> None:
        state.max_duration = Time.from_batch(_DURATION)
        state.timestamp = Timestamp(batch=self._batch)


class _Batches:
    """A loader that has its batch already."""

    def __init__(self, batch: tuple[Tensor, Tensor], length: int) -> None:
        self.batch = batch
        self.batch_size = len(batch[0])
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([self.batch] * self.length)


class _TimedFreezeOut(FreezeOut):
    """Adds up the time that is spent in it, and takes all visits for one training.

    Attributes:
        seconds (float): Since it was last set.
        events (list[Event]): Likewise, of which it was told.
        synchronizations (int, optional): How often it waited for the GPU; None as long as that isn't counted.
    """

    seconds = 0.0
    synchronizations: int | None = None

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.events: list[Event] = []

    def match(self, event: Event, state: State) -> bool:
        if event == Event.FIT_END:
            return False
        self.events.append(event)
        start = time.perf_counter()
        matches = super().match(event, state)
        self.seconds += time.perf_counter() - start
        return matches

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if self.synchronizations is not None:
            self.synchronizations += _count_synchronizations(lambda: FreezeOut.apply(self, event, state, logger))
            return
        start = time.perf_counter()
        super().apply(event, state, logger)
        self.seconds += time.perf_counter() - start


def _count_synchronizations(function: Callable[[], object]) -> int:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode('warn')
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            function()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return sum('synchronizing CUDA operation' in str(warning.message) for warning in caught)


class _Relay(Callback):
    """Tells a probe what the Trainer does, and ends each fit with its epoch."""

    def __init__(self, algorithms: Sequence[_TimedFreezeOut]) -> None:
        self.probe = Probe()
        self.algorithm_seconds: list[float] = []
        self.events: list[Event] = []  # of the last step
        self.algorithms = algorithms
        self._hooked = False

    def fit_start(self, state: State, logger: Logger) -> None:
        if not self._hooked:
            self._hooked = True
            state.optimizers[0].register_step_pre_hook(self._before_step)
            state.optimizers[0].register_step_post_hook(lambda *_: self.probe.stepped())

    def after_dataloader(self, state: State, logger: Logger) -> None:
        self.probe.begin()

    def after_loss(self, state: State, logger: Logger) -> None:
        assert isinstance(state.loss, Tensor)
        self.probe.computed(state.loss)

    def batch_end(self, state: State, logger: Logger) -> None:
        self.probe.end()
        for algorithm in self.algorithms:
            self.algorithm_seconds.append(algorithm.seconds)
            algorithm.seconds = 0.0
            self.events, algorithm.events = algorithm.events, []
        if state.timestamp.batch_in_epoch == state.dataloader_len:
            state.stop_training()

    def _before_step(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Composer computes the gradients in a closure, within the step: what the step itself does comes after.
        if (closure := kwargs.get('closure')) is None:
            self.probe.backpropagated()
            return None

        def then_told() -> Any:
            loss = closure()
            self.probe.backpropagated()
            return loss

        return args, {**kwargs, 'closure': then_told}


def _share(model: nn.Module, units: Sequence[Unit], units_frozen: int) -> float:
    sizes = [sum(model.get_parameter(name).numel() for name in unit.parameters) for unit in units]
    return sum(sizes[:units_frozen]) / sum(sizes)


def _freeze_as_many(model: nn.Module, optimizer: Optimizer, share: float) -> int:
    """Freezes as LayerFreezing does, up to the layer that comes next to a share of the parameters."""
    layers: list[nn.Module] = []
    _get_layers(model, layers)
    total = sum(parameter.numel() for parameter in model.parameters())
    frozen = accumulate((sum(p.numel() for p in layer.parameters()) for layer in layers[:-1]), initial=0)
    shares = [size / total for size in frozen]
    depth = min(range(len(shares)), key=lambda index: abs(shares[index] - share))
    # Half a layer more, so that rounding doesn't leave out the last one; at the end there is no more.
    duration = 0.0 if not depth else min(1.0, (depth + 0.5) / (len(layers) - 1))
    found, _ = freeze_layers(model, optimizer, duration, freeze_start=0.0, freeze_level=1.0)
    assert found == depth, f'froze {found} layers instead of {depth}'
    return depth
