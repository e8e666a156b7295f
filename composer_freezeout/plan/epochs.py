"""From progress to epochs, and from a warm-up to progress."""

import math
from bisect import bisect_left
from types import SimpleNamespace
from typing import cast

from composer.core import State, Time, TimeUnit

from composer_freezeout.algorithm.freezeout import FreezeOut
from composer_freezeout.algorithm.progress import as_progress
from composer_freezeout.plan.batches import _Data
from composer_freezeout.run.config import (
    RunConfig,
)

__all__ = []


class _Clock:
    """From progress to epochs."""

    def __init__(self, config: RunConfig, data: _Data, stretch: float) -> None:
        duration, self.batches = Time.from_timestring(config.max_duration), data.batches_per_epoch
        self.epochs = stretch * duration.value if duration.unit == TimeUnit.EPOCH else None
        self.total: float | None = None  # batches
        if self.batches is not None and duration.unit == TimeUnit.SAMPLE:
            self.total = stretch * duration.value / config.train_data.batch_size
        elif self.batches is not None and duration.unit in (TimeUnit.EPOCH, TimeUnit.BATCH):
            per_unit = self.batches if duration.unit == TimeUnit.EPOCH else 1
            self.total = round(stretch * duration.value * per_unit)

    def epoch(self, progress: float) -> int | None:
        """Epoch, counted from 1, of the first batch from there on; None if there is none, or it can't be told."""
        if self.total is not None and self.batches is not None:
            # By the same division as in training: its rounding decides where a unit is due with the start of a batch.
            total, count = self.total, math.ceil(self.total)
            batch = bisect_left(range(count), progress, key=lambda batch: batch / total)
            return batch // self.batches + 1 if batch < count else None
        if self.epochs is not None and progress < 1:
            return math.floor(progress * self.epochs) + 1
        return None


def _warmup(
    config: RunConfig, freezeout: FreezeOut, batches_per_epoch: int | None, stretch: float, notes: list[str]
) -> float:
    if freezeout.t_warmup is None:
        return 0.0
    length = None if batches_per_epoch is None else Time(batches_per_epoch, TimeUnit.BATCH)
    state = SimpleNamespace(max_duration=Time.from_timestring(config.max_duration), dataloader_len=length)
    try:
        share = as_progress(freezeout.t_warmup, cast(State, state))
    except ValueError as error:
        notes.append(f'the warm-up is left out: {error}')
        return 0.0
    return share if freezeout.t_warmup.unit == TimeUnit.DURATION else share / stretch
