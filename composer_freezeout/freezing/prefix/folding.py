"""Runs the BatchNorm of frozen layers as part of the convolution before it.

The model stays what it is: the folded tensors belong to none of its modules, and stand in for its own only while it
runs forward in training.

What a frozen layer gives is marked as :class:`.Unread`. If its BatchNorm is the first to read it, as in the passes
before, the layer has done the work of both. Whoever else reads it gets what the layer itself gives.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle

from composer_freezeout.freezing.execution.find import execution_of
from composer_freezeout.freezing.hooks import UncopiedHook
from composer_freezeout.freezing.prefix.activation_checkpoints import is_run_again
from composer_freezeout.freezing.prefix.fold import LAYERS, NORMS, Fold
from composer_freezeout.freezing.prefix.layer_run import LayerRun
from composer_freezeout.freezing.prefix.pairs import Known, Pairs
from composer_freezeout.freezing.prefix.unread import Unread, UnreadOutputs

__all__ = ['BatchNormFolding']

_HOOKS = ('_forward_pre_hooks', '_forward_hooks', '_backward_pre_hooks', '_backward_hooks')


class BatchNormFolding:
    """Folds frozen BatchNorm layers while a model runs forward in training.

    Which layers belong together shows in the first training pass in which they are frozen. A layer that anybody else
    reads, or another BatchNorm, runs as it is from then on. So does everything that is compiled or sharded, what a
    checkpoint runs once more, layers with hooks, and the whole model in evaluation.

    Args:
        model (nn.Module): The model, without a data-parallel wrapper.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._norms: set[nn.Module] = set()
        self._pairs = Pairs(model)
        self._outputs = UnreadOutputs(self._pairs.set_apart)
        self._folds: dict[tuple[nn.Module, nn.Module], Fold] = {}
        self._refolds_before = 0
        self._parts: list[_Part] | None = None
        self._open: set[nn.Module] = set()  # norms that are stood in for in this pass
        self._installed: list[nn.Module] = []
        self._hooks: list[RemovableHandle] = []

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
        return self._pairs.known()

    def learn(self, known: Known) -> None:
        """Takes in what another run has seen, so that this one computes the same bits.

        Args:
            known (Known): From :meth:`known` of the same model.
        """
        self._pairs.learn(known)

    def forget(self) -> None:
        """Gives layers that others have read another chance: the norm behind them may not have been frozen."""
        self._pairs.forget_apart()

    def fuse(self, norms: Sequence[nn.Module]) -> list[nn.Module]:
        """Says which layers may be folded from the next forward pass on.

        Args:
            norms (Sequence[nn.Module]): Frozen layers of the model that normalise by their running statistics.

        Returns:
            list[nn.Module]: None: the norms are kept in evaluation anyway.
        """
        self._leave()
        self._refolds_before = self.refolds
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._norms = {norm for norm in norms if type(norm) in NORMS}
        self._parts, self._folds = None, {}
        if self._norms:
            self._hooks = [
                self._model.register_forward_pre_hook(UncopiedHook(self._enter)),
                self._model.register_forward_hook(UncopiedHook(self._leave), always_call=True),
            ]
        return []

    def release(self) -> None:
        """Leaves the model as it would be without this object."""
        self.fuse(())

    # --- around a forward pass

    def _enter(self, module: nn.Module, _: object) -> None:
        # Compilers look into hooks, and nn.DataParallel runs copies that share them.
        if torch.compiler.is_compiling() or module is not self._model or not module.training:
            return
        self._leave()  # a pass that was killed
        if self._parts is None:
            self._parts = self._find_parts(module)
        for part in self._parts:
            if part.module not in self._pairs.apart and not part.is_seen_by_others:
                # Past nn.Module.__setattr__, which has nothing to register here.
                part.attributes['forward'] = part.forward
                self._installed.append(part.module)
        self._open = self._norms.intersection(self._installed)

    def _leave(self, module: nn.Module | None = None, _: object = None, output: Any = None) -> Any:
        for part in self._installed:
            vars(part).pop('forward', None)
        self._installed = []
        return tree_map_only(Unread, Unread.read, output) if self._outputs.read_all() else None

    def _find_parts(self, model: nn.Module) -> 'list[_Part]':
        if not execution_of(model).runs_as_written:
            return []
        found = []
        for module in model.modules():
            if type(module) in LAYERS and _is_frozen(module):
                found.append(_Part(module, self._run_layer))
            elif module in self._norms and _is_frozen(module):
                found.append(_Part(module, self._run_norm))
        return found

    def _run_layer(self, layer: Any, input: Tensor) -> Tensor:
        if type(input) is Unread:
            input = input.read()
        norm = self._pairs.norm_of.get(layer)
        if layer in self._pairs.apart or (norm is not None and norm not in self._open) or not _can_be_folded_on(input):
            return type(layer).forward(layer, input)
        run = LayerRun(layer, input, None if norm is None else self._fold_of(layer, norm))
        value = run.value
        if type(value) is not Tensor or value.ndim != LAYERS[type(layer)] or value.requires_grad:
            return run.alone()
        output = Unread(run, self._outputs)
        self._outputs.add(output)
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

        The second result counts: it is rounded as in later passes, so that a run that is resumed and sees its first
        pass later gets the same bits.
        """
        layer, run = input.run.layer, input.run
        fold = self._fold_of(layer, norm)
        if not fold.fits or layer in self._pairs.norm_of:
            return type(norm).forward(norm, input.read())
        apart = type(norm).forward(norm, input.normalised())
        together = run.with_norm(fold)
        if together is None or not _agree(apart, together):
            self._pairs.set_apart(layer)
            return apart
        self._pairs.norm_of[layer] = norm
        return together

    def _fold_of(self, layer: nn.Module, norm: Any) -> Fold:
        if (layer, norm) not in self._folds:
            self._folds[layer, norm] = Fold(layer, norm)
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
        self.forward = _StandIn(run, module)
        self._is_norm = type(module) in NORMS
        self._hooks = [self.attributes[hooks] for hooks in _HOOKS]

    @property
    def is_seen_by_others(self) -> bool:
        """Whether someone else wants to see it run, or it has to run in another way."""
        return any(self._hooks) or 'forward' in self.attributes or (self._is_norm and self.module.training)


class _StandIn(functools.partial[Any]):
    """What is run in the place of a module's forward method; a copy of the module has the method itself."""

    def __reduce__(self) -> tuple[Any, ...]:
        (module,) = self.args
        return functools.partial, (type(module).forward, module)


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


def _agree(one: Tensor, other: Tensor) -> bool:
    """Whether two outputs differ in no more than rounding, by their first example, for the memory that it takes."""
    one, other = one[:1], other[:1]
    tolerance = torch.finfo(one.dtype).eps ** 0.5
    scale = torch.nan_to_num(one.detach()).abs().amax().item() if one.numel() else 0.0
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def _is_frozen(module: nn.Module) -> bool:
    """Whether a module's tensors are plain ones that don't train."""
    return all(
        type(tensor) in (nn.Parameter, Tensor) and not tensor.requires_grad and not tensor.is_inference()
        for tensor in (*module.parameters(), *module.buffers())
    )
