"""The units of a model: which parameters freeze together, and in which order."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from torch import Tensor, nn

from composer_freezeout.freezing.observing.graph import Position
from composer_freezeout.freezing.observing.observation import Observation, join_names, without_parametrizations

__all__ = ['Granularity', 'Unit', 'order_units', 'place_norms', 'units_by_pattern']

Granularity = Literal['module', 'block']


@dataclass(frozen=True)
class Unit:
    """What freezes together.

    Attributes:
        name (str): Name of the module, the parameter or the pattern of ``layers`` that the unit was made from.
        parameters (tuple[str, ...]): Names of its trainable parameters, as in ``model.named_parameters()``.
        norms (tuple[str, ...]): Names of its modules whose buffers a training pass changes, such as BatchNorm.
    """

    name: str
    parameters: tuple[str, ...]
    norms: tuple[str, ...] = ()


@dataclass
class _Piece:
    """Parameters of one module, or of one block, that are used without others in between."""

    name: str
    parameters: list[str]
    position: Position
    is_follower: bool = False  # holds vectors only, as a norm does, and belongs to what it follows


def order_units(
    model: nn.Module, home: Mapping[str, str], observed: Observation, granularity: Granularity
) -> tuple[list[Unit], int, tuple[str, ...]]:
    """Makes units in the order in which a step uses them.

    Args:
        model (nn.Module): The model.
        home (Mapping[str, str]): Name of the module that each trainable parameter belongs to.
        observed (Observation): What the step has shown.
        granularity (str): ``'module'`` or ``'block'``.

    Returns:
        tuple[list[Unit], int, tuple[str, ...]]: The units; how many of the last ones train to the end; the names of
        those among them that the step didn't use.

    Raises:
        ValueError: If the step used none of the parameters.
    """
    position = observed.positions()
    if not any(name in position for name in home):
        raise ValueError(
            'the forward pass reads none of the trainable parameters, so the order of the units is unknown; run '
            'the model itself in it, or give `layers`'
        )
    pieces = _pieces(model, home, position, granularity, split=False)
    if len(pieces) == 1:  # one module does everything: its layers are known by their tensors
        pieces = _pieces(model, home, position, granularity, split=True)
    unseen = _add_unseen(model, home, position, granularity, pieces)
    seen = _join_followers(pieces, _fixed_matrices(model, position))
    matrices = observed.mask(name for name in home if _is_matrix(model.get_parameter(name)))

    def is_head(piece: _Piece) -> bool:
        last = max((name for name in piece.parameters if name in observed.uses), key=position.__getitem__, default=None)
        others = matrices & ~observed.mask(piece.parameters)
        return piece is seen[-1] or (last is not None and not observed.uses[last].downstream & others)

    inner, heads = [piece for piece in seen if not is_head(piece)], [piece for piece in seen if is_head(piece)]
    units = [Unit(piece.name, tuple(piece.parameters)) for piece in (*inner, *heads, *unseen)]
    return units, len(heads) + len(unseen), tuple(piece.name for piece in unseen)


def units_by_pattern(model: nn.Module, home: Mapping[str, str], layers: Sequence[str]) -> list[Unit]:
    """Makes a unit for each regular expression.

    Args:
        model (nn.Module): The model.
        home (Mapping[str, str]): Name of the module that each trainable parameter belongs to.
        layers (Sequence[str]): The expressions. A module belongs to the one that matches one of its names, or one of a
            module around it.

    Returns:
        list[Unit]: In the order of the expressions.

    Raises:
        ValueError: If an expression matches nothing or stands there twice, or if a parameter is matched by none or two.
    """
    repeated = [pattern for pattern, count in Counter(layers).items() if count > 1]
    if repeated:
        raise ValueError(f'layers: {repeated[0]!r} stands more than once; each unit has one expression')
    matches = _matcher(model, layers)
    parameters: dict[str, list[str]] = {pattern: [] for pattern in layers}
    for name, module_name in home.items():
        found = matches(module_name)
        if len(found) > 1:
            raise ValueError(
                f'layers: {found[0]!r} and {found[1]!r} both match the parameter {name!r}; make one narrower'
            )
        if not found:
            raise ValueError(
                f'layers: no expression matches the trainable parameter {name!r} (module {module_name!r}); add one, or '
                'set its requires_grad to False'
            )
        parameters[found[0]].append(name)
    for pattern, names in parameters.items():
        if not names:
            raise ValueError(
                f'layers: {pattern!r} matches no module with trainable parameters; module names are '
                f'{", ".join(repr(name) for name in list(dict.fromkeys(home.values()))[:3])}, …'
            )
    return [Unit(pattern, tuple(names)) for pattern, names in parameters.items()]


def place_norms(
    model: nn.Module, units: Sequence[Unit], observed: Observation, layers: Sequence[str] | None = None
) -> list[Unit]:
    """Gives each module whose buffers training changes to the unit with which it has to stand still.

    That is the last unit with parameters in the module, or else the one before it in the forward pass. Modules whose
    parameters the user has frozen are left alone.

    Args:
        model (nn.Module): The model.
        units (Sequence[Unit]): Its units; norms that they have already are placed anew.
        observed (Observation): What a step has shown.
        layers (Sequence[str], optional): The expressions that the units were made from, where they were.

    Returns:
        list[Unit]: The units, with their norms.
    """
    position = observed.positions()
    index = {name: i for i, unit in enumerate(units) for name in unit.parameters}
    order = sorted((position[name], i) for name, i in index.items() if name in position)
    matches = _matcher(model, layers) if layers is not None else None
    norms: dict[int, list[str]] = defaultdict(list)
    previous = 0
    for module_name, module in model.named_modules():
        # A parametrisation stands still with the tensor that it makes.
        around = without_parametrizations(module_name)
        own = [join_names(module_name, name) for name, _ in module.named_parameters(recurse=False)]
        within = [i for name, i in index.items() if _is_within(name, around)] if around else list(index.values())
        if module_name in observed.changed and (not own or any(name in index for name in own)):
            buffers = [join_names(module_name, name) for name, _ in module.named_buffers(recurse=False)]
            read = [observed.reads[name] for name in buffers if name in observed.reads]
            if within:
                unit = max(within)
            elif matches is not None and (found := matches(module_name)):
                unit = next(i for i, of_unit in enumerate(units) if of_unit.name == found[0])
            elif read:
                unit = next((i for used, i in reversed(order) if used < max(read)), 0)
            else:  # hidden in scripted code: what is registered before it
                unit = previous
            norms[unit].append(module_name)
        previous = max((index[name] for name in own if name in index), default=previous)
    return [Unit(unit.name, unit.parameters, tuple(norms[i])) for i, unit in enumerate(units)]


# --- pieces


def _pieces(
    model: nn.Module, home: Mapping[str, str], position: Mapping[str, Position], granularity: Granularity, split: bool
) -> list[_Piece]:
    """What the step used, first used first.

    With ``split`` every matrix begins a piece of its own, as it does in a list of parameters.
    """
    blocks = list(_blocks(model)) if granularity == 'block' else []
    registration = {name: index for index, name in enumerate(home)}
    module_order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    used = sorted(
        (name for name in home if name in position),
        key=lambda name: (position[name], module_order.get(home[name], -1), registration[name]),
    )
    pieces: dict[Any, list[str]] = {}
    latest: Any = None  # of the pieces that others may end
    count = Counter[str]()
    for name in used:
        module_name = home[name]
        block = _block_of(module_name, blocks)
        if block is not None:
            key: Any = block
            latest = None
        elif _holds_vectors(model, module_name):
            key = module_name
        else:
            begins = (split or _is_list(model, module_name)) and _is_matrix(model.get_parameter(name))
            if latest is None or latest[0] != module_name or begins:
                latest = (module_name, count[module_name])
                count[module_name] += 1
            key = latest
        pieces.setdefault(key, []).append(name)
    made = []
    for key, names in pieces.items():
        module_name = key if isinstance(key, str) else key[0]
        own_name = module_name in blocks or not (count[module_name] > 1 or _is_around_others(model, module_name))
        made.append(
            _Piece(
                module_name if own_name else min(names, key=registration.__getitem__),
                sorted(names, key=registration.__getitem__),
                max(position[name] for name in names),
                is_follower=module_name not in blocks and _holds_vectors(model, module_name),
            )
        )
    return sorted(made, key=lambda piece: piece.position)


def _add_unseen(
    model: nn.Module,
    home: Mapping[str, str],
    position: Mapping[str, Position],
    granularity: Granularity,
    pieces: list[_Piece],
) -> list[_Piece]:
    """Adds what the step didn't use to the pieces of the same module, and returns pieces of the rest."""
    blocks = list(_blocks(model)) if granularity == 'block' else []

    def around(module_name: str) -> str:
        return _block_of(module_name, blocks) or module_name

    piece_of = {around(home[name]): piece for piece in pieces for name in piece.parameters}
    unseen: dict[str, _Piece] = {}
    previous: _Piece | None = None
    for name, module_name in home.items():
        if name in position:
            continue
        if (key := around(module_name)) in piece_of:
            piece_of[key].parameters.append(name)
        elif key in unseen:
            unseen[key].parameters.append(name)
        elif previous is not None and _holds_vectors(model, module_name):
            previous.parameters.append(name)
        else:
            own_name = key in blocks or not _is_around_others(model, module_name)
            previous = unseen[key] = _Piece(key if own_name else name, [name], ())
    return list(unseen.values())


def _join_followers(pieces: Sequence[_Piece], fixed: Sequence[Position]) -> list[_Piece]:
    """Joins what holds vectors only to the piece before it, or to the first one if there is none.

    Behind a matrix that doesn't train it stays by itself: vectors may be all that does.
    """
    joined: list[_Piece] = []
    leading: list[_Piece] = []
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


def _fixed_matrices(model: nn.Module, position: Mapping[str, Position]) -> list[Position]:
    return [position[n] for n, p in model.named_parameters() if n in position and not p.requires_grad and _is_matrix(p)]


# --- modules


def _matcher(model: nn.Module, layers: Sequence[str]) -> Callable[[str], list[str]]:
    """Tells which expressions match a module, by any name that it has."""
    first_name: dict[nn.Module, str] = {}
    names: dict[str, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        names[first_name.setdefault(module, name)].append(name)

    def matches(module_name: str) -> list[str]:
        lineage = {
            ancestor
            for name in names.get(module_name, [module_name])
            for ancestor in accumulate(name.split('.'), lambda parent, part: f'{parent}.{part}')
        }
        return [p for p in dict.fromkeys(layers) if any(re.fullmatch(p, ancestor) for ancestor in lineage)]

    return matches


def _is_matrix(tensor: Tensor) -> bool:
    return tensor.ndim > 1


def _holds_vectors(model: nn.Module, module_name: str) -> bool:
    """Whether a module does no more than scale and shift, as far as its parameters tell."""
    module = model.get_submodule(module_name)
    parametrised = getattr(module, 'parametrizations', None)
    own = [*module.parameters(recurse=False), *(parametrised.parameters() if parametrised is not None else ())]
    return bool(own) and not _is_around_others(model, module_name) and not any(map(_is_matrix, own))


def _is_list(model: nn.Module, module_name: str) -> bool:
    return isinstance(model.get_submodule(module_name), (nn.ParameterList, nn.ParameterDict))


def _is_around_others(model: nn.Module, module_name: str) -> bool:
    """Whether what a module holds itself (a class token, say) goes by the parameter's own name."""
    children = {name for name, _ in model.get_submodule(module_name).named_children()} - {'parametrizations'}
    return not module_name or bool(children) or _is_list(model, module_name)


def _block_of(module_name: str, blocks: Sequence[str]) -> str | None:
    return next((block for block in blocks if _is_within(module_name, block)), None)


def _blocks(module: nn.Module, prefix: str = '', in_container: bool = False) -> Iterator[str]:
    """Names of the outermost modules that a container holds and that have modules with parameters inside."""
    for name, child in module.named_children():
        path = join_names(prefix, name)
        if (
            in_container
            and not _is_container(child)
            and any(c for c in child.children() if any(True for _ in c.parameters()))
        ):
            yield path
        else:
            yield from _blocks(child, path, _is_container(child))


def _is_container(module: nn.Module) -> bool:
    if isinstance(module, nn.Sequential):  # a subclass with a forward of its own is a block
        return type(module).forward is nn.Sequential.forward
    return isinstance(module, (nn.ModuleList, nn.ModuleDict))


def _is_within(name: str, module_name: str) -> bool:
    return not module_name or name == module_name or name.startswith(f'{module_name}.')
