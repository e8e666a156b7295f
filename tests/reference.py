"""FreezeOut (Brock et al., 2017, https://arxiv.org/abs/1706.04983) in plain PyTorch, to read beside the paper.

The package is tested to end with the same bits. What it adds: it finds the layers and their order itself, leaves an
optimizer its own groups, runs frozen layers as inference, resumes exactly, and works with many processes and compilers.
"""

import math
from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

EXPONENTS = {'linear': 1, 'squared': 2, 'cubic': 3}


def freeze_times(num_layers: int, t_0: float, how_scale: str) -> list[float]:
    """The fraction of training after which each layer freezes: even steps from t_0 to 1, then scaled."""
    even = [t_0 + (1 - t_0) * i / (num_layers - 1) for i in range(num_layers)]
    return [t ** EXPONENTS[how_scale] for t in even[:-1]] + [1.0]


def learning_rate(lr: float, t: float, t_i: float, scale_lr: bool) -> float:
    """A cosine from ``lr / t_i`` (or ``lr``, unscaled) at t = 0 to zero at t = t_i."""
    peak = lr / t_i if scale_lr else lr
    return 0.5 * peak * (1 + math.cos(math.pi * t / t_i))


class FreezeOut:
    """Anneals and freezes the layers of a model, whose optimizer has one param group per layer, in the same order."""

    def __init__(
        self,
        layers: Sequence[nn.Module],
        optimizer: Optimizer,
        t_0: float = 0.8,
        how_scale: str = 'cubic',
        scale_lr: bool = True,
    ) -> None:
        times = freeze_times(len(layers), t_0, how_scale)
        self.training = list(zip(layers, times, list(optimizer.param_groups), strict=True))
        self.frozen: list[nn.Module] = []
        self.optimizer, self.lr, self.scale_lr = optimizer, optimizer.defaults['lr'], scale_lr

    def batch_start(self, t: float) -> None:
        """Sets the learning rates for the batch at progress t in [0, 1), and freezes the layers that are due."""
        while self.training[0][1] <= t:
            layer, _, group = self.training.pop(0)
            group['lr'] = 0.0
            self.frozen.append(layer.requires_grad_(False))
        for _, t_i, group in self.training:
            group['lr'] = learning_rate(self.lr, t, t_i, self.scale_lr)
        for module in (module for layer in self.frozen for module in layer.modules()):
            if isinstance(module, _BatchNorm):
                module.eval()  # it normalises by its running statistics, and no longer changes them

    def epoch_end(self) -> None:
        """Takes what is frozen out of the optimizer, with its momentum."""
        self.optimizer.param_groups[:] = [group for _, _, group in self.training]
        for parameter in (parameter for layer in self.frozen for parameter in layer.parameters()):
            self.optimizer.state.pop(parameter, None)
