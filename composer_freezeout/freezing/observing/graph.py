"""What the autograd graph behind a loss says of the parameters: where each is used, and what keeps a node alive.

The graph is what a backward pass runs. A node of it is run as long as it leads to a tensor that requires a gradient, so
that the graph of one step tells what is left of every later one, whatever is frozen in it.

Sets of parameters are the bits of whole numbers: bit ``i`` for the ``i``-th parameter, and one more for all else that
asks for a gradient.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ['Graph', 'Origin', 'Position', 'Seen', 'Use', 'bits', 'leaves_of']

Position = tuple[int, ...]
"""When something ran: the number of operators before it, then what orders things within one."""

# Operators that put tensors together. Of nothing but scalars, they put losses together.
_JOINS = ('AddBackward', 'SubBackward', 'StackBackward', 'CatBackward')
# Operators to which a parameter, such as a token, comes as one activation among others, and not as a weight.
_AMONG_ACTIVATIONS = (*_JOINS, 'ScaledDotProduct')
# Operators whose last operand is the weight.
_PRODUCTS = ('MmBackward', 'AddmmBackward', 'BmmBackward', 'BaddbmmBackward')


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


@dataclass(frozen=True)
class Use:
    """Where a parameter is used differentiably, together with activations.

    Attributes:
        position (Position, optional): Of its last use, or of the first one if it is only added to activations and no
            bias; None if the graph doesn't tell, as where a backward pass within the forward pass alone uses it, or a
            function that hides it.
        upstream (int): Parameters that a backward pass leads to which has come to one of its uses as a weight, through
            the activations that it meets there.
        downstream (int): Parameters that are used between its last use and the loss.
    """

    position: Position | None
    upstream: int
    downstream: int


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
        self._seen = seen
        self._starts = sorted(seen)
        self.reach: dict[Any, int] = {}
        self._leaves: dict[int, list[Any]] = {}
        self.hidden: dict[int, list[Any]] = {}
        self._parents: dict[Any, list[Any]] = {}
        self._from_data: set[Any] = set()
        self._roots = [root.grad_fn for root in roots if root.grad_fn is not None]
        for node in self._children_first():
            children = [child for child, _ in node.next_functions if child is not None]
            reach = 0
            for child in children:
                reach |= self.reach[child]
                self._parents.setdefault(child, []).append(node)
            if hasattr(node, 'variable'):
                bit = parameters.get(id(node.variable), other)
                reach |= 1 << bit
                self._leaves.setdefault(bit, []).append(node)
                if bit == other:
                    self._from_data.add(node)
            number = node._sequence_nr()
            from_data = number in seen and seen[number].origin is Origin.DATA
            if isinstance(node, torch.autograd.function.BackwardCFunction) and number in hidden:
                reach |= hidden[number]
                for bit in bits(hidden[number]):
                    self.hidden.setdefault(bit, []).append(node)
                from_data = True
            if from_data or any(child in self._from_data for child in children):
                self._from_data.add(node)
            self.reach[node] = reach
        self.hidden = {bit: functions for bit, functions in self.hidden.items() if bit not in self._leaves}

    def counts(self) -> Counter[int]:
        """Number of nodes by what they lead to."""
        return Counter(self.reach.values())

    def uses(self) -> dict[int, Use]:
        """Use of each parameter that the graph leads to, by its bit.

        What is computed from parameters alone uses none of them: a weight that is normalised early is used where it
        meets activations, and a penalty that is added to the loss nowhere.
        """
        of_all = {bit: self._meetings(bit) for bit in self._leaves}
        of_all |= {bit: [(function, function) for function in functions] for bit, functions in self.hidden.items()}
        users: dict[Any, int] = {}
        for bit, nodes in of_all.items():
            for node, _ in nodes:
                users[node] = users.get(node, 0) | 1 << bit
        below = self._used_below(users)
        found = {bit: self._use(bit, nodes, below) for bit, nodes in of_all.items() if nodes}
        # The order within a function is not to be seen here.
        return {bit: use if bit in self._leaves else replace(use, position=None) for bit, use in found.items()}

    def _use(self, bit: int, nodes: list[tuple[Any, Any]], below: Mapping[Any, int]) -> Use:
        upstream = self._beside(bit)
        # A token or a position becomes an activation where it is first put together with others. A bias does not: it is
        # added whenever its weight is used.
        is_bias = all(len(leaf._input_metadata[0].shape) <= 1 for leaf in self._leaves.get(bit, ())) and all(
            node is reader for node, reader in nodes
        )
        as_weights = [pair for pair in nodes if not pair[0].name().startswith(_AMONG_ACTIVATIONS)]
        # What a backward pass within the forward pass reads, it reads in the reversed order.
        forward = [pair for pair in as_weights or nodes if not self._made_in_backward(pair[0])] or nodes
        last = (max if as_weights or is_bias else min)(forward, key=self._position_of)
        for node, _ in as_weights:
            for child, _ in node.next_functions:
                if child in self._from_data:
                    upstream |= self.reach[child]
        position = None if self._made_in_backward(last[0]) else self._position_of(last)
        return Use(position, upstream, below[last[0]])

    def _position_of(self, pair: tuple[Any, Any]) -> Position:
        return (*self._position(pair[0]), *self._position(pair[1]))

    def _meetings(self, bit: int) -> list[tuple[Any, Any]]:
        """Nodes in which a parameter, or what is made of it alone, meets activations, each with the parameter's reader.

        Where it meets none: the penalties that it has a part in, or else constants, or else its readers.
        """
        readers = [(parent, parent) for leaf in self._leaves[bit] for parent in self._parents.get(leaf, ())]
        met, penalties = self._climb(bit, self._from_data.__contains__)
        return met or penalties or self._climb(bit, self._from_constants)[0] or readers

    def _climb(self, bit: int, meets: Callable[[Any], bool]) -> tuple[list[tuple[Any, Any]], list[tuple[Any, Any]]]:
        """The first nodes above a parameter that meet something; apart, those to which it comes as a number.

        Its norm, say, which is added to a loss: a penalty, and no use.
        """
        leaves = self._leaves[bit]
        several = any(_numel(leaf) != 1 for leaf in leaves)
        todo = [(parent, parent, leaf) for leaf in leaves for parent in self._parents.get(leaf, ())]
        done: set[tuple[Any, Any]] = set()
        met: list[tuple[Any, Any]] = []
        penalties: list[tuple[Any, Any]] = []
        while todo:
            node, reader, below = todo.pop()
            if (node, below) in done:
                continue
            done.add((node, below))
            if meets(node):
                as_number = several and _numel(below) == 1
                (penalties if as_number or self._adds_scalars(node) else met).append((node, reader))
            else:
                todo += [(parent, reader, node) for parent in self._parents.get(node, ())]
        return met, penalties

    def _beside(self, bit: int) -> int:
        """What a backward pass leads to through the other operand where a parameter is the weight for parameters alone.

        A layer of a decoder, say, that works on learned queries before these meet any data.
        """
        beside = 0
        todo, done = (
            [(parent, leaf) for leaf in self._leaves.get(bit, ()) for parent in self._parents.get(leaf, ())],
            set(),
        )
        while todo:
            node, below = todo.pop()
            if node in done or node in self._from_data:
                continue
            done.add(node)
            children = [child for child, _ in node.next_functions if child is not None]
            if node.name().startswith(_PRODUCTS) and below is children[-1]:
                for child in children[:-1]:
                    beside |= self.reach[child]
            else:
                todo += [(parent, node) for parent in self._parents.get(node, ())]
        return beside & ~(1 << bit)

    def _from_constants(self, node: Any) -> bool:
        seen = self._seen.get(node._sequence_nr())
        return seen is not None and seen.origin is not Origin.PARAMETERS

    def _used_below(self, users: Mapping[Any, int]) -> dict[Any, int]:
        """Parameters that are used between a node and the roots."""
        below: dict[Any, int] = dict.fromkeys(self.reach, 0)
        for node in reversed(self.reach):
            through = below[node] | users.get(node, 0)
            for child, _ in node.next_functions:
                if child is not None:
                    below[child] |= through
        return below

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

    def _position(self, node: Any) -> Position:
        number = node._sequence_nr()
        if number in self._seen:
            return self._seen[number].operator, number
        # Made where nobody looked on, as in a loss.
        before = bisect_right(self._starts, number)
        return (self._seen[self._starts[before - 1]].operator if before else 0), number

    def _made_in_backward(self, node: Any) -> bool:
        seen = self._seen.get(node._sequence_nr())
        return seen is not None and seen.in_backward

    def _adds_scalars(self, node: Any) -> bool:
        children = [child for child, _ in node.next_functions if child is not None]
        return node.name().startswith(_JOINS) and all(_numel(child) == 1 for child in children)


def _numel(node: Any) -> int:
    """Number of elements of what a node computes; 0 where it is unknown, or where there are several outputs."""
    outputs = node._input_metadata
    return math.prod(outputs[0].shape) if len(outputs) == 1 else 0


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
