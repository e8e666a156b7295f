"""Which layers run as one with the norm behind them, and which don't, as forward passes have shown."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import nn

__all__ = ['Known', 'Pairs']


class Known(NamedTuple):
    """What forward passes have shown of frozen layers.

    Attributes:
        norm_of (Mapping[str, str]): Name of the BatchNorm that each layer is folded with.
        apart (Sequence[str]): Names of layers that others read, too.
    """

    norm_of: Mapping[str, str] = {}
    apart: Sequence[str] = ()


class Pairs:
    """What forward passes have shown of the frozen layers of a model.

    Args:
        model (nn.Module): The model, without a data-parallel wrapper.

    Attributes:
        norm_of (dict[nn.Module, nn.Module]): The norm that each layer is folded with.
        apart (set[nn.Module]): Layers that others read, too.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.norm_of: dict[nn.Module, nn.Module] = {}
        self.apart: set[nn.Module] = set()

    def set_apart(self, layer: nn.Module) -> None:
        """Has a layer run as it is from now on.

        Args:
            layer (nn.Module): A layer that others read, too.
        """
        self.apart.add(layer)
        self.norm_of.pop(layer, None)

    def forget_apart(self) -> None:
        """Gives layers that others have read another chance: the norm behind them may not have been frozen."""
        self.apart = set()

    def known(self) -> Known:
        """What has been seen so far, by names."""
        names = {module: name for name, module in self._model.named_modules()}
        norm_of = {names[a]: names[b] for a, b in self.norm_of.items() if a in names and b in names}
        return Known(norm_of, tuple(sorted(names[layer] for layer in self.apart if layer in names)))

    def learn(self, known: Known) -> None:
        """Takes in what another run has seen, so that this one computes the same bits.

        Args:
            known (Known): From :meth:`known` of the same model.
        """
        modules = dict(self._model.named_modules())
        self.norm_of = {modules[layer]: modules[norm] for layer, norm in known.norm_of.items()}
        self.apart = {modules[layer] for layer in known.apart}
