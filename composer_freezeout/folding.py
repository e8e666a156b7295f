"""Runs the BatchNorm of frozen layers as part of the convolution before it.

Behind a convolution or a linear layer with weight ``W`` and bias ``b``, a BatchNorm that normalises by its running
statistics is that layer with weight ``W·γ/√(σ² + ε)`` and bias ``β + (b − μ)·γ/√(σ² + ε)``. The model stays what it is:
the folded tensors belong to none of its modules, and stand in for its own only while it runs forward in training.
"""

import contextlib
import logging
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.hooks import RemovableHandle

from composer_freezeout.compilation import is_compiled

__all__ = ['BatchNormFolding', 'find_pairs', 'folded', 'runs_otherwise']

log = logging.getLogger(__name__)

# By layer, the dimensions of its output that has channels second. Subclasses may compute something else.
_LAYERS: dict[type[nn.Module], int] = {nn.Linear: 2, nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}
_NORMS = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
_HOOKS = ('_forward_pre_hooks', '_forward_hooks', '_backward_pre_hooks', '_backward_hooks')

_version = attrgetter('_version')


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


def find_pairs(model: nn.Module, forward: Callable[[], object]) -> dict[str, str]:
    """Runs a forward pass and finds the layers whose output a BatchNorm reads, and nothing else.

    Args:
        model (nn.Module): The model.
        forward (Callable[[], object]): Runs it on a batch, without gradients, and returns what it returns.

    Returns:
        dict[str, str]: Name of the BatchNorm by that of the convolution or linear layer, in the order of
        ``model.named_modules()``. Both have run once.
    """
    names = {module: name for name, module in model.named_modules()}
    watch = _OutputWatch()
    with contextlib.ExitStack() as stack:
        for module in names:
            if type(module) in _LAYERS:
                stack.callback(module.register_forward_hook(watch.leave_layer).remove)
            elif type(module) in _NORMS:
                stack.callback(module.register_forward_pre_hook(watch.enter_norm).remove)
                stack.callback(module.register_forward_hook(watch.leave_norm).remove)
        stack.enter_context(watch)
        result = forward()
    # What is still there is held by the result, or by a module that has put it aside for later.
    readers = {layer: norm for layer, norm in watch.readers() if not watch.outlives(layer)}
    del result
    once = {module for module, count in watch.calls.items() if count == 1}
    return {
        names[layer]: names[readers[layer]] for layer in names if layer in readers and {layer, readers[layer]} <= once
    }


class _OutputWatch(TorchDispatchMode):
    """Follows the output of each foldable layer to what reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[nn.Module] = Counter()
        self._outputs: dict[nn.Module, weakref.ref[Tensor]] = {}
        self._storages: dict[nn.Module, StorageWeakRef] = {}
        self._layers: dict[StorageWeakRef, nn.Module] = {}
        self._norms: dict[nn.Module, nn.Module] = {}
        self._read_by_others: set[nn.Module] = set()
        self._reading: nn.Module | None = None  # the layer whose BatchNorm is running now

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            # Views share the storage; making one counts as reading.
            if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
                layer = self._layers.get(StorageWeakRef(leaf.untyped_storage()))
                if layer is not None and layer is not self._reading:
                    self._read_by_others.add(layer)
        return func(*args, **(kwargs or {}))

    def leave_layer(self, layer: nn.Module, _: object, output: Tensor) -> None:
        self.calls[layer] += 1
        if output.ndim == _LAYERS[type(layer)] and output.layout is torch.strided:
            storage = StorageWeakRef(output.untyped_storage())
            self._outputs[layer], self._storages[layer] = weakref.ref(output), storage
            self._layers[storage] = layer

    def enter_norm(self, norm: nn.Module, args: tuple[Any, ...]) -> None:
        self.calls[norm] += 1
        for layer, output in self._outputs.items():
            if args and output() is args[0]:
                self._norms[layer] = norm
                self._reading = layer

    def leave_norm(self, *_: object) -> None:
        self._reading = None

    def readers(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Layers with the BatchNorm that alone reads their output."""
        yield from ((layer, norm) for layer, norm in self._norms.items() if layer not in self._read_by_others)

    def outlives(self, layer: nn.Module) -> bool:
        """Whether the layer's output is still held by someone."""
        return not self._storages[layer].expired()


class _Fold:
    """A layer that does the work of the BatchNorm behind it, too."""

    def __init__(self, layer: Any, norm: Any, names: tuple[str, str]) -> None:
        self.names = names
        self._layer = layer
        self._norm = norm
        self._compute: Any = F.linear if isinstance(layer, nn.Linear) else layer._conv_forward
        self._hooks = [getattr(module, hooks) for module in (layer, norm) for hooks in _HOOKS]
        self._weight: Tensor | None = None
        self._bias: Tensor | None = None
        self._output: Tensor | None = None

    @property
    def sources(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Where the tensors are that the folded ones come from: a dictionary, and the key in it.

        The norm's count of batches is among them: statistics are updated by an operator that torch doesn't count as
        writing to them.
        """
        for tensors in (self._layer._parameters, self._norm._parameters, self._norm._buffers):
            yield from ((tensors, key) for key in tensors if tensors[key] is not None)

    def refold(self) -> None:
        self._weight, self._bias = folded(self._layer, self._norm)

    def install(self) -> bool:
        """Takes the place of the two modules' own forward methods, unless someone else wants to see them run."""
        layer, norm = vars(self._layer), vars(self._norm)
        if self._norm.training or any(self._hooks) or 'forward' in layer or 'forward' in norm:
            return False
        # Past nn.Module.__setattr__, which has nothing to register here.
        layer['forward'], norm['forward'] = self._run_layer, self._run_norm
        return True

    def remove(self) -> None:
        del vars(self._layer)['forward'], vars(self._norm)['forward']
        self._output = None

    def _run_layer(self, input: Tensor) -> Tensor:
        self._output = output = self._compute(input, self._weight, self._bias)
        return output

    def _run_norm(self, input: Tensor) -> Tensor:
        expected, self._output = self._output, None
        if input is not expected:
            layer, norm = self.names
            raise RuntimeError(
                f'{norm!r} was folded into {layer!r} and now reads something else: the forward pass is not the same '
                'every time; use fuse_frozen=False'
            )
        return input


class BatchNormFolding:
    """Folds frozen BatchNorm layers while a model runs forward in training.

    Which layers belong together is observed in one more forward pass, the first time that it matters. Everything else
    runs as it is: what is compiled or sharded, layers with hooks, and the whole model in evaluation. The tensors are
    folded anew when one that they come from is replaced, or written to other than through its ``data``.

    Args:
        model (nn.Module, optional): The model, without a data-parallel wrapper. A copy of this object, which a copy of
            the model has among its hooks, has none and does nothing.

    Attributes:
        refolds (int): How often tensors have been folded, in ``[0, ∞)``.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self.refolds = 0
        self._model = model
        self._norms: set[nn.Module] = set()
        self._pairs: dict[str, str] | None = None
        self._hooks: list[RemovableHandle] = []
        self._installed: list[_Fold] = []
        self._forget()

    def __reduce__(self) -> tuple[Any, ...]:
        return BatchNormFolding, ()

    @property
    def pairs(self) -> dict[str, str]:
        """Name of the BatchNorm by that of the layer that it is folded into, as of the latest forward pass."""
        return dict(fold.names for fold in self._folds or ())

    def fold(self, norms: Sequence[nn.Module]) -> None:
        """Says which layers may be folded from the next forward pass on.

        Args:
            norms (Sequence[nn.Module]): Frozen layers of the model that normalise by their running statistics.
        """
        self._forget()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._norms = {norm for norm in norms if type(norm) in _NORMS}
        if self._model is not None and self._norms:
            self._hooks = [
                self._model.register_forward_pre_hook(self._enter, with_kwargs=True),
                self._model.register_forward_hook(self._leave, always_call=True),
            ]

    def release(self) -> None:
        """Leaves the model as it would be without this object."""
        self.fold(())
        self._pairs = None

    def _forget(self) -> None:
        self._leave()
        self._folds: list[_Fold] | None = None
        self._slots: list[tuple[dict[str, Any], str]] = []
        self._sources: list[Tensor] = []
        self._state: tuple[list[int], list[int]] = [], []

    # --- around a forward pass

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Compilers look into hooks, and nn.DataParallel runs copies that share them.
        if torch.compiler.is_compiling() or module is not self._model or not module.training:
            return
        self._leave()  # a pass that was killed
        if self._folds is None:
            self._folds = self._find_folds(module, args, kwargs)
            self._slots = [source for fold in self._folds for source in fold.sources]
        self._refold_if_stale()
        self._installed = [fold for fold in self._folds if fold.install()]

    def _leave(self, *_: object) -> None:
        if self._installed:
            for fold in self._installed:
                fold.remove()
            self._installed = []

    def _find_folds(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[_Fold]:
        if runs_otherwise(model):
            return []
        if self._pairs is None:
            try:
                self._pairs = _observe_pairs(model, args, kwargs)
            except Exception as error:  # the model's own, which it will raise again
                log.info('FreezeOut could not find out which BatchNorm layers can be folded: %s', error)
                self._pairs = {}
        pairs = [(model.get_submodule(layer), model.get_submodule(norm)) for layer, norm in self._pairs.items()]
        return [
            _Fold(layer, norm, names)
            for names, (layer, norm) in zip(self._pairs.items(), pairs, strict=True)
            if norm in self._norms and _is_frozen(layer) and _is_frozen(norm)
        ]

    def _refold_if_stale(self) -> None:
        sources = [tensors[key] for tensors, key in self._slots]
        state = list(map(_version, sources)), list(map(Tensor.data_ptr, sources))
        if state != self._state:
            for fold in self._folds or ():
                fold.refold()
            self.refolds += 1
            # Held on to, so that nothing new can come to lie where they lie.
            self._sources, self._state = [source.detach() for source in sources], state


def _observe_pairs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, str]:
    def clone(leaf: Any) -> Any:
        return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf

    # In training, as a dropout in between is there only then. Containers are new ones, too: models pop their labels.
    args, kwargs = tree_map(clone, (args, kwargs))
    with _undisturbed(model), torch.no_grad():
        return find_pairs(model, lambda: model.forward(*args, **kwargs))


@contextlib.contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Puts back what a forward pass in training changes: the random state, buffers, autocast's cache.

    The random state inside is always the same, so that a resumed run sees what the first one saw.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = sorted({tensor.device.index for tensor in model.parameters() if tensor.device.type == 'cuda'})
    cached = torch.is_autocast_cache_enabled()
    try:
        with torch.random.fork_rng(devices=devices):
            torch.default_generator.manual_seed(0)
            for device in devices:
                torch.cuda.default_generators[device].manual_seed(0)
            # Weights that are cast without gradients must not be there when the pass with gradients asks for them.
            torch.set_autocast_cache_enabled(False)
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


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
