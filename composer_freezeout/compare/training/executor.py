"""Where runs are trained, so many at once: on this machine, or elsewhere."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Protocol

from composer_freezeout.compare.training.job import Job, Outcome, train
from composer_freezeout.compare.training.places import Place
from composer_freezeout.results.environment import environment

__all__ = ['Executor', 'Local']


class Executor(Protocol):
    """Trains runs, several at once. Used in a ``with`` statement, at whose end what is still running is stopped.

    Attributes:
        workers (int): How many runs are trained at once, in ``[1, ∞)``.
    """

    workers: int

    def environment(self) -> dict[str, Any]:
        """Versions and hardware, as the records of its runs will have them."""
        ...

    def submit(self, job: Job) -> Future[Outcome]:
        """Takes a run, and trains it as soon as there is a place.

        Args:
            job (Job): The run.

        Returns:
            Future[Outcome]: What will have come of it, also if it fails; it raises what is not the run's fault.
        """
        ...

    def __enter__(self) -> 'Executor':
        """Begins."""
        ...

    def __exit__(self, *error: object) -> None:
        """Stops what is running."""
        ...


class Local:
    """Trains on this machine.

    Args:
        places (Sequence[Place]): What each training has of the machine, at least one.
    """

    def __init__(self, places: Sequence[Place]):
        self.workers, self._cores = len(places), len(places[0].cores)
        self._places: SimpleQueue[Place] = SimpleQueue()
        for place in places:
            self._places.put(place)
        self._own, self._stop = threading.local(), threading.Event()
        self._pool = ThreadPoolExecutor(len(places), initializer=self._settle)

    def environment(self) -> dict[str, Any]:
        """Versions and hardware of this process, with the cores of a place."""
        found = environment()
        if self._cores:
            found['hardware']['usable_cores'] = self._cores
        return found

    def _settle(self) -> None:
        self._own.place = self._places.get()
        self._own.place.settle()

    def _train(self, job: Job) -> Outcome:
        return train(job, self._own.place.environment, self._stop)

    def submit(self, job: Job) -> Future[Outcome]:
        """Takes a run, and trains it in the next place that is free."""
        return self._pool.submit(self._train, job)

    def __enter__(self) -> 'Local':
        """Begins."""
        return self

    def __exit__(self, *error: object) -> None:
        """Stops what is running."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)
