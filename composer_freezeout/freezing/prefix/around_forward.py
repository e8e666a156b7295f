"""What has to be seen to before and after every forward pass of a model with frozen units."""

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from composer_freezeout.freezing.hooks import UncopiedHook
from composer_freezeout.freezing.observing.tensors import tensors_in
from composer_freezeout.freezing.prefix.activation_checkpoints import Nonreentrant

__all__ = ['AroundForward', 'anchored']

_requires_grad = attrgetter('requires_grad')


class AroundForward:
    """What has to be seen to whenever a model with frozen units runs forward, whoever calls it.

    Args:
        model (nn.Module): The model.
        hold (Callable[[], None]): Called before each pass in training: keeps frozen what is frozen.
    """

    def __init__(self, model: nn.Module, hold: Callable[[], None]) -> None:
        self._model = model
        self._hold = hold
        self._checkpoints = Nonreentrant()
        self._hooks: list[RemovableHandle] = []

    @property
    def is_put(self) -> bool:
        """Whether the hooks are on the model."""
        return bool(self._hooks)

    def put(self) -> None:
        """Puts the hooks on the model."""
        self._checkpoints.put()
        self._hooks = [
            self._model.register_forward_pre_hook(UncopiedHook(self._enter)),
            self._model.register_forward_hook(UncopiedHook(self._leave), always_call=True),
        ]

    def remove(self) -> None:
        """Takes the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._checkpoints.remove()

    def _enter(self, module: nn.Module, _: object) -> None:
        # Compilers look into hooks, and nn.DataParallel runs copies that share them.
        if torch.compiler.is_compiling() or module is not self._model:
            return
        if module.training:
            self._hold()
        self._checkpoints.enter()

    def _leave(self, module: nn.Module, _: object, output: Any) -> Any:
        if torch.compiler.is_compiling() or module is not self._model:
            return None
        self._checkpoints.leave()
        if output is None or not module.training or not torch.is_grad_enabled():
            return None
        if isinstance(output, torch.Tensor) and output.requires_grad:  # as nearly always
            return None
        return anchored(output)


def anchored(values: Any) -> Any:
    """Lets a backward pass start from values that no trained parameter stands behind, and end there at once.

    Args:
        values (Any): Tensors, such as a loss, in any nesting of containers.

    Returns:
        Any: The same values; their floating-point tensors require a gradient if none of them did.
    """
    if any(map(_requires_grad, tensors_in(values))):
        return values
    return tree_map(
        lambda leaf: (
            leaf.detach().requires_grad_() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf
        ),
        values,
    )
