"""From progress to batches and epochs, and from a warm-up to progress."""

import math
from bisect import bisect_left
from types import SimpleNamespace
from typing import cast

from composer.core import State, Time, TimeUnit

from composer_freezeout.algorithm.progress import as_progress

__all__ = ['Epochs', 'warmup_end']


class Epochs:
    """The batches and epochs of a run that has not begun.

    Args:
        duration (str): Its length, as a Composer time string.
        batch_size (int): Samples of a batch, in ``[1, ∞)``.
        batches_per_epoch (int, optional): None if it is not known.
        stretch (float): How many times as long the run is as ``duration`` says, in ``[1, ∞)``.
    """

    def __init__(self, duration: str, batch_size: int, batches_per_epoch: int | None, stretch: float) -> None:
        time, self._per_epoch = Time.from_timestring(duration), batches_per_epoch
        self._epochs = stretch * time.value if time.unit == TimeUnit.EPOCH else None
        self._batches: float | None = None
        if time.unit == TimeUnit.SAMPLE:
            self._batches = stretch * time.value / batch_size
        elif time.unit == TimeUnit.BATCH:
            self._batches = round(stretch * time.value)
        elif time.unit == TimeUnit.EPOCH and batches_per_epoch is not None:
            self._batches = round(stretch * time.value * batches_per_epoch)

    def batch(self, progress: float) -> int | None:
        """Batches that are trained before the first one from there on; None if there is none, or it can't be told.

        Args:
            progress (float): Of the run, in ``[0, 1]``.

        Returns:
            int, optional: In ``[0, ∞)``.
        """
        if self._batches is None:
            return None
        # By the same division as in training: its rounding decides where a unit is due with the start of a batch.
        total, count = self._batches, math.ceil(self._batches)
        batch = bisect_left(range(count), progress, key=lambda batch: batch / total)
        return batch if batch < count else None

    def epoch(self, progress: float) -> int | None:
        """Epoch, counted from 1, of the first batch from there on; None if there is none, or it can't be told.

        Args:
            progress (float): Of the run, in ``[0, 1]``.

        Returns:
            int, optional: In ``[1, ∞)``.
        """
        if self._batches is not None and self._per_epoch is not None:
            batch = self.batch(progress)
            return None if batch is None else batch // self._per_epoch + 1
        if self._epochs is not None and progress < 1:
            return math.floor(progress * self._epochs) + 1
        return None


def warmup_end(duration: str, warmup: Time | None, batches_per_epoch: int | None, stretch: float) -> float:
    """Progress at which a warm-up ends.

    Args:
        duration (str): Length of the run, as a Composer time string.
        warmup (Time, optional): The warm-up.
        batches_per_epoch (int, optional): None if it is not known.
        stretch (float): How many times as long the run is as ``duration`` says, in ``[1, ∞)``.

    Returns:
        float: In ``[0, ∞)``; 0 without a warm-up.

    Raises:
        ValueError: If it can't be told without knowing the length of an epoch.
    """
    if warmup is None:
        return 0.0
    length = None if batches_per_epoch is None else Time(batches_per_epoch, TimeUnit.BATCH)
    state = SimpleNamespace(max_duration=Time.from_timestring(duration), dataloader_len=length)
    share = as_progress(warmup, cast(State, state))
    return share if warmup.unit == TimeUnit.DURATION else share / stretch
