"""From progress to epochs, and from a warm-up to progress."""

import math
from bisect import bisect_left
from types import SimpleNamespace
from typing import cast

from composer.core import State, Time, TimeUnit

from composer_freezeout.algorithm.progress import as_progress
from composer_freezeout.run.config import RunConfig

__all__ = ['Epochs', 'warmup_end']


class Epochs:
    """The epochs of a run that has not begun.

    Args:
        config (RunConfig): A checked configuration.
        batches_per_epoch (int, optional): None if the data aren't there.
        stretch (float): How many times as long the run is as the configuration says, in ``[1, ∞)``.
    """

    def __init__(self, config: RunConfig, batches_per_epoch: int | None, stretch: float) -> None:
        duration, self._per_epoch = Time.from_timestring(config.max_duration), batches_per_epoch
        self._epochs = stretch * duration.value if duration.unit == TimeUnit.EPOCH else None
        self._batches: float | None = None
        if batches_per_epoch is not None and duration.unit == TimeUnit.SAMPLE:
            self._batches = stretch * duration.value / config.train_data.batch_size
        elif batches_per_epoch is not None and duration.unit in (TimeUnit.EPOCH, TimeUnit.BATCH):
            per_unit = batches_per_epoch if duration.unit == TimeUnit.EPOCH else 1
            self._batches = round(stretch * duration.value * per_unit)

    def at(self, progress: float) -> int | None:
        """Epoch, counted from 1, of the first batch from there on; None if there is none, or it can't be told.

        Args:
            progress (float): Of the run, in ``[0, 1]``.

        Returns:
            int, optional: In ``[1, ∞)``.
        """
        if self._batches is not None and self._per_epoch is not None:
            # By the same division as in training: its rounding decides where a unit is due with the start of a batch.
            total, count = self._batches, math.ceil(self._batches)
            batch = bisect_left(range(count), progress, key=lambda batch: batch / total)
            return batch // self._per_epoch + 1 if batch < count else None
        if self._epochs is not None and progress < 1:
            return math.floor(progress * self._epochs) + 1
        return None


def warmup_end(config: RunConfig, warmup: Time | None, batches_per_epoch: int | None, stretch: float) -> float:
    """Progress at which a warm-up ends.

    Args:
        config (RunConfig): A checked configuration.
        warmup (Time, optional): The warm-up.
        batches_per_epoch (int, optional): None if the data aren't there.
        stretch (float): How many times as long the run is as the configuration says, in ``[1, ∞)``.

    Returns:
        float: In ``[0, ∞)``; 0 without a warm-up.

    Raises:
        ValueError: If it can't be told without knowing the length of an epoch.
    """
    if warmup is None:
        return 0.0
    length = None if batches_per_epoch is None else Time(batches_per_epoch, TimeUnit.BATCH)
    state = SimpleNamespace(max_duration=Time.from_timestring(config.max_duration), dataloader_len=length)
    share = as_progress(warmup, cast(State, state))
    return share if warmup.unit == TimeUnit.DURATION else share / stretch
