"""Explores the settings of FreezeOut, and judges the best against baselines of several lengths.

``composer-freezeout sweep quickstart --trials 20 --out runs/sweep``

Optuna looks for settings with a high accuracy, or what else runs are compared by, and a high saving on the choosing
seeds. The saving is the one predicted from FLOPs: it is the same on a busy machine, and what it leaves out shows when
times are measured. The settings that no other beats in both, and the family's own, are then trained with the judging
seeds, which no choice was made by, next to baselines with their schedules compressed to 60 % of the duration and more,
in fine-tuning to 30 % and more. A setting is worth its while if it lies above the curve through these baselines: better
than a baseline in the same training time.

What has been finished is not done again: after an interruption, the same command goes on.
"""

import argparse
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from rich.console import Console

from composer_freezeout.compare.arms.family import Arm, read_arms
from composer_freezeout.compare.arms.known import BASELINE, FREEZEOUT
from composer_freezeout.compare.command_line import (
    add_executor_options,
    check_seeds,
    duration,
    executor,
    exit_code,
    number_of_seeds,
    same_command,
)
from composer_freezeout.compare.judging.reading import read
from composer_freezeout.compare.judging.score import BY_ACCURACY, Score
from composer_freezeout.compare.sweep.report import FORMAT, RESULT, TABLE, Search, Trial, report
from composer_freezeout.compare.sweep.results import results
from composer_freezeout.compare.sweep.settings import chosen
from composer_freezeout.compare.training.folder import claimed, clear_folder
from composer_freezeout.compare.training.pretraining import with_weights
from composer_freezeout.results.differences import differences
from composer_freezeout.results.files import json_safe, write_json
from composer_freezeout.results.record import ACCURACY
from composer_freezeout.run.arguments import count
from composer_freezeout.run.families import PRETRAIN, find_family, names
from composer_freezeout.run.faults import Refused
from composer_freezeout.run.plugins import add_import_option, load_plugins
from composer_freezeout.run.processes import stoppable
from composer_freezeout.run.threads import settle_threads

if TYPE_CHECKING:
    from composer_freezeout.compare.sweep.search import Sweep
    from composer_freezeout.compare.training.executor import Executor

__all__ = ['check_folder', 'identity', 'main', 'prepare_folder']


class _Begun(BaseModel):
    """What ``sweep.json`` says as soon as a sweep has begun."""

    identity: dict[str, Any]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='composer-freezeout sweep', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    families = ', '.join(names())
    parser.add_argument(
        'family', help=f'folder with baseline.yaml and freezeout.yaml, or a family that is installed: {families}'
    )
    parser.add_argument('--out', type=Path, help='folder of results, whose runs are taken over (runs/FAMILY-sweep)')
    parser.add_argument('--trials', type=number_of_seeds, default=20, metavar='N', help='settings that are tried (20)')
    parser.add_argument(
        '--choose-seeds', type=number_of_seeds, default=2, metavar='N', help='seeds that settings are chosen by (2)'
    )
    parser.add_argument(
        '--judge-seeds', type=partial(number_of_seeds, least=2), default=5, metavar='N', help='other seeds (5)'
    )
    parser.add_argument('--keep', type=count, default=4, metavar='N', help='settings to judge besides the default (4)')
    parser.add_argument('--budget', type=duration, metavar='TIME', help="how long new settings are tried: '30m', '2h'")
    add_import_option(parser)
    add_executor_options(parser)
    parser.add_argument(
        '--join',
        action='store_true',
        help='search with a command that has begun elsewhere in the same --out, and judges',
    )
    parser.add_argument('--overwrite', action='store_true', help='begin anew')
    parser.add_argument('overrides', nargs='*', metavar='key=value', help='laid over both files')
    return parser


def identity(baseline: Arm, freezeout: Arm, choosing: Sequence[int], judging: Sequence[int]) -> dict[str, Any]:
    """What must be the same for a sweep to be gone on with.

    Args:
        baseline (Arm): The arm without freezing.
        freezeout (Arm): The arm whose settings are explored.
        choosing (Sequence[int]): The choosing seeds.
        judging (Sequence[int]): The judging seeds.

    Returns:
        dict[str, Any]: As JSON can hold it.
    """
    configs = [baseline.resolved, freezeout.resolved]
    return json_safe({'configs': configs, 'choosing_seeds': choosing, 'judging_seeds': judging})


def check_folder(out: Path, overwrite: bool) -> None:
    """Makes sure that a folder is empty or that of a sweep.

    Args:
        out (Path): The folder.
        overwrite (bool): Whether to remove what an earlier sweep has left.

    Raises:
        Refused: If it holds something else.
    """
    # Pretraining comes before the sweep.
    if any(path.name != PRETRAIN for path in out.iterdir()):
        _identity_of(out)
    if overwrite:
        clear_folder(out)


def _identity_of(out: Path) -> Mapping[str, Any]:
    try:
        return read(out / RESULT, _Begun, 'choose another --out').identity
    except (FileNotFoundError, Refused):
        raise Refused(f'--out: {out} is not empty and holds no sweep; choose another folder') from None


def prepare_folder(out: Path, now: Mapping[str, Any]) -> None:
    """Makes sure that a folder that :func:`check_folder` has found fit is that of this sweep.

    Args:
        out (Path): The folder.
        now (Mapping[str, Any]): Of :func:`identity`.

    Raises:
        Refused: If it holds another sweep.
    """
    path = out / RESULT
    if path.exists() and (changed := differences(_identity_of(out), dict(now))):
        key, (there, here) = next(iter(changed.items()))
        remedy = 'use --overwrite or another --out'
        raise Refused(f'{path}: {key} is {there!r} in this sweep and would be {here!r} now; {remedy}')
    if not path.exists():
        write_json(path, {'format': FORMAT, 'identity': now})


def main(argv: Sequence[str] | None = None) -> int:
    """Explores, judges, and prints the verdict and where the results are.

    Args:
        argv (Sequence[str], optional): Command line. Default: the process's.

    Returns:
        int: 0; 1 if there is nothing to judge by; 2 if the command, a file or what is in the folder is at fault; 128
        and the number of the signal that ended it.
    """
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_intermixed_args(argv)
    if arguments.out is None:
        arguments.out = Path('runs', f'{Path(arguments.family).resolve().name}-sweep')
    command = same_command('sweep', argv)
    settle_threads()

    def sweep() -> int:
        load_plugins(arguments.imports)
        if importlib.util.find_spec('optuna') is None:
            raise Refused("sweep searches with optuna, which is not installed; pip install 'composer-freezeout[bench]'")
        if arguments.join:
            return _join(arguments)
        with claimed(arguments.out):
            return _sweep(arguments, command)

    return exit_code(sweep, command)


def _begun(arguments: argparse.Namespace, console: Console) -> tuple['Sweep', 'Executor', dict[str, Any]]:
    """The sweep, where it trains, and its identity."""
    # Imported here, as optuna may not be there.
    from composer_freezeout.compare.sweep.search import Sweep

    family, pair = find_family(arguments.family), [BASELINE, FREEZEOUT]
    overrides = with_weights(
        family,
        arguments.out,
        arguments.overrides,
        lambda overrides: read_arms(family, pair, overrides, 1.0),
        lambda device: executor(arguments, device),
        console,
    )
    (baseline, freezeout), data = read_arms(family, pair, overrides, 1.0)
    if baseline.config.eval_data is None:
        raise Refused(f'{baseline.file}: eval_data: is null, but settings are judged by evaluations; give data')
    score = _score(baseline)
    now = identity(baseline, freezeout, *_seeds(baseline.config.seed, arguments))
    trained = executor(arguments, baseline.config.device)
    return Sweep(arguments.out, baseline, freezeout, data, console, trained, arguments.join, score), trained, now


def _score(baseline: Arm) -> Score:
    """What the runs will be compared by."""
    from composer_freezeout.run.metrics import judged_by
    from composer_freezeout.run.models import build_model

    model = baseline.config.model
    if not model.registered:
        return BY_ACCURACY
    metrics = build_model(model).get_metrics(is_train=False)
    metric = judged_by(metrics, metrics)
    if metric is None and ACCURACY not in metrics:
        found = ', '.join(metrics) or 'none'
        line = (
            f'settings are judged by a metric of which more or less is better, and those of {model.name} are: {found}'
        )
        raise Refused(f'{baseline.file}: model.name: {line}')
    return Score(metric)


def _join(arguments: argparse.Namespace) -> int:
    """Searches only."""
    if arguments.overwrite or not (arguments.out / RESULT).exists():
        raise Refused(f'--join: searches with another command in {arguments.out}; begin there without --join')
    console = Console()
    sweep, trained, now = _begun(arguments, console)
    prepare_folder(arguments.out, now)
    with stoppable(), trained:
        sweep.explore(arguments.trials, now['choosing_seeds'], arguments.budget)
    console.print('No setting is left to be tried; the first command judges.', highlight=False)
    return 0


def _sweep(arguments: argparse.Namespace, command: str) -> int:
    from composer_freezeout.compare.sweep.trials import completed

    console = Console()
    check_folder(arguments.out, arguments.overwrite)
    sweep, trained, now = _begun(arguments, console)
    choosing, judging = now['choosing_seeds'], now['judging_seeds']
    prepare_folder(arguments.out, now)
    # Composer takes over SIGTERM when it is imported, and that has happened.
    with stoppable(), trained:
        study = sweep.explore(arguments.trials, choosing, arguments.budget)
        trials = [(trial.params, trial.values) for trial in completed(study)]
        settings = chosen(trials, arguments.keep, sweep.default)
        rows, clock = results(settings, sweep.judge(settings, judging), sweep.score)
    if not rows:
        print('no run has a record; their logs are in the folders of the settings', file=sys.stderr)
        return 1
    tried = [Trial(setting, sweep.score.quality(quality), saving) for setting, (quality, saving) in trials]
    searched = Search(find_family(arguments.family).resolve().name, command, now, choosing, judging, tried)
    sentence = report(arguments.out, searched, rows, clock, sweep.score)
    console.print(f'{sentence}\nTable and plot: {arguments.out / TABLE}', markup=False, highlight=False, soft_wrap=True)
    return 0


def _seeds(first: int, arguments: argparse.Namespace) -> tuple[list[int], list[int]]:
    """Choosing and judging seeds."""
    between, end = first + arguments.choose_seeds, first + arguments.choose_seeds + arguments.judge_seeds
    check_seeds('--judge-seeds', range(between, end))
    return list(range(first, between)), list(range(between, end))


if __name__ == '__main__':
    sys.exit(main())
