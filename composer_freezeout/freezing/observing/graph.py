"""The autograd graph behind a loss: which parameters each node of it leads to, and what is known of how it was made.

The graph is what a backward pass runs. A node of it is run as long as it leads to a tensor that requires a gradient, so
that the graph of one step tells what is left of every later one, whatever is frozen in it.

Sets of parameters are the bits of whole numbers: bit ``i`` for the ``i``-th parameter, and one more for all else that
asks for a gradient.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ['Graph', 'Origin', 'Position', 'Seen', 'bits', 'leaves_of']

Position = tuple[int, ...]
"""When something ran: the number of operators before it, then what orders things within one."""


class Origin(IntEnum):
    """What a tensor was computed from, the most telling one."""

    PARAMETERS = 0
    CONSTANTS = 1
    DATA = 2


class Seen(NamedTuple):
    """What was seen while a node of the graph was made.

    Attributes:
        operator (int): Number of operators before it, in ``[0, ∞)``.
        origin (Origin): What its operator read.
        in_backward (bool): Whether a backward pass made it, one within the forward pass.
    """

    operator: int
    origin: Origin
    in_backward: bool


class Graph:
    """The graph behind some tensors.

    Args:
        roots (Iterable[Tensor]): Tensors, such as losses; those without a graph count for nothing.
        parameters (Mapping[int, int]): Bit by the ``id`` of a leaf.
        other (int): The bit of other leaves.
        seen (Mapping[int, Seen]): By sequence number of the node.
        hidden (Mapping[int, int]): Bits of the parameters that a function read together with activations, while
            gradients were turned off, by sequence number of its node. Reentrant activation checkpoints compute the
            gradients of such parameters themselves.

    Attributes:
        reach (dict[Any, int]): What each node leads to, nodes closer to the leaves first.
        leaves (dict[int, list[Any]]): Nodes that hand a parameter its gradient, by its bit.
        parents (dict[Any, list[Any]]): Nodes that lead to a node directly.
        from_data (set[Any]): Nodes of what was computed from data, and not from parameters and constants alone.
        seen (Mapping[int, Seen]): As given.
        hidden (dict[int, list[Any]]): Functions that hide a parameter, by its bit; those parameters only that the graph
            doesn't lead to as well.
    """

    def __init__(
        self,
        roots: Iterable[Tensor],
        parameters: Mapping[int, int],
        other: int,
        seen: Mapping[int, Seen],
        hidden: Mapping[int, int],
    ) -> None:
        self.seen = seen
        self._starts = sorted(seen)
        self.reach: dict[Any, int] = {}
        self.leaves: dict[int, list[Any]] = {}
        self.hidden: dict[int, list[Any]] = {}
        self.parents: dict[Any, list[Any]] = {}
        self.from_data: set[Any] = set()
        self._roots = [root.grad_fn for root in roots if root.grad_fn is not None]
        for node in self._children_first():
            children = [child for child, _ in node.next_functions if child is not None]
            reach = 0
            for child in children:
                reach |= self.reach[child]
                self.parents.setdefault(child, []).append(node)
            if hasattr(node, 'variable'):
                bit = parameters.get(id(node.variable), other)
                reach |= 1 << bit
                self.leaves.setdefault(bit, []).append(node)
                if bit == other:
                    self.from_data.add(node)
            number = node._sequence_nr()
            from_data = number in seen and seen[number].origin is Origin.DATA
            if isinstance(node, torch.autograd.function.BackwardCFunction) and number in hidden:
                reach |= hidden[number]
                for bit in bits(hidden[number]):
                    self.hidden.setdefault(bit, []).append(node)
                from_data = True
            if from_data or any(child in self.from_data for child in children):
                self.from_data.add(node)
            self.reach[node] = reach
        self.hidden = {bit: functions for bit, functions in self.hidden.items() if bit not in self.leaves}

    def counts(self) -> Counter[int]:
        """Number of nodes by what they lead to."""
        return Counter(self.reach.values())

    def _children_first(self) -> Iterator[Any]:
        done: set[Any] = set()
        todo = [(root, False) for root in self._roots]
        while todo:
            node, complete = todo.pop()
            if complete:
                yield node
            elif node not in done:
                done.add(node)
                todo.append((node, True))
                todo += [(child, False) for child, _ in node.next_functions if child is not None and child not in done]

    def meets_constants(self, node: Any) -> bool:
        """Whether the operator of a node read something else than parameters and what was made of them."""
        seen = self.seen.get(node._sequence_nr())
        return seen is not None and seen.origin is not Origin.PARAMETERS

    def position(self, node: Any) -> Position:
        """When a node was made."""
        number = node._sequence_nr()
        if number in self.seen:
            return self.seen[number].operator, number
        # Made where nobody looked on, as in a loss.
        before = bisect_right(self._starts, number)
        return (self.seen[self._starts[before - 1]].operator if before else 0), number

    def made_in_backward(self, node: Any) -> bool:
        """Whether a backward pass within the forward pass made a node."""
        seen = self.seen.get(node._sequence_nr())
        return seen is not None and seen.in_backward


def leaves_of(roots: Iterable[Tensor]) -> list[Tensor]:
    """Tensors that a backward pass from some tensors gives a gradient."""
    todo: list[Any] = [root.grad_fn for root in roots if root.grad_fn is not None]
    done = set(todo)
    leaves: list[Tensor] = []
    while todo:
        node = todo.pop()
        if hasattr(node, 'variable'):
            leaves.append(node.variable)
        for child, _ in node.next_functions:
            if child is not None and child not in done:
                done.add(child)
                todo.append(child)
    return leaves


def bits(mask: int) -> Iterator[int]:
    """The bits of a set, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
