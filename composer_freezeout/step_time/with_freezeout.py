"""Steps of Composer's Trainer with FreezeOut, held at a number of frozen units."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from composer.core import Event, State
from composer.loggers import Logger

from composer_freezeout.algorithm.freezeout import FreezeOut
from composer_freezeout.freezing.checkpoint import Saved
from composer_freezeout.freezing.observing.partition import Partition
from composer_freezeout.method.schedule import freeze_times
from composer_freezeout.step_time.in_composer import DURATION, InComposer
from composer_freezeout.step_time.workload import Probe, Workload

__all__ = ['WithFreezeOut']


class WithFreezeOut(InComposer):
    """Steps with FreezeOut.

    What it freezes depends on the progress alone, so progress is held between the freeze times of two units: the
    training has a billion batches, and each visit begins in the middle between the two. A visit is an epoch, which
    takes frozen units out of the optimizer; the first visit is not yet without them.

    Args:
        workload (Workload): What is trained.
        units_frozen (int): How many units are frozen, in ``[0, n)``.

    Attributes:
        algorithm_seconds (list[float]): Python time of FreezeOut in each step so far, from the end of the one before.
        events (list[Event]): Of which it was told in the last step.
    """

    def __init__(self, workload: Workload, units_frozen: int) -> None:
        self.algorithm_seconds: list[float] = []
        self.events: list[Event] = []
        # Each number of units can be a stage, also of a compiled model.
        self._freezeout = _TimedFreezeOut(max_stages=max(1, len(workload.units) - 1))
        times = (0.0, *freeze_times(len(workload.units)))
        batch = round(DURATION * (times[units_frozen] + times[units_frozen + 1]) / 2)
        super().__init__(workload, [self._freezeout], batch)
        # As in a run that is resumed: its first step has no units to find any more.
        known = Partition(tuple(workload.units), tuple(range(len(workload.units) + 1)))
        self._freezeout.load_state_dict(Saved(known, frozen_at=(), units_removed=0).state_dict())

    def step_ended(self) -> None:
        """Notes how long FreezeOut took, and of what it was told."""
        self.algorithm_seconds.append(self._freezeout.seconds)
        self._freezeout.seconds = 0.0
        self.events, self._freezeout.events = self._freezeout.events, []

    def notes(self) -> dict[str, Any]:
        """Python time of FreezeOut."""
        return {'algorithm_seconds': self.algorithm_seconds, 'algorithm_seconds_alone': self.algorithm_alone()}

    def algorithm_alone(self, times: int = 200) -> list[float]:
        """Seconds of FreezeOut for the events of a step, with nothing computed between them.

        Computation on a CPU empties its caches, which on a GPU it doesn't.

        Args:
            times (int): How often, in ``[1, ∞)``.

        Returns:
            list[float]: As many.
        """
        state, logger = self.trainer.state, self.trainer.logger
        self.rewind()
        seconds = []
        for _ in range(times):
            start = time.perf_counter()
            for event in self.events:
                if FreezeOut.match(self._freezeout, event, state):
                    FreezeOut.apply(self._freezeout, event, state, logger)
            seconds.append(time.perf_counter() - start)
        return seconds

    def synchronizations(self) -> int:
        """How often FreezeOut waits for the GPU in the steps of a visit, in ``[0, ∞)``."""
        self._freezeout.synchronizations = 0
        self.visit(Probe())
        found, self._freezeout.synchronizations = self._freezeout.synchronizations, None
        return found


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
