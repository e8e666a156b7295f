"""Makes what is to be measured, and checks what only torch and the model can tell."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from composer.utils import dist

from composer_freezeout.costs.seconds import counts_to_measure
from composer_freezeout.run.faults import Refused, suggest
from composer_freezeout.step_time.command_line import check_precision, check_stages
from composer_freezeout.step_time.measure import TIMED, UNTIMED
from composer_freezeout.step_time.record import Conditions
from composer_freezeout.step_time.result import Result, load_result
from composer_freezeout.step_time.workload import Workload, make_workload

__all__ = ['Task', 'chosen_stages', 'prepare']


@dataclass(frozen=True)
class Task:
    """What is to be measured.

    Attributes:
        workload (Workload): What is trained.
        frozen (list[int]): Numbers of frozen units, ascending, each in ``[0, n)``.
        given (Conditions): What the record says of them.
        eager_saving (float, optional): What FreezeOut saves over a run in the record of ``--eager``; None without one.
        one_saving (float, optional): The same of ``--one``.
    """

    workload: Workload
    frozen: list[int]
    given: Conditions
    eager_saving: float | None
    one_saving: float | None


def prepare(arguments: argparse.Namespace) -> Task:
    """Makes what is measured.

    Args:
        arguments (argparse.Namespace): The command line, checked as far as that is possible without torch.

    Returns:
        Task: What is to be measured.

    Raises:
        Refused: If an argument is at fault.
        ConfigError: If there is no such model, or no memory for a step.
    """
    device = _device(arguments.device)
    _check_processes(arguments.processes, device)
    if device.type == 'cpu':
        check_precision(arguments.precision)
    _check_backend(arguments.compile)
    given = _conditions(arguments, device)
    eager = one = None
    if arguments.eager is not None:
        eager = _comparable('--eager', arguments.eager, given, compile=None)
    if arguments.one is not None:
        one = _comparable('--one', arguments.one, given, processes=1)
    if dist.get_world_size() > 1:
        # Before anything is on a GPU: each process has its own.
        dist.initialize_dist(given.device)
    elif arguments.processes > 1:
        # The process that starts the others leaves the GPUs to them.
        device = torch.device('cpu')
    workload = make_workload(given, device, UNTIMED + TIMED)
    frozen = chosen_stages(arguments.stages, len(workload.units))
    if one is not None and one.measured != frozen:
        stages = ','.join(map(str, one.measured))
        raise Refused(f'--one: {arguments.one} was measured at other numbers of frozen units; use --stages {stages}')
    savings = [None if other is None else float(other.saving('freezeout')[0]) for other in (eager, one)]
    return Task(workload, frozen, given, *savings)


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
    numbers = check_stages(text)
    if text is None:
        return counts_to_measure(num_units)
    if ',' in text:
        if numbers[-1] >= num_units:
            raise Refused(f'--stages: {numbers[-1]} of {num_units} units cannot be frozen; at most {num_units - 1} can')
        return numbers
    points = min(numbers[0], num_units)
    return sorted({round((num_units - 1) * point / max(1, points - 1)) for point in range(points)})


def _device(name: str) -> torch.device:
    if name == 'gpu' and not torch.cuda.is_available():
        raise Refused('--device: there is no GPU here; use cpu')
    return torch.device('cuda' if name == 'gpu' or (name == 'auto' and torch.cuda.is_available()) else 'cpu')


def _check_processes(processes: int, device: torch.device) -> None:
    started = dist.get_world_size()
    if started not in (1, processes):
        raise Refused(f'--processes: must be {started} in {started} processes that a launcher started, got {processes}')
    if device.type == 'cuda' and processes > torch.cuda.device_count():
        raise Refused(f'--processes: must be at most {torch.cuda.device_count()}, the number of GPUs, got {processes}')


def _check_backend(name: str | None) -> None:
    known = torch.compiler.list_backends(())
    if name is not None and name not in known:
        raise Refused(f'--compile: torch has no backend {name!r}; {suggest(name, known)}')


def _conditions(arguments: argparse.Namespace, device: torch.device) -> Conditions:
    return Conditions(
        model=arguments.model,
        batch_size=arguments.batch_size,
        image_size=arguments.image_size,
        num_classes=arguments.num_classes,
        device='gpu' if device.type == 'cuda' else 'cpu',
        processes=arguments.processes,
        precision=arguments.precision,
        channels_last=arguments.channels_last,
        compile=arguments.compile,
        optimizer=arguments.optimizer,
        seed=arguments.seed,
    )


def _comparable(option: str, folder: Path, given: Conditions, **other_settings: Any) -> Result:
    """The record of another run, which may have no other settings than those, and has to tell what a run saves."""
    try:
        other = load_result(folder)
    except Refused as error:
        raise Refused(f'{option}: {error}') from None
    if not other.ends:
        raise Refused(f'{option}: {folder} was not measured with 0 and {other.units - 1} units frozen')
    found = {**other.record.settings.model_dump(), 'threads': other.record.environment.hardware.threads}
    for name, expected in {**given.model_dump(), 'threads': torch.get_num_threads(), **other_settings}.items():
        if found[name] != expected:
            only = ', '.join(other_settings)
            raise Refused(
                f'{option}: {folder} was measured with {name} {found[name]!r}, not {expected!r}; '
                f'choose a record that differs in {only} only'
            )
    return other
