"""Keeps learning-rate schedulers aligned with param groups that come and go.

Schedulers pair groups with what they keep of each by position.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

__all__ = ['SchedulerLists']

# What torch's schedulers keep per param group.
_PER_GROUP = ('base_lrs', 'lr_lambdas', '_last_lr', 'max_lrs', 'min_lrs', 'base_momentums', 'max_momentums')


class SchedulerLists:
    """The lists of some schedulers, by the original group that each param group was split from."""

    def __init__(self) -> None:
        self._schedulers: list[tuple[LRScheduler, dict[str, dict[int, Any]]]] = []

    def __bool__(self) -> bool:
        return bool(self._schedulers)

    def track(self, schedulers: Iterable[LRScheduler], origins: Sequence[int]) -> None:
        """Follows these schedulers, and no others, from now on.

        Args:
            schedulers (Iterable[LRScheduler]): Schedulers, made for all of the groups or for the first ones of them.
            origins (Sequence[int]): The original group of each of the groups as they are now.
        """
        known = {id(scheduler): lists for scheduler, lists in self._schedulers}
        self._schedulers = [(s, known.get(id(s), {name: {} for name in _lists(s)})) for s in _flatten(schedulers)]
        self.remember(origins)

    def remember(self, origins: Sequence[int]) -> None:
        """Takes in what the schedulers keep now.

        Args:
            origins (Sequence[int]): The original group of each of the groups as they are now.
        """
        for scheduler, lists in self._schedulers:
            for name, values in _lists(scheduler).items():
                # The lists are shorter than the groups where one was added that the scheduler doesn't know.
                lists[name].update(zip(origins, values, strict=False))

    def align(self, groups: Sequence[Mapping[str, Any]], origins: Sequence[int], original: int) -> None:
        """Gives the schedulers lists for other groups.

        Args:
            groups (Sequence[Mapping[str, Any]]): The groups from now on.
            origins (Sequence[int]): The original group of each of them.
            original (int): How many original groups there are that units were made from; later ones were added.
        """
        for scheduler, lists in self._schedulers:
            for name, by_origin in lists.items():
                # A scheduler that was made when all groups of an origin were gone keeps no value for it.
                other = next(iter(by_origin.values()), None)
                served = [
                    (g, origin)
                    for g, origin in zip(groups, origins, strict=True)
                    if origin in by_origin or origin < original
                ]
                if name == 'base_lrs':
                    values = [group.get('initial_lr', group['lr']) for group, _ in served]
                else:
                    values = [by_origin.get(origin, other) for _, origin in served]
                setattr(scheduler, name, values)


def _flatten(schedulers: Iterable[LRScheduler]) -> Iterable[LRScheduler]:
    for scheduler in schedulers:
        yield scheduler
        yield from _flatten(getattr(scheduler, '_schedulers', ()))


def _lists(scheduler: LRScheduler) -> dict[str, list[Any]]:
    return {name: getattr(scheduler, name) for name in _PER_GROUP if hasattr(scheduler, name)}
