"""Finds how a model runs."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from composer_freezeout.freezing.execution.compiled import Compiled, is_compiled
from composer_freezeout.freezing.execution.ddp import DDP
from composer_freezeout.freezing.execution.execution import Eager, Execution
from composer_freezeout.freezing.execution.fsdp import FSDP, is_sharded

__all__ = ['execution_of']


def execution_of(model: nn.Module, compiled: bool = False) -> Execution:
    """How a model runs now; asked again when it has been wrapped, sharded or compiled since.

    Args:
        model (nn.Module): The model as it is trained, with its data-parallel wrapper.
        compiled (bool): Whether it is known to run compiled, although it doesn't show.

    Returns:
        Execution: Eager, DDP or FSDP, or one of these compiled.
    """
    if isinstance(model, DistributedDataParallel):
        execution: Execution = DDP(model)
    elif is_sharded(model):
        execution = FSDP(model)
    else:
        execution = Eager(model)
    return Compiled(execution) if compiled or is_compiled(model) else execution
