"""Makes units in the order in which a training step uses them."""

from collections.abc import Collection, Mapping, Sequence

from torch import nn

from composer_freezeout.freezing.observing.observation import Observation
from composer_freezeout.freezing.observing.pieces import Piece, add_unseen, fixed_matrices, join_followers, used_pieces
from composer_freezeout.freezing.observing.structure import (
    blocks_of,
    is_matrix,
)
from composer_freezeout.freezing.observing.units import Unit
from composer_freezeout.method.settings import Granularity

__all__ = ['order_units']


def order_units(
    model: nn.Module,
    home: Mapping[str, str],
    observed: Observation,
    granularity: Granularity,
    head: Collection[str] = (),
) -> tuple[list[Unit], int, tuple[str, ...]]:
    """Makes units in the order in which a step uses them.

    Args:
        model (nn.Module): The model.
        home (Mapping[str, str]): Name of the module that each trainable parameter belongs to.
        observed (Observation): What the step has shown.
        granularity (str): ``'module'`` or ``'block'``; of the head it is always ``'module'``.
        head (Collection[str]): Parameters that train to the end, whatever comes behind them.

    Returns:
        tuple[list[Unit], int, tuple[str, ...]]: The units; how many of the last ones train to the end; the names of
        those among them that the step didn't use, and that are not in ``head``.

    Raises:
        ValueError: If the step used none of the parameters.
    """
    position = observed.positions()
    if not any(name in position for name in home):
        raise ValueError(
            'the forward pass reads none of the trainable parameters, so the order of the units is unknown; run '
            'the model itself in it, or give `layers`'
        )
    blocks = list(blocks_of(model)) if granularity == 'block' else []
    # Apart from each other, so that no norm of the one joins a layer of the other.
    seen, unseen = _pieces(model, {n: m for n, m in home.items() if n not in head}, observed, blocks)
    named = [piece for found in _pieces(model, {n: home[n] for n in head}, observed, []) for piece in found]
    last = sorted([*seen, *named], key=lambda piece: piece.position)[-1]
    matrices = observed.mask(name for name in home if is_matrix(model.get_parameter(name)))

    def is_head(piece: Piece) -> bool:
        used = max((name for name in piece.parameters if name in observed.uses), key=position.__getitem__, default=None)
        others = matrices & ~observed.mask(piece.parameters)
        return piece is last or (used is not None and not observed.uses[used].downstream & others)

    inner, final = [piece for piece in seen if not is_head(piece)], [piece for piece in seen if is_head(piece)]
    heads = [*final, *named, *unseen]
    units = [Unit(piece.name, tuple(piece.parameters)) for piece in (*inner, *heads)]
    return units, len(heads), tuple(piece.name for piece in unseen)


def _pieces(
    model: nn.Module, home: Mapping[str, str], observed: Observation, blocks: Sequence[str]
) -> tuple[list[Piece], list[Piece]]:
    """The pieces that the step used, in the order of use, and the others."""
    position = observed.positions()
    pieces = used_pieces(model, home, position, blocks, split=False)
    if len(pieces) == 1:  # one module does everything: its layers are known by their tensors
        pieces = used_pieces(model, home, position, blocks, split=True)
    unseen = add_unseen(model, home, position, blocks, pieces)
    return join_followers(pieces, fixed_matrices(model, position)), unseen
