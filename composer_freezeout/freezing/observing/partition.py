"""From a model to its units: what freezes together, in the order in which the forward pass uses it.

The order is observed, not assumed: see :mod:`.observer`. Definition order is not execution order, modules may be
used twice, and parameters may be held by modules that are not leaves.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from composer_freezeout.freezing.observing.head import find_head
from composer_freezeout.freezing.observing.names import owners_of
from composer_freezeout.freezing.observing.norms import place_norms
from composer_freezeout.freezing.observing.observation import Observation
from composer_freezeout.freezing.observing.order import order_units
from composer_freezeout.freezing.observing.patterns import units_by_pattern
from composer_freezeout.freezing.observing.units import Unit
from composer_freezeout.method.settings import Granularity, check_patterns

__all__ = ['Partition', 'Unit', 'completed', 'partition_model']


@dataclass(frozen=True)
class Partition:
    """The ordered units of a model; every trainable parameter is in exactly one.

    Attributes:
        units (tuple[Unit, ...]): First to freeze first.
        cuts (tuple[int, ...]): ``cuts[k]``: of the first ``k`` units, how many leave the backward pass when these ``k``
            are frozen. ``cuts[k] == k`` where nothing that is still trained comes before a frozen unit.
        heads (int): How many of the last units train to the end, in ``[1, len(units)]``: the head that the user names,
            those behind which nothing else is trained, and those that the observed step didn't use.
        unseen (tuple[str, ...]): Units, among the heads, that the observed step didn't use.
        input_requires_grad (bool): Whether something in front of the units, like the input, gets a gradient as well.
        written (tuple[str, ...]): Parameters that the forward pass itself writes to.
    """

    units: tuple[Unit, ...]
    cuts: tuple[int, ...]
    heads: int = 1
    unseen: tuple[str, ...] = ()
    input_requires_grad: bool = False
    written: tuple[str, ...] = ()

    def is_same(self, other: 'Partition') -> bool:
        """Whether the units are those of another partition; what has to stand still in them may not be known yet."""
        ours, theirs = ([(unit.name, unit.parameters) for unit in p.units] for p in (self, other))
        return ours == theirs and self.heads == other.heads

    def problems(self) -> list[str]:
        """What a user should know of the units before training goes on."""
        problems = (
            self.describe_bad_cuts(),
            self.describe_unseen(),
            self.describe_nothing_to_freeze(),
            self.describe_written(),
        )
        return [problem for problem in problems if problem is not None]

    def describe_bad_cuts(self) -> str | None:
        """Says which units save nothing in the backward pass when they freeze, or None if every cut is clean."""
        freezing = len(self.units) - self.heads
        bad = [k for k, cut in enumerate(self.cuts[: freezing + 1]) if cut < k]
        if not bad:
            return None
        k = bad[0]
        reason = (
            'something in front of them gets a gradient, too: an input with requires_grad=True, or another model. '
            'Training is correct but saves less time; leave that gradient out where it is not needed'
            if self.input_requires_grad
            else 'a unit that freezes later is used earlier in the forward pass. Training is correct but saves less '
            'time. Order `layers` as the forward pass uses them; parameters tied between the first and the last layer '
            'keep the whole backward pass alive'
        )
        return (
            f'at {len(bad)} of {freezing} freeze points the backward pass still runs through frozen units (first when '
            f'{self.units[k - 1].name!r} freezes: {k - self.cuts[k]} of {k}), because {reason}'
        )

    def describe_unseen(self) -> str | None:
        """Names the units that the observed step didn't use, or returns None if it used all."""
        if not self.unseen:
            return None
        names = ', '.join(map(repr, self.unseen[:5])) + (f' and {len(self.unseen) - 5} more' * (len(self.unseen) > 5))
        return (
            f'the first batch does not use {names}, so their place among the layers is unknown: they train to the end. '
            'Give `layers` if they are to freeze, or set requires_grad to False if they are never used'
        )

    def describe_nothing_to_freeze(self) -> str | None:
        """Says so if all units train to the end; None if one freezes."""
        if self.heads < len(self.units):
            return None
        names = ', '.join(repr(unit.name) for unit in self.units[:5])
        return (
            f'nothing will freeze: every unit trains to the end ({names}), as no other comes behind it. Give `layers` '
            'to freeze a part of the model'
        )

    def describe_written(self) -> str | None:
        """Names the parameters that move although they are frozen; None if there are none."""
        if not self.written:
            return None
        return (
            f'the forward pass itself writes to {", ".join(map(repr, self.written[:5]))}, frozen or not, as an '
            'embedding with max_norm does. Leave max_norm out if a frozen layer is to stand still'
        )


def partition_model(
    model: nn.Module,
    observed: Observation | None = None,
    layers: Sequence[str] | None = None,
    granularity: Granularity = 'module',
    head: Sequence[str] | None = None,
) -> Partition:
    """Splits a model's trainable parameters into ordered units.

    By default a unit is a module that owns parameters, with what follows it that holds vectors only, such as its
    normalisation. Tensors of a module that are used apart, with layers in between, are units of their own. Parameters
    that don't require a gradient are left alone. Tied parameters belong to their last user.

    Args:
        model (nn.Module): The model.
        observed (Observation, optional): What a training step has shown. Needed unless ``layers`` gives the order; with
            ``layers`` it serves to check that order, and to find what changes buffers.
        layers (Sequence[str], optional): Regular expressions, one unit each, first to freeze first. A module belongs to
            the unit whose expression matches its full name or that of a module around it.
        granularity (str): ``'module'``, or ``'block'`` to make a unit of each residual, dense or transformer block: the
            modules with children of their own that a ``Sequential``, ``ModuleList`` or ``ModuleDict`` holds.
        head (Sequence[str], optional): Regular expressions for what trains to the end. With ``layers``, a unit for each
            of them, and what they match is in no other unit.

    Returns:
        Partition: At least one unit.

    Raises:
        ValueError: If nothing is trainable, or nothing but the head; if ``layers`` or ``head`` has an expression that
            matches nothing; if two of ``layers`` match the same parameter, or if none matches a trainable parameter.
    """
    if layers is None and observed is None:
        raise ValueError('the order of the units is unknown; give `layers`, or an example batch to trace')
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not names:
        raise ValueError('the model has no trainable parameter, so there is nothing to freeze')
    owners = owners_of(model)
    users = {} if observed is None else observed.users
    home = {name: users.get(name, owners[name][-1]) for name in names}
    of_head = {} if head is None else find_head(model, home, head)
    if layers is not None:
        check_patterns(layers, 'layers')
        units, heads, unseen = units_by_pattern(model, home, layers, of_head), max(1, len(set(of_head.values()))), ()
    else:
        assert observed is not None
        units, heads, unseen = order_units(model, home, observed, granularity, of_head)
    partition = Partition(tuple(units), tuple(range(len(units) + 1)), heads, unseen)
    # Where nothing has been observed, the order that was given is taken for that of the forward pass.
    return partition if observed is None else completed(partition, model, observed, layers, head)


def completed(
    partition: Partition,
    model: nn.Module,
    observed: Observation,
    layers: Sequence[str] | None,
    head: Sequence[str] | None,
) -> Partition:
    """Adds to units what a training step has shown of them.

    Args:
        partition (Partition): The units.
        model (nn.Module): The model.
        observed (Observation): What a step has shown, with nothing frozen by the units yet.
        layers (Sequence[str], optional): The expressions that the units were made from, where they were.
        head (Sequence[str], optional): Those of the head.

    Returns:
        Partition: The same units, with their norms and cuts.
    """
    units = place_norms(model, partition.units, observed, layers, head)
    return replace(
        partition,
        units=tuple(units),
        cuts=_cuts(units, observed),
        input_requires_grad=observed.input_requires_grad,
        written=tuple(name for name in observed.bits if name in observed.written),
    )


def _cuts(units: Sequence[Unit], observed: Observation) -> tuple[int, ...]:
    masks = [observed.mask(unit.parameters) for unit in units]
    upstream = [0] * len(units)
    for index, unit in enumerate(units):
        for name in unit.parameters:
            upstream[index] |= observed.uses[name].upstream if name in observed.uses else 0
    alive = 1 << observed.others
    cuts = [sum(not through & alive for through in upstream)]
    for k in reversed(range(len(units))):
        alive |= masks[k]
        cuts.append(sum(not through & alive for through in upstream[:k]))
    return tuple(reversed(cuts))
