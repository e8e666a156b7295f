"""Makes the first ``k`` units of a model frozen: no gradient, no update, no drift of running statistics."""

import weakref
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from composer_freezeout.freezing.observing.tensors import tensors_in
from composer_freezeout.freezing.observing.units import Unit
from composer_freezeout.freezing.prefix.activation_checkpoints import Nonreentrant
from composer_freezeout.freezing.prefix.folding import BatchNormFolding, runs_otherwise
from composer_freezeout.method.settings import BatchNormMode, check_batchnorm

__all__ = ['UnitFreezer', 'anchored', 'release_earlier']


_requires_grad = attrgetter('requires_grad')

# The latest of each model: what an earlier one has put around it has to go.
_freezers: 'weakref.WeakKeyDictionary[nn.Module, weakref.ref[UnitFreezer]]' = weakref.WeakKeyDictionary()


def release_earlier(model: nn.Module) -> None:
    """Has what froze units of a model before leave it alone.

    Args:
        model (nn.Module): The model; its parameters stay as they are.
    """
    earlier = _freezers[model]() if model in _freezers else None
    if earlier is not None:
        earlier.release()


def anchored(values: Any) -> Any:
    """Lets a backward pass start from values that no trained parameter stands behind, and end there at once.

    Args:
        values (Any): Tensors, such as a loss, in any nesting of containers.

    Returns:
        Any: The same values; their floating-point tensors require a gradient if none of them did.
    """
    if any(map(_requires_grad, tensors_in(values))):
        return values
    return tree_map(
        lambda leaf: (
            leaf.detach().requires_grad_() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf
        ),
        values,
    )


class UnitFreezer:
    """Freezes and thaws the leading units of a model, in place.

    Parameters are looked up once: a sharded model shows others in their place while they are gathered.

    Args:
        model (nn.Module): The model, without a data-parallel wrapper.
        units (Sequence[Unit]): Its units, in the order in which they freeze.
        batchnorm (str): What a frozen normalisation layer with running statistics does in training: ``'eval'``
            normalises by the running statistics, ``'batch'`` by those of the batch without updating the running ones,
            ``'update'`` goes on as if it were not frozen.
        fuse_frozen (bool): Whether frozen layers run with the operators of inference: with ``'eval'``, BatchNorm folded
            into the convolution before it; attention without dropout in one operator.
        parameters (Mapping[str, nn.Parameter], optional): The model's parameters by name, where it shows others now.

    Attributes:
        units_frozen (int): How many units are frozen, in ``[0, len(units)]``.
        frozen_norms (list[nn.Module]): Layers whose running statistics stand still.
        folding (BatchNormFolding): What is folded.
        called_whole (bool): Whether the model is always called itself, and never by its parts.

    Raises:
        ValueError: If ``batchnorm`` is unknown, or ``'batch'`` for a layer that does not have that meaning.
    """

    def __init__(
        self,
        model: nn.Module,
        units: Sequence[Unit],
        batchnorm: BatchNormMode = 'eval',
        fuse_frozen: bool = True,
        parameters: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        check_batchnorm(batchnorm)
        self.model = model
        self.units = tuple(units)
        self.batchnorm = batchnorm
        self.fuse_frozen = fuse_frozen
        self.folding = BatchNormFolding(model)
        self.units_frozen = 0
        self.called_whole = False
        self._released = False
        self._idle = True
        parameters = dict(model.named_parameters()) if parameters is None else parameters
        self._parameters = {name: parameters[name] for unit in units for name in unit.parameters}
        self._frozen: list[nn.Parameter] = []
        self.frozen_norms: list[Any] = []
        self._held: list[_Mode] = []
        self._scripted: list[_Mode] = []
        self._without_tracking: list[Any] = []
        self._around = _AroundForward(self)
        self._masked = _MaskedAttention(self)
        release_earlier(model)
        _freezers[model] = weakref.ref(self)
        self._check_norms()

    def learn(self, units: Sequence[Unit]) -> None:
        """Takes in which modules have to stand still.

        Args:
            units (Sequence[Unit]): The units as they are, with their norms.

        Raises:
            ValueError: If ``batchnorm`` is ``'batch'`` and one of them does not have that meaning.
        """
        self.units = tuple(units)
        self._check_norms()
        self._release_norms()
        self._settle(self.units_frozen)
        self.hold_modes()

    def _check_norms(self) -> None:
        if self.batchnorm != 'batch':
            return
        for name in (norm for unit in self.units for norm in unit.norms):
            if not isinstance(self.model.get_submodule(name), nn.modules.batchnorm._BatchNorm):
                raise ValueError(
                    f"batchnorm='batch' needs BatchNorm layers, but {name!r} is "
                    f"{type(self.model.get_submodule(name)).__name__}, and training changes its buffers; use 'eval' or "
                    "'update'"
                )

    def set_frozen(self, count: int) -> bool:
        """Freezes the first ``count`` units, after a :meth:`release` too, and thaws the others.

        Args:
            count (int): In ``[0, len(units)]``.

        Returns:
            bool: Whether other parameters are frozen than before.
        """
        changed = count != self.units_frozen
        if changed:
            self._release_norms()
            for unit in self.units[count : self.units_frozen]:
                for name in unit.parameters:
                    self._parameters[name].requires_grad_(True)
            self._frozen = [self._parameters[name] for unit in self.units[:count] for name in unit.parameters]
            self._freeze()
            self.units_frozen = count
            self.folding.forget()
        self._idle = False
        if changed or self._released:
            self._settle(count)
            self._released = False
            self.hold()
        elif not (self.called_whole and self.holds_itself):
            self.hold()
        return changed

    @property
    def holds_itself(self) -> bool:
        """Whether the model's own forward pass sees to it that what is frozen stays so."""
        return self._around.is_put and not self._idle

    def rest(self) -> None:
        """Leaves what is frozen to itself until :meth:`set_frozen` is called again: training may be over."""
        self._idle = True

    def hold(self) -> None:
        """Keeps what is frozen from gradients and its statistics from drifting, whatever others have done to it."""
        self.hold_parameters()
        self.hold_modes()

    def hold_parameters(self) -> None:
        """Freezes again what others have thawed, as code does that switches ``requires_grad`` of a whole model."""
        # In every batch and for every parameter, hence without a line of Python for each.
        if any(map(_requires_grad, self._frozen)):
            self._freeze()

    def hold_modes(self) -> None:
        """Keeps the statistics of frozen layers still, and their operators those of inference.

        To be called before every forward pass in training, as ``model.train()`` undoes it.
        """
        # In every batch and for every layer: past `nn.Module.__setattr__`, which takes far longer than the rest.
        for mode in self._held:
            if mode.attributes['training']:
                mode.attributes['training'] = False
                mode.wanted = True
        for mode in self._scripted:
            if mode.module.training:
                mode.module.training = False
                mode.wanted = True
        for norm in self._without_tracking:
            # In training mode this means batch statistics and no update; evaluation still uses the running ones.
            norm.track_running_stats = False

    def release(self) -> None:
        """Gives the layers of frozen units their own behaviour back; their parameters stay frozen."""
        self._release_norms()
        self.folding.release()
        self._around.remove()
        self._masked.put(())
        self._released = True

    def _freeze(self) -> None:
        for parameter in self._frozen:
            parameter.requires_grad_(False)
            # A gradient left behind would be clipped, averaged and applied with the others.
            parameter.grad = None

    def _settle(self, count: int) -> None:
        """Finds what the first ``count`` units have to be kept from, besides gradients."""
        if self.batchnorm != 'update':
            names = (norm for unit in self.units[:count] for norm in unit.norms)
            self.frozen_norms = [self.model.get_submodule(name) for name in names]
        self._around.remove()
        self._masked.put(())
        as_it_stands = not runs_otherwise(self.model)
        if count and as_it_stands:
            self._around.put()
        held: list[nn.Module] = []
        if self.batchnorm == 'eval':
            held += self.frozen_norms
        else:
            self._without_tracking = [norm for norm in self.frozen_norms if norm.track_running_stats]
        if self.fuse_frozen and count and as_it_stands:
            attention = [module for module in self.model.modules() if _is_fusible(module)]
            self._masked.put(attention)
            held += attention
        for module in held:
            (self._scripted if isinstance(module, torch.jit.ScriptModule) else self._held).append(_Mode(module))
        if self.fuse_frozen and self.batchnorm == 'eval':
            self.folding.fold(self.frozen_norms)

    def _release_norms(self) -> None:
        self.folding.fold(())
        for mode in (*self._held, *self._scripted):
            mode.release(self.model.training)
        for norm in self._without_tracking:
            norm.track_running_stats = True
        self.frozen_norms, self._held, self._scripted, self._without_tracking = [], [], [], []


class _Mode:
    """The mode of a module, which is kept in evaluation, and what its owner wants it to be.

    Its own mode alone: what is inside of it may still train.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = vars(module)
        self.wanted = module.training

    def release(self, training: bool) -> None:
        self.module.training = self.wanted and training


class _AroundForward:
    """What has to be seen to whenever a model with frozen units runs forward, whoever calls it.

    Args:
        freezer (UnitFreezer, optional): What keeps the units frozen. A copy of this object, which a copy of the model
            has among its hooks, has none and does nothing.
    """

    def __init__(self, freezer: 'UnitFreezer | None' = None) -> None:
        self._freezer = freezer
        self._checkpoints = Nonreentrant()
        self._hooks: list[RemovableHandle] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return _AroundForward, ()

    @property
    def is_put(self) -> bool:
        """Whether the hooks are on the model."""
        return bool(self._hooks)

    def put(self) -> None:
        """Puts the hooks on the model."""
        assert self._freezer is not None
        model = self._freezer.model
        self._checkpoints.put()
        self._hooks = [
            model.register_forward_pre_hook(self._enter),
            model.register_forward_hook(self._leave, always_call=True),
        ]

    def remove(self) -> None:
        """Takes the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._checkpoints.remove()

    def _enter(self, module: nn.Module, _: object) -> None:
        # Compilers look into hooks, and nn.DataParallel runs copies that share them.
        if torch.compiler.is_compiling() or self._freezer is None or module is not self._freezer.model:
            return
        if module.training and not self._freezer._idle:
            self._freezer.hold()
        self._checkpoints.enter()

    def _leave(self, module: nn.Module, _: object, output: Any) -> Any:
        if torch.compiler.is_compiling() or self._freezer is None or module is not self._freezer.model:
            return None
        self._checkpoints.leave()
        if output is None or not module.training or not torch.is_grad_enabled():
            return None
        if isinstance(output, torch.Tensor) and output.requires_grad:  # as nearly always
            return None
        return anchored(output)


class _MaskedAttention:
    """Has frozen attention run as in training where there is a mask.

    As one operator it makes other numbers of a row that has no key to attend to.

    Args:
        freezer (UnitFreezer, optional): What keeps it in evaluation. A copy of this object has none and does nothing.
    """

    def __init__(self, freezer: 'UnitFreezer | None' = None) -> None:
        self._freezer = freezer
        self._hooks: list[RemovableHandle] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return _MaskedAttention, ()

    def put(self, modules: Sequence[nn.Module]) -> None:
        """Puts hooks on some attention, and takes them off all other."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for module in modules:
            self._hooks.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            self._hooks.append(module.register_forward_hook(self._leave, always_call=True))

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        masks = (*args[3:4], *args[5:6], kwargs.get('key_padding_mask'), kwargs.get('attn_mask'))
        if self._freezer is not None and self._freezer.model.training and any(mask is not None for mask in masks):
            vars(module)['training'] = True

    def _leave(self, module: nn.Module, *_: object) -> None:
        if self._freezer is not None and self._freezer.model.training:
            vars(module)['training'] = False


def _is_fusible(module: nn.Module) -> bool:
    """Whether a module is frozen attention, in which the mode decides on nothing but the operator that computes it."""
    return (
        type(module) is nn.MultiheadAttention
        and module.dropout == 0
        and not any(parameter.requires_grad for parameter in module.parameters())
    )
