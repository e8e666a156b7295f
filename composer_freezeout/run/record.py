"""A callback that measures a run."""

import platform
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist, map_collection
from torch.optim import Optimizer

from composer_freezeout.algorithm.freezeout import FreezeOut
from composer_freezeout.freezing.optimizer.param_group import UNIT

__all__ = ['Recorder', 'Stopwatch']


class Stopwatch:
    """Adds up the seconds between starts and stops.

    Args:
        synchronize (Callable, optional): Called before each reading, to wait for work that was only enqueued.
    """

    def __init__(self, synchronize: Callable[[], object] | None = None):
        self.synchronize = synchronize
        self._before = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Starts, if it is not running."""
        if self._since is None:
            self._since = self._now()

    def stop(self) -> None:
        """Stops, if it is running."""
        self._before, self._since = self.seconds(), None

    def cancel(self) -> None:
        """Stops, and forgets the time since the last start."""
        self._since = None

    def seconds(self) -> float:
        """Seconds so far, in ``[0, ∞)``."""
        return self._before + (self._now() - self._since if self._since is not None else 0.0)

    def reset(self, seconds: float) -> None:
        """Stops, and goes on from the given reading."""
        self._before, self._since = seconds, None

    def _now(self) -> float:
        if self.synchronize is not None:
            self.synchronize()
        return time.perf_counter()


@dataclass(frozen=True)
class _Segment:
    """Where a span of batches with the same trainable parameters began.

    Attributes:
        batch (int): Batches trained before it, in ``[1, ∞)``.
        seconds (float): Reading of the clock, in ``[0, ∞)``.
        trainable (int): Number of trainable tensors.
        trainable_parameters (int): Number of trainable parameters.
        units_frozen (int, optional): Number of frozen units; None without FreezeOut.
    """

    batch: int
    seconds: float
    trainable: int
    trainable_parameters: int
    units_frozen: int | None


class Recorder(Callback):
    """Measures a run: times, metrics of each epoch, and the learning rates that the optimizer really used.

    Training time runs from ``FIT_START`` to ``FIT_END`` and stands still during evaluation. It travels with
    checkpoints, so that the record of a resumed run is that of the whole run. It is also told apart by what was
    trainable, in segments of batches between one freeze and the next.

    Args:
        max_points (int): Points kept of the trace of learning rates, besides the last one, in ``[2, ∞)``.
    """

    def __init__(self, max_points: int = 250):
        if max_points < 2:
            raise ValueError(f'max_points must be at least 2, got {max_points}')
        self.max_points = max_points
        self.training = Stopwatch()
        self.evaluation = Stopwatch()
        self.data_wait = Stopwatch()
        self.optimizer: dict[str, Any] = {}
        self.units: list[dict[str, Any]] = []
        self.epochs: list[dict[str, Any]] = []
        self.resumed_at: list[int] = []
        self.first_batch_seconds: float | None = None
        self.segments: list[dict[str, Any]] = []
        self.example: Any = None
        self._trace: list[tuple[int, dict[str, float]]] = []
        self._last_point: tuple[int, dict[str, float]] | None = None
        self._stride = 1
        self._parameters: list[torch.nn.Parameter] = []
        self._segment: _Segment | None = None
        self._batches_done = 0
        self._fitting = False
        self._evaluated = False
        self._loss_sum, self._loss_count = 0.0, 0

    # Clocks

    def fit_start(self, state: State, logger: Logger) -> None:
        """Starts the clock."""
        if state.device.name == 'gpu':
            self.training.synchronize = self.evaluation.synchronize = torch.cuda.synchronize
            torch.cuda.reset_peak_memory_stats()
        if state.timestamp.batch.value:
            self.resumed_at.append(state.timestamp.batch.value)
        self._fitting = True
        self._parameters = list(state.model.parameters())
        self.training.start()

    def fit_end(self, state: State, logger: Logger) -> None:
        """Stops the clock."""
        self._fitting = False
        self.training.stop()
        self._close_segment(state.timestamp.batch.value)

    def eval_before_all(self, state: State, logger: Logger) -> None:
        """Pauses the clock."""
        self.training.stop()
        self.evaluation.start()

    def eval_after_all(self, state: State, logger: Logger) -> None:
        """Goes on."""
        self.evaluation.stop()
        self._evaluated = True
        if self._fitting:
            self.training.start()

    def before_dataloader(self, state: State, logger: Logger) -> None:
        """Starts to wait for a batch."""
        self.data_wait.start()

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """The batch is there."""
        self.data_wait.stop()

    def epoch_end(self, state: State, logger: Logger) -> None:
        """Forgets the last wait of the epoch, which brought no batch and has no end."""
        self.data_wait.cancel()

    # Measurements

    def batch_start(self, state: State, logger: Logger) -> None:
        """Keeps two samples of the first batch, for what is computed later; begins a segment after a freeze."""
        if self.example is None:
            self.example = map_collection(state.batch, lambda tensor: tensor[:2].cpu())
        # Algorithms have done their work of this event. The clock is read, and the device waited for, at changes only.
        if self._segment is not None and self._segment.trainable != self._count_trainable():
            self._close_segment(state.timestamp.batch.value)
            self._open_segment(state)

    def after_train_batch(self, state: State, logger: Logger) -> None:
        """Reads the live optimizer, after its step and before any scheduler's."""
        optimizer = state.optimizers[0]
        if not self.optimizer:
            self.optimizer = _effective(optimizer)
        batch = state.timestamp.batch.value
        self._last_point = (batch, _learning_rates(optimizer))
        if batch % self._stride == 0:
            self._trace.append(self._last_point)
        if len(self._trace) > self.max_points:
            self._stride *= 2
            self._trace = [point for point in self._trace if point[0] % self._stride == 0]

    def batch_end(self, state: State, logger: Logger) -> None:
        """Adds up the loss."""
        self._batches_done = state.timestamp.batch.value
        self._loss_sum += sum(state.total_loss_dict.values())
        self._loss_count += 1
        if self._segment is None:
            # The first batch allocates, traces and compiles: it tells nothing about the others.
            if self.first_batch_seconds is None:
                self.first_batch_seconds = self.training.seconds()
            self._open_segment(state)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Ends the epoch's row: its evaluation is over, and its checkpoint not yet written."""
        self._end_row(state)

    def finish(self, state: State) -> None:
        """Ends the last row if training stopped within an epoch, or if an evaluation followed the last one.

        Args:
            state (State): The trainer's state after ``fit``.
        """
        if self._loss_count:
            self._end_row(state)
        elif self._evaluated and self.epochs:
            self.epochs[-1]['eval'] = _numbers(state.eval_metric_values)

    def _end_row(self, state: State) -> None:
        train = _numbers(state.train_metric_values)
        if self._loss_count:
            train['loss'] = self._loss_sum / self._loss_count
        training, waiting = self.training.seconds(), self.data_wait.seconds()
        self.epochs.append(
            {
                'epoch': len(self.epochs) + 1,
                'batch': state.timestamp.batch.value,
                'train': train,
                'eval': _numbers(state.eval_metric_values) if self._evaluated else {},
                'training_seconds': training - sum(row['training_seconds'] for row in self.epochs),
                'data_wait_seconds': waiting - sum(row['data_wait_seconds'] for row in self.epochs),
                'trainable_parameters': sum(p.numel() for p in state.model.parameters() if p.requires_grad),
            }
        )
        self.units = [row for a in state.algorithms if isinstance(a, FreezeOut) for row in a.unit_table()]
        self._evaluated = False
        self._loss_sum, self._loss_count = 0.0, 0

    # Segments

    def _count_trainable(self) -> int:
        return sum(parameter.requires_grad for parameter in self._parameters)

    def _open_segment(self, state: State) -> None:
        units = [row for a in state.algorithms if isinstance(a, FreezeOut) for row in a.unit_table()]
        self._segment = _Segment(
            batch=state.timestamp.batch.value,
            seconds=self.training.seconds(),
            trainable=self._count_trainable(),
            trainable_parameters=sum(p.numel() for p in self._parameters if p.requires_grad),
            units_frozen=sum(row['frozen'] for row in units) if units else None,
        )

    def _segments_until(self, batch: int) -> list[dict[str, Any]]:
        """All segments, the open one up to some batch."""
        if self._segment is None or batch <= self._segment.batch:
            return self.segments
        row = {
            'batch': self._segment.batch,
            'batches': batch - self._segment.batch,
            'seconds': self.training.seconds() - self._segment.seconds,
            'units_frozen': self._segment.units_frozen,
            'trainable_parameters': self._segment.trainable_parameters,
        }
        return [*self.segments, row]

    def _close_segment(self, batch: int) -> None:
        self.segments = self._segments_until(batch)
        self._segment = None

    # Results

    def lr_trace(self) -> dict[str, Any]:
        """Learning rates over the run, null where a group has left the optimizer.

        Returns:
            dict[str, Any]: ``batch``, the batches counted from 0, and ``lr``, for each group the rate used in them.
        """
        points = list(self._trace)
        if self._last_point is not None and (not points or points[-1][0] != self._last_point[0]):
            points.append(self._last_point)
        keys = dict.fromkeys(key for _, rates in points for key in rates)
        return {
            'batch': [batch for batch, _ in points],
            'lr': {key: [rates.get(key) for _, rates in points] for key in keys},
        }

    def results(self, state: State) -> dict[str, Any]:
        """The measured part of the record.

        Args:
            state (State): The trainer's state after :meth:`finish`.

        Returns:
            dict[str, Any]: Fields of the record.
        """
        training, waiting = self.training.seconds(), self.data_wait.seconds()
        evaluated = [row['eval'] for row in self.epochs if row['eval']]
        return {
            'effective': {
                'optimizer': self.optimizer,
                'algorithms': [_text(algorithm) for algorithm in state.algorithms],
                'batches_per_epoch': None if state.dataloader_len is None else state.dataloader_len.value,
                'total_batches': state.timestamp.batch.value,
                'world_size': dist.get_world_size(),
                'device': state.device.name,
                'precision': state.precision.value,
                'parameters_total': sum(p.numel() for p in state.model.parameters()),
            },
            'units': self.units,
            'epochs': self.epochs,
            'lr_trace': self.lr_trace(),
            'segments': self.segments,
            'training_seconds': training,
            'first_batch_seconds': self.first_batch_seconds,
            'evaluation_seconds': self.evaluation.seconds(),
            'data_wait_seconds': waiting,
            'data_wait_share': waiting / training if training else None,
            'peak_memory_bytes': _peak_memory(state),
            'resumed_at_batch': self.resumed_at,
            'final': evaluated[-1] if evaluated else {},
        }

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the same record."""
        return {
            'training_seconds': self.training.seconds(),
            'evaluation_seconds': self.evaluation.seconds(),
            'data_wait_seconds': self.data_wait.seconds(),
            'optimizer': self.optimizer,
            'units': self.units,
            'epochs': self.epochs,
            'resumed_at': self.resumed_at,
            'first_batch_seconds': self.first_batch_seconds,
            'segments': self._segments_until(self._batches_done),
            'trace': self._trace,
            'last_point': self._last_point,
            'stride': self._stride,
            'loss': (self._loss_sum, self._loss_count),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with the record of an earlier run."""
        self.training.reset(state['training_seconds'])
        self.evaluation.reset(state['evaluation_seconds'])
        self.data_wait.reset(state['data_wait_seconds'])
        self.optimizer = state['optimizer']
        self.units = state['units']
        self.epochs = state['epochs']
        self.resumed_at = state['resumed_at']
        self.first_batch_seconds = state['first_batch_seconds']
        self.segments = state['segments']
        self._trace = state['trace']
        self._last_point = state['last_point']
        self._stride = state['stride']
        self._loss_sum, self._loss_count = state['loss']


def _group_keys(optimizer: Optimizer) -> list[str]:
    # A unit has several groups where the optimizer was given several.
    keys: list[str] = []
    for index, group in enumerate(optimizer.param_groups):
        unit = group.get(UNIT)
        key = f'group{index}' if unit is None else unit
        copies = sum(other == key or other.startswith(f'{key}#') for other in keys)
        keys.append(f'{key}#{copies + 1}' if copies else key)
    return keys


def _learning_rates(optimizer: Optimizer) -> dict[str, float]:
    groups = zip(_group_keys(optimizer), optimizer.param_groups, strict=True)
    return {key: float(group['lr']) for key, group in groups if group['params']}


def _effective(optimizer: Optimizer) -> dict[str, Any]:
    scalars = (bool, int, float, str, type(None))
    groups = [
        {
            'unit': group.get(UNIT),
            'parameters': sum(p.numel() for p in group['params']),
            **{
                key: list(value) if isinstance(value, tuple) else value
                for key, value in group.items()
                if key != UNIT
                and all(isinstance(item, scalars) for item in (value if isinstance(value, tuple) else (value,)))
            },
        }
        for group in optimizer.param_groups
    ]
    return {'name': type(optimizer).__name__, 'groups': groups}


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _text(algorithm: object) -> str:
    # The default repr of an object is an address.
    return type(algorithm).__name__ if type(algorithm).__repr__ is object.__repr__ else repr(algorithm)


def _peak_memory(state: State) -> int:
    if state.device.name == 'gpu':
        return torch.cuda.max_memory_allocated()
    unit = 1 if platform.system() == 'Darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
