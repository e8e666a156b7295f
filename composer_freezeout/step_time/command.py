"""``composer-freezeout step-time``: measures, and reports. What it measures stands in :mod:`.command_line`."""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console

from composer_freezeout.results.files import make_folder, try_folder, write_json
from composer_freezeout.run.error_lines import told
from composer_freezeout.run.faults import ConfigError, Refused
from composer_freezeout.run.processes import Stopped, execute, rank, stoppable
from composer_freezeout.run.threads import settle_threads
from composer_freezeout.step_time.command_line import check, parser
from composer_freezeout.step_time.record import FORMAT, Measurement
from composer_freezeout.step_time.result import RECORD, Result, load_result

if TYPE_CHECKING:
    from composer_freezeout.step_time.prepare import Task

__all__ = ['launch', 'main']

T = TypeVar('T')

# What a launcher starts in each of several processes.
MODULE = 'composer_freezeout.step_time'


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, and prints how the bars were met and the paths of the report.

    Args:
        argv (Sequence[str], optional): Command line. Default: the process's.

    Returns:
        int: 0; 2 if an argument or the record is at fault, or a file can't be written; another one if one of several
        processes failed.
    """
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parsed(argv)
    console = Console(quiet=rank() > 0)
    try:
        if arguments.table is not None:
            return _print_table(arguments.table)
        if arguments.plot_only is not None:
            _report(load_result(arguments.plot_only), arguments.plot_only, console)
            return 0
        return _measure(arguments, argv, console)
    except ConfigError as error:
        _tell([': '.join(filter(None, _as_option(*fault))) for fault in error.faults])
    except Refused as error:
        _tell(error.lines)
    except Exception as error:
        line = told(error)
        if line is None:
            raise
        _tell([line])
    return 2


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    reader = parser()
    arguments = reader.parse_args(argv)
    if arguments.out is not None and arguments.model is None:
        reader.error('--out needs --model')
    return arguments


def _tell(lines: Sequence[str]) -> None:
    print(*lines, sep='\n', file=sys.stderr)


def _as_option(path: str, message: str) -> tuple[str, str]:
    """What a fault of a configuration is on the command line."""
    options = {'model': '--model', 'model.name': '--model', 'model.num_classes': '--num-classes'}
    return options.get(path, path), message


def _writable(write: Callable[[], T]) -> T:
    """Writes; what stands in the way is told as a fault of the command line."""
    try:
        return write()
    except OSError as error:
        raise Refused(f'--out: {error.filename} cannot be written: {error.strerror}; choose another folder') from None


def _print_table(folders: Sequence[Path]) -> int:
    results = [load_result(folder) for folder in folders]
    from composer_freezeout.step_time.report import side_by_side

    print(side_by_side(results), end='')
    return 0


def _measure(arguments: argparse.Namespace, argv: Sequence[str], console: Console) -> int:
    check(arguments)
    _writable(lambda: try_folder(arguments.out))
    # Before torch is imported, which is too late; processes that are started inherit it.
    settle_threads()
    from composer_freezeout.step_time.prepare import prepare

    task = prepare(arguments)
    # Not before all else was in order: a mistake leaves no folder.
    _writable(lambda: make_folder(arguments.out))
    if int(os.environ.get('WORLD_SIZE', '1')) < arguments.processes:
        return launch(arguments.processes, argv)
    record = _record(task, arguments, argv, console)
    if rank() == 0:
        _writable(lambda: write_json(arguments.out / RECORD, record.model_dump()))
        _report(load_result(arguments.out), arguments.out, console)
    return 0


def _record(task: 'Task', arguments: argparse.Namespace, argv: Sequence[str], console: Console) -> Measurement:
    from composer_freezeout.results.environment import environment
    from composer_freezeout.step_time.measure import measure
    from composer_freezeout.step_time.memory import keep_memory

    model = task.workload.model
    shown = (argument for argument in argv if argument != '--overwrite')
    content: dict[str, Any] = {
        'format': FORMAT,
        'command': shlex.join(['composer-freezeout', 'step-time', *shown]),
        'settings': task.given.model_dump(),
        'environment': environment(),
        'units': [
            {'name': unit.name, 'parameters': sum(model.get_parameter(name).numel() for name in unit.parameters)}
            for unit in task.workload.units
        ],
        'memory_kept': keep_memory(),
        'eager_saving': task.eager_saving,
        'one_saving': task.one_saving,
        **measure(task.workload, task.frozen, arguments.restarts, arguments.repeats, arguments.seed, console),
    }
    return Measurement.model_validate(content)


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


def _report(result: Result, folder: Path, console: Console) -> None:
    from composer_freezeout.step_time.bars import bars
    from composer_freezeout.step_time.report import write_report

    paths = _writable(lambda: write_report(result, folder))
    for bar in bars(result):
        value = 'not measured' if bar.value is None else bar.form.format(bar.value)
        verdict = {True: 'met', False: 'not met', None: bar.note}[bar.met]
        console.print(f'{bar.name}: {value} ({verdict})', markup=False, highlight=False, soft_wrap=True)
    for path in paths:
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)


if __name__ == '__main__':
    sys.exit(main())
