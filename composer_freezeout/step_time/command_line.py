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
from functools import partial
from pathlib import Path

from composer_freezeout.run.arguments import count
from composer_freezeout.run.faults import Refused
from composer_freezeout.step_time.result import RECORD

__all__ = ['OPTIMIZER_NAMES', 'TRANSFORMER', 'check', 'check_precision', 'check_stages', 'parser']

TRANSFORMER = 'vit_small'
OPTIMIZER_NAMES = ['sgd', 'adamw']

# What torch takes as a size, and as a seed.
_LARGEST_SIZE, _LARGEST_SEED = 2**31 - 1, 2**63 - 1
# A number with more digits is no number of units.
_DIGITS = 9


def parser() -> argparse.ArgumentParser:
    """The command's parser."""
    parser = argparse.ArgumentParser(
        prog='composer-freezeout step-time', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--model', help=f'resnet8, resnet56, densenet_bc, wrn, …, a network of torchvision, or {TRANSFORMER}'
    )
    parser.add_argument('--batch-size', type=partial(count, least=2), default=128, metavar='N', help='(128)')
    parser.add_argument('--image-size', type=count, default=32, metavar='PIXELS', help='(32)')
    parser.add_argument('--num-classes', type=partial(count, least=2), default=10, metavar='N', help='(10)')
    parser.add_argument('--device', choices=['auto', 'cpu', 'gpu'], default='auto', help='(auto)')
    parser.add_argument(
        '--processes',
        type=count,
        default=1,
        metavar='N',
        help='how many train together, each with --batch-size images (1)',
    )
    parser.add_argument('--precision', choices=['fp32', 'amp_bf16'], default='fp32', help='(fp32)')
    parser.add_argument('--channels-last', action='store_true', help='memory format of images and weights')
    parser.add_argument('--optimizer', choices=OPTIMIZER_NAMES, default='sgd', help='(sgd)')
    parser.add_argument(
        '--compile', nargs='?', const='inductor', metavar='BACKEND', help='torch.compile, by default with inductor'
    )
    parser.add_argument('--eager', type=Path, metavar='FOLDER', help='record to compare a compiled run with')
    parser.add_argument('--one', type=Path, metavar='FOLDER', help='record of one process to compare several with')
    parser.add_argument('--stages', metavar='K,K,…', help='numbers of frozen units, or how many, evenly spread (10)')
    parser.add_argument('--repeats', type=count, default=20, metavar='N', help='timed steps of each (20)')
    parser.add_argument(
        '--restarts',
        type=count,
        default=4,
        metavar='N',
        help='how often each is made anew and warmed up on the way (4)',
    )
    parser.add_argument(
        '--seed', type=partial(count, least=0), default=17, help='of weights, images and the order of turns (17)'
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument('--out', type=Path, metavar='FOLDER', help='folder for the results')
    target.add_argument('--plot-only', type=Path, metavar='FOLDER', help='write summary and plot anew from a record')
    target.add_argument(
        '--table', type=Path, nargs='+', metavar='FOLDER', help='print the bars of records side by side, as Markdown'
    )
    parser.add_argument('--overwrite', action='store_true', help='replace the record that the folder holds')
    return parser


def check(arguments: argparse.Namespace) -> None:
    """Checks what can be checked of a measurement without torch, whose import takes seconds.

    Args:
        arguments (argparse.Namespace): The command line.

    Raises:
        Refused: If an argument is at fault.
    """
    if arguments.device == 'cpu':
        check_precision(arguments.precision)
    if arguments.eager is not None and arguments.compile is None:
        raise Refused('--eager: only a compiled run is compared with an eager one; add --compile')
    if arguments.one is not None and arguments.processes == 1:
        raise Refused('--one: only a run of several processes is compared with one of one process; add --processes')
    largest = {'seed': _LARGEST_SEED} | dict.fromkeys(('batch_size', 'image_size', 'num_classes'), _LARGEST_SIZE)
    for name, most in largest.items():
        if (value := getattr(arguments, name)) > most:
            raise Refused(f'--{name.replace("_", "-")}: must be at most {most}, got {value}')
    check_stages(arguments.stages)
    if (arguments.out / RECORD).exists() and not arguments.overwrite:
        raise Refused(f'--out: {arguments.out / RECORD} is there already; choose another folder, or use --overwrite')


def check_precision(precision: str) -> None:
    """Checks the precision of a measurement on a CPU.

    Args:
        precision (str): Composer's name of the precision.

    Raises:
        Refused: If Composer has none such there.
    """
    if precision != 'fp32':
        raise Refused(f'--precision: Composer has no {precision} on a CPU; use fp32')


def check_stages(text: str | None) -> list[int]:
    """Reads the numbers of ``--stages``.

    Args:
        text (str, optional): Numbers with commas between them, or a count of at least 2; None for the default.

    Returns:
        list[int]: Ascending; one number if it is a count, none for the default.

    Raises:
        Refused: If it is neither.
    """
    if text is None:
        return []
    parts = [part.strip() for part in text.split(',')]
    if not all(part.isdecimal() and len(part) <= _DIGITS for part in parts):
        shown = repr(text if len(text) <= 60 else f'{text[:57]}...')
        raise Refused(f'--stages: must be numbers with commas between them, such as 0,10,55, or a count, got {shown}')
    if len(parts) == 1 and int(text) < 2:
        raise Refused(f'--stages: a count must be at least 2, got {int(text)}; numbers have commas, such as 0,1')
    return sorted({int(part) for part in parts})
