"""From a model to its units: what freezes together, in the order in which the forward pass uses it.

The order is observed, not assumed: :func:`trace_usage` runs one forward pass and notes, for every parameter, the first
and the last operator that reads it. Definition order is not execution order, modules may be used twice, and parameters
may be held by modules that are not leaves; all of that is seen at the level of operators.
"""

import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

__all__ = ['Granularity', 'Partition', 'Unit', 'Usage', 'check_layers', 'partition_model', 'trace_usage']

Granularity = Literal['module', 'block']


@dataclass(frozen=True)
class Usage:
    """Where a forward pass reads a tensor.

    Attributes:
        first (int): Index of the first operator that reads it, in ``[0, ∞)``.
        last (int): Index of the last one, in ``[first, ∞)``.
        user (str): Name of the module that held it at its last use, ``''`` for the model itself.
    """

    first: int
    last: int
    user: str


@dataclass(frozen=True)
class Unit:
    """What freezes together.

    Attributes:
        name (str): Name of the module (or the pattern of ``layers``) that the unit was made from.
        parameters (tuple[str, ...]): Names of its trainable parameters, as in ``model.named_parameters()``.
        norms (tuple[str, ...]): Names of its modules with running statistics.
    """

    name: str
    parameters: tuple[str, ...]
    norms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Partition:
    """The ordered units of a model; every trainable parameter is in exactly one.

    Attributes:
        units (tuple[Unit, ...]): First to freeze first; the last one trains to the end.
        cuts (tuple[int, ...]): ``cuts[k]``: of the first ``k`` units, how many leave the backward pass when these ``k``
            are frozen. ``cuts[k] == k`` where the frozen units come before all trained ones in the forward pass.
    """

    units: tuple[Unit, ...]
    cuts: tuple[int, ...]

    def describe_bad_cuts(self) -> str | None:
        """Says which units save nothing in the backward pass when they freeze, or None if every cut is clean."""
        bad = [k for k, cut in enumerate(self.cuts[:-1]) if cut < k]
        if not bad:
            return None
        k = bad[0]
        return (
            f'at {len(bad)} of {len(self.units) - 1} freeze points the backward pass still runs through frozen units '
            f'(first when {self.units[k - 1].name!r} freezes: {k - self.cuts[k]} of {k}), because a unit that freezes '
            'later is used earlier in the forward pass. Training is correct but saves less time. Order `layers` as the '
            'forward pass uses them; parameters tied between the first and the last layer keep the whole backward pass '
            'alive'
        )


class _UsageTracer(TorchDispatchMode):
    """Notes which operators read which of the given tensors, and how far the count was when a module was entered."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.operator = 0
        self.first: dict[str, int] = {}
        self.last: dict[str, int] = {}
        self._names: dict[StorageWeakRef, set[str]] = defaultdict(set)
        self.watch(tensors)

    def watch(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Looks out for these tensors, too, but not for shards: operators read what they are gathered to."""
        for name, tensor in tensors.items():
            if not is_traceable_wrapper_subclass(tensor):
                self._names[StorageWeakRef(tensor.untyped_storage())].add(name)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operator += 1
        read = self._storages((args, kwargs))
        # A view or an in-place update of a tensor does not compute with it; what reads the view does.
        for storage in read - self._storages(result):
            for name in self._names[storage]:
                self.first.setdefault(name, self.operator)
                self.last[name] = self.operator
        return result

    def _storages(self, tree: Any) -> set[StorageWeakRef]:
        tensors = (
            leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided
        )
        return {ref for ref in (StorageWeakRef(t.untyped_storage()) for t in tensors) if ref in self._names}


def trace_usage(model: nn.Module, forward: Callable[[], object]) -> dict[str, Usage]:
    """Runs a forward pass and notes where it reads each parameter and buffer.

    The pass runs in evaluation mode, without gradients and with the random state put back, so that the model and the
    run are as before.

    Args:
        model (nn.Module): The model.
        forward (Callable[[], object]): Runs the model on a batch, its loss too where that has parameters.

    Returns:
        dict[str, Usage]: By name, as in ``model.named_parameters()`` and ``model.named_buffers()``; tensors that the
        pass does not read are missing.

    Raises:
        ValueError: If the model has parameters that are not materialised yet.
    """
    tensors: dict[str, torch.Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        if isinstance(tensor, (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)):
            raise ValueError(f'{name} is not initialized; run one forward pass through the lazy modules first')
    tracer = _UsageTracer(tensors)
    owners, first_names = _owners(model), _first_names(model)
    entered: dict[str, int] = {}

    def enter(module_name: str, module: nn.Module) -> Callable[..., None]:
        def hook(*_: object) -> None:
            entered[module_name] = tracer.operator
            # Sharded parameters have been gathered by now, and other tensors stand in their place.
            within = (name for name in first_names if _is_within(name, module_name))
            tracer.watch({first_names[name]: attrgetter(name)(model) for name in within})

        return hook

    with contextlib.ExitStack() as stack:
        for module_name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(enter(module_name, module)).remove)
        stack.enter_context(_evaluation_mode(model))
        stack.enter_context(torch.random.fork_rng(devices=_cuda_devices(tensors.values())))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_mha_fastpath_off())
        stack.enter_context(tracer)
        forward()

    def last_user(name: str) -> str:
        # Of the modules that share a tensor, the one entered last; the one registered last where none is called.
        return max(reversed(owners[name]), key=lambda owner: entered.get(owner, -1))

    return {
        name: Usage(tracer.first[name], tracer.last[name], last_user(name)) for name in tensors if name in tracer.last
    }


def partition_model(
    model: nn.Module,
    usage: Mapping[str, Usage] | None = None,
    layers: Sequence[str] | None = None,
    granularity: Granularity = 'module',
) -> Partition:
    """Splits a model's trainable parameters into ordered units.

    By default a unit is a module that owns parameters, with the normalisation layers that follow it. Parameters that
    don't require a gradient are left alone. Tied parameters belong to their last user.

    Args:
        model (nn.Module): The model.
        usage (Mapping[str, Usage], optional): What :func:`trace_usage` observed. Needed unless ``layers`` gives the
            order; with ``layers`` it serves to check that order.
        layers (Sequence[str], optional): Regular expressions, one unit each, first to freeze first. A module belongs to
            the unit whose expression matches its full name or that of a module around it.
        granularity (str): ``'module'``, or ``'block'`` to make a unit of each residual, dense or transformer block: the
            modules with children of their own that a ``Sequential``, ``ModuleList`` or ``ModuleDict`` holds.

    Returns:
        Partition: At least one unit.

    Raises:
        ValueError: If nothing is trainable; if ``layers`` has an expression that matches nothing, if two match the same
            parameter, or if none matches a trainable parameter.
    """
    if layers is None and usage is None:
        raise ValueError('the order of the units is unknown; give `layers`, or an example batch to trace')
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError('the model has no trainable parameter, so there is nothing to freeze')
    owners = _owners(model)
    home = {name: usage[name].user if usage and name in usage else owners[name][-1] for name in parameters}
    norms = _stateful_norms(model, parameters, owners)

    if layers is not None:
        units = _units_by_pattern(home, norms, layers)
    else:
        assert usage is not None
        if not any(name in usage for name in parameters):
            raise ValueError(
                'the forward pass reads none of the trainable parameters, so the order of the units is unknown; run '
                'the model itself in it, or give `layers`'
            )
        units = _units_in_order(model, home, norms, _positions(model, usage), granularity)
    return Partition(tuple(units), _cuts(units, usage))


def check_layers(layers: Sequence[str]) -> None:
    """Checks that ``layers`` is a non-empty list of regular expressions.

    Args:
        layers (Sequence[str]): The expressions.

    Raises:
        TypeError: If it isn't a list or tuple of strings.
        ValueError: If it is empty or an expression doesn't compile.
    """
    # The order counts, so a set won't do, and neither will what can be read only once.
    if not isinstance(layers, Sequence) or isinstance(layers, str) or not all(isinstance(p, str) for p in layers):
        raise TypeError(f'layers must be a list of regular expressions, got {layers!r}')
    if not layers:
        raise ValueError(
            'layers must hold at least one regular expression, got an empty list; leave it out for the default'
        )
    for pattern in layers:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f'layers: {pattern!r} is not a regular expression: {error}') from None


def check_granularity(granularity: str) -> None:
    """Checks the granularity.

    Raises:
        ValueError: If it is not ``'module'`` or ``'block'``.
    """
    if granularity not in get_args(Granularity):
        raise ValueError(f'granularity must be one of {", ".join(get_args(Granularity))}, got {granularity!r}')


# --- units


def _units_in_order(
    model: nn.Module,
    home: Mapping[str, str],
    norms: Sequence[str],
    position: Mapping[str, int],
    granularity: Granularity,
) -> list[Unit]:
    blocks = list(_blocks(model)) if granularity == 'block' else []

    def unit_name(module_name: str) -> str:
        return next((block for block in blocks if _is_within(module_name, block)), module_name)

    # A module comes where its last-used tensor comes; ties, as inside fused operators, keep the order of registration.
    registration = {name: index for index, (name, _) in enumerate(model.named_modules())}
    own_position = {module_name: max(position[name] for name in names) for module_name, names in _invert(home).items()}
    for norm in norms:
        own_position.setdefault(norm, max(position[f'{norm}.{name}'] for name, _ in _stateful_buffers(model, norm)))
    unit_position: dict[str, tuple[int, int]] = {}
    for module_name, module_position in own_position.items():
        key = (module_position, registration[module_name])
        unit_position[unit_name(module_name)] = max(key, unit_position.get(unit_name(module_name), key))

    members: list[tuple[str, list[str]]] = []  # (unit, modules), norms folded into the unit before them
    leading_norms: list[str] = []
    for name in sorted(unit_position, key=unit_position.__getitem__):
        modules = sorted((m for m in own_position if unit_name(m) == name), key=registration.__getitem__)
        if name not in blocks and _is_norm(model.get_submodule(name)):
            (members[-1][1] if members else leading_norms).extend(modules)
        else:
            members.append((name, leading_norms + modules))
            leading_norms = []
    if leading_norms:
        members.append((leading_norms[0], leading_norms))

    by_module = _invert(home)

    def display_name(name: str) -> str:
        # What a module around other layers holds itself (a class token, say) goes by the parameter's own name.
        children = {child for child, _ in model.get_submodule(name).named_children()} - {'parametrizations'}
        around_others = not name or (name not in blocks and bool(children))
        return by_module[name][0] if around_others and by_module[name] else name

    units = [
        Unit(
            display_name(name),
            tuple(parameter for module in modules for parameter in by_module.get(module, ())),
            tuple(module for module in modules if module in norms),
        )
        for name, modules in members
    ]
    return _merge_without_parameters(units)


def _merge_without_parameters(units: Sequence[Unit]) -> list[Unit]:
    """Gives statistics that no trainable parameter precedes or accompanies to the unit after (or before) them."""
    merged: list[Unit] = []
    pending: tuple[str, ...] = ()
    for unit in units:
        if unit.parameters:
            merged.append(Unit(unit.name, unit.parameters, pending + unit.norms))
            pending = ()
        else:
            pending += unit.norms
    if pending:
        merged[-1] = Unit(merged[-1].name, merged[-1].parameters, merged[-1].norms + pending)
    return merged


def _units_by_pattern(home: Mapping[str, str], norms: Sequence[str], layers: Sequence[str]) -> list[Unit]:
    check_layers(layers)

    def matches(module_name: str) -> list[str]:
        parts = module_name.split('.')
        lineage = list(accumulate(parts, lambda parent, part: f'{parent}.{part}'))
        return [p for p in dict.fromkeys(layers) if any(re.fullmatch(p, ancestor) for ancestor in lineage)]

    repeated = [pattern for pattern, count in Counter(layers).items() if count > 1]
    if repeated:
        raise ValueError(f'layers: {repeated[0]!r} stands more than once; each unit has one expression')
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
    norms_of = {pattern: tuple(norm for norm in norms if pattern in matches(norm)) for pattern in layers}
    return [Unit(pattern, tuple(names), norms_of[pattern]) for pattern, names in parameters.items()]


def _cuts(units: Sequence[Unit], usage: Mapping[str, Usage] | None) -> tuple[int, ...]:
    if usage is None:  # nothing observed: take the order that was given
        return tuple(range(len(units) + 1))
    used = [[usage[name] for name in unit.parameters if name in usage] for unit in units]
    first = [min((u.first for u in uses), default=None) for uses in used]
    last = [max((u.last for u in uses), default=-1) for uses in used]
    cuts = []
    for k in range(len(units) + 1):
        trained = [position for position in first[k:] if position is not None]
        cuts.append(sum(position <= min(trained) for position in last[:k]) if trained else k)
    return tuple(cuts)


# --- what the model holds


def _tensors(module: nn.Module, recurse: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers by name, tied ones under each of their names."""
    yield from module.named_parameters(recurse=recurse, remove_duplicate=False)
    yield from module.named_buffers(recurse=recurse, remove_duplicate=False)


def _first_names(model: nn.Module) -> dict[str, str]:
    """The name under which each tensor is registered first, by every name that it has."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in _tensors(model)}


def _owners(model: nn.Module) -> dict[str, list[str]]:
    """Names of the modules that directly hold each tensor, by the tensor's first name; several where it is tied."""
    owners: dict[str, list[str]] = defaultdict(list)
    for name, first_name in _first_names(model).items():
        # A parametrised tensor is held inside of the module that uses what is made from it.
        owners[first_name].append(re.sub(r'(^|\.)parametrizations\..*', '', name.rpartition('.')[0]))
    return owners


def _join(*names: str) -> str:
    return '.'.join(filter(None, names))


def _positions(model: nn.Module, usage: Mapping[str, Usage]) -> dict[str, int]:
    """Position of every tensor: of its last use, or of the tensor registered before it if the pass did not read it."""
    positions: dict[str, int] = {}
    previous = -1
    for module_name, module in model.named_modules():
        for local_name, _ in _tensors(module, recurse=False):
            name = _join(module_name, local_name)
            if name in usage:
                previous = usage[name].last
            positions[name] = previous
    return positions


def _stateful_norms(model: nn.Module, trainable: Mapping[str, object], owners: Mapping[str, list[str]]) -> list[str]:
    """Normalisation layers with buffers that training updates, without those that the user has frozen."""
    of_module: dict[str, list[str]] = defaultdict(list)
    for name, _ in model.named_parameters():
        for owner in owners[name]:
            of_module[owner].append(name)
    return [
        name
        for name, module in model.named_modules()
        if _is_norm(module)
        and any(True for _ in _stateful_buffers(model, name))
        and (not of_module[name] or any(parameter in trainable for parameter in of_module[name]))
    ]


def _stateful_buffers(model: nn.Module, module_name: str) -> Iterator[tuple[str, torch.Tensor]]:
    return model.get_submodule(module_name).named_buffers(recurse=False, remove_duplicate=False)


def _is_norm(module: nn.Module) -> bool:
    # By name, so that other libraries' layers (LlamaRMSNorm, LayerNorm2d, …) count as well; those have vectors only,
    # which tells them from, say, a linear layer with normalised weights.
    if isinstance(module, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)):
        return True
    return 'norm' in type(module).__name__.lower() and all(p.ndim <= 1 for p in module.parameters(recurse=False))


def _blocks(module: nn.Module, prefix: str = '', in_container: bool = False) -> Iterator[str]:
    """Names of the outermost modules that a container holds and that have modules with parameters inside."""
    for name, child in module.named_children():
        path = _join(prefix, name)
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


def _invert(mapping: Mapping[str, str]) -> dict[str, list[str]]:
    inverse: dict[str, list[str]] = defaultdict(list)
    for key, value in mapping.items():
        inverse[value].append(key)
    return inverse


# --- the traced forward pass


@contextlib.contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def _mha_fastpath_off() -> Iterator[None]:
    """Keeps attention layers from running as one fused operator, which would hide the order inside of them."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _cuda_devices(tensors: Any) -> list[int]:
    return sorted({tensor.device.index for tensor in tensors if tensor.device.type == 'cuda'})
