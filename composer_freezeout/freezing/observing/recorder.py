"""Sees the operators of a forward pass: which tensors each of them reads, and what these were computed from."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from composer_freezeout.freezing.observing.graph import Origin, Position, Seen
from composer_freezeout.freezing.observing.tensors import storages_of, tensors_in

__all__ = ['Recorder', 'written_to']


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
            name (str): Its name, or an empty string if only its origin counts.
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
        # A tensor from outside of the model counts as data as long as the inputs are unknown. Random numbers always do.
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
            # A function with a backward pass of its own runs with gradients turned off, right after its node was made.
            self.hidden[number - 1] |= names


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
