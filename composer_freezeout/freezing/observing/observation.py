"""What is known of a model once a training step has been watched."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from composer_freezeout.freezing.observing.graph import Position
from composer_freezeout.freezing.observing.uses import Use

__all__ = ['Observation']


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
