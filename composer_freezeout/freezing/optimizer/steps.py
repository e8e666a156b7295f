"""Torch's multi-tensor steps, with a learning rate per parameter."""

# Torch's type hints leave out that its multi-tensor operators are there to be used.
# pyright: reportPrivateImportUsage=false

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from composer_freezeout.freezing.optimizer.ones import Ones

__all__ = ['step_adam', 'step_sgd']


def step_sgd(
    group: dict[str, Any],
    params: list[torch.Tensor],
    grads: Any,
    state: Mapping[torch.Tensor, dict[str, Any]],
    lrs: Sequence[float],
    ones: Ones,
) -> None:
    """Torch's multi-tensor SGD with a learning rate per parameter.

    Args:
        group (dict[str, Any]): Hyperparameters, the learning rate apart.
        params (list[torch.Tensor]): Parameters of one device and type, updated in place.
        grads (list[torch.Tensor]): Their gradients; Nesterov's momentum may change them, as it does in torch.
        state (Mapping[torch.Tensor, dict[str, Any]]): State by parameter, updated in place.
        lrs (Sequence[float]): Their learning rates, in ``[0, ∞)``.
        ones (Ones): Source of ones.
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
    # Only products take a scalar per tensor. With the ones first, it is rounded once, as in `add` with `alpha`.
    torch._foreach_addcmul_(params, ones.like(params), grads, scalars=[-lr for lr in lrs])


def step_adam(
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
