"""The pieces of a model that units are made of: parameters that are used without others in between."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from composer_freezeout.freezing.observing.graph import Position
from composer_freezeout.freezing.observing.structure import (
    block_around,
    holds_vectors,
    is_around_others,
    is_list,
    is_matrix,
)

__all__ = ['Piece', 'add_unseen', 'fixed_matrices', 'join_followers', 'used_pieces']


@dataclass
class Piece:
    """Parameters of one module, or of one block, that are used without others in between."""

    name: str
    parameters: list[str]
    position: Position
    is_follower: bool = False  # holds vectors only, as a norm does, and belongs to what it follows


def used_pieces(
    model: nn.Module, home: Mapping[str, str], position: Mapping[str, Position], blocks: Sequence[str], split: bool
) -> list[Piece]:
    """Makes pieces of what the step used, in the order of use.

    With ``split`` every matrix begins a piece of its own, as it does in a list of parameters.
    """
    registration = {name: index for index, name in enumerate(home)}
    module_order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    used = sorted(
        (name for name in home if name in position),
        key=lambda name: (position[name], module_order.get(home[name], -1), registration[name]),
    )
    pieces: dict[Any, list[str]] = {}
    latest: Any = None  # the piece that further parameters of the same module join
    count = Counter[str]()
    for name in used:
        module_name = home[name]
        block = block_around(module_name, blocks)
        if block is not None:
            key: Any = block
            latest = None
        elif holds_vectors(model, module_name):
            key = module_name
        else:
            begins = (split or is_list(model, module_name)) and is_matrix(model.get_parameter(name))
            if latest is None or latest[0] != module_name or begins:
                latest = (module_name, count[module_name])
                count[module_name] += 1
            key = latest
        pieces.setdefault(key, []).append(name)
    made = []
    for key, names in pieces.items():
        module_name = key if isinstance(key, str) else key[0]
        own_name = module_name in blocks or not (count[module_name] > 1 or is_around_others(model, module_name))
        made.append(
            Piece(
                module_name if own_name else min(names, key=registration.__getitem__),
                sorted(names, key=registration.__getitem__),
                max(position[name] for name in names),
                is_follower=module_name not in blocks and holds_vectors(model, module_name),
            )
        )
    return sorted(made, key=lambda piece: piece.position)


def add_unseen(
    model: nn.Module,
    home: Mapping[str, str],
    position: Mapping[str, Position],
    blocks: Sequence[str],
    pieces: list[Piece],
) -> list[Piece]:
    """Adds what the step didn't use to the pieces of the same module, and returns pieces of the rest."""

    def around(module_name: str) -> str:
        return block_around(module_name, blocks) or module_name

    piece_of = {around(home[name]): piece for piece in pieces for name in piece.parameters}
    unseen: dict[str, Piece] = {}
    previous: Piece | None = None
    for name, module_name in home.items():
        if name in position:
            continue
        if (key := around(module_name)) in piece_of:
            piece_of[key].parameters.append(name)
        elif key in unseen:
            unseen[key].parameters.append(name)
        elif previous is not None and holds_vectors(model, module_name):
            previous.parameters.append(name)
        else:
            own_name = key in blocks or not is_around_others(model, module_name)
            previous = unseen[key] = Piece(key if own_name else name, [name], ())
    return list(unseen.values())


def join_followers(pieces: Sequence[Piece], fixed: Sequence[Position]) -> list[Piece]:
    """Joins what holds vectors only to the piece before it, or to the first one if there is none.

    Behind a matrix that doesn't train it stays by itself: vectors may be all that does.
    """
    joined: list[Piece] = []
    leading: list[Piece] = []
    for piece in pieces:
        apart = any((joined[-1].position if joined else ()) < matrix < piece.position for matrix in fixed)
        if piece.is_follower and joined and not apart:
            joined[-1].parameters += piece.parameters
            joined[-1].position = piece.position
        elif piece.is_follower and not apart:
            leading.append(piece)
        else:
            if not joined:
                piece.parameters[:0] = [name for other in leading for name in other.parameters]
                leading = []
            joined.append(piece)
    return joined or leading


def fixed_matrices(model: nn.Module, position: Mapping[str, Position]) -> list[Position]:
    """Where matrices are used that don't train."""
    return [position[n] for n, p in model.named_parameters() if n in position and not p.requires_grad and is_matrix(p)]
