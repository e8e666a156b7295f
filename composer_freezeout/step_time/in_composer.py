"""Steps of Composer's Trainer, without an algorithm or with some."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from composer import Callback, Trainer
from composer.core import Algorithm, State, Time, Timestamp
from composer.loggers import Logger, LoggerDestination
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from composer_freezeout.step_time.workload import Probe, Workload

__all__ = ['DURATION', 'InComposer']

# Batches of a training, so many that progress stands still while steps are timed.
DURATION = 10**9


class InComposer:
    """Steps of ``Trainer.fit``. A visit is an epoch.

    A step begins when the batch is there, which is before any algorithm is told of it, and ends when algorithms have
    been told that it is over.

    Args:
        workload (Workload): What is trained.
        algorithms (Sequence[Algorithm]): The Trainer's. Default: none.
        batch (int): Of :data:`DURATION`, with which each visit begins. Default: 0.

    Attributes:
        model (ComposerClassifier): The model.
        optimizer (Optimizer): What trains it.
        trainer (Trainer): Composer's.
    """

    def __init__(self, workload: Workload, algorithms: Sequence[Algorithm] = (), batch: int = 0) -> None:
        self.model = workload.copy_model()
        self.optimizer = workload.make_optimizer(list(self.model.parameters()))
        self._batch = batch
        self._relay = _Relay(self.step_ended)
        compiling = None if workload.compile_backend is None else {'backend': workload.compile_backend}
        self.trainer = Trainer(
            model=self.model,
            train_dataloader=_Batches(workload.batch, workload.steps),
            max_duration=Time.from_batch(DURATION),
            optimizers=self.optimizer,
            algorithms=list(algorithms),
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

    @property
    def wrapper(self) -> DistributedDataParallel | None:
        """What exchanges gradients with other processes."""
        model = self.trainer.state.model
        return model if isinstance(model, DistributedDataParallel) else None

    def visit(self, probe: Probe) -> None:
        """Does the steps of a visit."""
        self._relay.probe = probe
        self.rewind()
        self.trainer.fit()

    def rewind(self) -> None:
        """Puts the training back to where each visit begins."""
        state = self.trainer.state
        state.max_duration = Time.from_batch(DURATION)
        state.timestamp = Timestamp(batch=self._batch)

    def step_ended(self) -> None:
        """Called at the end of each step."""

    def notes(self) -> dict[str, Any]:
        """What the record says of it."""
        return {}

    def close(self) -> None:
        """Ends the Trainer."""
        self.trainer.close()


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


class _Relay(Callback):
    """Tells a probe what the Trainer does, and ends each fit with its epoch.

    Args:
        ended (Callable[[], None]): Called when a step is over, after the probe.
    """

    def __init__(self, ended: Callable[[], None]) -> None:
        self.probe = Probe()
        self._ended = ended
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
        self._ended()
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
