"""The kinds of pairs and blocks of layers that a frozen prefix runs with fewer operators than in training.

To add a kind, write a class like these, which serves :class:`Fusion`, and add it in :class:`Fusions`. To have another
layer or norm folded, see :mod:`.fold`.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import nn

from composer_freezeout.freezing.prefix.attention import AttentionFusing
from composer_freezeout.freezing.prefix.folding import BatchNormFolding

__all__ = ['Fusion', 'Fusions']


class Fusion(Protocol):
    """One kind of layers that are run as one while they are frozen and the model trains."""

    def fuse(self, norms: Sequence[nn.Module]) -> list[nn.Module]:
        """Fuses what is frozen now, from the next forward pass on, and nothing else.

        Args:
            norms (Sequence[nn.Module]): Frozen layers of the model that normalise by their running statistics.

        Returns:
            list[nn.Module]: Other modules that have to be kept in evaluation.
        """
        ...

    def release(self) -> None:
        """Leaves the model as it would be without this object."""
        ...


class Fusions:
    """All kinds, for one model.

    Args:
        model (nn.Module): The model, without a data-parallel wrapper.

    Attributes:
        folding (BatchNormFolding): Folds a BatchNorm into the convolution or linear layer before it.
        attention (AttentionFusing): Runs attention without dropout as one operator.
    """

    def __init__(self, model: nn.Module) -> None:
        self.folding = BatchNormFolding(model)
        self.attention = AttentionFusing(model)
        self._kinds: tuple[Fusion, ...] = (self.folding, self.attention)

    def fuse(self, norms: Sequence[nn.Module]) -> list[nn.Module]:
        """Fuses what is frozen now; arguments and result as in :meth:`Fusion.fuse`."""
        return [module for kind in self._kinds for module in kind.fuse(norms)]

    def release(self) -> None:
        """Leaves the model as it would be without this object."""
        for kind in self._kinds:
            kind.release()
