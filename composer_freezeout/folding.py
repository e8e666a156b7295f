"""Runs the BatchNorm of frozen layers as part of the convolution before it.

Behind a convolution or a linear layer with weight ``W`` and bias ``b``, a BatchNorm that normalises by its running
statistics is that layer with weight ``W·γ/√(σ² + ε)`` and bias ``β + (b − μ)·γ/√(σ² + ε)``. The model stays what it is:
the folded tensors belong to none of its modules, and stand in for its own only while it runs forward in training.
"""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from composer_freezeout.compilation import is_compiled
from composer_freezeout.observation import storages_of

__all__ = ['BatchNormFolding', 'Known', 'PairWatch', 'folded', 'runs_otherwise']

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


class Known(NamedTuple):
    """What has been observed of frozen BatchNorm layers.

    Attributes:
        layer_of (Mapping[str, str | None]): Name of the layer that each can be folded into, or None.
        postponed (Sequence[str]): Names of those that will be observed again when others freeze.
    """

    layer_of: Mapping[str, str | None] = {}
    postponed: Sequence[str] = ()


class PairWatch(TorchDispatchMode):
    """Finds, in a forward pass, the layers whose output a BatchNorm reads, and nothing else.

    The BatchNorm of such a pair gives what the folded layer would have given, so that the pass rounds as later ones do.

    Args:
        layers (Iterable[nn.Module]): Convolution and linear layers.
        norms (Iterable[nn.Module]): BatchNorm layers.

    Attributes:
        norms (list[nn.Module]): The BatchNorm layers.
    """

    def __init__(self, layers: Iterable[nn.Module], norms: Iterable[nn.Module]) -> None:
        super().__init__()
        self._calls: Counter[nn.Module] = Counter()
        self._outputs: dict[nn.Module, weakref.ref[Tensor]] = {}
        self._storages: dict[nn.Module, StorageWeakRef] = {}
        self._layers: dict[StorageWeakRef, nn.Module] = {}
        self._norms: dict[nn.Module, nn.Module] = {}
        self._read_by_others: set[nn.Module] = set()
        self._with_gradient: set[nn.Module] = set()
        # The layer that ran last, its input, and how often that had been written to: as a rule its norm comes next.
        self._latest: tuple[nn.Module, Tensor, int] | None = None
        self._reading: nn.Module | None = None  # the layer whose BatchNorm is running now
        self.norms = list(norms)
        self._hooks = [layer.register_forward_hook(self._leave_layer) for layer in layers]
        for norm in self.norms:
            self._hooks.append(norm.register_forward_pre_hook(self._enter_norm))
            self._hooks.append(norm.register_forward_hook(self._leave_norm))

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            # Views share the storage; making one counts as reading.
            for storage in storages_of(leaf):
                layer = self._layers.get(storage)
                if layer is not None and layer is not self._reading:
                    self._read_by_others.add(layer)
        return func(*args, **(kwargs or {}))

    def is_settled(self, norm: nn.Module) -> bool:
        """Whether a BatchNorm ran in the pass, and on nothing that a backward pass goes through."""
        return self._calls[norm] > 0 and norm not in self._with_gradient

    def pairs(self) -> dict[nn.Module, nn.Module]:
        """The BatchNorm by the layer that it alone reads; both have run once.

        To be asked when the pass is over: what is still there then is held by its result, or by a module that has put
        it aside for later, or by the backward pass.
        """
        return {
            layer: norm
            for layer, norm in self._norms.items()
            if layer not in self._read_by_others
            and self._storages[layer].expired()
            and self._calls[layer] == self._calls[norm] == 1
        }

    def _leave_layer(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self._calls[layer] += 1
        # Of tensors that torch.func wraps nobody knows where they lie.
        if torch._C._functorch.is_functorch_wrapped_tensor(output):
            return
        if output.ndim == _LAYERS[type(layer)] and output.layout is torch.strided:
            self._latest = (layer, args[0], args[0]._version) if args else None
            storage = StorageWeakRef(output.untyped_storage())
            self._outputs[layer], self._storages[layer] = weakref.ref(output), storage
            self._layers[storage] = layer

    def _enter_norm(self, norm: nn.Module, args: tuple[Any, ...]) -> None:
        self._calls[norm] += 1
        if any(tensor.requires_grad for tensor in args if isinstance(tensor, Tensor)):
            self._with_gradient.add(norm)
        for layer, output in self._outputs.items():
            if args and output() is args[0]:
                self._norms[layer] = norm
                self._reading = layer

    def _leave_norm(self, norm: nn.Module, *_: object) -> Tensor | None:
        layer = self._reading
        if layer is None:
            return None
        try:
            return self._as_folded(layer, norm)
        finally:
            self._reading = self._latest = None

    def _as_folded(self, layer: nn.Module, norm: nn.Module) -> Tensor | None:
        once = self._calls[layer] == self._calls[norm] == 1 and layer not in self._read_by_others
        if self._latest is None or self._latest[0] is not layer or not once or norm.training:
            return None
        _, inputs, version = self._latest
        if inputs.requires_grad or inputs._version != version or not (_is_frozen(layer) and _is_frozen(norm)):
            return None
        fold = _Fold(layer, norm, ('', ''))
        if fold.is_seen_by_others(hooks_of_ours=3):
            return None
        fold.refold()
        return fold.compute(inputs)


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

    def is_seen_by_others(self, hooks_of_ours: int = 0) -> bool:
        """Whether someone else wants to see the two modules run."""
        hooks = sum(map(len, self._hooks))
        return hooks > hooks_of_ours or 'forward' in vars(self._layer) or 'forward' in vars(self._norm)

    def compute(self, inputs: Tensor) -> Tensor:
        """What the two modules give, with the operators of one."""
        return self._compute(inputs, self._weight, self._bias)

    def install(self) -> bool:
        """Takes the place of the two modules' own forward methods, unless someone else wants to see them run."""
        if self._norm.training or self.is_seen_by_others():
            return False
        # Past nn.Module.__setattr__, which has nothing to register here.
        vars(self._layer)['forward'], vars(self._norm)['forward'] = self._run_layer, self._run_norm
        return True

    def remove(self) -> None:
        del vars(self._layer)['forward'], vars(self._norm)['forward']
        self._output = None

    def _run_layer(self, input: Tensor) -> Tensor:
        if input.requires_grad:  # a backward pass, or a checkpoint that computes once more, goes through the two
            return type(self._layer).forward(self._layer, input)
        self._output = output = self.compute(input)
        return output

    def _run_norm(self, input: Tensor) -> Tensor:
        expected, self._output = self._output, None
        if expected is None:  # the layer was left out, or has run as it is
            return type(self._norm).forward(self._norm, input)
        if input is not expected:
            layer, norm = self.names
            raise RuntimeError(
                f'{norm!r} was folded into {layer!r} and now reads something else: the forward pass is not the same '
                'every time; use fuse_frozen=False'
            )
        return input


class BatchNormFolding:
    """Folds frozen BatchNorm layers while a model runs forward in training.

    Which layers belong together is observed in the first training pass in which they are frozen, which runs them as
    they are. So does everything else: what is compiled or sharded, layers with hooks, and the whole model in
    evaluation. The tensors are folded anew when one that they come from is replaced, or written to other than through
    its ``data``.

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
        self._layer_of: dict[nn.Module, nn.Module | None] = {}  # by norm; None for those that can't be folded
        self._postponed: set[nn.Module] = set()  # norms to be observed with the next ones that freeze
        self._hooks: list[RemovableHandle] = []
        self._installed: list[_Fold] = []
        self._watch: PairWatch | None = None
        self._forget()

    def __reduce__(self) -> tuple[Any, ...]:
        return BatchNormFolding, ()

    @property
    def pairs(self) -> dict[str, str]:
        """Name of the BatchNorm by that of the layer that it is folded into, as of the latest forward pass."""
        return dict(fold.names for fold in self._folds or ())

    def known(self) -> Known:
        """What has been observed so far, by names."""
        assert self._model is not None
        names: dict[nn.Module | None, str | None] = {None: None}
        names |= {module: name for name, module in self._model.named_modules()}
        pairs = {names.get(norm): names.get(layer) for norm, layer in self._layer_of.items()}
        layer_of = {norm: layer for norm, layer in pairs.items() if norm is not None}
        return Known(layer_of, tuple(name for norm in self._postponed if (name := names.get(norm)) is not None))

    def learn(self, known: Known) -> None:
        """Takes in what another run has observed, so that this one computes the same bits.

        Args:
            known (Known): From :meth:`known` of the same model.
        """
        assert self._model is not None
        modules = dict(self._model.named_modules())
        self._layer_of = {
            modules[norm]: None if layer is None else modules[layer] for norm, layer in known.layer_of.items()
        }
        self._postponed = {modules[norm] for norm in known.postponed}
        self._forget()

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
        self._postponed = set()
        if self._model is not None and self._norms:
            self._hooks = [
                self._model.register_forward_pre_hook(self._enter),
                self._model.register_forward_hook(self._leave, always_call=True),
            ]

    def release(self) -> None:
        """Leaves the model as it would be without this object."""
        self.fold(())

    def _forget(self) -> None:
        self._leave()
        self._folds: list[_Fold] | None = None
        self._slots: list[tuple[dict[str, Any], str]] = []
        self._sources: list[Tensor] = []
        self._state: tuple[list[int], list[int]] = [], []

    # --- around a forward pass

    def _enter(self, module: nn.Module, _: object) -> None:
        # Compilers look into hooks, and nn.DataParallel runs copies that share them.
        if torch.compiler.is_compiling() or module is not self._model or not module.training:
            return
        self._leave()  # a pass that was killed
        if self._folds is None:
            self._find_folds()
        self._refold_if_stale()
        self._installed = [fold for fold in self._folds or () if fold.install()]
        unknown = self._norms - self._layer_of.keys() - self._postponed
        if unknown and not runs_otherwise(module):
            self._watch = PairWatch((layer for layer in module.modules() if type(layer) in _LAYERS), unknown)
            self._watch.__enter__()

    def _leave(self, module: nn.Module | None = None, _: object = None, output: object = None) -> None:
        for fold in self._installed:
            fold.remove()
        self._installed = []
        if self._watch is not None:
            watch, self._watch = self._watch, None
            watch.__exit__(None, None, None)
            if output is not None:  # a pass that came to its end
                self._learn_from(watch)

    def _learn_from(self, watch: PairWatch) -> None:
        found = {norm: layer for layer, norm in watch.pairs().items()}
        for norm in watch.norms:
            # Where something in front still trains, or in a part that didn't run, it may be one later.
            if norm in found or watch.is_settled(norm):
                self._layer_of[norm] = found.get(norm)
            else:
                self._postponed.add(norm)
        self._find_folds()

    def _find_folds(self) -> None:
        assert self._model is not None
        names = {module: name for name, module in self._model.named_modules()}
        self._folds = [
            _Fold(layer, norm, (names[layer], names[norm]))
            for norm, layer in ({} if runs_otherwise(self._model) else self._layer_of).items()
            if layer is not None and layer in names and norm in self._norms and _is_frozen(layer) and _is_frozen(norm)
        ]
        self._slots = [source for fold in self._folds for source in fold.sources]
        self._state = [], []  # nothing is folded yet

    def _refold_if_stale(self) -> None:
        sources = [tensors[key] for tensors, key in self._slots]
        state = list(map(_version, sources)), list(map(Tensor.data_ptr, sources))
        if state != self._state:
            for fold in self._folds or ():
                fold.refold()
            self.refolds += 1
            # Held on to, so that nothing new can come to lie where they lie.
            self._sources, self._state = [source.detach() for source in sources], state


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
