"""Measures how fast a loader brings batches."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader

__all__ = ['Loading', 'profile_loading']


@dataclass(frozen=True)
class Loading:
    """How fast batches can be loaded.

    Attributes:
        seconds (float): Mean seconds from one batch to the next while nothing else is done, in ``[0, ∞)``.
        batches (int): Batches that this is the mean of.
        overlapped (bool): Whether worker processes load during the steps.
    """

    seconds: float
    batches: int
    overlapped: bool


def profile_loading(loader: Iterable[Any], batches: int = 20, budget_seconds: float = 5.0) -> Loading:
    """Times how fast a loader brings batches while nobody else needs the machine.

    Args:
        loader (Iterable[Any]): The loader of the training; a ``DataLoader`` says whether it has workers.
        batches (int): How many to time, in ``[1, ∞)``; fewer where the epoch is shorter. Default: 20.
        budget_seconds (float): After how long no further batch is begun. Default: 5.

    Returns:
        Loading: The mean. The first batch, for which workers have to start, doesn't count if there is a second.

    Raises:
        ValueError: If the loader has no batches.
    """
    iterator = iter(loader)
    started = time.perf_counter()
    if next(iterator, None) is None:
        raise ValueError('the loader has no batches; give it at least one')
    first = time.perf_counter()
    loaded, last = 0, first
    for _ in islice(iterator, batches):
        loaded, last = loaded + 1, time.perf_counter()
        if last - started > budget_seconds:
            break
    workers = loader.num_workers if isinstance(loader, DataLoader) else 0
    seconds = (last - first) / loaded if loaded else first - started
    return Loading(seconds, max(1, loaded), workers > 0)
