"""Param groups per unit: every unit has its own learning rate, and leaves the optimizer when it is frozen.

The groups stand with the deepest unit first. Learning-rate schedulers address groups by position, so units that freeze,
first unit first, must leave from the end of the list.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from composer_freezeout.freezing.observing.units import Unit
from composer_freezeout.freezing.optimizer.check import check_optimizer
from composer_freezeout.freezing.optimizer.multi_tensor import MergedGroups
from composer_freezeout.freezing.optimizer.nesting import chain_of
from composer_freezeout.freezing.optimizer.own_values import own_values, put_own_values
from composer_freezeout.freezing.optimizer.param_group import ORIGIN, UNIT
from composer_freezeout.freezing.optimizer.removed_states import RemovedStates
from composer_freezeout.freezing.optimizer.split_groups import SplitGroups

__all__ = ['UnitGroups']

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
        self._units = tuple(units)
        self._factors: Sequence[float] = tuple(initial_factors)
        self._is_detached = self._is_stepping = False
        self._groups = SplitGroups(optimizer, parameters, units, initial_factors, schedulers)
        self._before_step = before_step
        chain = chain_of(optimizer)
        self._states = RemovedStates(chain)
        self._merged = MergedGroups(chain[-1])
        self._hooks: list[Any] = []
        self._stand_in(chain)
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
        was_joined = not self._groups.is_split
        is_new = self._groups.split()
        if was_joined:
            self._drop_removed_state()
        if is_new:
            self.set_learning_rates(self._factors)

    def join(self, with_state: bool = False) -> None:
        """Puts the original groups back, removed units included, until the next :meth:`split`.

        Args:
            with_state (bool): Whether removed parameters get a state, as if they had not been stepped yet.
        """
        self._groups.join()
        if with_state:
            self._drop_removed_state()
            self._states.fill_in(self._removed_members())

    def detach(self) -> None:
        """Gives the optimizer back as it was, with its current state."""
        self.join()
        self._drop_removed_state()
        self._states.put_back(self._removed_members())
        for hook in self._hooks:
            hook.remove()
        self._merged.detach()
        vars(self.optimizer).pop('__getstate__', None)
        delattr(self.optimizer, _OWNER)
        self._is_detached = True

    # --- what others find who ask the optimizer

    def _stand_in(self, optimizers: Sequence[Optimizer]) -> None:
        """Has others who step, save, load or copy the optimizers find them as they are to be found."""
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

    def track_optimizer(self, optimizer: Optimizer) -> None:
        """Follows an optimizer that has been wrapped around the one known so far, as sharpness-aware ones are.

        Args:
            optimizer (Optimizer): The outermost one.
        """
        chain = chain_of(optimizer)
        if self.optimizer in chain[1:]:
            vars(self.optimizer).pop('__getstate__', None)
            self.optimizer = optimizer
            self._groups.track_optimizer(optimizer)
            self._stand_in(self._states.follow(chain))

    def track_schedulers(self, schedulers: Iterable[LRScheduler]) -> None:
        """Keeps these schedulers, and no others, aligned with the groups from now on.

        Args:
            schedulers (Iterable[LRScheduler]): Schedulers made for the optimizer's groups as they are now.
        """
        self._groups.track_schedulers(schedulers)

    # --- for a checkpoint

    @property
    def added(self) -> tuple[int, ...]:
        """Indices of the original groups that were added while training."""
        return self._groups.added

    def set_added(self, indices: Iterable[int]) -> None:
        """Says which of the original groups keep a learning rate of their own.

        Args:
            indices (Iterable[int]): Their indices, as of :attr:`added`.

        Raises:
            ValueError: If the optimizer has fewer groups.
        """
        if self._groups.set_added(indices):
            self.split()

    def own_values(self) -> list[list[Any]]:
        """What groups hold that others of the same original group don't, as the original one can hold it once only.

        Returns:
            list[list[Any]]: Unit or None, index of the original group, and the values by key: numbers, tensors, lists.
        """
        self.join()
        found = own_values(self._groups.resting or (), self._groups.original)
        self.split()
        return found

    def set_own_values(self, values: Iterable[Sequence[Any]]) -> None:
        """Puts back what :meth:`own_values` gave."""
        self.split()
        put_own_values(self.optimizer.param_groups, values)

    # --- learning rates

    def set_learning_rates(self, factors: Sequence[float]) -> None:
        """Sets the learning rate of every group, but for those that were added.

        Args:
            factors (Sequence[float]): Factor of each unit, in ``[0, ∞)``, times the group's base learning rate.
                Parameters outside of the units get the last unit's.
        """
        self._factors, self._is_stepping = factors, False
        self.split()
        for group, base_lr, index in self._groups.rated():
            lr = base_lr * factors[index]
            # `isinstance` with a tensor class takes longer than all the rest, so floats are told apart first.
            if type(group['lr']) is not float and isinstance(group['lr'], torch.Tensor):
                group['lr'].fill_(lr)
            else:
                group['lr'] = lr

    def learning_rates(self) -> dict[str, float]:
        """Learning rate of each unit, by ``unit/group<j>`` where its groups differ; 0 once it has left the optimizer.

        The names stay the same throughout a training.
        """
        self.split()
        labels = self._groups.labels
        rates = dict.fromkeys(labels.values(), 0.0)
        for group, _, index in self._groups.rated():
            if index >= 0:
                rates[labels[group[UNIT], group[ORIGIN]]] = float(group['lr'])
        return rates

    # --- removed units

    @property
    def units_removed(self) -> int:
        """How many units have left the optimizer, in ``[0, len(units))``."""
        return self._groups.units_removed

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
        returning = self._units[count : self.units_removed]
        self._drop_removed_state()
        self._groups.remove(count)
        self._states.put_back(self._groups.members(returning))
        self.split()
        return True

    @property
    def moves_what_has_no_gradient(self) -> bool:
        """Whether the optimizer may move parameters without a gradient, as those do that are wrapped around another.

        Lookahead draws them to where they once were, and a sharpness-aware optimizer takes back its last excursion.
        """
        return len(self._states.fresh) > 1

    def _removed_members(self) -> Iterator[tuple[nn.Parameter, dict[str, Any]]]:
        return self._groups.members(self._units[: self.units_removed])

    def _drop_removed_state(self) -> None:
        self._states.drop(self._removed_members())
