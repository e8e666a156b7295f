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
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from composer.utils import dist
from rich.console import Console

from composer_freezeout.results.environment import environment
from composer_freezeout.results.files import write_json
from composer_freezeout.run.faults import ConfigError
from composer_freezeout.run.processes import Stopped, execute, stoppable
from composer_freezeout.step_time.bars import bars
from composer_freezeout.step_time.measure import TIMED, keep_memory, measure
from composer_freezeout.step_time.prepare import Refused, Task, prepare
from composer_freezeout.step_time.report import side_by_side, write_report
from composer_freezeout.step_time.result import RECORD, load_result
from composer_freezeout.step_time.workload import OPTIMIZERS, TRANSFORMER

FORMAT = 1
# What a launcher starts in each of several processes.
MODULE = 'composer_freezeout.step_time'


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
        write_json(arguments.out / RECORD, record)


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
