"""Steps in a hand-written PyTorch loop."""

from typing import Any

import torch
import torch.nn.functional as F
from composer.utils import dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from composer_freezeout.step_time.inference_graph import inference_prefix
from composer_freezeout.step_time.workload import Probe, Workload

__all__ = ['InLoop']


class InLoop:
    """Steps in a hand-written loop, with nothing in the optimizer but what trains.

    Args:
        workload (Workload): What is trained.
        units_frozen (int): How many units are frozen, in ``[0, n)``.
        inference (bool): Whether what needs no gradient runs as an inference graph.

    Attributes:
        model (nn.Module): The network.
        wrapper (DistributedDataParallel, optional): Around it; None in a single process.
        norms_folded (int): BatchNorms that have been folded into a convolution, in ``[0, ∞)``.
        norms_unfolded (int): Those of the inference graph that have not.
    """

    def __init__(self, workload: Workload, units_frozen: int, inference: bool) -> None:
        self.workload = workload
        model = workload.copy_model()
        for unit in workload.units[:units_frozen]:
            for name in unit.parameters:
                model.get_parameter(name).requires_grad_(False)
            for name in unit.norms:
                model.get_submodule(name).eval()
        self.model: nn.Module = model.module
        self.norms_folded = self.norms_unfolded = 0
        self._optimizer = workload.make_optimizer([p for p in model.parameters() if p.requires_grad])
        if inference and units_frozen:
            self.model, self.norms_folded, self.norms_unfolded = inference_prefix(self.model)
        self.wrapper = DistributedDataParallel(self.model) if dist.get_world_size() > 1 else None
        self._forward: Any = self.model if self.wrapper is None else self.wrapper
        if workload.compile_backend is not None:
            self._forward = torch.compile(self._forward, backend=workload.compile_backend)

    def visit(self, probe: Probe) -> None:
        """Does the steps of a visit."""
        images, labels = self.workload.batch
        for _ in range(self.workload.steps):
            probe.begin()
            self._optimizer.zero_grad()
            with self.workload.autocast():
                loss = F.cross_entropy(self._forward(images), labels)
            probe.computed(loss)
            loss.backward()
            probe.backpropagated()
            self._optimizer.step()
            probe.stepped()
            del loss
            probe.end()

    def notes(self) -> dict[str, Any]:
        """How many BatchNorms are folded."""
        return {'norms_folded': self.norms_folded, 'norms_unfolded': self.norms_unfolded}

    def close(self) -> None:
        """Does nothing: there is nothing to end."""
