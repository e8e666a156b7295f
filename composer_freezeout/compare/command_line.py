"""What the commands compare, sweep and report share: readers of arguments, and how they end."""

import argparse
import importlib.util
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from composer_freezeout.run.arguments import count
from composer_freezeout.run.error_lines import told
from composer_freezeout.run.faults import Refused
from composer_freezeout.run.processes import Stopped, stoppable

if TYPE_CHECKING:
    from composer_freezeout.compare.training.executor import Executor

__all__ = [
    'MOST_SEEDS',
    'add_executor_options',
    'check_seeds',
    'duration',
    'executor',
    'exit_code',
    'number_of_seeds',
    'same_command',
    'scale_factor',
]

# More are a typing error: every run would take less than a second to be done within a year.
MOST_SEEDS = 10_000


def number_of_seeds(text: str, least: int = 1) -> int:
    """Reads a number of seeds.

    Args:
        text (str): The number.
        least (int): The least that is allowed.

    Returns:
        int: In ``[least, MOST_SEEDS]``.

    Raises:
        argparse.ArgumentTypeError: If it is something else.
    """
    # Python itself refuses to read a number of thousands of digits.
    if len(text) > 20 or count(text, least) > MOST_SEEDS:
        shown = text if len(text) <= 20 else f'{text[:20]}…'
        raise argparse.ArgumentTypeError(f'must be at most {MOST_SEEDS}, got {shown!r}')
    return count(text, least)


def check_seeds(option: str, seeds: range) -> None:
    """Makes sure that a run takes all of some seeds.

    Args:
        option (str): What they come from.
        seeds (range): The seeds.

    Raises:
        Refused: If one is out of range.
    """
    if seeds.stop > 2**32:
        raise Refused(f'{option}: the last seed would be {seeds.stop - 1}, but the largest is {2**32 - 1}; take fewer')


def duration(text: str) -> float:
    """Reads a length of time.

    Args:
        text (str): A number with ``s``, ``m`` or ``h``, such as ``30m``.

    Returns:
        float: Seconds, above 0.

    Raises:
        argparse.ArgumentTypeError: If it is something else.
    """
    match = re.fullmatch(r'(\d+(?:\.\d+)?)([smh])', text)
    seconds = float(match[1]) * {'s': 1, 'm': 60, 'h': 3600}[match[2]] if match else 0.0
    if not seconds:
        raise argparse.ArgumentTypeError(f"must be a time above 0 such as '90s', '30m' or '2h', got {text!r}")
    return seconds


def scale_factor(text: str) -> float:
    """Reads a factor on the length of runs.

    Args:
        text (str): A number.

    Returns:
        float: In ``(0, 1]``.

    Raises:
        argparse.ArgumentTypeError: If it is something else.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f'must be a number in (0, 1], such as 0.1, got {text!r}')
    return value


def add_executor_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say where runs are trained."""
    parser.add_argument(
        '--workers',
        type=count,
        metavar='N',
        help='how many runs are trained at once, each on its own GPU or cores (1)',
    )
    parser.add_argument(
        '--ray', metavar='ADDRESS', help="train on the Ray cluster there: 'auto', or host:port of its first node"
    )
    parser.add_argument('--cpus', type=count, metavar='N', help='of each training on a Ray cluster (1)')
    parser.add_argument(
        '--gpus', type=partial(count, least=0), metavar='N', help='of each training on a Ray cluster (1 if it has any)'
    )


def executor(arguments: argparse.Namespace, device: str) -> 'Executor':
    """Makes what trains the runs.

    Args:
        arguments (argparse.Namespace): Options of :func:`add_executor_options`.
        device (str): What the runs train on: ``auto``, ``cpu`` or ``gpu``.

    Returns:
        Executor: To be used in a ``with`` statement.

    Raises:
        Refused: If there is not what it would need.
    """
    # Imported here: torch and Ray take seconds, and a typing error should be told at once.
    if arguments.ray is not None:
        if importlib.util.find_spec('ray') is None:
            raise Refused("--ray: ray is not installed; pip install 'composer-freezeout[ray]'")
        from composer_freezeout.compare.training.on_ray import OnRay

        gpus = 0 if device == 'cpu' and arguments.gpus is None else arguments.gpus
        return OnRay(arguments.ray, arguments.cpus or 1, gpus, arguments.workers)
    for option in ('cpus', 'gpus'):
        if getattr(arguments, option) is not None:
            raise Refused(f'--{option}: is for trainings on a Ray cluster; give its address with --ray')
    from composer_freezeout.compare.training.executor import Local
    from composer_freezeout.compare.training.places import places, usable_cores, visible_gpus

    return Local(places(arguments.workers or 1, [] if device == 'cpu' else visible_gpus(), usable_cores()))


def same_command(name: str, argv: Sequence[str]) -> str:
    """What to type to go on: the command without what would begin anew."""
    return shlex.join(['composer-freezeout', name, *(argument for argument in argv if argument != '--overwrite')])


def exit_code(action: Callable[[], int], command: str) -> int:
    """Does what a command is asked for, and tells in a line why it could not.

    Args:
        action (Callable[[], int]): What to do; returns the exit code.
        command (str): What to type to go on.

    Returns:
        int: The exit code; 2 if the command line, a file or the machine is at fault; 128 and the number of the signal
        that ended it.
    """
    tell = partial(print, sep='\n', file=sys.stderr)
    try:
        with stoppable():
            return action()
    except Stopped as error:
        tell(f'stopped; to go on: {command}')
        return 128 + error.signal_number
    except ValueError as error:  # Refused and ConfigError, which are lines
        tell(error)
    except Exception as error:
        line = told(error)
        if line is None:
            raise
        tell(f'{line}; what is finished is kept, to go on: {command}')
    return 2
