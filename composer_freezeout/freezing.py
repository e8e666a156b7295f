"""Makes the first ``k`` units of a model frozen: no gradient, no update, no drift of running statistics."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from torch import nn

from composer_freezeout.folding import BatchNormFolding, runs_otherwise
from composer_freezeout.partition import Unit

__all__ = ['BatchNormMode', 'UnitFreezer', 'check_batchnorm']

BatchNormMode = Literal['eval', 'batch', 'update']


def check_batchnorm(batchnorm: str) -> None:
    """Checks the meaning of a frozen BatchNorm.

    Raises:
        ValueError: If it is not ``'eval'``, ``'batch'`` or ``'update'``.
    """
    if batchnorm not in get_args(BatchNormMode):
        raise ValueError(f'batchnorm must be one of {", ".join(get_args(BatchNormMode))}, got {batchnorm!r}')


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

    Attributes:
        units_frozen (int): How many units are frozen, in ``[0, len(units)]``.
        frozen_norms (list[nn.Module]): Layers whose running statistics stand still.
        folding (BatchNormFolding): What is folded.

    Raises:
        ValueError: If ``batchnorm`` is unknown, or ``'batch'`` for a layer that does not have that meaning.
    """

    def __init__(
        self,
        model: nn.Module,
        units: Sequence[Unit],
        batchnorm: BatchNormMode = 'eval',
        fuse_frozen: bool = True,
    ) -> None:
        check_batchnorm(batchnorm)
        self.model = model
        self.units = tuple(units)
        self.batchnorm = batchnorm
        self.fuse_frozen = fuse_frozen
        self.folding = BatchNormFolding(model)
        self.units_frozen = 0
        self._released = False
        self._parameters = {name: model.get_parameter(name) for unit in units for name in unit.parameters}
        self.frozen_norms: list[Any] = []
        self._modes: list[dict[str, Any]] = []
        self._others: list[nn.Module] = []
        self._fused: list[nn.Module] = []
        if batchnorm == 'batch':
            for name in (norm for unit in units for norm in unit.norms):
                if not isinstance(model.get_submodule(name), nn.modules.batchnorm._BatchNorm):
                    raise ValueError(
                        f"batchnorm='batch' needs BatchNorm layers, but {name!r} is "
                        f"{type(model.get_submodule(name)).__name__}; use 'eval' or 'update'"
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
            for unit in self.units[min(count, self.units_frozen) : max(count, self.units_frozen)]:
                for name in unit.parameters:
                    parameter = self._parameters[name]
                    parameter.requires_grad_(count < self.units_frozen)
                    # A gradient left behind would be clipped, averaged and applied with the others.
                    parameter.grad = None
            self.units_frozen = count
        if changed or self._released:
            self._settle(count)
        self._released = False
        self.hold_modes()
        return changed

    def hold_modes(self) -> None:
        """Keeps the statistics of frozen layers still, and their operators those of inference.

        To be called before every forward pass in training, as ``model.train()`` undoes it.
        """
        # In every batch and for every layer: past `nn.Module.__setattr__`, which takes far longer than the rest.
        for attributes in self._modes:
            attributes['training'] = False
        if self.batchnorm == 'eval':
            for norm in self._others:
                if norm.training:
                    norm.eval()
        else:
            for norm in self.frozen_norms:
                # In training mode this means batch statistics and no update; evaluation still uses the running ones.
                norm.track_running_stats = False

    def release(self) -> None:
        """Gives the layers of frozen units their own behaviour back; their parameters stay frozen."""
        self._release_norms()
        self.folding.release()
        self._released = True

    def _settle(self, count: int) -> None:
        """Finds what the first ``count`` units have to be kept from, besides gradients."""
        if self.batchnorm != 'update':
            names = (norm for unit in self.units[:count] for norm in unit.norms)
            self.frozen_norms = [self.model.get_submodule(name) for name in names]
        if self.fuse_frozen and count and not runs_otherwise(self.model):
            self._fused = [module for module in self.model.modules() if _is_fusible(module)]
        held = self.frozen_norms if self.batchnorm == 'eval' else []
        self._modes = [vars(module) for module in (*filter(_is_leaf, held), *self._fused)]
        self._others = [norm for norm in held if not _is_leaf(norm)]
        if self.fuse_frozen and self.batchnorm == 'eval':
            self.folding.fold(self.frozen_norms)

    def _release_norms(self) -> None:
        self.folding.fold(())
        for norm in self.frozen_norms:
            if self.batchnorm == 'eval':
                norm.train(self.model.training)
            else:
                norm.track_running_stats = True
        for module in self._fused:
            module.training = self.model.training
        self.frozen_norms, self._modes, self._others, self._fused = [], [], [], []


def _is_leaf(module: nn.Module) -> bool:
    """Whether all that `train` does to a module is to note the mode."""
    return type(module).train is nn.Module.train and not module._modules


def _is_fusible(module: nn.Module) -> bool:
    """Whether a module is frozen attention, in which the mode decides on nothing but the operator that computes it."""
    return (
        type(module) is nn.MultiheadAttention
        and module.dropout == 0
        and not any(parameter.requires_grad for parameter in module.parameters())
    )
