"""A learning rate per param group without a kernel per param group.

Where torch steps with multi-tensor operators, as it does on a GPU, it issues them once per group. Groups whose
hyperparameters differ in nothing but the learning rate can share them, since the operators take a scalar per tensor.
"""

# Torch's type hints leave out that its multi-tensor operators are there to be used.
# pyright: reportPrivateImportUsage=false

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.optimizer import _default_to_fused_or_foreach

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
        self._ones = _Ones()
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
                _step_sgd(group, of_kind, their_grads, self._optimizer.state, their_lrs, self._ones)
            else:
                decoupled = type(self._optimizer) is AdamW or group['decoupled_weight_decay']
                _step_adam(group, of_kind, their_grads, self._optimizer.state, their_lrs, decoupled)


class _Rest:
    """An optimizer as its step sees it: the groups that are left once the others have been stepped together."""

    def __init__(self, optimizer: Optimizer, step: Callable[[], list[dict[str, Any]]]) -> None:
        self._optimizer = optimizer
        self._step = step

    def __getattr__(self, name: str) -> Any:
        # A step asks for the groups once, when its closure has computed the gradients. This is no property, of which
        # Python would take an AttributeError on the way for its absence.
        return self._step() if name == 'param_groups' else getattr(self._optimizer, name)


class _Ones:
    """Tensors of ones in the layout of others, kept: views of one buffer per device and type."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}
        self._views: dict[tuple[Any, ...], torch.Tensor] = {}

    def like(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Ones in the shape, strides and, if there is one, distribution of each of some tensors.

        Args:
            tensors (Sequence[torch.Tensor]): Tensors of one device and type, at least one.
        """
        layouts = [_layout(tensor) for tensor in tensors]
        if not all(layout in self._views for layout in layouts):
            self._reserve(tensors)
            for layout, tensor in zip(layouts, tensors, strict=True):
                if layout not in self._views:
                    self._views[layout] = self._make(tensor)
        return [self._views[layout] for layout in layouts]

    def _reserve(self, tensors: Sequence[torch.Tensor]) -> None:
        kind = (tensors[0].device, tensors[0].dtype)
        size = max((_extent(tensor) for tensor in tensors if not isinstance(tensor, DTensor)), default=0)
        if kind not in self._buffers or self._buffers[kind].numel() < size:
            # Views would keep the smaller buffer alive.
            self._views = {layout: view for layout, view in self._views.items() if layout[:2] != kind}
            self._buffers[kind] = torch.ones(size, device=kind[0], dtype=kind[1])

    def _make(self, tensor: torch.Tensor) -> torch.Tensor:
        if isinstance(tensor, DTensor):
            return torch.ones_like(tensor, requires_grad=False)
        return self._buffers[tensor.device, tensor.dtype].as_strided(tensor.shape, tensor.stride())


def _layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    distribution = (tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else None
    return tensor.device, tensor.dtype, tensor.shape, tensor.stride(), distribution


def _extent(tensor: torch.Tensor) -> int:
    """Elements of the storage from the first to the last of a tensor."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


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


def _step_sgd(
    group: dict[str, Any],
    params: list[torch.Tensor],
    grads: Any,
    state: Mapping[torch.Tensor, dict[str, Any]],
    lrs: Sequence[float],
    ones: _Ones,
) -> None:
    """Torch's multi-tensor SGD with a learning rate per parameter.

    Args:
        group (dict[str, Any]): Hyperparameters, the learning rate apart.
        params (list[torch.Tensor]): Parameters of one device and type, updated in place.
        grads (list[torch.Tensor]): Their gradients; Nesterov's momentum may change them, as it does in torch.
        state (Mapping[torch.Tensor, dict[str, Any]]): State by parameter, updated in place.
        lrs (Sequence[float]): Their learning rates, in ``[0, ∞)``.
        ones (_Ones): Source of ones.
    """
    momentum = group['momentum']
    grads = _directions(params, grads, group['maximize'], group['weight_decay'])
    if momentum != 0:
        states = [state[param] for param in params]
        begun = [index for index, of_one in enumerate(states) if of_one.get('momentum_buffer') is not None]
        if begun:
            buffers = [states[index]['momentum_buffer'] for index in begun]
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, [grads[index] for index in begun], alpha=1 - group['dampening'])
        for of_one, grad in zip(states, grads, strict=True):
            if of_one.get('momentum_buffer') is None:
                of_one['momentum_buffer'] = grad.clone()
        buffers = [of_one['momentum_buffer'] for of_one in states]
        if group['nesterov']:
            torch._foreach_add_(grads, buffers, alpha=momentum)
        else:
            grads = buffers
    # Only products take a scalar per tensor. This one rounds once, as `add` with `alpha` does, if the ones come first.
    torch._foreach_addcmul_(params, ones.like(params), grads, scalars=[-lr for lr in lrs])


def _step_adam(
    group: dict[str, Any],
    params: list[torch.Tensor],
    grads: Any,
    state: Mapping[torch.Tensor, dict[str, Any]],
    lrs: Sequence[float],
    decoupled: bool,
) -> None:
    """Torch's multi-tensor Adam or AdamW with a learning rate per parameter.

    Args:
        group (dict[str, Any]): Hyperparameters, the learning rate apart.
        params (list[torch.Tensor]): Parameters of one device and type, updated in place.
        grads (list[torch.Tensor]): Their gradients.
        state (Mapping[torch.Tensor, dict[str, Any]]): State by parameter, updated in place.
        lrs (Sequence[float]): Their learning rates, in ``[0, ∞)``.
        decoupled (bool): Whether weight decay acts on the parameters directly.
    """
    (beta1, beta2), weight_decay = group['betas'], group['weight_decay']
    steps = [state[param]['step'] for param in params]
    averages = [state[param]['exp_avg'] for param in params]
    squares = [state[param]['exp_avg_sq'] for param in params]
    grads = _directions(params, grads, group['maximize'], 0 if decoupled else weight_decay)
    if steps[0].is_cpu:
        # A number would be made a tensor once per parameter.
        torch._foreach_add_(steps, torch.tensor(1.0, device='cpu'), alpha=1.0)
    else:
        torch._foreach_add_(steps, 1)
    if decoupled and weight_decay != 0:
        torch._foreach_mul_(params, [1 - lr * weight_decay for lr in lrs])
    torch._foreach_lerp_(averages, grads, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
    del grads  # the memory is needed for the denominators
    if group['amsgrad']:
        largest = [state[param]['max_exp_avg_sq'] for param in params]
        torch._foreach_maximum_(largest, squares)
        squares = largest
    counts = [step.item() for step in steps]
    denominators = torch._foreach_sqrt(squares)
    torch._foreach_div_(denominators, [(1 - beta2**step) ** 0.5 for step in counts])
    torch._foreach_add_(denominators, group['eps'])
    step_sizes = [(lr / (1 - beta1**step)) * -1 for lr, step in zip(lrs, counts, strict=True)]
    torch._foreach_addcdiv_(params, averages, denominators, step_sizes)


def _directions(params: list[torch.Tensor], grads: Any, maximize: bool, weight_decay: float) -> Any:
    """Gradients of what is minimised, with a penalty of ``weight_decay / 2`` times the squared parameters.

    They are new tensors if one of the two is asked for, and the given ones otherwise.
    """
    if maximize:
        grads = torch._foreach_neg(grads)
        if weight_decay != 0:
            torch._foreach_add_(grads, params, alpha=weight_decay)
    elif weight_decay != 0:
        grads = torch._foreach_add(grads, params, alpha=weight_decay)
    return grads
