"""Param groups per unit: every unit has its own learning rate, and leaves the optimizer when it is frozen.

The groups stand with the deepest unit first. Learning-rate schedulers address groups by position, so units that freeze,
first unit first, must leave from the end of the list.
"""

import copy
import logging
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from composer_freezeout.freezing.observing.units import Unit
from composer_freezeout.freezing.optimizer.multi_tensor import MergedGroups
from composer_freezeout.freezing.optimizer.scheduler_lists import SchedulerLists
from composer_freezeout.freezing.optimizer.trial import FreshStates, another_group, are_equal, rates_without_effect

__all__ = ['BASE_LR', 'UNIT', 'UnitGroups', 'check_optimizer']

log = logging.getLogger(__name__)

# Keys of a param group while it is split.
UNIT = 'freezeout_unit'
BASE_LR = 'freezeout_base_lr'  # None for a group that keeps its own learning rate
_ORIGIN = 'freezeout_origin'  # index of the group that it was split from
_OURS = frozenset({UNIT, BASE_LR, _ORIGIN})
_NOT_SHARED = _OURS | {'params', 'param_names', 'lr', 'initial_lr'}
_VALUES = (bool, int, float, list, tuple, torch.Tensor)  # that an optimizer may count in a group
_OWNER = '_freezeout_groups'  # attribute of an optimizer that is split


class UnitGroups:
    """The param groups of one optimizer, split in place per unit and original group.

    Groups keep the hyperparameters of the group they come from. Parameters that no unit owns stay in a group of their
    own, in front, and are never removed. A group that is added later stays as it is, with its own learning rate.

    Whoever asks for the optimizer's state dict, or copies or pickles the optimizer, gets the original groups, with a
    fresh state for parameters that have been removed: a checkpoint can be loaded whatever has been frozen, and without
    FreezeOut, too.

    Args:
        optimizer (Optimizer): The optimizer. The object stays the same; so do its state and its hyperparameters.
        parameters (Mapping[str, nn.Parameter]): The parameters that the names in ``units`` refer to.
        units (Sequence[Unit]): The units, first to freeze first.
        initial_factors (Sequence[float]): Factor of each unit's learning rate at the start, in ``(0, ∞)``; fixes
            ``initial_lr``, by which schedulers and decoupled weight decay scale.
        schedulers (Iterable[LRScheduler]): Schedulers of this optimizer, kept aligned with its groups.
        before_step (Callable[[], None], optional): Called before each step of the optimizer.

    Raises:
        ValueError: If the optimizer holds no parameter of the units, or has no learning rate per group.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Mapping[str, nn.Parameter],
        units: Sequence[Unit],
        initial_factors: Sequence[float],
        schedulers: Iterable[LRScheduler] = (),
        before_step: Callable[[], None] | None = None,
    ) -> None:
        if isinstance(previous := getattr(optimizer, _OWNER, None), UnitGroups):
            previous.detach()
        check_optimizer(optimizer, (parameters[name] for unit in units for name in unit.parameters))
        self.optimizer = optimizer
        self.units_removed = 0
        self._units = tuple(units)
        self._index = {unit.name: index for index, unit in enumerate(units)}
        self._unit_of = {id(parameters[name]): unit.name for unit in units for name in unit.parameters}
        self._initial_factors = tuple(initial_factors)
        self._factors: Sequence[float] = self._initial_factors
        self._original = list(optimizer.param_groups)
        self._added: frozenset[int] = frozenset()  # indices of original groups that came while training
        # The split groups, while they are joined; None if they have to be made anew.
        self._resting: list[dict[str, Any]] | None = None
        self._when_joined: list[dict[str, Any]] = []  # what the original groups held then
        self._is_split = self._is_detached = self._is_stepping = False
        self._count = 0  # groups as they are now
        # Of the groups as they are now: looked up once, as learning rates are set and read in every batch.
        self._targets: list[tuple[dict[str, Any], float, int]] = []
        self._labels: dict[tuple[str, int], str] = {}
        self._looked_up: dict[str, Any] | None = None
        self._schedulers = SchedulerLists()
        self.track_schedulers(schedulers)
        self._base_lrs = [_peak(group, index, bool(self._schedulers)) for index, group in enumerate(self._original)]
        self._before_step = before_step
        self._fresh = {nested: FreshStates(nested) for nested in _nested(optimizer)}
        self._merged = MergedGroups(_nested(optimizer)[-1])
        self._hooks: list[Any] = []
        self._stand_in(_nested(optimizer))
        self.split()

    # --- split and joined

    def split(self) -> None:
        """Gives each unit its own groups, without those of removed units. Does nothing where it is so already.

        Raises:
            ValueError: If another start of FreezeOut has taken over the optimizer.
        """
        if self._is_detached:
            raise ValueError(
                'FreezeOut has been started anew on this optimizer; use what the latest start has returned'
            )
        groups = self.optimizer.param_groups
        if self._is_split:
            if len(groups) != self._count:
                self._take_in([group for group in groups if _ORIGIN not in group])
            return
        if not all(map(operator.is_, groups, self._original)):  # a state has been loaded
            self._resting = None
            self._original = groups[: len(self._original)]
            self._base_lrs = [_peak(group, index, True) for index, group in enumerate(self._original)]
        self._take_in(groups[len(self._original) :])
        self._drop_removed_state()
        is_new = self._resting is None
        resting = self._split_groups([]) if self._resting is None else self._handed_down(self._resting)
        self._is_split = True
        self._set_groups(resting)
        if is_new:
            self.set_learning_rates(self._factors)

    def join(self, with_state: bool = False) -> None:
        """Puts the original groups back, removed units included, until the next :meth:`split`.

        Args:
            with_state (bool): Whether removed parameters get a state, as if they had not been stepped yet.
        """
        if self._is_split:
            self.split()  # takes in what has been added
            # Hyperparameters may have changed on the way, all but the learning rate, which is ours.
            for group in self.optimizer.param_groups:
                ours = _OURS if group[BASE_LR] is None else _NOT_SHARED
                self._original[group[_ORIGIN]].update({k: v for k, v in group.items() if k not in ours})
            self._is_split = False
            self._resting = list(self.optimizer.param_groups)
            self._when_joined = [another_group(group) for group in self._original]
            self._set_groups(self._original)
        if with_state:
            self._drop_removed_state()
            self._add_fresh_state()

    def detach(self) -> None:
        """Gives the optimizer back as it was, with its current state."""
        self.join()
        self._drop_removed_state()
        self._put_back_state(unit.name for unit in self._units[: self.units_removed])
        for hook in self._hooks:
            hook.remove()
        self._merged.detach()
        vars(self.optimizer).pop('__getstate__', None)
        delattr(self.optimizer, _OWNER)
        self._is_detached = True

    def _stand_in(self, optimizers: Sequence[Optimizer]) -> None:
        """Sees to it that others find the optimizers as they are to be found."""
        for optimizer in optimizers:
            self._hooks += [
                optimizer.register_state_dict_pre_hook(lambda *_: self.join(with_state=True)),
                optimizer.register_state_dict_post_hook(self._saved),
                optimizer.register_load_state_dict_pre_hook(lambda *_: self.join()),
                optimizer.register_step_pre_hook(self._before),
                optimizer.register_step_post_hook(self._after),
            ]
        setattr(self.optimizer, _OWNER, self)
        # Copies and pickles are made of what this gives.
        vars(self.optimizer)['__getstate__'] = self._state_to_copy

    def _before(self, *_: object) -> None:
        # Nobody may step with the groups joined: they have one learning rate for all units.
        self.split()
        self._is_stepping = True
        if self._before_step is not None:
            self._before_step()

    def _after(self, *_: object) -> None:
        self._is_stepping = False

    def _saved(self, *_: object) -> None:
        self._drop_removed_state()
        # Hooks and closures may ask for the state within a step.
        if self._is_stepping:
            self.split()

    def _state_to_copy(self) -> Any:
        self.join(with_state=True)
        state = type(self.optimizer).__getstate__(self.optimizer)
        state = {
            **state,
            'param_groups': [dict(group) for group in self.optimizer.param_groups],
            'state': defaultdict(dict, {key: copy.copy(value) for key, value in self.optimizer.state.items()}),
        }
        self.split()
        return state

    def _split_groups(self, known: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Groups in the order: outside of the units, last unit, …, first unit, those that were added.

        Args:
            known (Iterable[dict[str, Any]]): Groups to take in the place of new ones, as what some optimizers count in
                a group differs from unit to unit.
        """
        own = [group for index, group in enumerate(self._original) if index not in self._added]
        groups = _split(own, self._base_lrs, self._unit_of, self._units, self._initial_factors)
        self._labels = _labels(groups)
        kept = [group for group in groups if self._position(group) >= self.units_removed]
        kept += [self._as_added(index) for index in self.added]
        by_unit = {(group[UNIT], group[_ORIGIN]): group for group in known}
        return [by_unit.get((group[UNIT], group[_ORIGIN]), group) for group in kept]

    def _as_added(self, index: int) -> dict[str, Any]:
        return {**self._original[index], UNIT: None, BASE_LR: None, _ORIGIN: index}

    def _take_in(self, groups: Sequence[dict[str, Any]]) -> None:
        """Takes in groups that ``add_param_group`` has put behind the others."""
        for group in groups:
            index = len(self._original)
            known = {id(parameter) for original in self._original for parameter in original['params']}
            if any(id(parameter) in known for parameter in group['params']):
                raise ValueError(
                    'a param group was added with parameters that have left the optimizer because they are frozen; '
                    'FreezeOut puts them back itself when it thaws them, so leave them out'
                )
            self._added |= {index}
            if self._is_split:
                self._original.append({key: value for key, value in group.items() if key not in _OURS})
                group.update({UNIT: None, BASE_LR: None, _ORIGIN: index})
            else:
                self._original.append(group)
                self._when_joined.append(another_group(group))
                if self._resting is not None:
                    self._resting.append(self._as_added(index))
            self._base_lrs.append(0.0)
        self._count = len(self.optimizer.param_groups)
        self._looked_up = None

    def _handed_down(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Gives split groups what has been changed in the original ones since these were joined."""
        for group in groups:
            now, before = self._original[group[_ORIGIN]], self._when_joined[group[_ORIGIN]]
            ours = _OURS | {'params'} if group[BASE_LR] is None else _NOT_SHARED
            for key in before.keys() - now.keys() - ours:
                group.pop(key, None)
            group |= {k: v for k, v in now.items() if k not in ours and not (k in before and are_equal(before[k], v))}
        return groups

    @property
    def added(self) -> tuple[int, ...]:
        """Indices of the original groups that were added while training."""
        return tuple(sorted(self._added))

    def set_added(self, indices: Iterable[int]) -> None:
        """Says which of the original groups keep a learning rate of their own.

        Args:
            indices (Iterable[int]): Their indices, as of :attr:`added`.

        Raises:
            ValueError: If the optimizer has fewer groups.
        """
        indices = frozenset(indices)
        if indices == self._added:
            return
        if max(indices, default=-1) >= len(self._original):
            raise ValueError(
                f'a param group was added while the checkpoint was trained, so its optimizer had more than '
                f'{len(self._original)} groups; add the group before loading'
            )
        self.join()
        self._resting, self._added = None, indices
        self.split()

    def own_values(self) -> list[list[Any]]:
        """What groups hold that others of the same original group don't, as the original one can hold it once only.

        Returns:
            list[list[Any]]: Unit or None, index of the original group, and the values by key: numbers, tensors, lists.
        """
        self.join()
        found = []
        for group in self._resting or ():
            original = self._original[group[_ORIGIN]]
            own = {
                key: value
                for key, value in group.items()
                if key not in _NOT_SHARED and isinstance(value, _VALUES) and not are_equal(original.get(key), value)
            }
            if own:
                found.append([group[UNIT], group[_ORIGIN], copy.deepcopy(own)])
        self.split()
        return found

    def set_own_values(self, values: Iterable[Sequence[Any]]) -> None:
        """Puts back what :meth:`own_values` gave."""
        self.split()
        groups = {(group[UNIT], group[_ORIGIN]): group for group in self.optimizer.param_groups}
        for unit, origin, own in values:
            if (unit, origin) in groups:
                groups[unit, origin].update(copy.deepcopy(own))

    # --- wrappers and schedulers

    def track_optimizer(self, optimizer: Optimizer) -> None:
        """Follows an optimizer that has been wrapped around the one known so far, as sharpness-aware ones are.

        Args:
            optimizer (Optimizer): The outermost one.
        """
        if self.optimizer in _nested(optimizer)[1:]:
            optimizer.param_groups = self.optimizer.param_groups
            vars(self.optimizer).pop('__getstate__', None)
            new = [outer for outer in _nested(optimizer) if outer not in self._fresh]
            self.optimizer = optimizer
            self._fresh |= {outer: FreshStates(outer) for outer in new}
            self._stand_in(new)
            self._share_groups()

    def track_schedulers(self, schedulers: Iterable[LRScheduler]) -> None:
        """Keeps these schedulers, and no others, aligned with the groups from now on.

        Args:
            schedulers (Iterable[LRScheduler]): Schedulers made for the optimizer's groups as they are now.
        """
        self._schedulers.track(schedulers, _origins(self.optimizer.param_groups))

    # --- learning rates

    def set_learning_rates(self, factors: Sequence[float]) -> None:
        """Sets the learning rate of every group, but for those that were added.

        Args:
            factors (Sequence[float]): Factor of each unit, in ``[0, ∞)``, times the group's base learning rate.
                Parameters outside of the units get the last unit's.
        """
        self._factors, self._is_stepping = factors, False
        self._look_up()
        for group, base_lr, index in self._targets:
            lr = base_lr * factors[index]
            # To ask whether something is a tensor takes longer than all the rest.
            if type(group['lr']) is not float and isinstance(group['lr'], torch.Tensor):
                group['lr'].fill_(lr)
            else:
                group['lr'] = lr

    def learning_rates(self) -> dict[str, float]:
        """Learning rate of each unit, by ``unit/group<j>`` where its groups differ; 0 once it has left the optimizer.

        The names stay the same throughout a training.
        """
        self._look_up()
        rates = dict.fromkeys(self._labels.values(), 0.0)
        for group, _, index in self._targets:
            if index >= 0:
                rates[self._labels[group[UNIT], group[_ORIGIN]]] = float(group['lr'])
        return rates

    def _look_up(self) -> None:
        self.split()
        groups = self.optimizer.param_groups
        # Loading a state replaces the groups.
        if groups and self._looked_up is not groups[0]:
            self._looked_up = groups[0]
            self._targets = [
                (group, group[BASE_LR], self._index.get(group[UNIT], -1))
                for group in groups
                if group[BASE_LR] is not None
            ]

    # --- removed units

    def set_removed(self, count: int) -> bool:
        """Takes the first ``count`` units out of the optimizer, with their state, and puts others back with a new one.

        Args:
            count (int): In ``[0, len(units))``.

        Returns:
            bool: Whether anything changed.
        """
        if count == self.units_removed:
            return False
        self.join()
        returning = {unit.name for unit in self._units[count : self.units_removed]}
        self._drop_removed_state()
        self.units_removed = count
        self._put_back_state(returning)
        if self._resting is not None:
            self._resting = self._split_groups(self._handed_down(self._resting))
        self.split()
        return True

    def _put_back_state(self, units: Iterable[str]) -> None:
        """Gives the parameters of some units the state that the optimizer's constructor gives them."""
        for parameter, group in self._members(units):
            for optimizer, fresh in self._fresh.items():
                if state := fresh.at_construction(parameter, group):
                    optimizer.state[parameter] = state

    @property
    def moves_what_has_no_gradient(self) -> bool:
        """Whether the optimizer may move parameters without a gradient, as those do that are wrapped around another.

        Lookahead draws them to where they once were, and a sharpness-aware optimizer takes back its last excursion.
        """
        return len(self._fresh) > 1

    def _members(self, units: Iterable[str]) -> Iterator[tuple[nn.Parameter, dict[str, Any]]]:
        """Parameters of some units, each with its original group."""
        names = set(units)
        for index, group in enumerate(self._original):
            if index not in self._added:
                yield from ((p, group) for p in group['params'] if self._unit_of.get(id(p)) in names)

    def _removed_members(self) -> Iterator[tuple[nn.Parameter, dict[str, Any]]]:
        return self._members(unit.name for unit in self._units[: self.units_removed])

    def _drop_removed_state(self) -> None:
        for parameter, _ in self._removed_members():
            for optimizer in self._fresh:
                optimizer.state.pop(parameter, None)

    def _add_fresh_state(self) -> None:
        for optimizer, fresh in self._fresh.items():
            for parameter, group in self._removed_members() if optimizer.state else ():
                state = fresh.to_save(parameter, group)
                if state is not None:
                    optimizer.state[parameter] = state

    def _position(self, group: Mapping[str, Any]) -> int:
        return self._index.get(group[UNIT], len(self._index))

    def _set_groups(self, groups: Sequence[dict[str, Any]]) -> None:
        self._targets, self._looked_up = [], None
        self._count = len(groups)
        self._schedulers.remember(_origins(self.optimizer.param_groups))
        self.optimizer.param_groups[:] = groups
        self._share_groups()
        self._schedulers.align(groups, _origins(groups), len(self._original) - len(self._added))

    def _share_groups(self) -> None:
        # A wrapper copies the list of groups; only one list can be kept up to date.
        for inner in _nested(self.optimizer)[1:]:
            inner.param_groups = self.optimizer.param_groups


def _origins(groups: Sequence[Mapping[str, Any]]) -> list[int]:
    return [group.get(_ORIGIN, index) for index, group in enumerate(groups)]


def _nested(optimizer: Optimizer) -> list[Optimizer]:
    """An optimizer and those that it wraps, outermost first."""
    chain = [optimizer]
    for outer in chain:
        inner = next((value for value in vars(outer).values() if isinstance(value, Optimizer)), None)
        if inner is not None and inner not in chain:
            chain.append(inner)
    return chain


def check_optimizer(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Checks that units can have learning rates of their own.

    Args:
        optimizer (Optimizer): The optimizer.
        parameters (Iterable[nn.Parameter]): The model's trainable parameters.

    Raises:
        ValueError: If it holds none of the parameters, or has no learning rate per group.
    """
    chain = _nested(optimizer)
    instead = 'use an optimizer with a learning rate per param group, such as SGD or AdamW'
    for inner in chain:
        name = type(inner).__name__
        if isinstance(inner, LBFGS):
            raise ValueError(
                f'{name} has one learning rate for all parameters and would go on moving frozen ones; {instead}'
            )
        if isinstance(inner, ZeroRedundancyOptimizer):
            raise ValueError(
                f'{name} shares out its param groups among the ranks when it is made, so that units could not leave '
                'it; use the optimizer itself, or FSDP to shard its state'
            )
        if not hasattr(inner, '_optimizer_state_dict_pre_hooks'):
            raise ValueError(
                f'{name} does not initialise torch.optim.Optimizer, so that nobody can know when it steps or is saved; '
                f'give FreezeOut the optimizer inside of it if that does all the work, or {instead}'
            )
        for index, group in enumerate(inner.param_groups):
            if not isinstance(group.get('lr'), (int, float, torch.Tensor)):
                raise ValueError(
                    f'lr of param group {index} of {name} must be a number, got {group.get("lr")!r}, with which it '
                    'chooses learning rates of its own; give it a learning rate'
                )
    groups = [group for group in optimizer.param_groups if group['params']]
    listed = {id(parameter) for group in groups for parameter in group['params']}
    if not any(id(parameter) in listed for parameter in parameters):
        raise ValueError(
            "the optimizer holds none of the model's trainable parameters; make it from the `model.parameters()` of"
            ' the model to train'
        )
    problem = rates_without_effect(chain[-1], groups[0])
    if problem is not None:
        raise ValueError(f'{problem}, so FreezeOut cannot anneal its layers one by one; {instead}')


def _peak(group: Mapping[str, Any], index: int, scheduled: bool) -> float:
    """The learning rate that a group's factors refer to.

    Args:
        group (Mapping[str, Any]): The param group.
        index (int): Its index.
        scheduled (bool): Whether ``lr`` may be what a scheduler has made of ``initial_lr``.
    """
    lr = float(group['lr'])
    initial = float(group.get('initial_lr', lr))
    if scheduled or initial == lr:
        return initial
    peak = max(lr, initial)
    log.warning(
        'FreezeOut takes the larger one of lr=%g and initial_lr=%g, which a scheduler has left in param group %d, as '
        "the peak rate: %g. If it is not, set the group's `lr` and remove `initial_lr` before.",
        lr,
        initial,
        index,
        peak,
    )
    return peak


def _split(
    groups: Sequence[dict[str, Any]],
    base_lrs: Sequence[float],
    unit_of: Mapping[int, str],
    units: Sequence[Unit],
    initial_factors: Sequence[float],
) -> list[dict[str, Any]]:
    """New groups in the order: outside of the units, last unit, …, first unit. O(parameters)."""
    names: list[str | None] = [None, *(unit.name for unit in reversed(units))]
    factors = [initial_factors[-1], *reversed(initial_factors)]
    members: dict[tuple[str | None, int], list[int]] = {}
    for origin, group in enumerate(groups):
        for position, parameter in enumerate(group['params']):
            members.setdefault((unit_of.get(id(parameter)), origin), []).append(position)
    split = []
    for name, factor in zip(names, factors, strict=True):
        for origin, group in enumerate(groups):
            if positions := members.get((name, origin)):
                lists = {key: [group[key][p] for p in positions] for key in ('params', 'param_names') if key in group}
                lr = group['lr'].clone() if isinstance(group['lr'], torch.Tensor) else group['lr']
                ours = {UNIT: name, BASE_LR: base_lrs[origin], _ORIGIN: origin}
                split.append(another_group(group, **lists, **ours, lr=lr, initial_lr=base_lrs[origin] * factor))
    return split


def _labels(groups: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], str]:
    """A name for each learning rate of each unit, first unit first, by unit and original group."""
    of_units = [group for group in reversed(groups) if group[UNIT] is not None]
    base_lrs: dict[str, set[float]] = {}
    for group in of_units:
        base_lrs.setdefault(group[UNIT], set()).add(group[BASE_LR])
    return {
        (unit, origin): unit if len(base_lrs[unit]) == 1 else f'{unit}/group{origin}'
        for unit, origin in ((group[UNIT], group[_ORIGIN]) for group in of_units)
    }
