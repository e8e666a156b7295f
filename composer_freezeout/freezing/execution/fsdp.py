"""Models that FSDP shards."""

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

from composer_freezeout.freezing.execution.execution import Execution

__all__ = ['FSDP', 'is_sharded']


class FSDP(Execution):
    """A model with modules that FSDP shards."""

    runs_as_written = False

    @contextlib.contextmanager
    def rehearsing(self) -> Iterator[None]:
        """Puts the shards back afterwards."""
        with super().rehearsing():
            yield
        # A forward pass without a backward pass leaves gathered parameters in the place of the shards.
        for module in self.module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP shards the model, or a module in it.

    Args:
        model (nn.Module): The model as it is trained.
    """
    return any(isinstance(module, (FSDPModule, FullyShardedDataParallel)) for module in model.modules())
