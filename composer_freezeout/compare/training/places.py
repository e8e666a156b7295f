"""What each of several trainings side by side has of a machine: its own GPUs, or its own cores."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from composer_freezeout.run.faults import Refused

__all__ = ['Place', 'places', 'usable_cores', 'visible_gpus']


@dataclass(frozen=True)
class Place:
    """Where one training at a time runs.

    Attributes:
        cores (tuple[int, ...]): The cores that it is kept to. Default: none in particular.
        environment (Mapping[str, str]): Variables of its processes.
    """

    cores: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def settle(self) -> None:
        """Keeps this thread, and the processes that it will start, to the cores."""
        if self.cores:
            os.sched_setaffinity(0, self.cores)


def visible_gpus() -> list[str]:
    """The GPUs of this process, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    named = [name for name in os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if name]
    return (named or [str(index) for index in range(torch.cuda.device_count())])[: torch.cuda.device_count()]


def usable_cores() -> list[int]:
    """The cores of this process, those of one physical core beside each other."""
    if not hasattr(os, 'sched_getaffinity'):
        return list(range(os.cpu_count() or 1))
    return sorted(os.sched_getaffinity(0), key=lambda core: (_siblings(core), core))


def _siblings(core: int) -> int:
    """The first hardware thread of a core."""
    path = Path(f'/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list')
    try:
        return int(path.read_text().replace('-', ',').split(',')[0])
    except (OSError, ValueError):
        return core


def places(workers: int, gpus: Sequence[str], cores: Sequence[int]) -> list[Place]:
    """Divides a machine into equal parts; what cannot be divided is left idle.

    Args:
        workers (int): How many trainings run side by side, in ``[1, ∞)``.
        gpus (Sequence[str]): The GPUs that trainings use; empty if they use none.
        cores (Sequence[int]): The cores.

    Returns:
        list[Place]: One for each. A single one has the whole machine, as it is.

    Raises:
        Refused: If there is not one GPU, or else not one core, for each.
    """
    if workers == 1:
        return [Place()]
    devices, noun = (gpus, 'GPU') if gpus else (cores, 'core')
    share = len(devices) // workers
    if not share:
        line = f'--workers: {workers} trainings side by side need a {noun} each, and there are {len(devices)}'
        raise Refused(f'{line}; take at most {len(devices)}')
    if gpus:
        # The launcher starts one process for each GPU that it sees.
        parts = [','.join(gpus[number * share : (number + 1) * share]) for number in range(workers)]
        return [Place(environment={'CUDA_VISIBLE_DEVICES': part}) for part in parts]
    threads = {'OMP_NUM_THREADS': str(_threads(share))}
    # Not every platform can keep a process to some cores.
    kept = cores if hasattr(os, 'sched_setaffinity') else []
    return [Place(tuple(kept[number * share : (number + 1) * share]), threads) for number in range(workers)]


def _threads(cores: int) -> int:
    chosen = os.environ.get('OMP_NUM_THREADS', '')
    if not chosen.isdecimal():
        return cores
    if int(chosen) > cores:
        line = f'OMP_NUM_THREADS is {chosen}, but each of the trainings side by side has {cores} of the cores'
        raise Refused(f'--workers: {line}; unset it, or take fewer')
    return int(chosen)
