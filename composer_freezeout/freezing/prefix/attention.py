"""Frozen attention, which runs as one operator where that makes the same numbers."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from composer_freezeout.freezing.execution.find import execution_of
from composer_freezeout.freezing.hooks import UncopiedHook

__all__ = ['AttentionFusing']


class AttentionFusing:
    """Has frozen attention run as one operator, as in evaluation, but as in training where there is a mask.

    As one operator it makes other numbers of a row that has no key to attend to.

    Args:
        model (nn.Module): The model, without a data-parallel wrapper.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._hooks: list[RemovableHandle] = []

    def fuse(self, norms: Sequence[nn.Module]) -> list[nn.Module]:
        """Fuses the attention of the model that is frozen now.

        Args:
            norms (Sequence[nn.Module]): Not needed here.

        Returns:
            list[nn.Module]: The attention that is to be held in evaluation. None if the model is compiled or sharded.
        """
        self.release()
        if not execution_of(self._model).runs_as_written:
            return []
        attention = [module for module in self._model.modules() if _is_fusible(module)]
        for module in attention:
            self._hooks += [
                module.register_forward_pre_hook(UncopiedHook(self._enter), with_kwargs=True),
                module.register_forward_hook(UncopiedHook(self._leave), always_call=True),
            ]
        return attention

    def release(self) -> None:
        """Takes the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        masks = (*args[3:4], *args[5:6], kwargs.get('key_padding_mask'), kwargs.get('attn_mask'))
        if self._model.training and any(mask is not None for mask in masks):
            vars(module)['training'] = True

    def _leave(self, module: nn.Module, *_: object) -> None:
        if self._model.training:
            vars(module)['training'] = False


def _is_fusible(module: nn.Module) -> bool:
    """Whether a module is frozen attention, in which the mode decides on nothing but the operator that computes it."""
    return (
        type(module) is nn.MultiheadAttention
        and module.dropout == 0
        and not any(parameter.requires_grad for parameter in module.parameters())
    )
