"""Watches a model run: which parameters it uses, where, and which modules' buffers it changes.

What is watched is a training step itself, its first one, from within: hooks around the model's forward pass, a mode
that sees the operators in it, and then the autograd graph of the loss. The model runs no more often than without. Where
a step can't be watched, as in compiled code, :func:`.rehearse` runs one more.
"""

import contextlib
import re
import types
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from composer_freezeout.freezing.hooks import UncopiedHook
from composer_freezeout.freezing.observing.graph import Graph, Origin, Position, Seen, Use

__all__ = [
    'Observation',
    'Observer',
    'Recorder',
    'join_names',
    'owners_of',
    'plain_tensors',
    'refuse_scripted',
    'storages_of',
    'tensors_in',
    'without_parametrizations',
    'written_to',
]


# What holds no outputs, and how deep they are looked for.
_PLAIN = (str, bytes, int, float, complex, nn.Module, type, torch.dtype, torch.device, types.ModuleType)
_DEPTH = 8


@dataclass(frozen=True)
class Observation:
    """What a step has shown.

    Attributes:
        bits (dict[str, int]): Bit of each trainable parameter, by its name in ``model.named_parameters()``.
        uses (dict[str, Use]): Where each is used; those that the step didn't use are missing.
        reads (dict[str, Position]): Where each tensor, buffers included, was last read together with activations.
        users (dict[str, str]): Name of the module that was entered last, of those that share a parameter.
        hidden (frozenset[str]): Parameters that the graph doesn't lead to, but a function in it that computes their
            gradients itself, such as a reentrant activation checkpoint.
        entered (frozenset[str]): Modules that were called, of those that hold parameters or have any inside.
        changed (frozenset[str]): Modules whose own buffers the pass changed.
        written (frozenset[str]): Trainable parameters that the pass wrote to.
        nodes (Counter[int]): Number of nodes of the backward pass by the parameters that they lead to.
        others (int): The bit of what else asks for a gradient, such as the input.
    """

    bits: dict[str, int] = field(default_factory=dict)
    uses: dict[str, Use] = field(default_factory=dict)
    reads: dict[str, Position] = field(default_factory=dict)
    users: dict[str, str] = field(default_factory=dict)
    hidden: frozenset[str] = frozenset()
    entered: frozenset[str] = frozenset()
    changed: frozenset[str] = frozenset()
    written: frozenset[str] = frozenset()
    nodes: Counter[int] = field(default_factory=Counter)
    others: int = 0

    def mask(self, names: Iterable[str]) -> int:
        """The set of some parameters; those that are not known count for nothing."""
        mask = 0
        for name in names:
            if name in self.bits:
                mask |= 1 << self.bits[name]
        return mask

    @property
    def input_requires_grad(self) -> bool:
        """Whether something else than the model's parameters gets a gradient."""
        return any(reach >> self.others & 1 for reach in self.nodes)

    def positions(self) -> dict[str, Position]:
        """Where each tensor is used, or where it is read if no graph tells; what the step didn't use is missing."""
        used = {name: use.position for name, use in self.uses.items() if use.position is not None}
        return {**self.reads, **used}

    def nodes_left(self, trained: Iterable[str]) -> int:
        """Number of nodes that a backward pass runs if only some parameters are trained.

        Args:
            trained (Iterable[str]): Names of these parameters.

        Returns:
            int: In ``[0, ∞)``; leaves count as nodes.
        """
        alive = self.mask(trained) | 1 << self.others
        return sum(count for reach, count in self.nodes.items() if reach & alive)


class Recorder(TorchDispatchMode):
    """Notes what operators read, by where it came from.

    Attributes:
        operator (int): Number of operators so far, in ``[0, ∞)``.
        seen (dict[int, Seen]): What was seen of each node of the autograd graph, by its sequence number.
        hidden (dict[int, set[str]]): Parameters read with gradients turned off, by the node made before.
        reads (dict[str, Position]): Last operator that read a tensor together with activations.
        written (set[str]): Parameters that operators have written to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operator = 0
        self.written: set[str] = set()
        self.seen: dict[int, Seen] = {}
        self.hidden: dict[int, set[str]] = defaultdict(set)
        self.reads: dict[str, Position] = {}
        self._origin: dict[StorageWeakRef, Origin] = {}
        self._names: dict[StorageWeakRef, frozenset[str]] = {}  # tensors that a storage was computed from
        self._parameters: set[StorageWeakRef] = set()
        self._inputs_known = False
        self._number = 0

    def __enter__(self) -> Any:
        self._number = _next_number()
        return super().__enter__()

    def watch(self, name: str, tensor: Tensor, origin: Origin) -> None:
        """Looks out for a tensor of the model.

        Args:
            name (str): Its name; tensors without one are none to look out for.
            tensor (Tensor): A parameter, a buffer, or what stands in the place of one.
            origin (Origin): ``PARAMETERS`` or ``CONSTANTS``.
        """
        for storage in storages_of(tensor):
            self._origin[storage] = origin
            self._names[storage] = self._names.get(storage, frozenset()) | ({name} if name else frozenset())
            if origin is Origin.PARAMETERS:
                self._parameters.add(storage)

    def mark_inputs(self, values: Any, new_only: bool = False) -> None:
        """Takes tensors for data, wherever they come from, unless they are parameters.

        Args:
            values (Any): What a module is given.
            new_only (bool): Whether those that have been seen already are left alone.
        """
        for tensor in tensors_in(values):
            for storage in storages_of(tensor):
                if storage not in self._parameters and not (new_only and storage in self._origin):
                    self._origin[storage] = Origin.DATA
                    self._inputs_known = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        read = {storage for leaf in tree_leaves((args, kwargs)) for storage in storages_of(leaf)}
        # What comes from outside and is no tensor of the model is data, unless it is known what is; so is noise.
        unknown = Origin.CONSTANTS if self._inputs_known else Origin.DATA
        origin = max((self._origin.get(storage, unknown) for storage in read), default=Origin.CONSTANTS)
        names = frozenset().union(*(self._names.get(storage, ()) for storage in read))
        if torch.Tag.nondeterministic_seeded in func.tags and not names:
            origin = Origin.DATA
        self._note(origin, names)
        if func._schema.is_mutable:
            for value in written_to(func, args, kwargs):
                for storage in self._parameters.intersection(storages_of(value)):
                    self.written |= self._names[storage]
        result = func(*args, **kwargs)
        self.operator += 1
        for leaf in tree_leaves(result):
            for storage in storages_of(leaf):
                # Data that are written to a parameter don't make it one of the activations.
                if storage not in self._parameters:
                    self._origin[storage] = max(origin, self._origin.get(storage, origin))
                    own = self._names.get(storage, frozenset())
                    self._names[storage] = own if origin is Origin.DATA else own | names
        return result

    def _note(self, origin: Origin, names: frozenset[str]) -> None:
        number = _next_number()
        within_backward = torch._C._current_graph_task_id() != -1
        for made in range(self._number, number):
            self.seen[made] = Seen(self.operator, origin, within_backward)
        self._number = number
        if origin is not Origin.DATA or within_backward:
            return
        self.reads.update(dict.fromkeys(names, (self.operator, number)))
        if not torch.is_grad_enabled():
            # A function with a backward pass of its own is computed like this, right after its node was made.
            self.hidden[number - 1] |= names


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
        self._leaves = {id(parameter): self._bits[name] for name, parameter in self.parameters.items()}
        self._stand_ins: list[Tensor] = []  # held on to, as they are known by their identity
        self._entered: dict[str, int] = {}
        self._owners = owners_of(model)
        self._within = _names_within(model)
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
        self._watch_modules()

    def stop(self) -> None:
        """Takes the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watches everything that happens inside, and not only the model's own calls."""
        self._watch_modules()
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
        graph = Graph(roots, self._leaves, other, recorder.seen, hidden)
        names = list(self._bits)
        uses = {names[bit]: use for bit, use in graph.uses().items() if bit != other}
        changed = {
            name.rpartition('.')[0]
            for name, buffer in self._model.named_buffers()
            if name not in self._buffers or not _same(buffer, self._buffers[name])
        }
        self.outputs, self._stand_ins = [], []
        return Observation(
            bits=self._bits,
            uses=uses,
            reads=recorder.reads,
            users={name: self._user(owners) for name, owners in self._owners.items()},
            hidden=frozenset(names[bit] for bit in graph.hidden if bit != other),
            entered=frozenset(self._entered),
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

    def _watch_modules(self) -> None:
        for name, module in self._model.named_modules():
            # Scripted modules take no hooks; what is in them is seen by its operators.
            if self._within[name] and not isinstance(module, torch.jit.ScriptModule):
                self._hooks.append(
                    module.register_forward_pre_hook(UncopiedHook(self._entering(name)), with_kwargs=True)
                )

    def _entering(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._entered[name] = self._recorder.operator
            # The model may be called by its parts.
            self._recorder.mark_inputs((args, kwargs), new_only=True)
            # Sharded parameters have been gathered by now, and other tensors stand in their place.
            for full_name, local_name in self._within[name]:
                tensor = attrgetter(local_name)(module)
                if id(tensor) not in self._leaves and full_name in self._bits:
                    self._leaves[id(tensor)] = self._bits[full_name]
                    self._stand_ins.append(tensor)
                    self._recorder.watch(full_name, tensor, Origin.PARAMETERS)

        return hook

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

    def _user(self, owners: list[str]) -> str:
        # Of the modules that share a tensor, the one entered last; the one registered last where none is called.
        return max(reversed(owners), key=lambda owner: self._entered.get(owner, -1))


def written_to(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Any]:
    """Arguments of an operator, or what is in them, that it says it writes to."""
    arguments = func._schema.arguments
    by_name = {argument.name: argument for argument in arguments}
    given = [*zip(arguments, args, strict=False), *((by_name[n], v) for n, v in kwargs.items() if n in by_name)]
    for argument, value in given:
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from tree_leaves(value)


def _next_number() -> int:
    """Sequence number of the node that autograd makes next in this thread."""
    return torch.autograd._get_sequence_nr()  # pyright: ignore[reportPrivateImportUsage]


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


def owners_of(model: nn.Module) -> dict[str, list[str]]:
    """Names of the modules that directly hold each tensor, by the tensor's first name; several where it is shared.

    A module that is registered more than once goes by its first name.
    """
    owners: dict[str, list[str]] = defaultdict(list)
    first_names: dict[int, str] = {}
    for module_name, module in model.named_modules():
        for local_name, tensor in _own_tensors(module):
            first_name = first_names.setdefault(id(tensor), join_names(module_name, local_name))
            owners[first_name].append(without_parametrizations(module_name))
    return owners


def plain_tensors(value: Any) -> Iterator[Tensor]:
    """The tensors with a storage in a tensor: itself, or what a subclass wraps; nothing for what is no tensor."""
    # Of tensors that torch.func wraps nobody knows where they lie.
    if not isinstance(value, Tensor) or torch._C._functorch.is_functorch_wrapped_tensor(value):
        return
    if is_traceable_wrapper_subclass(value):
        for name in value.__tensor_flatten__()[0]:
            yield from plain_tensors(getattr(value, name))
    elif value.layout is torch.strided and not value.is_nested:
        yield value


def storages_of(value: Any) -> Iterator[StorageWeakRef]:
    """Where a tensor's numbers lie; nothing for tensors that have no such place."""
    for tensor in plain_tensors(value):
        with contextlib.suppress(RuntimeError, NotImplementedError):
            yield StorageWeakRef(tensor.untyped_storage())


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in what a model is given, or gives back: in containers, dataclasses and other objects."""
    yield from _tensors_in(value, set(), 0)


def _tensors_in(value: Any, done: set[int], depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    if value is None or isinstance(value, _PLAIN) or id(value) in done or depth > _DEPTH:
        return
    done.add(id(value))
    if isinstance(value, Mapping):
        items: Iterable[Any] = value.values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        items = value
    else:
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, '__slots__', ())]
        items = [*getattr(value, '__dict__', {}).values(), *(getattr(value, name, None) for name in slots)]
    for item in items:
        yield from _tensors_in(item, done, depth + 1)


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False, remove_duplicate=False)
    yield from module.named_buffers(recurse=False, remove_duplicate=False)


def _names_within(model: nn.Module) -> dict[str, list[tuple[str, str]]]:
    """First name and local name of each parameter in a module or below, by name of the module."""
    first_names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        module_name: [
            (first_names[id(parameter)], name) for name, parameter in module.named_parameters(remove_duplicate=False)
        ]
        for module_name, module in model.named_modules()
    }


def join_names(*names: str) -> str:
    """Name of something in a module, whose own name is empty if it is the whole model."""
    return '.'.join(filter(None, names))


def without_parametrizations(module_name: str) -> str:
    """The module that uses what is made of parametrised tensors, by the name of one inside of it that holds them."""
    return re.sub(r'(^|\.)parametrizations(\..*|$)', '', module_name)


def _same(buffer: Tensor, before: Tensor) -> bool:
    if buffer.shape != before.shape or buffer.dtype != before.dtype:
        return False
    return torch.equal(buffer, before) or bool(((buffer == before) | (buffer.isnan() & before.isnan())).all())
