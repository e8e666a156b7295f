"""A learning rate per param group without a kernel per param group.

Where torch steps with multi-tensor operators, as it does on a GPU, it issues them once per group. Groups whose
hyperparameters differ in nothing but the learning rate can share them, since the operators take a scalar per tensor.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.optimizer import _default_to_fused_or_foreach

from composer_freezeout.freezing.optimizer.ones import Ones
from composer_freezeout.freezing.optimizer.steps import step_adam, step_sgd

__all__ = ['MergedGroups']

# What the update of each optimizer reads of a group, beside the learning rate. Classes made from these may step in
# another way, as Composer's decoupled ones do, which loop over the parameters however they are grouped.
_ADAM = ('betas', 'eps', 'weight_decay', 'amsgrad', 'maximize')
_HYPERPARAMETERS: dict[type[Optimizer], tuple[str, ...]] = {
    SGD: ('weight_decay', 'momentum', 'dampening', 'nesterov', 'maximize'),
    Adam: (*_ADAM, 'decoupled_weight_decay'),
    AdamW: _ADAM,
}
# What else decides whether groups are stepped by multi-tensor operators.
_PLAIN = ('foreach', 'fused', 'capturable', 'differentiable')
_TENSORS = (torch.Tensor, nn.Parameter, DTensor)


class MergedGroups:
    """Steps the param groups of one optimizer together as far as they have the same hyperparameters.

    Serves torch's SGD, Adam and AdamW, these classes themselves, where they would use multi-tensor operators
    (``foreach``). Everything else is left to the optimizer: loops over the parameters, fused steps, which take one
    learning rate each, capturable and differentiable ones, hyperparameters given as tensors, sparse and complex
    gradients, and a step that is compiled.

    The optimizer's ``step`` stays as it is, with its hooks, its closure, and whatever a scheduler has put around it. A
    hook gives it a view of the optimizer in which the groups that are stepped here are missing. State and groups are
    those of a step without this. So are all bits of the result, in single and double precision; in half precision on a
    CPU an SGD step may round differently.

    Args:
        optimizer (Optimizer): The optimizer, without others around it.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._ones = Ones()
        # What the groups looked like when they were last compared, and the result.
        self._seen: list[tuple[Any, ...]] = []
        self._groups: list[dict[str, Any]] = []
        self._alike: list[list[dict[str, Any]]] = []
        self._hooks = []
        if type(optimizer) in _HYPERPARAMETERS:
            self._hooks.append(optimizer.register_step_pre_hook(self._replace))
            self._collected = list(inspect.signature(optimizer._init_group).parameters)[1:]  # pyright: ignore[reportAttributeAccessIssue]

    def detach(self) -> None:
        """Has the optimizer step its groups one by one again."""
        for hook in self._hooks:
            hook.remove()

    def _replace(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if torch.compiler.is_compiling() or not self._alike_groups():
            return None
        return (_Rest(optimizer, self.step), *args[1:]), kwargs

    def step(self) -> list[dict[str, Any]]:
        """Steps what can be merged, with the gradients as they are.

        Returns:
            list[dict[str, Any]]: The other groups, which have not been stepped.
        """
        stepped: set[int] = set()
        for groups in self._alike_groups():
            params, grads, lrs = [], [], []
            for group in groups:
                found = self._collect(group)
                if found is not None:
                    params += found[0]
                    grads += found[1]
                    lrs += [group['lr']] * len(found[0])
                    stepped.add(id(group))
            if params:
                self._update(groups[0], params, grads, lrs)
        return [group for group in self._optimizer.param_groups if id(group) not in stepped]

    def _alike_groups(self) -> list[list[dict[str, Any]]]:
        """Groups that can be stepped together, two or more at a time."""
        names = _HYPERPARAMETERS[type(self._optimizer)]
        groups = self._optimizer.param_groups
        seen = [(id(group), type(group['lr']), *map(group.get, _PLAIN), *map(group.get, names)) for group in groups]
        if seen != self._seen:
            alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
            for group in groups:
                # Some checkpoints give tuples back as lists.
                values = tuple(tuple(v) if isinstance(v, list) else v for v in map(group.get, names))
                if _is_plain(group, values):
                    # Operators on distributed tensors work on one mesh.
                    mesh = getattr(group['params'][0], 'device_mesh', None)
                    alike.setdefault((mesh, *values), []).append(group)
            self._seen, self._alike = seen, [members for members in alike.values() if len(members) > 1]
            # Held on to, so that no other group gets the identity of one of them.
            self._groups = list(groups)
        return self._alike

    def _collect(self, group: dict[str, Any]) -> tuple[list[torch.Tensor], list[torch.Tensor]] | None:
        """Parameters that have a gradient, and the gradients; None if they are of a kind that needs care."""
        # The optimizer's own method, which also makes the state of parameters that have none. Up to torch 2.6 AdamW's
        # is told about `amsgrad` among the lists that it fills.
        found: Any = [group[name] if name == 'amsgrad' else [] for name in self._collected]
        if self._optimizer._init_group(group, *found):  # pyright: ignore[reportAttributeAccessIssue]
            return None
        return found[0], found[1]

    def _update(
        self, group: dict[str, Any], params: list[torch.Tensor], grads: list[torch.Tensor], lrs: list[float]
    ) -> None:
        tensors: Any = [params, grads]
        by_kind: Any = Optimizer._group_tensors_by_device_and_dtype(tensors, with_indices=True)
        for (of_kind, their_grads), indices in by_kind.values():
            their_lrs = [lrs[index] for index in indices]
            if type(self._optimizer) is SGD:
                step_sgd(group, of_kind, their_grads, self._optimizer.state, their_lrs, self._ones)
            else:
                decoupled = type(self._optimizer) is AdamW or group['decoupled_weight_decay']
                step_adam(group, of_kind, their_grads, self._optimizer.state, their_lrs, decoupled)


class _Rest:
    """An optimizer as its step sees it: the groups that are left once the others have been stepped together."""

    def __init__(self, optimizer: Optimizer, step: Callable[[], list[dict[str, Any]]]) -> None:
        self._optimizer = optimizer
        self._step = step

    def __getattr__(self, name: str) -> Any:
        # A step asks for the groups once, when its closure has computed the gradients. In a property, an
        # AttributeError that the step raises would make Python report the property itself as missing.
        return self._step() if name == 'param_groups' else getattr(self._optimizer, name)


def _is_plain(group: dict[str, Any], hyperparameters: Sequence[Any]) -> bool:
    """Whether torch would take multi-tensor operators, and numbers for all hyperparameters."""
    params, values = group['params'], [group['lr'], *hyperparameters, *group.get('betas', ())]
    if group.get('capturable') or group.get('differentiable') or any(isinstance(v, torch.Tensor) for v in values):
        return False
    if group['foreach'] is None and group['fused'] is None:
        foreach = _default_to_fused_or_foreach(params, differentiable=False)[1]
    else:
        foreach = group['foreach']
    return bool(foreach and params) and all(type(p) in _TENSORS and not p.is_complex() for p in params)
