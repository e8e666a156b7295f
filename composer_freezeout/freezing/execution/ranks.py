"""What all processes of a training have to do in the same way."""

from collections.abc import Iterable
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn

__all__ = ['agree_on', 'agree_on_buffers']

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
