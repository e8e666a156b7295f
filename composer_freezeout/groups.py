"""Param groups per unit: every unit has its own learning rate, and leaves the optimizer when it is frozen.

The groups stand with the deepest unit first. Learning-rate schedulers address groups by position, so units that freeze,
first unit first, must leave from the end of the list.
"""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from composer_freezeout.multi_tensor import MergedGroups
from composer_freezeout.units import Unit

__all__ = ['BASE_LR', 'UNIT', 'UnitGroups', 'check_optimizer']

# Keys of a param group while it is split.
UNIT = 'freezeout_unit'
BASE_LR = 'freezeout_base_lr'
_ORIGIN = 'freezeout_origin'  # index of the group that it was split from
_NOT_SHARED = frozenset({'params', 'lr', 'initial_lr', UNIT, BASE_LR, _ORIGIN})
_OWNER = '_freezeout_groups'  # attribute of an optimizer that is split

# What torch's schedulers keep per param group, by position.
_PER_GROUP = ('base_lrs', 'lr_lambdas', '_last_lr', 'max_lrs', 'min_lrs', 'base_momentums', 'max_momentums')


class UnitGroups:
    """The param groups of one optimizer, split in place per unit and original group.

    Groups keep the hyperparameters of the group they come from. Parameters that no unit owns stay in a group of their
    own, in front, and are never removed.

    Whoever asks for the optimizer's state dict gets it in the shape of the original groups, with a fresh state for
    parameters that have been removed: a checkpoint can be loaded whatever has been frozen, and without FreezeOut, too.

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
        self._original: list[dict[str, Any]] = []
        self._resting: list[dict[str, Any]] = []  # the split groups, while they are joined
        self._is_split = False
        # Of the groups as they are now: looked up once, as learning rates are set and read in every batch.
        self._targets: list[tuple[dict[str, Any], float, int]] = []
        self._labelled: dict[str, dict[str, Any]] = {}
        self._schedulers: list[tuple[LRScheduler, dict[str, dict[int, Any]]]] = []
        self.track_schedulers(schedulers)
        self._hooks = [
            optimizer.register_state_dict_pre_hook(lambda *_: self.join(with_state=True)),
            optimizer.register_load_state_dict_pre_hook(lambda *_: self.join()),
            optimizer.register_step_pre_hook(self._before),
        ]
        self._before_step = before_step
        self._merged = MergedGroups(_nested(optimizer)[-1])
        setattr(optimizer, _OWNER, self)
        self.split()

    def _before(self, *_: object) -> None:
        # Nobody may step with the groups joined: they have one learning rate for all units.
        self.split()
        if self._before_step is not None:
            self._before_step()

    def split(self) -> None:
        """Gives each unit its own groups, without those of removed units. Does nothing where it is so already."""
        if self._is_split:
            return
        if self._resting and all(map(operator.is_, self.optimizer.param_groups, self._original)):
            self._is_split = True
            self._drop_removed_state(self._original)
            self._set_groups(self._resting)
            return
        self._original = [dict(group) for group in self.optimizer.param_groups]
        groups = _split(self._original, self._unit_of, self._units, self._initial_factors)
        self._is_split = True
        self._drop_removed_state(groups)
        self._set_groups([group for group in groups if self._position(group) >= self.units_removed])
        self.set_learning_rates(self._factors)

    def join(self, with_state: bool = False) -> None:
        """Puts the original groups back, removed units included, until the next :meth:`split`.

        Args:
            with_state (bool): Whether removed parameters get a state of zeros, as if they had not been stepped yet.
        """
        if not self._is_split:
            return
        # Hyperparameters may have changed on the way, all but the learning rate, which is ours.
        for group in self.optimizer.param_groups:
            kept = {key: value for key, value in group.items() if key not in _NOT_SHARED}
            self._original[group[_ORIGIN]].update(kept)
        self._is_split = False
        self._resting = list(self.optimizer.param_groups)
        self._set_groups(self._original)
        state = self.optimizer.state
        template = next(((parameter, of_it) for parameter, of_it in state.items() if of_it), None)
        if with_state and template is not None:
            for parameter in self._removed_parameters(self._original):
                state[parameter] = _zero_state(parameter, *template)

    def detach(self) -> None:
        """Gives the optimizer back as it was, with its current state."""
        self.join()
        for hook in self._hooks:
            hook.remove()
        self._merged.detach()
        delattr(self.optimizer, _OWNER)

    def track_optimizer(self, optimizer: Optimizer) -> None:
        """Follows an optimizer that has been wrapped around the one known so far, as sharpness-aware ones are.

        Args:
            optimizer (Optimizer): The outermost one.
        """
        if self.optimizer in _nested(optimizer)[1:]:
            optimizer.param_groups = self.optimizer.param_groups
            self.optimizer = optimizer
            self._share_groups()

    def track_schedulers(self, schedulers: Iterable[LRScheduler]) -> None:
        """Keeps these schedulers, and no others, aligned with the groups from now on.

        Args:
            schedulers (Iterable[LRScheduler]): Schedulers made for the optimizer's groups as they are now.
        """
        known = {id(scheduler): lists for scheduler, lists in self._schedulers}
        origins = [group.get(_ORIGIN, index) for index, group in enumerate(self.optimizer.param_groups)]

        def by_origin(scheduler: LRScheduler) -> dict[str, dict[int, Any]]:
            return {name: dict(zip(origins, values, strict=True)) for name, values in _lists(scheduler).items()}

        self._schedulers = [(s, known[id(s)] if id(s) in known else by_origin(s)) for s in _flatten(schedulers)]

    def set_learning_rates(self, factors: Sequence[float]) -> None:
        """Sets the learning rate of every group.

        Args:
            factors (Sequence[float]): Factor of each unit, in ``[0, ∞)``, times the group's base learning rate.
                Parameters outside of the units get the last unit's.
        """
        self._factors = factors
        self._look_up()
        for group, base_lr, index in self._targets:
            lr = base_lr * factors[index]
            # To ask whether something is a tensor takes longer than all the rest.
            if type(group['lr']) is not float and isinstance(group['lr'], torch.Tensor):
                group['lr'].fill_(lr)
            else:
                group['lr'] = lr

    def learning_rates(self) -> dict[str, float]:
        """Learning rate of each unit in the optimizer; by ``unit/group<j>`` where its groups have different ones."""
        self._look_up()
        return {label: float(group['lr']) for label, group in self._labelled.items()}

    def _look_up(self) -> None:
        self.split()
        groups = self.optimizer.param_groups
        # Loading a state replaces the groups.
        if not self._targets or self._targets[0][0] is not groups[0]:
            self._targets = [(group, group[BASE_LR], self._index.get(group[UNIT], -1)) for group in groups]
            self._labelled = _label(groups)

    def set_removed(self, count: int) -> bool:
        """Takes the first ``count`` units out of the optimizer, with their state, and puts others back with none.

        Args:
            count (int): In ``[0, len(units))``.

        Returns:
            bool: Whether anything changed.
        """
        if count == self.units_removed:
            return False
        self.join()
        self._resting = []
        self.units_removed = count
        self.split()
        return True

    def forget_wrappers(self, count: int) -> None:
        """Drops what an optimizer around the base optimizer remembers of the first ``count`` units.

        A sharpness-aware optimizer takes back its last excursion even where there was no new one.

        Args:
            count (int): In ``[0, len(units))``.
        """
        wrappers = _nested(self.optimizer)[:-1]
        for group in self.optimizer.param_groups if wrappers else ():
            if self._position(group) < count:
                for parameter in group['params']:
                    for wrapper in wrappers:
                        wrapper.state.pop(parameter, None)

    def _share_groups(self) -> None:
        # A wrapper copies the list of groups; only one list can be kept up to date.
        for inner in _nested(self.optimizer)[1:]:
            inner.param_groups = self.optimizer.param_groups

    def _removed_parameters(self, groups: Iterable[Mapping[str, Any]]) -> list[nn.Parameter]:
        removed = {unit.name for unit in self._units[: self.units_removed]}
        return [p for group in groups for p in group['params'] if self._unit_of.get(id(p)) in removed]

    def _drop_removed_state(self, groups: Iterable[Mapping[str, Any]]) -> None:
        for parameter in self._removed_parameters(groups):
            for optimizer in _nested(self.optimizer):
                optimizer.state.pop(parameter, None)

    def _position(self, group: Mapping[str, Any]) -> int:
        return self._index.get(group[UNIT], len(self._index))

    def _set_groups(self, groups: Sequence[dict[str, Any]]) -> None:
        self._targets = []
        self.optimizer.param_groups[:] = groups
        self._share_groups()
        for scheduler, lists in self._schedulers:
            for attribute, by_origin in lists.items():
                if attribute == 'base_lrs':
                    values = [group.get('initial_lr', group['lr']) for group in groups]
                else:
                    # A scheduler made when all groups of an origin were gone has nothing for it.
                    other = next(iter(by_origin.values()), None)
                    values = [by_origin.get(group.get(_ORIGIN, index), other) for index, group in enumerate(groups)]
                setattr(scheduler, attribute, values)


def _zero_state(parameter: nn.Parameter, other: torch.Tensor, of_other: Mapping[str, Any]) -> dict[str, Any]:
    """State of a parameter that was never stepped, after the pattern of another's."""

    def zero(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return type(value)(0) if isinstance(value, (int, float)) else value
        return torch.zeros_like(parameter) if value.shape == other.shape else torch.zeros_like(value)

    return {name: zero(value) for name, value in of_other.items()}


def _nested(optimizer: Optimizer) -> list[Optimizer]:
    """An optimizer and those that it wraps, outermost first."""
    chain = [optimizer]
    while isinstance(inner := getattr(chain[-1], 'base_optimizer', None), Optimizer):
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
    if any(isinstance(o, torch.optim.LBFGS) for o in _nested(optimizer)):
        raise ValueError(
            'LBFGS has one learning rate for all parameters and would go on moving frozen ones; use an optimizer with '
            'param groups, such as SGD or AdamW'
        )
    listed = {id(parameter) for group in optimizer.param_groups for parameter in group['params']}
    if not any(id(parameter) in listed for parameter in parameters):
        raise ValueError(
            "the optimizer holds none of the model's trainable parameters; make it from the `model.parameters()` of"
            ' the model to train'
        )


def _split(
    groups: Sequence[dict[str, Any]],
    unit_of: Mapping[int, str],
    units: Sequence[Unit],
    initial_factors: Sequence[float],
) -> list[dict[str, Any]]:
    """New groups in the order: outside of the units, last unit, …, first unit. O(parameters)."""
    names: list[str | None] = [None, *(unit.name for unit in reversed(units))]
    factors = [initial_factors[-1], *reversed(initial_factors)]
    members: dict[tuple[str | None, int], list[nn.Parameter]] = {}
    for origin, group in enumerate(groups):
        for parameter in group['params']:
            members.setdefault((unit_of.get(id(parameter)), origin), []).append(parameter)
    split = []
    for name, factor in zip(names, factors, strict=True):
        for origin, group in enumerate(groups):
            parameters = members.get((name, origin))
            if parameters:
                # A scheduler may have changed `lr` already.
                base_lr = float(group.get('initial_lr', group['lr']))
                split.append(
                    {
                        **group,
                        'params': parameters,
                        'lr': group['lr'].clone() if isinstance(group['lr'], torch.Tensor) else group['lr'],
                        'initial_lr': base_lr * factor,
                        UNIT: name,
                        BASE_LR: base_lr,
                        _ORIGIN: origin,
                    }
                )
    return split


def _label(groups: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A group for each learning rate of each unit, first unit first."""
    of_units = [group for group in reversed(groups) if group[UNIT] is not None]
    base_lrs: dict[str, set[float]] = {}
    for group in of_units:
        base_lrs.setdefault(group[UNIT], set()).add(group[BASE_LR])
    return {
        group[UNIT] if len(base_lrs[group[UNIT]]) == 1 else f'{group[UNIT]}/group{group[_ORIGIN]}': group
        for group in of_units
    }


def _flatten(schedulers: Iterable[LRScheduler]) -> Iterable[LRScheduler]:
    for scheduler in schedulers:
        yield scheduler
        yield from _flatten(getattr(scheduler, '_schedulers', ()))


def _lists(scheduler: LRScheduler) -> dict[str, list[Any]]:
    return {name: getattr(scheduler, name) for name in _PER_GROUP if hasattr(scheduler, name)}
