"""Checks what was asked for, and makes what is to be measured."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from composer.utils import dist

from composer_freezeout.costs.seconds import counts_to_measure
from composer_freezeout.step_time.measure import TIMED, UNTIMED
from composer_freezeout.step_time.result import RECORD, Result, load_result
from composer_freezeout.step_time.workload import Workload, make_workload

__all__ = ['Refused', 'Task', 'chosen_stages', 'prepare']


class Refused(Exception):
    """What was asked for cannot be done; its text says why."""


@dataclass(frozen=True)
class Task:
    """What is to be measured.

    Attributes:
        workload (Workload): What is trained.
        frozen (list[int]): Numbers of frozen units, ascending, each in ``[0, n)``.
        settings (dict[str, Any]): What the record says of them.
        eager_saving (float, optional): What FreezeOut saves over a run in the record of ``--eager``; None without one.
        one_saving (float, optional): The same of ``--one``.
    """

    workload: Workload
    frozen: list[int]
    settings: dict[str, Any]
    eager_saving: float | None
    one_saving: float | None


def chosen_stages(text: str | None, num_units: int) -> list[int]:
    """Numbers of frozen units to measure.

    Args:
        text (str, optional): Numbers with commas between them, or how many, evenly spread; None for the default.
        num_units (int): Number of units ``n``, in ``[1, ∞)``.

    Returns:
        list[int]: Ascending, in ``[0, n)``.

    Raises:
        Refused: If it is neither, or a number is out of range.
    """
    if text is None:
        return counts_to_measure(num_units)
    parts = text.split(',')
    if not all(part.strip().isdecimal() for part in parts):
        raise Refused(f'--stages: must be numbers with commas between them, such as 0,10,55, or a count, got {text!r}')
    numbers = sorted({int(part) for part in parts})
    if len(parts) > 1:
        if numbers[-1] >= num_units:
            raise Refused(f'--stages: {numbers[-1]} of {num_units} units cannot be frozen; at most {num_units - 1} can')
        return numbers
    if numbers[0] < 2:
        raise Refused(f'--stages: a count must be at least 2, got {numbers[0]}; numbers have commas, such as 0,1')
    points = min(numbers[0], num_units)
    return sorted({round((num_units - 1) * point / max(1, points - 1)) for point in range(points)})


def _device(name: str) -> torch.device:
    if name == 'gpu' and not torch.cuda.is_available():
        raise Refused('--device: there is no GPU here; use cpu')
    return torch.device('cuda' if name == 'gpu' or (name == 'auto' and torch.cuda.is_available()) else 'cpu')


def _prepare_folder(out: Path, overwrite: bool) -> None:
    if (out / RECORD).exists() and not overwrite:
        raise Refused(f'--out: {out / RECORD} is there already; choose another folder, or use --overwrite')
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f'--out: {out} cannot be made: {error.strerror}') from None


def _check_processes(processes: int, device: torch.device) -> None:
    started = dist.get_world_size()
    if started not in (1, processes):
        raise Refused(f'--processes: must be {started} in {started} processes that a launcher started, got {processes}')
    if device.type == 'cuda' and processes > torch.cuda.device_count():
        raise Refused(f'--processes: must be at most {torch.cuda.device_count()}, the number of GPUs, got {processes}')


def _comparable(option: str, folder: Path, settings: Mapping[str, Any], **other_settings: Any) -> Result:
    """The record of another run, which may have no other settings than those, and has to tell what a run saves."""
    other = load_result(folder)
    if not other.ends:
        raise Refused(f'{option}: {folder} was not measured with 0 and {other.units - 1} units frozen')
    threads = other.record['environment']['hardware']['threads']
    found = {**other.record['settings'], 'processes': other.processes, 'threads': threads}
    for name, expected in {**settings, 'threads': torch.get_num_threads(), **other_settings}.items():
        if found.get(name) != expected:
            only = ', '.join(other_settings)
            raise Refused(
                f'{option}: {folder} was measured with {name} {found.get(name)!r}, not {expected!r}; '
                f'choose a record that differs in {only} only'
            )
    return other


def prepare(arguments: argparse.Namespace) -> Task:
    """Checks the command line, makes what is measured, and the folder of the record.

    Args:
        arguments (argparse.Namespace): The command line.

    Returns:
        Task: What is to be measured.

    Raises:
        Refused: If an argument is at fault.
        ConfigError: If there is no such model.
        ValueError: If the model can't handle the images, or the record of ``--eager`` or ``--one`` can't be read.
    """
    device = _device(arguments.device)
    _check_processes(arguments.processes, device)
    if device.type == 'cpu' and arguments.precision != 'fp32':
        raise Refused(f'--precision: Composer has no {arguments.precision} on a CPU; use fp32')
    if arguments.eager is not None and arguments.compile is None:
        raise Refused('--eager: only a compiled run is compared with an eager one; add --compile')
    if arguments.one is not None and arguments.processes == 1:
        raise Refused('--one: only a run of several processes is compared with one of one process; add --processes')
    settings = {
        'model': arguments.model,
        'batch_size': arguments.batch_size,
        'image_size': arguments.image_size,
        'num_classes': arguments.num_classes,
        'device': 'gpu' if device.type == 'cuda' else 'cpu',
        'processes': arguments.processes,
        'precision': arguments.precision,
        'channels_last': arguments.channels_last,
        'compile': arguments.compile,
        'optimizer': arguments.optimizer,
        'seed': arguments.seed,
    }
    eager = one = None
    if arguments.eager is not None:
        eager = _comparable('--eager', arguments.eager, settings, compile=None)
    if arguments.one is not None:
        one = _comparable('--one', arguments.one, settings, processes=1)
    if dist.get_world_size() > 1:
        # Before anything is on a GPU: each process has its own.
        dist.initialize_dist(settings['device'])
    elif arguments.processes > 1:
        # The process that starts the others leaves the GPUs to them.
        device = torch.device('cpu')
    workload = make_workload(
        arguments.model,
        batch_size=arguments.batch_size,
        image_size=arguments.image_size,
        num_classes=arguments.num_classes,
        device=device,
        precision=arguments.precision,
        channels_last=arguments.channels_last,
        compile_backend=arguments.compile,
        optimizer=arguments.optimizer,
        steps=UNTIMED + TIMED,
        seed=arguments.seed,
    )
    frozen = chosen_stages(arguments.stages, len(workload.units))
    if one is not None and one.measured != frozen:
        stages = ','.join(map(str, one.measured))
        raise Refused(f'--one: {arguments.one} was measured at other numbers of frozen units; use --stages {stages}')
    _prepare_folder(arguments.out, arguments.overwrite)
    savings = [None if other is None else float(other.saving('freezeout')[0]) for other in (eager, one)]
    return Task(workload, frozen, settings, *savings)
