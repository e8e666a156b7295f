"""A callback that measures a run."""

import platform
import resource
from collections.abc import Mapping
from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from composer_freezeout.algorithm.freezeout import FreezeOut
from composer_freezeout.costs.batches import first_samples, map_tensors
from composer_freezeout.results.files import json_safe
from composer_freezeout.results.record import Epoch, Segment, StartedFrom, Unit, Weights
from composer_freezeout.run.clocks import Stopwatch, cpu_seconds
from composer_freezeout.run.learning_rates import LearningRateTrace, hyperparameters
from composer_freezeout.run.metrics import eval_metrics, judged_by
from composer_freezeout.run.segments import Moment, Segments

__all__ = ['Recorder']


class Recorder(Callback):
    """Measures a run: times, metrics of each epoch, and the learning rates that the optimizer really used.

    Training time, wall-clock and CPU time, runs from ``FIT_START`` to ``FIT_END`` and stands still during evaluation.
    It travels with checkpoints, so that the record of a resumed run is that of the whole run. A run that goes on from
    another run's checkpoint counts its own part alone. Training time is also told apart by what was trainable, in
    segments of batches between one freeze and the next.

    Args:
        max_points (int): Points kept of the trace of learning rates, besides the last one, in ``[2, ∞)``.
        continues (str, optional): The checkpoint of another run that is loaded; None if one of the run itself is, or
            none at all.
        weights (Weights, optional): What the run begins with; None for random weights.
    """

    def __init__(self, max_points: int = 250, continues: str | None = None, weights: Weights | None = None):
        self.learning_rates = LearningRateTrace(max_points)
        self.training = Stopwatch()
        self.training_cpu = Stopwatch(now=cpu_seconds)
        self.evaluation = Stopwatch()
        self.data_wait = Stopwatch()
        self.optimizer: dict[str, Any] = {}
        self.units: list[Unit] = []
        self.epochs: list[Epoch] = []
        self.segments = Segments()
        self.resumed_at: list[int] = []
        self.first_batch_seconds: float | None = None
        self.example: Any = None
        self.started_from: StartedFrom | None = None
        self.weights = weights
        self._continues = continues
        self._batches_done = 0
        self._fitting = False
        self._evaluated = False
        # Not of a run that was begun by a version that did not measure it.
        self._cpu_known = True
        self._loss_sum, self._loss_count = 0.0, 0

    # Clocks

    def fit_start(self, state: State, logger: Logger) -> None:
        """Starts the clocks."""
        if state.device.name == 'gpu':
            self.training.synchronize = self.evaluation.synchronize = torch.cuda.synchronize
            torch.cuda.reset_peak_memory_stats()
        if self._continues is not None:
            now = state.timestamp
            self.started_from = StartedFrom(path=self._continues, batches=now.batch.value, epochs=now.epoch.value)
        elif state.timestamp.batch.value:
            self.resumed_at.append(state.timestamp.batch.value)
        self._fitting = True
        self.segments.watch(state.model.parameters())
        self._go_on()

    def fit_end(self, state: State, logger: Logger) -> None:
        """Stops the clocks."""
        self._fitting = False
        self._pause()
        self.segments.close(self._now(state.timestamp.batch.value))

    def eval_before_all(self, state: State, logger: Logger) -> None:
        """Pauses the clocks."""
        self._pause()
        self.evaluation.start()

    def eval_after_all(self, state: State, logger: Logger) -> None:
        """Goes on."""
        self.evaluation.stop()
        self._evaluated = True
        if self._fitting:
            self._go_on()

    def before_dataloader(self, state: State, logger: Logger) -> None:
        """Starts to wait for a batch."""
        self.data_wait.start()

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """The batch is there."""
        self.data_wait.stop()

    def epoch_end(self, state: State, logger: Logger) -> None:
        """Forgets the last wait of the epoch, which brought no batch and has no end."""
        self.data_wait.cancel()

    def _go_on(self) -> None:
        self.training_cpu.start()
        self.training.start()

    def _pause(self) -> None:
        self.training.stop()
        self.training_cpu.stop()

    def _cpu(self) -> float | None:
        return self.training_cpu.seconds() if self._cpu_known else None

    # Measurements

    def batch_start(self, state: State, logger: Logger) -> None:
        """Keeps two samples of the first batch, for what is computed later; begins a segment after a freeze."""
        if self.example is None:
            self.example = map_tensors(first_samples(state.batch, 2), lambda tensor: tensor.cpu())
        # Algorithms have done their work of this event. The clock is read, and the device waited for, at changes only.
        if self.segments.outdated():
            now = self._now(state.timestamp.batch.value)
            self.segments.close(now)
            self.segments.open(now, self._frozen_units(state))

    def after_train_batch(self, state: State, logger: Logger) -> None:
        """Reads the live optimizer, after its step and before any scheduler's."""
        optimizer = state.optimizers[0]
        if not self.optimizer:
            self.optimizer = hyperparameters(optimizer)
        self.learning_rates.add(state.timestamp.batch.value, optimizer)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Adds up the loss."""
        self._batches_done = state.timestamp.batch.value
        self._loss_sum += sum(state.total_loss_dict.values())
        self._loss_count += 1
        if not self.segments.is_open:
            # The first batch allocates, traces and compiles: it tells nothing about the others.
            if self.first_batch_seconds is None:
                self.first_batch_seconds = self.training.seconds()
            self.segments.open(self._now(self._batches_done), self._frozen_units(state))

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
            self.epochs[-1] = self.epochs[-1].model_copy(update={'eval': _numbers(state.eval_metric_values)})

    def _end_row(self, state: State) -> None:
        train = _numbers(state.train_metric_values)
        if self._loss_count:
            train |= _numbers({'loss': self._loss_sum / self._loss_count})
        cpu = self._cpu()
        self.epochs.append(
            Epoch(
                epoch=len(self.epochs) + 1 + (self.started_from.epochs if self.started_from else 0),
                batch=state.timestamp.batch.value,
                train=train,
                eval=_numbers(state.eval_metric_values) if self._evaluated else {},
                training_seconds=self.training.seconds() - sum(row.training_seconds for row in self.epochs),
                data_wait_seconds=self.data_wait.seconds() - sum(row.data_wait_seconds for row in self.epochs),
                trainable_parameters=sum(p.numel() for p in state.model.parameters() if p.requires_grad),
                training_cpu_seconds=None
                if cpu is None
                else cpu - sum(row.training_cpu_seconds or 0.0 for row in self.epochs),
            )
        )
        self.units = _units(state)
        self._evaluated = False
        self._loss_sum, self._loss_count = 0.0, 0

    def _frozen_units(self, state: State) -> int | None:
        units = _units(state)
        return sum(unit.frozen for unit in units) if units else None

    def _now(self, batch: int) -> Moment:
        return Moment(batch, self.training.seconds(), self._cpu())

    # Results

    def results(self, state: State) -> dict[str, Any]:
        """The measured part of the record.

        Args:
            state (State): The trainer's state after :meth:`finish`.

        Returns:
            dict[str, Any]: Fields of :class:`~composer_freezeout.results.record.Record`.
        """
        training, waiting = self.training.seconds(), self.data_wait.seconds()
        evaluated = [row.eval for row in self.epochs if row.eval]
        return {
            'units': self.units,
            'epochs': self.epochs,
            'lr_trace': self.learning_rates.result(),
            'segments': self.segments.done,
            'training_seconds': training,
            'first_batch_seconds': self.first_batch_seconds,
            'evaluation_seconds': self.evaluation.seconds(),
            'data_wait_seconds': waiting,
            'data_wait_share': waiting / training if training else None,
            'peak_memory_bytes': _peak_memory(state),
            'resumed_at_batch': self.resumed_at,
            'final': evaluated[-1] if evaluated else {},
            'training_cpu_seconds': self._cpu(),
            'started_from': self.started_from,
            'weights': self.weights,
            'metric': judged_by(eval_metrics(state), evaluated[-1] if evaluated else ()),
        }

    def effective(self, state: State) -> dict[str, Any]:
        """What the configuration came to, as far as the trainer tells.

        Args:
            state (State): The trainer's state after training.

        Returns:
            dict[str, Any]: Fields of :class:`~composer_freezeout.results.record.Effective`.
        """
        return {
            'optimizer': self.optimizer,
            'algorithms': [_text(algorithm) for algorithm in state.algorithms],
            'batches_per_epoch': None if state.dataloader_len is None else state.dataloader_len.value,
            'total_batches': state.timestamp.batch.value - (self.started_from.batches if self.started_from else 0),
            'world_size': dist.get_world_size(),
            'device': state.device.name,
            'precision': state.precision.value,
            'parameters_total': sum(p.numel() for p in state.model.parameters()),
        }

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the same record."""
        return {
            'training_seconds': self.training.seconds(),
            'training_cpu_seconds': self._cpu(),
            'evaluation_seconds': self.evaluation.seconds(),
            'data_wait_seconds': self.data_wait.seconds(),
            'optimizer': self.optimizer,
            'units': [unit.model_dump() for unit in self.units],
            'epochs': [row.model_dump() for row in self.epochs],
            'resumed_at': self.resumed_at,
            'first_batch_seconds': self.first_batch_seconds,
            'segments': [row.model_dump() for row in self.segments.until(self._now(self._batches_done))],
            'loss': (self._loss_sum, self._loss_count),
            'started_from': None if self.started_from is None else self.started_from.model_dump(),
            'weights': None if self.weights is None else self.weights.model_dump(),
            **self.learning_rates.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with the record of the run, if it is this one's."""
        if self._continues is not None:
            return
        self.training.reset(state['training_seconds'])
        self.evaluation.reset(state['evaluation_seconds'])
        self.data_wait.reset(state['data_wait_seconds'])
        cpu = state.get('training_cpu_seconds')
        self._cpu_known = cpu is not None
        self.training_cpu.reset(cpu or 0.0)
        self.optimizer = state['optimizer']
        # What a checkpoint of an earlier version holds may be NaN.
        self.units = [Unit(**row) for row in json_safe(state['units'])]
        self.epochs = [Epoch(**row) for row in json_safe(state['epochs'])]
        self.segments.done = [Segment(**row) for row in json_safe(state['segments'])]
        self.resumed_at = state['resumed_at']
        self.first_batch_seconds = state['first_batch_seconds']
        self.learning_rates.load_state_dict(state)
        self._loss_sum, self._loss_count = state['loss']
        # Of a checkpoint of an earlier version there are none.
        started_from, weights = state.get('started_from'), state.get('weights')
        self.started_from = None if started_from is None else StartedFrom(**started_from)
        self.weights = None if weights is None else Weights(**weights)


def _units(state: State) -> list[Unit]:
    ours = [a for a in state.algorithms if isinstance(a, FreezeOut) and a.partition is not None]
    return [Unit(**row) for algorithm in ours for row in algorithm.unit_table()]


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    return json_safe({name: float(value) for name, value in metrics.items()})


def _text(algorithm: object) -> str:
    # The default repr of an object is an address.
    return type(algorithm).__name__ if type(algorithm).__repr__ is object.__repr__ else repr(algorithm)


def _peak_memory(state: State) -> int:
    if state.device.name == 'gpu':
        return torch.cuda.max_memory_allocated()
    unit = 1 if platform.system() == 'Darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
