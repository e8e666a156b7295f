"""Watches a model run: which parameters it uses, where, and which modules' buffers it changes.

What is watched is a training step itself, its first one, from within: hooks around the model's forward pass, a mode
that sees the operators in it, and then the autograd graph of the loss. The model runs no more often than without. Where
a step can't be watched, as in compiled code, :func:`.rehearse` runs one more.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.hooks import RemovableHandle

from composer_freezeout.freezing.hooks import UncopiedHook
from composer_freezeout.freezing.observing.calls import ModuleCalls
from composer_freezeout.freezing.observing.graph import Graph, Origin
from composer_freezeout.freezing.observing.names import owners_of
from composer_freezeout.freezing.observing.observation import Observation
from composer_freezeout.freezing.observing.recorder import Recorder
from composer_freezeout.freezing.observing.tensors import tensors_in
from composer_freezeout.freezing.observing.uses import find_uses

__all__ = ['Observer', 'refuse_scripted']


class Observer:
    """Watches a model through one step of its training.

    The model is followed from :meth:`start` on, whenever it is called with gradients; :meth:`finish` tells what came
    of it.

    Args:
        model (nn.Module): The model, without a data-parallel wrapper.
        recorder (Recorder, optional): What sees the operators.

    Attributes:
        outputs (list[Tensor]): Outputs of the calls so far.
        parameters (dict[str, nn.Parameter]): The trainable parameters by name, as they are while the model doesn't run:
            a sharded model shows others in their place from its forward pass to the end of its backward pass.

    Raises:
        ValueError: If the model has parameters that are not materialised yet, or is a scripted module itself.
    """

    def __init__(self, model: nn.Module, recorder: Recorder | None = None) -> None:
        refuse_scripted(model)
        self.outputs: list[Tensor] = []
        self._model = model
        self._recorder = Recorder() if recorder is None else recorder
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._bits = {name: bit for bit, name in enumerate(self.parameters)}
        self._calls = ModuleCalls(model, self.parameters, self._recorder)
        self._owners = owners_of(model)
        self._buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
        self._hooks: list[RemovableHandle] = []
        self._depth = 0
        self._done: Callable[[], None] | None = None
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if isinstance(tensor, (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)):
                raise ValueError(f'{name} is not initialized; run one forward pass through the lazy modules first')
        self._watch_tensors()

    def start(self, done: Callable[[], None] | None = None) -> None:
        """Puts hooks on the model.

        Args:
            done (Callable[[], None], optional): Called after the first call of the model, with its outputs there.
        """
        self.stop()
        self._done = done
        # First of all and last of all, so that what other hooks compute is seen as well.
        self._hooks = [
            self._model.register_forward_pre_hook(UncopiedHook(self._enter), prepend=True, with_kwargs=True),
            self._model.register_forward_hook(UncopiedHook(self._leave), always_call=True),
        ]
        self._hooks += self._calls.watch()

    def stop(self) -> None:
        """Takes the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watches everything that happens inside, and not only the model's own calls."""
        self._hooks += self._calls.watch()
        self._hooks.append(self._model.register_forward_pre_hook(UncopiedHook(self._mark_inputs), with_kwargs=True))
        self._hooks.append(self._model.register_forward_hook(UncopiedHook(self._keep_outputs)))
        try:
            with self._recorder:
                yield
        finally:
            self.stop()

    def finish(self, roots: Iterable[Tensor]) -> Observation:
        """Reads the graph.

        Args:
            roots (Iterable[Tensor]): The losses, or the outputs where nobody knows the loss.

        Returns:
            Observation: What was seen. Nothing of the graph is kept.
        """
        self.stop()
        recorder, other = self._recorder, len(self._bits)
        hidden: dict[int, int] = {}
        for number, names in recorder.hidden.items():
            hidden[number] = sum(1 << self._bits[name] for name in names if name in self._bits)
        graph = Graph(roots, self._calls.leaves, other, recorder.seen, hidden)
        names = list(self._bits)
        uses = {names[bit]: use for bit, use in find_uses(graph).items() if bit != other}
        changed = {
            name.rpartition('.')[0]
            for name, buffer in self._model.named_buffers()
            if name not in self._buffers or not _is_same(buffer, self._buffers[name])
        }
        self.outputs = []
        self._calls.let_go()
        return Observation(
            bits=self._bits,
            uses=uses,
            reads=recorder.reads,
            users={name: self._calls.user(owners) for name, owners in self._owners.items()},
            hidden=frozenset(names[bit] for bit in graph.hidden if bit != other),
            entered=frozenset(self._calls.entered),
            changed=frozenset(changed),
            written=frozenset(recorder.written & self._bits.keys()),
            nodes=graph.counts(),
            others=other,
        )

    # --- hooks

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Compilers look into hooks, and nn.DataParallel runs copies that share them.
        if torch.compiler.is_compiling() or module is not self._model or not torch.is_grad_enabled():
            return
        if self._depth == 0:
            self._mark_inputs(module, args, kwargs)
            self._recorder.__enter__()
        self._depth += 1

    def _leave(self, module: nn.Module, _: object, output: Any) -> None:
        if self._depth == 0 or module is not self._model:
            return
        self._depth -= 1
        if self._depth == 0:
            self._recorder.__exit__(None, None, None)
            self._keep_outputs(module, (), output)
            if self._done is not None and self.outputs:
                self._done()

    def _mark_inputs(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._recorder.mark_inputs((args, kwargs))

    def _keep_outputs(self, module: nn.Module, _: object, output: Any) -> None:
        if module is self._model:
            self.outputs += tensors_in(output)

    def _watch_tensors(self) -> None:
        for module in self._model.modules():
            for value in vars(module).values():
                if isinstance(value, Tensor):
                    self._recorder.watch('', value, Origin.CONSTANTS)
        for name, buffer in self._model.named_buffers():
            self._recorder.watch(name, buffer, Origin.CONSTANTS)
        for name, parameter in self._model.named_parameters():
            if not is_traceable_wrapper_subclass(parameter):  # of shards, operators read what they are gathered to
                self._recorder.watch(name, parameter, Origin.PARAMETERS)


def refuse_scripted(model: nn.Module) -> None:
    """Checks that a model takes hooks.

    Raises:
        ValueError: If it is a scripted module itself; inside of it there may be some.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            'the model is a scripted module, which takes no hooks; give the module that it was scripted from, or put '
            'it into an nn.Sequential'
        )


def _is_same(buffer: Tensor, before: Tensor) -> bool:
    if buffer.shape != before.shape or buffer.dtype != before.dtype:
        return False
    return torch.equal(buffer, before) or bool(((buffer == before) | (buffer.isnan() & before.isnan())).all())
