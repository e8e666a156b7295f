"""Measures what a training step takes with ``k`` frozen units, in five ways that differ in who freezes.

``composer-freezeout step-time --model resnet56 --out runs/step_time/resnet56``

``loop`` is a hand-written PyTorch loop in which the first ``k`` units are frozen by hand: what can be saved. ``bound``
is the same with all that needs no gradient as an inference graph, BatchNorm folded into the convolutions: no step with
``k`` frozen units needs more. ``freezeout`` is Composer's Trainer with FreezeOut; ``layer_freezing`` with as many
parameters frozen as Composer's LayerFreezing freezes them; ``composer`` has no algorithm.

All of them and all ``k`` take turns in one process, in an order that is random in each round, so that a machine that
slows down slows them all. On the way they are made anew a few times: where one lies in memory makes some of its speed.
A turn is a step that is thrown away and two that are timed, each up to the end of what it
has enqueued on the device. Data are in memory before a step begins. With 0 units frozen ``bound`` is ``loop``, and
``layer_freezing`` is ``composer``: their difference shows the noise.

With ``--processes N`` the command starts N processes, which exchange gradients under DistributedDataParallel. The batch
of each is as large as that of a single one, and all take the same turns; times are those of the first.
``loop`` and ``bound`` are wrapped once they are frozen; the others by Composer. ``layer_freezing`` is not quite
``composer`` then: LayerFreezing has DDP look for unused parameters in every step.

Beside times there are counts, which are the same on every machine. FOLDER/step_time.json has everything;
``--plot-only FOLDER`` writes the summary and the plot anew from it; ``--table FOLDER …`` prints several side by side.
"""

import argparse
import ctypes
import gc
import math
import random
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from composer.utils import dist
from rich.console import Console

from composer_freezeout.costs.seconds import counts_to_measure
from composer_freezeout.run.config import ConfigError
from composer_freezeout.run.processes import Stopped, execute, stoppable
from composer_freezeout.run.record import environment, json_safe, write_json
from composer_freezeout.step_time.counts import (
    Clock,
    compiled_graphs,
    count_memory,
    count_step,
    count_traffic,
    measure_on_gpu,
)
from composer_freezeout.step_time.report import side_by_side, write_report
from composer_freezeout.step_time.result import RECORD, Result, bars, load_result
from composer_freezeout.step_time.variants import VARIANTS, InComposer, InLoop, VariantName, make_variant
from composer_freezeout.step_time.workload import OPTIMIZERS, TRANSFORMER, Variant, Workload, make_workload

FORMAT = 1
# What a launcher starts in each of several processes.
MODULE = 'composer_freezeout.step_time'
# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
# Steps of a turn: those thrown away, and those timed.
UNTIMED, TIMED = 1, 2
# Each variant may freeze, compile, and make the optimizer's state; the second round compiles what a freeze made void.
WARM_UP_ROUNDS = 2


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


@dataclass
class Turns:
    """The steps of one variant with some units frozen.

    Attributes:
        name (VariantName): The variant.
        units_frozen (int): In ``[0, n)``.
        row (dict[str, Any]): What the record says of it.
        variant (Variant, optional): As long as there is one.
    """

    name: VariantName
    units_frozen: int
    row: dict[str, Any]
    variant: Variant | None = None

    def begin(self, workload: Workload) -> None:
        """Makes the variant."""
        self.variant = make_variant(workload, self.name, self.units_frozen)
        self.row['seconds'].append([])

    def visit(self, device: torch.device) -> list[float]:
        """Takes a turn.

        Returns:
            list[float]: Seconds of the timed steps.
        """
        assert self.variant is not None
        clock = Clock(device)
        if dist.get_world_size() > 1:
            # The first to come would wait for the others within its step.
            dist.barrier()
        self.variant.visit(clock)
        return clock.seconds[UNTIMED:]

    def end(self) -> None:
        """Notes what the variant says of itself, and ends it."""
        if isinstance(self.variant, InLoop):
            self.row |= {'norms_folded': self.variant.norms_folded, 'norms_unfolded': self.variant.norms_unfolded}
        if isinstance(self.variant, InComposer):
            self.row |= {'layers_frozen': self.variant.layers_frozen}
            if self.name == 'freezeout':
                steps = self.variant.algorithm_seconds[WARM_UP_ROUNDS * (UNTIMED + TIMED) :]
                timed = [s for index, s in enumerate(steps) if index % (UNTIMED + TIMED) >= UNTIMED]
                self.row.setdefault('algorithm_seconds', []).extend(timed)
                self.row.setdefault('algorithm_seconds_alone', []).extend(self.variant.algorithm_alone())
        assert self.variant is not None
        self.variant.close()
        self.variant = None


def measure(
    workload: Workload, frozen: Sequence[int], restarts: int, rounds: int, seed: int, console: Console
) -> dict[str, Any]:
    """Counts and times all variants.

    Args:
        workload (Workload): What is trained.
        frozen (Sequence[int]): Numbers of frozen units, each in ``[0, n)``.
        restarts (int): How often each variant is made, in ``[1, ∞)``.
        rounds (int): How many turns each has every time, in ``[1, ∞)``.
        seed (int): Of the order.
        console (Console): Where progress is told.

    Returns:
        dict[str, Any]: ``rows`` and ``graphs_while_timed`` of the record.
    """
    keys: list[tuple[VariantName, int]] = [
        (name, k) for name in VARIANTS for k in ([0] if name == 'composer' else frozen)
    ]
    console.print(f'Counting in {len(keys)} variants of a step.', highlight=False)
    turns = []
    for name, k in keys:
        make = partial(make_variant, name=name, units_frozen=k)
        counts = count_step(make, workload)
        counts |= (measure_on_gpu if workload.device.type == 'cuda' else count_memory)(make, workload)
        if dist.get_world_size() > 1:
            counts |= count_traffic(make, workload)
        turns.append(Turns(name, k, {'variant': name, 'units_frozen': k, 'counts': counts, 'seconds': []}))
    graphs, shuffler = 0, random.Random(seed)
    for restart in range(restarts):
        console.print(f'Warming up, {restart + 1} of {restarts}.', highlight=False)
        # Where a variant lies in memory makes some of its speed.
        for turn in shuffler.sample(turns, len(turns)):
            turn.begin(workload)
        _warm_up(turns, workload)
        before = compiled_graphs()
        for number in range(rounds):
            console.print(f'Round {number + 1} of {rounds}.', highlight=False)
            # Collecting garbage takes long where there are so many objects, and would hit steps at random.
            gc.collect()
            gc.disable()
            try:
                for turn in shuffler.sample(turns, len(turns)):
                    turn.row['seconds'][-1].append(turn.visit(workload.device))
            finally:
                gc.enable()
        graphs += compiled_graphs() - before
        for turn in turns:
            turn.end()
    return {'rows': [turn.row for turn in turns], 'graphs_while_timed': graphs}


def _warm_up(turns: Sequence[Turns], workload: Workload) -> None:
    for _ in range(WARM_UP_ROUNDS):
        # FreezeOut does so for the whole process when units freeze, which they all have done before the last round.
        torch.compiler.reset()
        for turn in turns:
            before = compiled_graphs()
            turn.visit(workload.device)
            if workload.compile_backend is not None:
                turn.row['counts']['graphs'] = compiled_graphs() - before


def keep_memory() -> bool:
    """Has the C library keep the memory of freed tensors, instead of returning it to the system and asking for it anew.

    When it does so depends on what happens to lie behind them: variants that do the same would differ by a tenth.

    Returns:
        bool: Whether it can be told so; only GNU's can.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


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


def run(task: Task, arguments: argparse.Namespace, command: str, console: Console) -> None:
    """Measures, and writes the record.

    Args:
        task (Task): What is measured.
        arguments (argparse.Namespace): The command line.
        command (str): The same as text.
        console (Console): Where progress is told.
    """
    workload = task.workload
    if arguments.compile is not None:
        # Every variant compiles the same functions, and torch would soon give up on them.
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 10_000
    rounds = math.ceil(arguments.repeats / TIMED / arguments.restarts)
    record = {
        'format': FORMAT,
        'command': command,
        'settings': task.settings,
        'environment': environment(),
        'units': [
            {
                'name': unit.name,
                'parameters': sum(workload.model.get_parameter(name).numel() for name in unit.parameters),
            }
            for unit in workload.units
        ],
        'memory_kept': keep_memory(),
        'eager_saving': task.eager_saving,
        'one_saving': task.one_saving,
        **measure(workload, task.frozen, arguments.restarts, rounds, arguments.seed, console),
    }
    if dist.get_global_rank() == 0:
        write_json(arguments.out / RECORD, json_safe(record))


def launch(processes: int, argv: Sequence[str]) -> int:
    """Starts this command in several processes, and waits for them.

    Args:
        processes (int): How many, in ``[2, ∞)``.
        argv (Sequence[str]): The command line.

    Returns:
        int: 0 if none of them failed; 128 and the number of the signal that ended this process.
    """
    try:
        # Composer has taken over SIGTERM when it was imported.
        with stoppable():
            return execute([sys.executable, '-m', 'composer', '-n', str(processes), '-m', MODULE, *argv])
    except Stopped as error:
        return 128 + error.signal_number


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be a whole number above 0, got {text!r}')
    return int(text)


def _several(text: str) -> int:
    if _count(text) < 2:
        raise argparse.ArgumentTypeError(f'must be at least 2, got {text!r}')
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='composer-freezeout step-time', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--model', help=f'resnet8, resnet56, densenet_bc, wrn, …, a network of torchvision, or {TRANSFORMER}'
    )
    parser.add_argument('--batch-size', type=_several, default=128, metavar='N', help='(128)')
    parser.add_argument('--image-size', type=_count, default=32, metavar='PIXELS', help='(32)')
    parser.add_argument('--num-classes', type=_several, default=10, metavar='N', help='(10)')
    parser.add_argument('--device', choices=['auto', 'cpu', 'gpu'], default='auto', help='(auto)')
    parser.add_argument(
        '--processes',
        type=_count,
        default=1,
        metavar='N',
        help='how many train together, each with --batch-size images (1)',
    )
    parser.add_argument('--precision', choices=['fp32', 'amp_bf16'], default='fp32', help='(fp32)')
    parser.add_argument('--channels-last', action='store_true', help='memory format of images and weights')
    parser.add_argument('--optimizer', choices=list(OPTIMIZERS), default='sgd', help='(sgd)')
    parser.add_argument(
        '--compile', nargs='?', const='inductor', metavar='BACKEND', help='torch.compile, by default with inductor'
    )
    parser.add_argument('--eager', type=Path, metavar='FOLDER', help='record to compare a compiled run with')
    parser.add_argument('--one', type=Path, metavar='FOLDER', help='record of one process to compare several with')
    parser.add_argument('--stages', metavar='K,K,…', help='numbers of frozen units, or how many, evenly spread (10)')
    parser.add_argument('--repeats', type=_count, default=20, metavar='N', help='timed steps of each (20)')
    parser.add_argument(
        '--restarts',
        type=_count,
        default=4,
        metavar='N',
        help='how often each is made anew and warmed up on the way (4)',
    )
    parser.add_argument('--seed', type=int, default=17, help='of weights, images and the order of turns (17)')
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument('--out', type=Path, metavar='FOLDER', help='folder for the results')
    target.add_argument('--plot-only', type=Path, metavar='FOLDER', help='write summary and plot anew from a record')
    target.add_argument(
        '--table', type=Path, nargs='+', metavar='FOLDER', help='print the bars of records side by side, as Markdown'
    )
    parser.add_argument('--overwrite', action='store_true', help='replace the record that the folder holds')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, and prints how the bars were met and the paths of the report.

    Args:
        argv (Sequence[str], optional): Command line. Default: the process's.

    Returns:
        int: 0; 2 if an argument or the record is at fault; another one if one of several processes failed.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = _parser()
    arguments = parser.parse_args(argv)
    folder: Path = arguments.out or arguments.plot_only
    if arguments.out is not None and arguments.model is None:
        parser.error('--out needs --model')
    console = Console(quiet=dist.get_global_rank() > 0)
    shown = (argument for argument in argv if argument != '--overwrite')
    command = shlex.join(['composer-freezeout', 'step-time', *shown])
    try:
        if arguments.table is not None:
            print(side_by_side([load_result(folder) for folder in arguments.table]), end='')
            return 0
        if arguments.plot_only is None:
            task = prepare(arguments)
            if dist.get_world_size() < arguments.processes:
                return launch(arguments.processes, argv)
            run(task, arguments, command, console)
            if dist.get_global_rank() > 0:
                return 0
        result = load_result(folder)
        paths = write_report(result, folder)
    except (ConfigError, Refused, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f'{error.filename} cannot be written: {error.strerror}', file=sys.stderr)
        return 2
    for bar in bars(result):
        value = 'not measured' if bar.value is None else bar.form.format(bar.value)
        verdict = {True: 'met', False: 'not met', None: bar.note}[bar.met]
        console.print(f'{bar.name}: {value} ({verdict})', markup=False, highlight=False, soft_wrap=True)
    for path in paths:
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
