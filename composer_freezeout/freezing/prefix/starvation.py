"""Makes sure that what still trains goes on getting gradients when what is in front of it has been frozen.

Functions that compute gradients of parameters themselves, as reentrant activation checkpoints do, are only asked for
them if one of their inputs requires a gradient. What a frozen layer gives them does not, and torch says nothing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from composer_freezeout.freezing.execution.find import execution_of
from composer_freezeout.freezing.hooks import UncopiedHook
from composer_freezeout.freezing.observing.names import owners_of
from composer_freezeout.freezing.observing.observation import Observation
from composer_freezeout.freezing.observing.tensors import tensors_in

__all__ = ['GradientWatch', 'Gradients']


class Gradients(NamedTuple):
    """What the first step has shown of gradients.

    Attributes:
        expected (Sequence[str], optional): Parameters that got one; None as long as that is unknown.
        hidden (Sequence[str]): Those of them whose module ran with gradients turned off.
    """

    expected: Sequence[str] | None = None
    hidden: Sequence[str] = ()


class GradientWatch:
    """Watches which parameters get a gradient in a step.

    The first step that is watched tells which ones do. In later ones each of them must get one again, unless the part
    of the model that it belongs to doesn't run in that step.

    Args:
        model (nn.Module): The model, without a data-parallel wrapper.
        parameters (Mapping[str, nn.Parameter]): Its parameters by name.
        observed (Observation, optional): What the first step has shown, if it could be watched.
    """

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], observed: Observation | None = None
    ) -> None:
        self._model = model
        self._parameters = parameters
        self._home = {name: owners[-1] for name, owners in owners_of(model).items()}
        if observed is not None:
            self._home |= observed.users
        self._hidden: set[str] = set() if observed is None else set(observed.hidden)
        self._entered = None if observed is None else observed.entered
        self._expected: set[str] | None = None
        self._hooks: list[RemovableHandle] = []
        self._got: set[str] = set()
        self._ran: set[str] = set()
        self._with_gradients: set[str] = set()  # modules that ran with gradients turned on
        self._in_vain: set[str] = set()  # those of them whose output requires none

    def start(self, names: Iterable[str]) -> None:
        """Watches from now on, until :meth:`check`.

        Args:
            names (Iterable[str]): The parameters that train.
        """
        self.stop()
        self._got, self._ran, self._with_gradients, self._in_vain = set(), set(), set(), set()
        if not execution_of(self._model).runs_as_written:  # and hooks might not run
            return
        wanted = [
            name
            for name in names
            if self._parameters[name].requires_grad and (self._expected is None or name in self._expected)
        ]
        self._hooks = [self._parameters[n].register_post_accumulate_grad_hook(self._note_gradient(n)) for n in wanted]
        for module_name in {self._caller(name) for name in wanted}:
            module = self._model.get_submodule(module_name)
            if not isinstance(module, torch.jit.ScriptModule):
                self._hooks.append(module.register_forward_hook(UncopiedHook(self._note_call(module_name))))

    def known(self) -> Gradients:
        """What the first step has shown."""
        return Gradients(None if self._expected is None else sorted(self._expected), sorted(self._hidden))

    def learn(self, known: Gradients) -> None:
        """Takes in what the first step of another run has shown.

        Args:
            known (Gradients): From :meth:`known` of the same model.
        """
        if known.expected is not None:
            self.stop()
            self._expected, self._hidden = set(known.expected), set(known.hidden)

    @property
    def is_watching(self) -> bool:
        """Whether a step is watched that has not been looked at."""
        return bool(self._hooks)

    def stop(self) -> None:
        """Stops watching."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def check(self, cause: str, finished: bool) -> None:
        """Looks at what has got a gradient since :meth:`start`. Does nothing if nobody watches.

        Args:
            cause (str): What was frozen last, for the message.
            finished (bool): Whether the step is over. If not, and nothing has got a gradient, they may be computed yet,
                in a closure.

        Raises:
            ValueError: If a parameter has got none, although it has a part in the step.
        """
        # Nobody has got one before the first backward pass.
        if not self._hooks or not (self._got or (finished and self._expected is not None)):
            return
        self.stop()
        if self._expected is None:
            self._expected = set(self._got)
            without = self._ran - self._with_gradients
            self._hidden |= {name for name in self._got if self._caller(name) in without}
            return
        missing = [
            name
            for name, parameter in self._parameters.items()
            if name in self._expected and parameter.requires_grad and name not in self._got and self._took_part(name)
        ]
        if missing:
            raise ValueError(
                f'{len(missing)} parameters that still train get no gradient since {cause} is frozen, first '
                f'{missing[0]!r}: they are used in a function that needs an input with a gradient to compute theirs, '
                'as reentrant activation checkpointing does; use use_reentrant=False, in PyTorch as an argument of '
                "`checkpoint`, in Hugging Face with `gradient_checkpointing_enable({'use_reentrant': False})`, in "
                'Composer with `activation_checkpointing_reentrant: false` in the FSDP config'
            )

    def _took_part(self, name: str) -> bool:
        return self._caller(name) in (self._ran if name in self._hidden else self._in_vain)

    def _caller(self, name: str) -> str:
        """The module that runs when a parameter is used: the one that holds it, or one around it that is called."""
        module_name = self._home[name]
        while self._entered is not None and module_name and module_name not in self._entered:
            module_name = module_name.rpartition('.')[0]
        return module_name

    def _note_gradient(self, name: str) -> Callable[[object], None]:
        return lambda _: self._got.add(name)

    def _note_call(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _: object, output: Any) -> None:
            if torch.compiler.is_compiling():  # compilers look into hooks
                return
            self._ran.add(name)
            # A checkpoint that computes once more in the backward pass does so with gradients.
            if torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1:
                self._with_gradients.add(name)
                if not any(tensor.requires_grad for tensor in tensors_in(output)):
                    self._in_vain.add(name)

        return hook
