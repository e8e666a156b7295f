"""Makes the first ``k`` units of a model frozen: no gradient, no update, no drift of running statistics."""

import weakref
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from composer_freezeout.freezing.execution.find import execution_of
from composer_freezeout.freezing.observing.units import Unit
from composer_freezeout.freezing.prefix.around_forward import AroundForward
from composer_freezeout.freezing.prefix.fusions import Fusions
from composer_freezeout.method.settings import BatchNormMode, check_batchnorm

__all__ = ['FrozenPrefix', 'release_earlier']


_requires_grad = attrgetter('requires_grad')

# The latest of each model: what an earlier one has put around it has to go.
_prefixes: 'weakref.WeakKeyDictionary[nn.Module, weakref.ref[FrozenPrefix]]' = weakref.WeakKeyDictionary()


def release_earlier(model: nn.Module) -> None:
    """Has what froze units of a model before leave it alone.

    Args:
        model (nn.Module): The model; its parameters stay as they are.
    """
    earlier = _prefixes[model]() if model in _prefixes else None
    if earlier is not None:
        earlier.release()


class FrozenPrefix:
    """Freezes and thaws the leading units of a model, in place.

    What others have frozen is fused with the units, as far as its normalisation layers are kept in evaluation.

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
        self._fusions = Fusions(model)
        self.folding = self._fusions.folding
        self.units_frozen = 0
        self.called_whole = False
        self._settled = False
        self._idle = True
        parameters = dict(model.named_parameters()) if parameters is None else parameters
        self._parameters = {name: parameters[name] for unit in units for name in unit.parameters}
        self._frozen: list[nn.Parameter] = []
        self.frozen_norms: list[Any] = []
        self._held: list[_Mode] = []
        self._scripted: list[_Mode] = []
        self._without_tracking: list[Any] = []
        self._around = AroundForward(model, self._hold_in_training)
        release_earlier(model)
        _prefixes[model] = weakref.ref(self)
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
        if changed or not self._settled:
            self._settle(count)
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

    def _hold_in_training(self) -> None:
        if not self._idle:
            self.hold()

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
        self._around.remove()
        self._settled = False

    def _freeze(self) -> None:
        for parameter in self._frozen:
            parameter.requires_grad_(False)
            # A gradient left behind would be clipped, averaged and applied with the others.
            parameter.grad = None

    def _settle(self, count: int) -> None:
        """Finds what the first ``count`` units have to be kept from, besides gradients."""
        self._settled = True
        if self.batchnorm != 'update':
            names = (norm for unit in self.units[:count] for norm in unit.norms)
            self.frozen_norms = [self.model.get_submodule(name) for name in names]
        self._around.remove()
        as_written = execution_of(self.model).runs_as_written
        # Before what is fused: norms have to be in evaluation by then.
        if as_written:
            self._around.put()
        held: list[nn.Module] = []
        if self.batchnorm == 'eval':
            held += self.frozen_norms
        else:
            self._without_tracking = [norm for norm in self.frozen_norms if norm.track_running_stats]
        others: list[nn.Module] = []
        if self.fuse_frozen and as_written:
            others = self._norms_of_others()
            held += self._fusions.fuse([*(self.frozen_norms if self.batchnorm == 'eval' else []), *others])
        if not (count or others or held):
            self._around.remove()
        for module in held:
            (self._scripted if isinstance(module, torch.jit.ScriptModule) else self._held).append(_Mode(module))

    def _norms_of_others(self) -> list[nn.Module]:
        """BatchNorm layers that are in no unit and don't train; they are fused in passes in which they stand still."""
        ours = {name for unit in self.units for name in unit.norms}
        return [
            module
            for name, module in self.model.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            and name not in ours
            and module.running_mean is not None
            and not any(parameter.requires_grad for parameter in module.parameters())
        ]

    def _release_norms(self) -> None:
        self._fusions.release()
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
