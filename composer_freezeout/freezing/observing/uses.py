"""Where a training step uses each parameter, as its autograd graph tells."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from composer_freezeout.freezing.observing.graph import Graph, Position

__all__ = ['Use', 'find_uses']

# Operators that put tensors together. Of nothing but scalars, they put losses together.
_JOINS = ('AddBackward', 'SubBackward', 'StackBackward', 'CatBackward')
# Operators to which a parameter, such as a token, comes as one activation among others, and not as a weight.
_AMONG_ACTIVATIONS = (*_JOINS, 'ScaledDotProduct')
# Operators whose last operand is the weight.
_PRODUCTS = ('MmBackward', 'AddmmBackward', 'BmmBackward', 'BaddbmmBackward')


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


def find_uses(graph: Graph) -> dict[int, Use]:
    """Use of each parameter that the graph leads to, by its bit.

    What is computed from parameters alone uses none of them: a weight that is normalised early is used where it
    meets activations, and a penalty that is added to the loss nowhere.
    """
    of_all = {bit: _meetings(graph, bit) for bit in graph.leaves}
    of_all |= {bit: [(function, function) for function in functions] for bit, functions in graph.hidden.items()}
    users: dict[Any, int] = {}
    for bit, nodes in of_all.items():
        for node, _ in nodes:
            users[node] = users.get(node, 0) | 1 << bit
    below = _used_below(graph, users)
    found = {bit: _use(graph, bit, nodes, below) for bit, nodes in of_all.items() if nodes}
    # The graph doesn't show the order within a function.
    return {bit: use if bit in graph.leaves else replace(use, position=None) for bit, use in found.items()}


def _use(graph: Graph, bit: int, nodes: list[tuple[Any, Any]], below: Mapping[Any, int]) -> Use:
    upstream = _beside(graph, bit)
    # A token or a position becomes an activation where it is first put together with others. A bias does not: it is
    # added whenever its weight is used.
    is_bias = all(len(leaf._input_metadata[0].shape) <= 1 for leaf in graph.leaves.get(bit, ())) and all(
        node is reader for node, reader in nodes
    )
    as_weights = [pair for pair in nodes if not pair[0].name().startswith(_AMONG_ACTIVATIONS)]
    # What a backward pass within the forward pass reads, it reads in the reversed order.
    forward = [pair for pair in as_weights or nodes if not graph.made_in_backward(pair[0])] or nodes
    last = (max if as_weights or is_bias else min)(forward, key=lambda pair: _position_of(graph, pair))
    for node, _ in as_weights:
        for child, _ in node.next_functions:
            if child in graph.from_data:
                upstream |= graph.reach[child]
    position = None if graph.made_in_backward(last[0]) else _position_of(graph, last)
    return Use(position, upstream, below[last[0]])


def _position_of(graph: Graph, pair: tuple[Any, Any]) -> Position:
    return (*graph.position(pair[0]), *graph.position(pair[1]))


def _meetings(graph: Graph, bit: int) -> list[tuple[Any, Any]]:
    """Nodes in which a parameter, or what is made of it alone, meets activations, each with the parameter's reader.

    Where it meets none: the penalties that it has a part in, or else constants, or else its readers.
    """
    readers = [(parent, parent) for leaf in graph.leaves[bit] for parent in graph.parents.get(leaf, ())]
    met, penalties = _climb(graph, bit, graph.from_data.__contains__)
    return met or penalties or _climb(graph, bit, graph.meets_constants)[0] or readers


def _climb(graph: Graph, bit: int, meets: Callable[[Any], bool]) -> tuple[list[tuple[Any, Any]], list[tuple[Any, Any]]]:
    """Climbs from a parameter to the first nodes that meet something.

    Returns:
        tuple[list[tuple[Any, Any]], list[tuple[Any, Any]]]: Those nodes, each with the parameter's reader; and, in a
        list of their own, those that the parameter reaches as a single number. Such a number, its norm say, is a
        penalty that is added to the loss, and no use of the parameter.
    """
    leaves = graph.leaves[bit]
    several = any(_numel(leaf) != 1 for leaf in leaves)
    todo = [(parent, parent, leaf) for leaf in leaves for parent in graph.parents.get(leaf, ())]
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
            (penalties if as_number or _adds_scalars(node) else met).append((node, reader))
        else:
            todo += [(parent, reader, node) for parent in graph.parents.get(node, ())]
    return met, penalties


def _beside(graph: Graph, bit: int) -> int:
    """What a backward pass leads to through the other operand of products in which a parameter is the weight.

    Only products that no data have come to, as in a decoder's layer that works on learned queries.
    """
    beside = 0
    done: set[Any] = set()
    todo = [(parent, leaf) for leaf in graph.leaves.get(bit, ()) for parent in graph.parents.get(leaf, ())]
    while todo:
        node, below = todo.pop()
        if node in done or node in graph.from_data:
            continue
        done.add(node)
        children = [child for child, _ in node.next_functions if child is not None]
        if node.name().startswith(_PRODUCTS) and below is children[-1]:
            for child in children[:-1]:
                beside |= graph.reach[child]
        else:
            todo += [(parent, node) for parent in graph.parents.get(node, ())]
    return beside & ~(1 << bit)


def _used_below(graph: Graph, users: Mapping[Any, int]) -> dict[Any, int]:
    """Parameters that are used between a node and the roots."""
    below: dict[Any, int] = dict.fromkeys(graph.reach, 0)
    for node in reversed(graph.reach):
        through = below[node] | users.get(node, 0)
        for child, _ in node.next_functions:
            if child is not None:
                below[child] |= through
    return below


def _adds_scalars(node: Any) -> bool:
    children = [child for child, _ in node.next_functions if child is not None]
    return node.name().startswith(_JOINS) and all(_numel(child) == 1 for child in children)


def _numel(node: Any) -> int:
    """Number of elements of what a node computes; 0 where it is unknown, or where there are several outputs."""
    outputs = node._input_metadata
    return math.prod(outputs[0].shape) if len(outputs) == 1 else 0
