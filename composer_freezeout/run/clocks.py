"""What time is measured with: wall-clock and CPU time."""

import contextlib
import multiprocessing
import resource
import time
from collections.abc import Callable

import psutil

__all__ = ['Stopwatch', 'cpu_seconds']


class Stopwatch:
    """Adds up the seconds between starts and stops.

    Args:
        synchronize (Callable, optional): Called before each reading, to wait for work that was only enqueued.
        now (Callable, optional): The clock. Default: wall-clock.
    """

    def __init__(self, synchronize: Callable[[], object] | None = None, now: Callable[[], float] | None = None):
        self.synchronize = synchronize
        self._clock = now
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
        return time.perf_counter() if self._clock is None else self._clock()


def cpu_seconds() -> float:
    """CPU time that this process has used, with all its threads, its data workers, and other children that have ended.

    Returns:
        float: Seconds, in ``[0, ∞)``.
    """
    # First: it takes notice of children that have ended, which are then counted among those.
    workers = multiprocessing.active_children()
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = time.process_time() + ended.ru_utime + ended.ru_stime
    for worker in workers:
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(worker.pid).cpu_times()
            seconds += times.user + times.system
    return seconds
