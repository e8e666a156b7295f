"""Units that the user gives as regular expressions."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

from torch import nn

from composer_freezeout.freezing.observing.units import Unit

__all__ = ['matcher', 'units_by_pattern']


def units_by_pattern(
    model: nn.Module, home: Mapping[str, str], layers: Sequence[str], head: Mapping[str, str] | None = None
) -> list[Unit]:
    """Makes a unit for each regular expression.

    Args:
        model (nn.Module): The model.
        home (Mapping[str, str]): Name of the module that each trainable parameter belongs to.
        layers (Sequence[str]): The expressions. A module belongs to the one that matches one of its names, or one of a
            module around it.
        head (Mapping[str, str], optional): Parameters of the head, which are in no other unit, each with the name of
            its unit.

    Returns:
        list[Unit]: In the order of the expressions, without those that match nothing but the head, and then its units.

    Raises:
        ValueError: If an expression matches nothing or stands there twice, or if a parameter is matched by none or two.
    """
    repeated = [pattern for pattern, count in Counter(layers).items() if count > 1]
    if repeated:
        raise ValueError(f'layers: {repeated[0]!r} stands more than once; each unit has one expression')
    matches, head = matcher(model, layers), {} if head is None else head
    parameters: dict[str, list[str]] = {pattern: [] for pattern in layers}
    for name, module_name in home.items():
        found = matches(module_name)
        if len(found) > 1:
            raise ValueError(
                f'layers: {found[0]!r} and {found[1]!r} both match the parameter {name!r}; make one narrower'
            )
        if not found and name in head:
            continue
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
    of_head: dict[str, list[str]] = defaultdict(list)
    for name, unit_name in head.items():
        of_head[unit_name].append(name)
    rest = {pattern: [name for name in names if name not in head] for pattern, names in parameters.items()}
    return [Unit(name, tuple(names)) for units in (rest, of_head) for name, names in units.items() if names]


def matcher(model: nn.Module, layers: Sequence[str]) -> Callable[[str], list[str]]:
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
