"""Keeps data-parallel wrappers in step with what is frozen."""

from collections.abc import Iterable
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

__all__ = ['agree_on', 'agree_on_buffers', 'reshard', 'restart_ddp']

_MIB = 1024 * 1024

T = TypeVar('T')


def agree_on_buffers(modules: Iterable[nn.Module]) -> None:
    """Gives every rank the first one's buffers, as a checkpoint does.

    Ranks keep statistics of their own under FSDP, which matters once a frozen layer normalises by them.

    Args:
        modules (Iterable[nn.Module]): The same modules, in the same order, on every rank.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        for buffer in (buffer for module in modules for buffer in module.buffers(recurse=False)):
            dist.broadcast(buffer, src=0)


def agree_on(value: T) -> T:
    """What the first rank says.

    Args:
        value (T): What this rank would say, of a kind that can be pickled.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]
    return value


def reshard(model: nn.Module) -> None:
    """Puts the shards back in the place of gathered parameters, which a forward pass without a backward leaves there.

    Args:
        model (nn.Module): A model; nothing happens to what FSDP2 doesn't shard.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def restart_ddp(model: DistributedDataParallel, settled: Iterable[nn.Module] = ()) -> None:
    """Starts a wrapper anew, so that only what still changes is communicated.

    DDP fixes the parameters that it expects gradients for when it is made. The object stays the same, with its
    settings, its communication hooks and a compiled forward. Parameters are not broadcast: the ranks agree on them
    already.

    Args:
        model (DistributedDataParallel): The wrapper. At least one parameter must be trainable.
        settled (Iterable[nn.Module]): Modules of the model whose buffers stand still and are the same on every rank.
    """
    training, hooks = model.training, list(model._comm_hooks)
    settings = {
        'device_ids': model.device_ids,
        'output_device': model.output_device,
        'dim': model.dim,
        'broadcast_buffers': model.broadcast_buffers,
        'process_group': model.process_group,
        'bucket_cap_mb': model.bucket_bytes_cap / _MIB,
        'find_unused_parameters': model.find_unused_parameters,
        'gradient_as_bucket_view': model.gradient_as_bucket_view,
        'static_graph': model.static_graph,
    }
    # The old reducer's hooks sit on the parameters and would communicate every gradient a second time.
    model._remove_autograd_hooks()
    model.__init__(model.module, init_sync=False, **settings)
    for hook, state in hooks:
        model.register_comm_hook(state, hook)
    # Written to before every forward pass, they would look as if they changed.
    still = set(settled)
    model.parameters_to_ignore |= {
        f'{name}.{buffer}' for name, m in model.module.named_modules() if m in still for buffer in m._buffers
    }
    model._assign_modules_buffers()
    model.train(training)
