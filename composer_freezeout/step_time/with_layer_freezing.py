"""Steps of Composer's Trainer with as much frozen as Composer's LayerFreezing freezes."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from composer.algorithms import LayerFreezing
from composer.algorithms.layer_freezing.layer_freezing import _get_layers, freeze_layers
from composer.utils import dist
from torch import nn
from torch.optim import Optimizer

from composer_freezeout.freezing.observing.units import Unit
from composer_freezeout.step_time.in_composer import InComposer
from composer_freezeout.step_time.workload import Workload

__all__ = ['WithLayerFreezing']


class WithLayerFreezing(InComposer):
    """Steps with layers frozen.

    Args:
        workload (Workload): What is trained.
        units_frozen (int): As many layers are frozen as come next to the share of the parameters that so many units of
            FreezeOut have, in ``[0, n)``.

    Attributes:
        layers_frozen (int): How many.
    """

    def __init__(self, workload: Workload, units_frozen: int) -> None:
        # Freezes nothing itself: DDP is made as it asks for.
        algorithms = [LayerFreezing(freeze_start=1.0)] if dist.get_world_size() > 1 else []
        super().__init__(workload, algorithms)
        # Not before, as in a training: what DDP exchanges has been settled when the first layer freezes.
        share = _share(self.model, workload.units, units_frozen)
        self.layers_frozen = _freeze_as_many(self.model, self.optimizer, share)

    def notes(self) -> dict[str, Any]:
        """How many layers are frozen."""
        return {'layers_frozen': self.layers_frozen}


def _share(model: nn.Module, units: Sequence[Unit], units_frozen: int) -> float:
    sizes = [sum(model.get_parameter(name).numel() for name in unit.parameters) for unit in units]
    return sum(sizes[:units_frozen]) / sum(sizes)


def _freeze_as_many(model: nn.Module, optimizer: Optimizer, share: float) -> int:
    """Freezes as LayerFreezing does, up to the layer that comes next to a share of the parameters."""
    layers: list[nn.Module] = []
    _get_layers(model, layers)
    total = sum(parameter.numel() for parameter in model.parameters())
    frozen = accumulate((sum(p.numel() for p in layer.parameters()) for layer in layers[:-1]), initial=0)
    shares = [size / total for size in frozen]
    depth = min(range(len(shares)), key=lambda index: abs(shares[index] - share))
    # Half a layer more, so that rounding doesn't leave out the last one; at the end there is no more.
    duration = 0.0 if not depth else min(1.0, (depth + 0.5) / (len(layers) - 1))
    found, _ = freeze_layers(model, optimizer, duration, freeze_start=0.0, freeze_level=1.0)
    assert found == depth, f'froze {found} layers instead of {depth}'
    return depth
