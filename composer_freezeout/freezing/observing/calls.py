"""Notes which modules a training step calls, and which tensors stand in for their parameters."""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from composer_freezeout.freezing.hooks import UncopiedHook
from composer_freezeout.freezing.observing.graph import Origin
from composer_freezeout.freezing.observing.names import names_within
from composer_freezeout.freezing.observing.recorder import Recorder

__all__ = ['ModuleCalls']


class ModuleCalls:
    """Follows the calls of a model's modules.

    Args:
        model (nn.Module): The model.
        parameters (Mapping[str, nn.Parameter]): Its trainable parameters by name.
        recorder (Recorder): Is told of what the modules are given, and of stand-ins for parameters.

    Attributes:
        entered (dict[str, int]): Number of operators before the last call of each module, by its name.
        leaves (dict[int, int]): Index of the parameter by the ``id`` of its tensor, or of one that stands in for it.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], recorder: Recorder) -> None:
        self._model = model
        self._recorder = recorder
        self._index = {name: index for index, name in enumerate(parameters)}
        self._within = names_within(model)
        self._stand_ins: list[Tensor] = []  # held on to, so that no other tensor gets the `id` of one of them
        self.entered: dict[str, int] = {}
        self.leaves = {id(parameter): self._index[name] for name, parameter in parameters.items()}

    def watch(self) -> list[RemovableHandle]:
        """Puts a hook on every module that has parameters or holds modules that do."""
        return [
            module.register_forward_pre_hook(UncopiedHook(self._entering(name)), with_kwargs=True)
            for name, module in self._model.named_modules()
            # Scripted modules take no hooks; what is in them is seen by its operators.
            if self._within[name] and not isinstance(module, torch.jit.ScriptModule)
        ]

    def user(self, owners: Sequence[str]) -> str:
        """Of the modules that share a tensor, the one entered last; the one registered last where none is called."""
        return max(reversed(owners), key=lambda owner: self.entered.get(owner, -1))

    def let_go(self) -> None:
        """Lets go of the tensors that have stood in for parameters."""
        self._stand_ins = []

    def _entering(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.entered[name] = self._recorder.operator
            # The model may be called by its parts.
            self._recorder.mark_inputs((args, kwargs), new_only=True)
            # A sharded module has gathered its parameters by now: other tensors are in their place.
            for full_name, local_name in self._within[name]:
                tensor = attrgetter(local_name)(module)
                if id(tensor) not in self.leaves and full_name in self._index:
                    self.leaves[id(tensor)] = self._index[full_name]
                    self._stand_ins.append(tensor)
                    self._recorder.watch(full_name, tensor, Origin.PARAMETERS)

        return hook
