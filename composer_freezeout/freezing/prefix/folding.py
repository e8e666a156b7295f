"""Runs the BatchNorm of frozen layers as part of the convolution before it.

Behind a convolution or a linear layer with weight ``W`` and bias ``b``, a BatchNorm that normalises by its running
statistics is that layer with weight ``W·γ/√(σ² + ε)`` and bias ``β + (b − μ)·γ/√(σ² + ε)``. The model stays what it is:
the folded tensors belong to none of its modules, and stand in for its own only while it runs forward in training.

What a frozen layer gives is marked as :class:`.Unread`. If its BatchNorm is the first to read it, as in the passes
before, the layer has done the work of both. Whoever else reads it gets what the layer itself gives.
"""

import functools
import operator
import weakref
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle

from composer_freezeout.freezing.execution.compilation import is_compiled
from composer_freezeout.freezing.prefix.activation_checkpoints import is_run_again

__all__ = ['BatchNormFolding', 'Known', 'Unread', 'folded', 'runs_otherwise']

# By layer, the dimensions of its output that has channels second. Subclasses may compute something else.
_LAYERS: dict[type[nn.Module], int] = {nn.Linear: 2, nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}
_NORMS = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
_about = attrgetter('_version', 'requires_grad')
_HOOKS = ('_forward_pre_hooks', '_forward_hooks', '_backward_pre_hooks', '_backward_hooks')


def folded(layer: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias with which a layer does what the BatchNorm behind it does in evaluation, too.

    Args:
        layer (nn.Module): A convolution or linear layer; weight of shape ``(channels, …)``.
        norm (nn.Module): A BatchNorm of as many channels, with running statistics.

    Returns:
        tuple[Tensor, Tensor]: Shapes ``(channels, …)`` and ``(channels,)``, in the weight's type and memory format.
    """
    with torch.no_grad():
        # Rounded once, at the end.
        dtype = torch.promote_types(layer.weight.dtype, torch.float32)
        mean, variance = norm.running_mean.to(dtype), norm.running_var.to(dtype)
        scale = (variance + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.to(dtype)
        bias = -mean if layer.bias is None else layer.bias.to(dtype) - mean
        bias = bias * scale
        if norm.bias is not None:
            bias = bias + norm.bias.to(dtype)
        per_channel = scale.view(-1, *[1] * (layer.weight.ndim - 1))
        weight = torch.empty_like(layer.weight, requires_grad=False).copy_(layer.weight.to(dtype) * per_channel)
        return weight, bias.to(weight.dtype)


class Known(NamedTuple):
    """What forward passes have shown of frozen layers.

    Attributes:
        norm_of (Mapping[str, str]): Name of the BatchNorm that each layer is folded with.
        apart (Sequence[str]): Names of layers that others read, too.
    """

    norm_of: Mapping[str, str] = {}
    apart: Sequence[str] = ()


class _Fold:
    """A layer that does the work of the BatchNorm behind it, too.

    The tensors are folded anew when one that they come from is replaced, or written to other than through its ``data``.
    """

    def __init__(self, layer: Any, norm: Any) -> None:
        self.layer = layer
        self.norm = norm
        self.refolds = 0
        self.convolve: Any = F.linear if isinstance(layer, nn.Linear) else layer._conv_forward
        # Where the tensors are that the folded ones come from. The norm's count of batches is among them: statistics
        # are updated by an operator that torch doesn't count as writing to them.
        self._of_layer = _filled(layer._parameters)
        self._of_norm = _filled(norm._parameters) + _filled(norm._buffers)
        self._sources: list[Tensor] = []
        self._state_of_layer: Any = None
        self._state_of_norm: Any = None
        self._eps = 0.0
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None

    @property
    def fits(self) -> bool:
        """Whether the norm normalises what the layer gives, channel by channel."""
        return self.norm.num_features == self.layer._parameters['weight'].shape[0]

    def is_norm_as_before(self) -> bool:
        """Whether the norm is what it was when it was folded."""
        return _state_of(self._of_norm) == self._state_of_norm and self.norm.eps == self._eps

    def run(self, inputs: Tensor) -> Tensor | None:
        """What the two modules give, with the operators of one; None where a part of them trains.

        The norm is asked for when it is its turn.
        """
        if _state_of(self._of_layer) != self._state_of_layer and not self.refold():
            return None
        return self.convolve(inputs, self.weight, self.bias)

    def refold(self) -> bool:
        """Folds the tensors anew, unless a part of them trains."""
        sources: list[Any] = [tensors.get(key) for tensors, key in (*self._of_layer, *self._of_norm)]
        if any(source is None or source.requires_grad for source in sources):
            return False
        self.weight, self.bias = folded(self.layer, self.norm)
        # Held on to, so that nothing new can come to lie where they lie.
        self._sources = [source.detach() for source in sources]
        self._state_of_layer = _state_of(self._of_layer)
        self._state_of_norm, self._eps = _state_of(self._of_norm), self.norm.eps
        self.refolds += 1
        return True


class _Run:
    """One run of a frozen layer.

    Args:
        layer (nn.Module): The layer.
        inputs (Tensor): What it has run on.
        fold (_Fold, optional): What it is to be folded with; None if it is to run by itself.
    """

    __slots__ = ('_dtype', '_from', '_versions', 'fold', 'layer', 'value')

    def __init__(self, layer: Any, inputs: Tensor, fold: _Fold | None) -> None:
        self.layer = layer
        self.fold = fold
        value = None if fold is None else fold.run(inputs)
        if value is None:
            self.fold, value = None, type(layer).forward(layer, inputs)
        self.value: Tensor = value
        # What is needed to run once more, for someone else.
        self._from = inputs, *layer._parameters.values()
        self._versions = [*map(_version_of, self._from)]
        self._dtype = value.dtype

    @property
    def is_as_before(self) -> bool:
        """Whether what the layer was computed from is the same."""
        return [*map(_version_of, self._from)] == self._versions

    def alone(self) -> Tensor:
        """What the layer gives.

        Raises:
            RuntimeError: If it was folded, and what it was computed from is not the same any more.
        """
        if self.fold is None:
            return self.value
        if not self.is_as_before:
            raise RuntimeError(
                'what a frozen layer gives is read by others than in earlier passes, and what it was computed from has '
                'been changed in place; use fuse_frozen=False'
            )
        return self._convolved(self.fold, *self._from)

    def with_norm(self, fold: _Fold) -> Tensor | None:
        """What the layer and a norm give as the norm is now; None if that can't be computed any more."""
        same = all(map(operator.is_, self._from[1:], self.layer._parameters.values()))
        if not same or not self.is_as_before or not fold.refold():
            return None
        return self._convolved(fold, self._from[0], fold.weight, fold.bias)

    def _convolved(self, fold: _Fold, inputs: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        # As the layer has run; autocast may have been switched since.
        kind, lower = inputs.device.type, self._dtype != weight.dtype
        with torch.autocast(kind, dtype=self._dtype if lower else None, enabled=lower):
            return fold.convolve(inputs, weight, bias)


class Unread(Tensor):
    """The output of a frozen layer, which can be computed in one of two ways until someone reads it.

    To everybody but a BatchNorm it is a tensor like any other, of another class until it is read. Asking for its shape
    is not reading.
    """

    run: _Run
    folding: 'BatchNormFolding'
    value: Tensor | None = None  # once it has been read
    is_normalised = False

    @staticmethod
    def __new__(cls, run: _Run, folding: 'BatchNormFolding') -> 'Unread':
        """Looks like what the run has given."""
        value = run.value
        made = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls, value.shape, strides=value.stride(), dtype=value.dtype, device=value.device
        )
        made.run, made.folding = run, folding
        return made

    def read(self) -> Tensor:
        """The tensor that the layer gives."""
        if self.value is None:
            self.folding.set_apart(self.run.layer)
            self.value = self.run.alone()
            del self.run  # and what the layer has run on
        return self.value

    def become(self) -> Tensor:
        """The tensor that the layer gives, which this one becomes if nothing but Python holds on to the two."""
        value, folding = self.read(), self.folding
        folding.let_go(self)
        self.value = None
        with torch._C.DisableTorchFunctionSubclass():
            if self._use_count() == value._use_count() == 1:  # pyright: ignore[reportAttributeAccessIssue]
                torch.utils.swap_tensors(self, value)
                return self
        self.value = value
        folding.give(self)
        return value

    def normalised(self) -> Tensor:
        """The tensor that the run has given, for the norm that is the first to read it."""
        self.is_normalised = True
        value = self.run.value
        if self.run.fold is not None:
            del self.run.value  # it is the norm's result, which may be written to
        return value

    def as_subclass(self, cls: Any) -> Any:
        """As of any tensor; torch asks nobody here."""
        return self.read().as_subclass(cls)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _ABOUT and args and type(args[0]) is Unread and args[0].value is None:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        args, kwargs = tree_map_only(Unread, Unread.become, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Calls that go past the above, as those of extensions do.
        args, kwargs = tree_map_only(Unread, Unread.read, (args, kwargs or {}))
        return func(*args, **kwargs)


class BatchNormFolding:
    """Folds frozen BatchNorm layers while a model runs forward in training.

    Which layers belong together shows in the first training pass in which they are frozen. A layer that anybody else
    reads, or another BatchNorm, runs as it is from then on. So does everything that is compiled or sharded, what a
    checkpoint runs once more, layers with hooks, and the whole model in evaluation.

    Args:
        model (nn.Module, optional): The model, without a data-parallel wrapper. A copy of this object, which a copy of
            the model has among its hooks, has none and does nothing.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self._model = model
        self._norms: set[nn.Module] = set()
        self._norm_of: dict[nn.Module, nn.Module] = {}
        self._apart: set[nn.Module] = set()
        self._folds: dict[tuple[nn.Module, nn.Module], _Fold] = {}
        self._refolds_before = 0
        self._parts: list[_Part] | None = None
        self._open: set[nn.Module] = set()  # norms that are stood in for in this pass
        self._installed: list[nn.Module] = []
        self._given: dict[int, weakref.ref[Unread]] = {}
        self._hooks: list[RemovableHandle] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return BatchNormFolding, ()

    @property
    def refolds(self) -> int:
        """How often tensors have been folded, in ``[0, ∞)``."""
        return self._refolds_before + sum(fold.refolds for fold in self._folds.values())

    @property
    def pairs(self) -> dict[str, str]:
        """Name of the BatchNorm by that of the layer that it is folded into, as of the latest forward pass."""
        return dict(self.known().norm_of)

    def known(self) -> Known:
        """What has been seen so far, by names."""
        assert self._model is not None
        names = {module: name for name, module in self._model.named_modules()}
        norm_of = {names[a]: names[b] for a, b in self._norm_of.items() if a in names and b in names}
        return Known(norm_of, tuple(sorted(names[layer] for layer in self._apart if layer in names)))

    def learn(self, known: Known) -> None:
        """Takes in what another run has seen, so that this one computes the same bits.

        Args:
            known (Known): From :meth:`known` of the same model.
        """
        assert self._model is not None
        modules = dict(self._model.named_modules())
        self._norm_of = {modules[layer]: modules[norm] for layer, norm in known.norm_of.items()}
        self._apart = {modules[layer] for layer in known.apart}

    def forget(self) -> None:
        """Gives layers that others have read another chance: the norm behind them may not have been frozen."""
        self._apart = set()

    def set_apart(self, layer: nn.Module) -> None:
        """Has a layer run as it is from now on.

        Args:
            layer (nn.Module): A layer that others read, too.
        """
        self._apart.add(layer)
        self._norm_of.pop(layer, None)

    def give(self, output: Unread) -> None:
        """Remembers an output until the pass is over."""
        self._given[id(output)] = weakref.ref(output)

    def let_go(self, output: Unread) -> None:
        """Forgets an output."""
        self._given.pop(id(output), None)

    def fold(self, norms: Sequence[nn.Module]) -> None:
        """Says which layers may be folded from the next forward pass on.

        Args:
            norms (Sequence[nn.Module]): Frozen layers of the model that normalise by their running statistics.
        """
        self._leave()
        self._refolds_before = self.refolds
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._norms = {norm for norm in norms if type(norm) in _NORMS}
        self._parts, self._folds = None, {}
        if self._model is not None and self._norms:
            self._hooks = [
                self._model.register_forward_pre_hook(self._enter),
                self._model.register_forward_hook(self._leave, always_call=True),
            ]

    def release(self) -> None:
        """Leaves the model as it would be without this object."""
        self.fold(())

    # --- around a forward pass

    def _enter(self, module: nn.Module, _: object) -> None:
        # Compilers look into hooks, and nn.DataParallel runs copies that share them.
        if torch.compiler.is_compiling() or module is not self._model or not module.training:
            return
        self._leave()  # a pass that was killed
        if self._parts is None:
            self._parts = self._find_parts(module)
        for part in self._parts:
            if part.module not in self._apart and not part.is_seen_by_others:
                # Past nn.Module.__setattr__, which has nothing to register here.
                part.attributes['forward'] = part.forward
                self._installed.append(part.module)
        self._open = self._norms.intersection(self._installed)

    def _leave(self, module: nn.Module | None = None, _: object = None, output: Any = None) -> Any:
        for part in self._installed:
            vars(part).pop('forward', None)
        self._installed = []
        # What is still there is held by the result, or by a module that has put it aside for later.
        given = [tensor for reference in self._given.values() if (tensor := reference()) is not None]
        self._given = {}
        for tensor in given:
            tensor.read()
        return tree_map_only(Unread, Unread.read, output) if given else None

    def _find_parts(self, model: nn.Module) -> 'list[_Part]':
        if runs_otherwise(model):
            return []
        found = []
        for module in model.modules():
            if type(module) in _LAYERS and _is_frozen(module):
                found.append(_Part(module, self._run_layer))
            elif module in self._norms and _is_frozen(module):
                found.append(_Part(module, self._run_norm))
        return found

    def _run_layer(self, layer: Any, input: Tensor) -> Tensor:
        if type(input) is Unread:
            input = input.read()
        norm = self._norm_of.get(layer)
        if layer in self._apart or (norm is not None and norm not in self._open) or not _can_be_folded_on(input):
            return type(layer).forward(layer, input)
        run = _Run(layer, input, None if norm is None else self._fold_of(layer, norm))
        value = run.value
        if type(value) is not Tensor or value.ndim != _LAYERS[type(layer)] or value.requires_grad:
            return run.alone()
        output = Unread(run, self)
        self.give(output)
        return output

    def _run_norm(self, norm: Any, input: Tensor) -> Tensor:
        if type(input) is not Unread:
            return type(norm).forward(norm, input)
        if input.value is None and not input.is_normalised and not norm.training:
            run = input.run
            if run.fold is None:
                return self._run_first(norm, input)
            if run.fold.norm is norm:
                norm._check_input_dim(run.value)
                result = input.normalised()
                if run.fold.is_norm_as_before():
                    return result
                result = run.with_norm(run.fold)
                if result is not None:
                    return result
        return type(norm).forward(norm, input.read())

    def _run_first(self, norm: Any, input: Unread) -> Tensor:
        """Runs a layer and a norm as they are, which shows that they belong together, and once more as one.

        It rounds as later passes do, of which a run that is resumed may have seen less.
        """
        layer, run = input.run.layer, input.run
        fold = self._fold_of(layer, norm)
        if not fold.fits or layer in self._norm_of:
            return type(norm).forward(norm, input.read())
        apart = type(norm).forward(norm, input.normalised())
        together = run.with_norm(fold)
        if together is None or not _agree(apart, together):
            self.set_apart(layer)
            return apart
        self._norm_of[layer] = norm
        return together

    def _fold_of(self, layer: nn.Module, norm: Any) -> _Fold:
        if (layer, norm) not in self._folds:
            self._folds[layer, norm] = _Fold(layer, norm)
        return self._folds[layer, norm]


class _Part:
    """A module that is stood in for while the model runs.

    Args:
        module (nn.Module): A layer or a norm.
        run (Callable[[nn.Module, Tensor], Tensor]): What is run in the place of its forward method.
    """

    def __init__(self, module: nn.Module, run: Callable[[Any, Tensor], Tensor]) -> None:
        self.module = module
        self.attributes = vars(module)
        self.forward = functools.partial(run, module)
        self._is_norm = type(module) in _NORMS
        self._hooks = [self.attributes[hooks] for hooks in _HOOKS]

    @property
    def is_seen_by_others(self) -> bool:
        """Whether someone else wants to see it run, or it has to run in another way."""
        return any(self._hooks) or 'forward' in self.attributes or (self._is_norm and self.module.training)


def _can_be_folded_on(input: Tensor) -> bool:
    """Whether nothing but what comes after a layer can tell how it has run on an input."""
    return (
        type(input) is Tensor
        and not input.requires_grad  # a backward pass goes through the two
        and not input.is_inference()
        and not input.is_meta
        and not is_run_again()
        and not torch.compiler.is_compiling()
        # Of tensors that torch.func wraps nobody knows how often they are written to.
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def _filled(tensors: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Where there are tensors: a dictionary, and the key in it."""
    return [(tensors, key) for key, tensor in tensors.items() if tensor is not None]


def _state_of(slots: Sequence[tuple[dict[str, Any], str]]) -> list[Any] | None:
    try:
        found = [tensors[key] for tensors, key in slots]
        # For every layer in every pass, hence without a line of Python for each tensor.
        return [*map(_about, found), *map(Tensor.data_ptr, found)]
    except (AttributeError, KeyError):  # one is missing
        return None


def _agree(one: Tensor, other: Tensor) -> bool:
    """Whether two outputs differ in no more than rounding, by their first example, for the memory that it takes."""
    one, other = one[:1], other[:1]
    tolerance = torch.finfo(one.dtype).eps ** 0.5
    scale = torch.nan_to_num(one.detach()).abs().amax().item() if one.numel() else 0.0
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def _version_of(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor._version


def _is_frozen(module: nn.Module) -> bool:
    """Whether a module's tensors are plain ones that don't train."""
    return all(
        type(tensor) in (nn.Parameter, Tensor) and not tensor.requires_grad and not tensor.is_inference()
        for tensor in (*module.parameters(), *module.buffers())
    )


def runs_otherwise(model: nn.Module) -> bool:
    """Whether the modules' forward methods don't run as they stand there, or on shards.

    Args:
        model (nn.Module): The model, without a data-parallel wrapper.

    Returns:
        bool: True if it is compiled, or sharded by FSDP.
    """
    return is_compiled(model) or any(isinstance(m, (FSDPModule, FullyShardedDataParallel)) for m in model.modules())


# What can be asked of a tensor without reading it.
_ABOUT = {
    *(getattr(Tensor, name).__get__ for name in ('device', 'dtype', 'grad_fn', 'is_cpu', 'is_cuda', 'is_leaf')),
    *(getattr(Tensor, name).__get__ for name in ('is_meta', 'is_nested', 'is_quantized', 'is_sparse', 'itemsize')),
    *(getattr(Tensor, name).__get__ for name in ('layout', 'nbytes', 'ndim', 'requires_grad', 'shape')),
    *(getattr(Tensor, name) for name in ('__hash__', '__len__', 'dim', 'element_size', 'get_device', 'is_complex')),
    *(getattr(Tensor, name) for name in ('is_contiguous', 'is_floating_point', 'is_inference', 'ndimension')),
    *(getattr(Tensor, name) for name in ('nelement', 'numel', 'size', 'stride')),
}
