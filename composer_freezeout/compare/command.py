"""Trains every arm of a family with several seeds and compares them.

``composer-freezeout compare quickstart --out runs/quickstart``

A family is a folder, or the name of one that is installed. An arm is a YAML file in it, or derived from such files:
``baseline_short`` is the baseline with its schedule compressed into the time that ``freezeout`` took,
``baseline_short_cost_aware`` the same for ``freezeout_cost_aware``, ``layer_freezing_matched`` is Composer's
LayerFreezing with ``freeze_start`` solved so that it is predicted to save what ``freezeout`` is. ``baseline_0.75`` is
the baseline with its schedule compressed to 75 % of its batches. Baselines of several lengths make a curve, and every
arm that freezes is judged by that curve in the arm's own time; by default there are four, chosen so that they bracket
the times that are predicted for the arms (``--lengths``).

Every run is a process of its own. The runs are interleaved: all arms with the first seed, then all with the next, in an
order that moves on by one, so that a machine that slows down slows all arms down alike. The length of a shortened
baseline in a round comes from the mean times of ``baseline`` and its arm up to that round: waiting for all of them
would put all its runs at the end. So its length may differ a little between seeds; each record has its own.

Where other processes held up some arms more than others, which shows in the CPU time that they got, CPU times are
compared in place of wall-clock, or nothing is judged; the report says so.

A family with a ``pretrain.yaml`` fine-tunes: that run is done first, into the folder of the results, and all arms begin
with its weights. ``pretrain.KEY=VALUE`` lays over that file, ``model.weights=FILE`` takes other weights instead. There
``static`` is the baseline with as many of its first layers frozen from the start as save what ``freezeout`` does,
``static_0.25`` with as many as save 25 %, and ``head_only`` trains the last layer only.

What has been finished is not done again: after an interruption, the same command goes on.

``--workers`` trains several runs at once, ``--ray`` on the machines of a Ray cluster; with ``--only`` and ``--seed`` a
command trains one run, so that a job array can train all.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from composer_freezeout.compare.arms.curve import curve_lengths, lengths_for, with_lengths
from composer_freezeout.compare.arms.dry_run import Data
from composer_freezeout.compare.arms.family import Arm, choose_arms, family_arms, read_arms
from composer_freezeout.compare.arms.known import length_of
from composer_freezeout.compare.command_line import (
    add_executor_options,
    check_seeds,
    executor,
    exit_code,
    number_of_seeds,
    same_command,
    scale_factor,
)
from composer_freezeout.compare.judging.comparison import load
from composer_freezeout.compare.judging.manifest import new_manifest
from composer_freezeout.compare.training.folder import check_folder, claimed, prepare_folder
from composer_freezeout.compare.training.ongoing import OngoingComparison, clear
from composer_freezeout.compare.training.pretraining import with_weights
from composer_freezeout.compare.training.rounds import run_all
from composer_freezeout.run.arguments import count
from composer_freezeout.run.families import find_family, names
from composer_freezeout.run.faults import Refused
from composer_freezeout.run.plugins import add_import_option, load_plugins
from composer_freezeout.run.processes import stoppable
from composer_freezeout.run.threads import settle_threads

__all__ = ['main']


def _report(out: Path, allow_mixed: bool, console: Console) -> None:
    """Writes the report and prints the table.

    Args:
        out (Path): Folder of the results.
        allow_mixed (bool): Whether runs may differ in more than the arm.
        console (Console): Where the table goes.

    Raises:
        Refused: If the runs cannot be compared.
    """
    # Imported here: plots and tables are needed at the end only.
    from composer_freezeout.compare.report.markup import HTML
    from composer_freezeout.compare.report.page import write_report
    from composer_freezeout.compare.report.sentences import conclusion
    from composer_freezeout.compare.report.terminal import comparison_table

    comparison = load(out, allow_mixed)
    write_report(comparison, out)
    console.print()
    console.print(comparison_table(comparison))
    for line in (*conclusion(comparison), f'Report: {out / HTML}'):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='composer-freezeout compare', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    families = ', '.join(names())
    parser.add_argument('family', help=f'folder with a YAML file per arm, or a family that is installed: {families}')
    parser.add_argument(
        '--out', type=Path, help='folder of results, whose runs are taken over (runs/FAMILY-comparison)'
    )
    parser.add_argument(
        '--seeds', type=number_of_seeds, default=1, metavar='N', help="how many, from the files' seed on (1)"
    )
    parser.add_argument(
        '--arms', metavar='A,B,…', help='these arms and no others (all, and four lengths of the baseline)'
    )
    parser.add_argument(
        '--lengths',
        type=curve_lengths,
        metavar='L,M,…',
        help="lengths of the baseline that arms are judged by, as '0.6,0.8'; 'auto' for four that fit the arms; 'none'",
    )
    parser.add_argument(
        '--scale', type=scale_factor, default=1.0, metavar='S', help='factor on epochs and their batches (1)'
    )
    add_import_option(parser)
    add_executor_options(parser)
    parser.add_argument(
        '--only', metavar='ARM', help='train one run of this arm, with --seed; several such commands may share --out'
    )
    parser.add_argument('--seed', type=partial(count, least=0), metavar='S', help='of the only run')
    parser.add_argument('--overwrite', action='store_true', help='train again what the folder already holds')
    parser.add_argument('--allow-mixed', action='store_true', help='go on with runs of other versions or hardware')
    parser.add_argument('overrides', nargs='*', metavar='key=value', help='laid over the file of every arm')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, compares, and prints the table and the path of the report.

    Args:
        argv (Sequence[str], optional): Command line. Default: the process's.

    Returns:
        int: 0; 1 if a run failed; 2 if the command, a file or what is in the folder is at fault; 128 and the number of
        the signal that ended it.
    """
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_intermixed_args(argv)
    if arguments.out is None:
        # Beside the folders that the family's own files name: a run in one of these is not taken over.
        arguments.out = Path('runs', f'{Path(arguments.family).resolve().name}-comparison')
    command = same_command('compare', argv)
    settle_threads()

    def compare() -> int:
        load_plugins(arguments.imports)
        if (arguments.only is None) != (arguments.seed is None):
            raise Refused('--only ARM and --seed S go together: they name one run; for several, --arms and --seeds')
        with claimed(arguments.out, shared=arguments.only is not None):
            return _compare(arguments, command) if arguments.only is None else _compare_only(arguments, command)

    return exit_code(compare, command)


def _compare(arguments: argparse.Namespace, command: str) -> int:
    console, out = Console(), arguments.out
    comparison = _prepared(arguments, command, console)
    trained = executor(arguments, comparison.arms[0].config.device)
    if not arguments.allow_mixed:
        comparison.check_environment(trained)
    for arm in comparison.arms:
        if arm.note:
            console.print(f'{arm.name}: {arm.note}', markup=False, highlight=False, soft_wrap=True)
    # Composer has taken over SIGTERM when it was imported.
    with stoppable(), trained:
        missing = run_all(comparison, trained, console)
    # Without it there is nothing to compare with.
    if comparison.has_baseline:
        _report(out, arguments.allow_mixed, console)
    if missing:
        runs = '1 run has' if missing == 1 else f'{missing} runs have'
        print(f'{runs} no record; to try again: {command}', file=sys.stderr)
    return 1 if missing else 0


def _prepared(arguments: argparse.Namespace, command: str, console: Console) -> OngoingComparison:
    """What is to be run, with the finished runs that the folder holds."""
    out, family = arguments.out, find_family(arguments.family)
    arm_names = choose_arms(family_arms(family), arguments.arms)
    if not arguments.overwrite:
        check_folder(out)
    overrides = with_weights(
        family,
        out,
        arguments.overrides,
        lambda overrides: read_arms(family, arm_names, overrides, arguments.scale),
        lambda device: executor(arguments, device),
        console,
        anew=arguments.overwrite and arguments.only is None,
    )
    arms, data = read_arms(family, arm_names, overrides, arguments.scale)
    arms = with_lengths(arms, _lengths(arguments, arms, data), data)
    first, number = (arms[0].config.seed, arguments.seeds) if arguments.seed is None else (arguments.seed, 1)
    seeds = range(first, first + number)
    check_seeds('--seeds' if arguments.seed is None else '--seed', seeds)
    manifest = new_manifest(family, [arm.name for arm in arms], seeds, arguments.scale, overrides, command)
    if arguments.only is None:
        manifest = prepare_folder(out, manifest, arguments.overwrite)
    comparison = OngoingComparison(out, arms, data, seeds, manifest)
    if arguments.overwrite and arguments.only is None:
        clear(comparison)
    comparison.take_over()
    return comparison


def _lengths(arguments: argparse.Namespace, arms: Sequence[Arm], data: Data) -> list[float]:
    """Lengths of the baseline that are trained besides the whole one."""
    if arguments.only is not None:
        return [] if (length := length_of(arguments.only)) is None else [length]
    return lengths_for(arguments.lengths, arguments.arms is None, arms, data)


def _compare_only(arguments: argparse.Namespace, command: str) -> int:
    """Trains one run; the report is left to ``composer-freezeout report``."""
    from composer_freezeout.compare.training.single import run_one

    console = Console()
    comparison = _prepared(arguments, command, console)
    trained = executor(arguments, comparison.arms[0].config.device)
    if not arguments.allow_mixed:
        comparison.check_environment(trained)
    with stoppable(), trained:
        missing = run_one(comparison, arguments.only, arguments.overwrite, trained, console)
    if missing:
        print(f'the run has no record; to try again: {command}', file=sys.stderr)
    else:
        line = f'When all runs are there: composer-freezeout report {arguments.out}'
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return int(missing)


if __name__ == '__main__':
    sys.exit(main())
