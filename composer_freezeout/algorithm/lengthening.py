"""``const_time``: a training that takes as long as it would without freezing."""

import logging
from collections.abc import Callable

from composer.core import State, Time
from composer.loggers import Logger, ProgressBarLogger

from composer_freezeout.algorithm.progress import lengthened

__all__ = ['Lengthening']

log = logging.getLogger(__name__)


class Lengthening:
    """Lengthens a training once, at its first batch; one that goes on has been lengthened already.

    Attributes:
        stretch (float, optional): By how much, in ``[1, ∞)``; None until it is known.
    """

    def __init__(self) -> None:
        self.stretch: float | None = None
        self._to: Time | None = None

    @property
    def saving(self) -> float | None:
        """What share of the FLOPs freezing is predicted to save, in ``[0, 1)``; None as long as nobody has counted."""
        return None if self.stretch is None else 1 - 1 / self.stretch

    def at_fit_start(self, state: State) -> None:
        """Checks that the training is about to be lengthened, or has been.

        Raises:
            ValueError: If it has begun otherwise.
        """
        if self._is_done(state):
            return
        if state.timestamp.batch == 0:
            self._to = None
        elif self.stretch is not None and self._to is None:
            self._lengthen(state)  # of a checkpoint that was loaded before the length of an epoch was known
        else:
            raise ValueError(
                'const_time lengthens a training at its first batch, and this one has begun without it or is given '
                'another duration by `fit`; use const_time=False and the duration that you want'
            )

    def at_first_batch(self, state: State, logger: Logger, saving: Callable[[], float]) -> bool:
        """Lengthens the training, unless it has been.

        Args:
            state (State): The trainer's state.
            logger (Logger): Its logger, whose progress bars are made for one unit of the duration.
            saving (Callable[[], float]): Counts what share of the training freezing saves, in ``[0, 1)``.

        Returns:
            bool: Whether it has been lengthened now.
        """
        if self._to is not None:
            return False
        if self.stretch is None:
            self.stretch = 1 / (1 - saving())
        self._lengthen(state)
        _renew_progress_bars(state, logger)
        return True

    def load(self, stretch: float | None, state: State | None) -> None:
        """Takes in by how much a checkpoint's training was lengthened.

        Args:
            stretch (float, optional): By how much, if it had been.
            state (State, optional): The trainer's state, where there is one: Composer asks whether anything is left to
                train as soon as it has loaded.
        """
        self.stretch = stretch
        known = state is not None and state.max_duration is not None and state.dataloader_len is not None
        if state is not None and known and stretch is not None and not self._is_done(state):
            self._lengthen(state)

    def _is_done(self, state: State) -> bool:
        # Composer refuses to compare times of different units.
        duration, ours = state.max_duration, self._to
        return duration is not None and ours is not None and duration.to_timestring() == ours.to_timestring()

    def _lengthen(self, state: State) -> None:
        assert self.stretch is not None
        self._to = lengthened(state, self.stretch)
        log.info('FreezeOut lengthens the training from %s to %s', state.max_duration, self._to)
        state.max_duration = self._to


def _renew_progress_bars(state: State, logger: Logger) -> None:
    for destination in logger.destinations:
        if isinstance(destination, ProgressBarLogger) and destination.train_pbar:
            destination.train_pbar.close()
            destination.train_pbar = None
            destination.epoch_start(state, logger)
