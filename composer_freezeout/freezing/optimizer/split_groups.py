"""An optimizer's param groups, split per unit or joined to what they were."""

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from composer_freezeout.freezing.observing.units import Unit
from composer_freezeout.freezing.optimizer.nesting import chain_of
from composer_freezeout.freezing.optimizer.param_group import (
    BASE_LR,
    NOT_SHARED,
    ORIGIN,
    OURS,
    UNIT,
    another_group,
    are_equal,
    origins_of,
)
from composer_freezeout.freezing.optimizer.scheduler_lists import SchedulerLists
from composer_freezeout.freezing.optimizer.splitting import labels_of, peak_rate, split_per_unit

__all__ = ['SplitGroups']


class SplitGroups:
    """The param groups of one optimizer, in place, and its schedulers in step with them.

    They are joined until :meth:`split` is called first.

    Args:
        optimizer (Optimizer): The optimizer, the outermost one where some are wrapped around others.
        parameters (Mapping[str, nn.Parameter]): The parameters that the names in ``units`` refer to.
        units (Sequence[Unit]): The units, first to freeze first.
        initial_factors (Sequence[float]): Factor of each unit's learning rate at the start, in ``(0, ∞)``.
        schedulers (Iterable[LRScheduler]): Schedulers of this optimizer.

    Attributes:
        optimizer (Optimizer): As given.
        original (list[dict[str, Any]]): The groups as they are when joined, and those that were added later.
        resting (list[dict[str, Any]] | None): The split groups, while they are joined; None if they have to be made
            anew.
        units_removed (int): How many units have left the optimizer, in ``[0, len(units))``.
        labels (dict[tuple[str, int], str]): Name of each learning rate, by unit and index of the original group.
        is_split (bool): Whether the groups are split now.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Mapping[str, nn.Parameter],
        units: Sequence[Unit],
        initial_factors: Sequence[float],
        schedulers: Iterable[LRScheduler],
    ) -> None:
        self.optimizer = optimizer
        self.original = list(optimizer.param_groups)
        self.resting: list[dict[str, Any]] | None = None
        self.units_removed = 0
        self.labels: dict[tuple[str, int], str] = {}
        self.is_split = False
        self._units = tuple(units)
        self._index = {unit.name: index for index, unit in enumerate(units)}
        self._unit_of = {id(parameters[name]): unit.name for unit in units for name in unit.parameters}
        self._initial_factors = tuple(initial_factors)
        self._added: frozenset[int] = frozenset()  # indices of original groups that came while training
        self._when_joined: list[dict[str, Any]] = []  # what the original groups held then
        self._count = 0  # groups as they are now
        # Of the groups as they are now: looked up once, as learning rates are set and read in every batch.
        self._rated: list[tuple[dict[str, Any], float, int]] = []
        self._looked_up: dict[str, Any] | None = None
        self._schedulers = SchedulerLists()
        self.track_schedulers(schedulers)
        self._base_lrs = [peak_rate(group, index, bool(self._schedulers)) for index, group in enumerate(self.original)]

    # --- split and joined

    def split(self) -> bool:
        """Gives each unit its own groups, without those of removed units. Does nothing where it is so already.

        Returns:
            bool: Whether the groups are new ones, whose learning rates have to be set.
        """
        groups = self.optimizer.param_groups
        if self.is_split:
            if len(groups) != self._count:
                self._take_in([group for group in groups if ORIGIN not in group])
            return False
        if not all(map(operator.is_, groups, self.original)):  # a state has been loaded
            self.resting = None
            self.original = groups[: len(self.original)]
            self._base_lrs = [peak_rate(group, index, True) for index, group in enumerate(self.original)]
        self._take_in(groups[len(self.original) :])
        is_new = self.resting is None
        split = self._made_of_original([]) if self.resting is None else self._handed_down(self.resting)
        self.is_split = True
        self._set_groups(split)
        return is_new

    def join(self) -> None:
        """Puts the original groups back, removed units included. Does nothing where it is so already."""
        if not self.is_split:
            return
        self.split()  # takes in what has been added
        # Hyperparameters may have changed on the way, all but the learning rate, which is ours.
        for group in self.optimizer.param_groups:
            ours = OURS if group[BASE_LR] is None else NOT_SHARED
            self.original[group[ORIGIN]].update({k: v for k, v in group.items() if k not in ours})
        self.is_split = False
        self.resting = list(self.optimizer.param_groups)
        self._when_joined = [another_group(group) for group in self.original]
        self._set_groups(self.original)

    def remove(self, count: int) -> None:
        """Leaves the first ``count`` units, and no others, out of the split groups from the next :meth:`split` on.

        Args:
            count (int): In ``[0, len(units))``. The groups have to be joined.
        """
        self.units_removed = count
        if self.resting is not None:
            self.resting = self._made_of_original(self._handed_down(self.resting))

    def members(self, units: Iterable[Unit]) -> Iterator[tuple[nn.Parameter, dict[str, Any]]]:
        """Parameters of some units, each with its original group."""
        names = {unit.name for unit in units}
        for index, group in enumerate(self.original):
            if index not in self._added:
                yield from ((p, group) for p in group['params'] if self._unit_of.get(id(p)) in names)

    def rated(self) -> list[tuple[dict[str, Any], float, int]]:
        """The split groups whose learning rate is ours: group, base learning rate, and index of its unit or -1."""
        groups = self.optimizer.param_groups
        # Loading a state replaces the groups.
        if groups and self._looked_up is not groups[0]:
            self._looked_up = groups[0]
            self._rated = [
                (group, group[BASE_LR], self._index.get(group[UNIT], -1))
                for group in groups
                if group[BASE_LR] is not None
            ]
        return self._rated

    # --- groups that were added while training

    @property
    def added(self) -> tuple[int, ...]:
        """Indices of the original groups that were added while training."""
        return tuple(sorted(self._added))

    def set_added(self, indices: Iterable[int]) -> bool:
        """Says which of the original groups keep a learning rate of their own.

        Args:
            indices (Iterable[int]): Their indices, as of :attr:`added`.

        Returns:
            bool: Whether anything changed. The groups are joined then.

        Raises:
            ValueError: If the optimizer has fewer groups.
        """
        indices = frozenset(indices)
        if indices == self._added:
            return False
        if max(indices, default=-1) >= len(self.original):
            raise ValueError(
                f'a param group was added while the checkpoint was trained, so its optimizer had more than '
                f'{len(self.original)} groups; add the group before loading'
            )
        self.join()
        self.resting, self._added = None, indices
        return True

    # --- wrappers and schedulers

    def track_optimizer(self, optimizer: Optimizer) -> None:
        """Follows an optimizer that has been wrapped around the one known so far.

        Args:
            optimizer (Optimizer): The outermost one.
        """
        optimizer.param_groups = self.optimizer.param_groups
        self.optimizer = optimizer
        self._share_groups()

    def track_schedulers(self, schedulers: Iterable[LRScheduler]) -> None:
        """Keeps these schedulers, and no others, aligned with the groups from now on.

        Args:
            schedulers (Iterable[LRScheduler]): Schedulers made for the optimizer's groups as they are now.
        """
        self._schedulers.track(schedulers, origins_of(self.optimizer.param_groups))

    # --- how groups are made and replaced

    def _made_of_original(self, known: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Groups in the order: outside of the units, last unit, …, first unit, those that were added.

        Args:
            known (Iterable[dict[str, Any]]): Groups to take in the place of new ones, as what some optimizers count in
                a group differs from unit to unit.
        """
        own = [group for index, group in enumerate(self.original) if index not in self._added]
        groups = split_per_unit(own, self._base_lrs, self._unit_of, self._units, self._initial_factors)
        self.labels = labels_of(groups)
        kept = [group for group in groups if self._index.get(group[UNIT], len(self._index)) >= self.units_removed]
        kept += [self._as_added(index) for index in self.added]
        by_unit = {(group[UNIT], group[ORIGIN]): group for group in known}
        return [by_unit.get((group[UNIT], group[ORIGIN]), group) for group in kept]

    def _as_added(self, index: int) -> dict[str, Any]:
        return {**self.original[index], UNIT: None, BASE_LR: None, ORIGIN: index}

    def _take_in(self, groups: Sequence[dict[str, Any]]) -> None:
        """Takes in groups that ``add_param_group`` has put behind the others."""
        for group in groups:
            index = len(self.original)
            known = {id(parameter) for original in self.original for parameter in original['params']}
            if any(id(parameter) in known for parameter in group['params']):
                raise ValueError(
                    'a param group was added with parameters that have left the optimizer because they are frozen; '
                    'FreezeOut puts them back itself when it thaws them, so leave them out'
                )
            self._added |= {index}
            if self.is_split:
                self.original.append({key: value for key, value in group.items() if key not in OURS})
                group.update({UNIT: None, BASE_LR: None, ORIGIN: index})
            else:
                self.original.append(group)
                self._when_joined.append(another_group(group))
                if self.resting is not None:
                    self.resting.append(self._as_added(index))
            self._base_lrs.append(0.0)
        self._count = len(self.optimizer.param_groups)
        self._looked_up = None

    def _handed_down(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Gives split groups what has been changed in the original ones since these were joined."""
        for group in groups:
            now, before = self.original[group[ORIGIN]], self._when_joined[group[ORIGIN]]
            ours = OURS | {'params'} if group[BASE_LR] is None else NOT_SHARED
            for key in before.keys() - now.keys() - ours:
                group.pop(key, None)
            group |= {k: v for k, v in now.items() if k not in ours and not (k in before and are_equal(before[k], v))}
        return groups

    def _set_groups(self, groups: Sequence[dict[str, Any]]) -> None:
        self._rated, self._looked_up = [], None
        self._count = len(groups)
        self._schedulers.remember(origins_of(self.optimizer.param_groups))
        self.optimizer.param_groups[:] = groups
        self._share_groups()
        self._schedulers.align(groups, origins_of(groups), len(self.original) - len(self._added))

    def _share_groups(self) -> None:
        # A wrapper copies the list of groups; only one list can be kept up to date.
        for inner in chain_of(self.optimizer)[1:]:
            inner.param_groups = self.optimizer.param_groups
