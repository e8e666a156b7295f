"""Explores the settings of FreezeOut, and judges the best against baselines of several lengths.

``composer-freezeout sweep yamls/quickstart --trials 20 --out runs/sweep``

Optuna looks for settings with a high accuracy and a high saving on the choosing seeds. The saving is the one predicted
from FLOPs: it is the same on a busy machine, and what it leaves out shows when times are measured. The settings that no
other beats in both, and the paper's default, are then trained with the judging seeds, which no choice was made by,
next to baselines with their schedules compressed to 100, 90, 80, 70 and 60 % of the duration. A setting is worth its
while if it lies above the line through these baselines: more accurate than a baseline in the same training time.

What has been finished is not done again: after an interruption, the same command goes on.
"""

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from composer_freezeout.compare.arguments import duration
from composer_freezeout.compare.arms.family import Arm, Refused, differences, read_arms
from composer_freezeout.compare.arms.known import BASELINE, FREEZEOUT
from composer_freezeout.compare.sweep.line import results
from composer_freezeout.compare.sweep.report import RESULT, TABLE, report
from composer_freezeout.compare.sweep.search import Sweep, completed
from composer_freezeout.compare.sweep.settings import chosen
from composer_freezeout.results.files import write_json
from composer_freezeout.run.arguments import count
from composer_freezeout.run.faults import ConfigError
from composer_freezeout.run.processes import Stopped, stoppable

__all__ = ['FORMAT', 'identity', 'main', 'prepare_folder']

FORMAT = 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='composer-freezeout sweep', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('family', type=Path, help='folder with baseline.yaml and freezeout.yaml')
    parser.add_argument('--out', type=Path, required=True, help='folder for the results; runs in it are taken over')
    parser.add_argument('--trials', type=count, default=20, metavar='N', help='settings that are tried (20)')
    parser.add_argument(
        '--choose-seeds', type=count, default=2, metavar='N', help='seeds that settings are chosen by (2)'
    )
    parser.add_argument('--judge-seeds', type=partial(count, least=2), default=5, metavar='N', help='other seeds (5)')
    parser.add_argument('--keep', type=count, default=4, metavar='N', help='settings to judge besides the default (4)')
    parser.add_argument('--budget', type=duration, metavar='TIME', help="how long new settings are tried: '30m', '2h'")
    parser.add_argument('--overwrite', action='store_true', help='begin anew')
    parser.add_argument('overrides', nargs='*', metavar='key=value', help='laid over both files')
    return parser


def identity(baseline: Arm, freezeout: Arm, seeds: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """What must be the same for a sweep to be gone on with.

    Args:
        baseline (Arm): The arm without freezing.
        freezeout (Arm): The arm whose settings are explored.
        seeds (Mapping[str, Sequence[int]]): Choosing and judging seeds.

    Returns:
        dict[str, Any]: As JSON can hold it.
    """
    return json.loads(json.dumps({'configs': [baseline.resolved, freezeout.resolved], **seeds}))


def prepare_folder(out: Path, now: Mapping[str, Any], overwrite: bool) -> None:
    """Makes the folder of the results, if it isn't there.

    Args:
        out (Path): The folder.
        now (Mapping[str, Any]): Of :func:`identity`.
        overwrite (bool): Whether to remove what an earlier sweep has left.

    Raises:
        Refused: If it holds something else, or another sweep.
    """
    path = out / RESULT
    if out.exists() and not out.is_dir():
        raise Refused([f'--out: {out} is a file; give a folder'])
    if out.exists() and any(out.iterdir()):
        try:
            earlier = json.loads(path.read_text(encoding='utf-8'))['identity']
        except (OSError, ValueError, KeyError, TypeError):
            raise Refused([f'--out: {out} is not empty and holds no sweep; choose another folder']) from None
        if overwrite:
            shutil.rmtree(out)
        elif changed := differences(earlier, dict(now)):
            key, (there, here) = next(iter(changed.items()))
            remedy = 'use --overwrite or another --out'
            raise Refused([f'{path}: {key} is {there!r} in this sweep and would be {here!r} now; {remedy}'])
    out.mkdir(parents=True, exist_ok=True)
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
    command = shlex.join(['composer-freezeout', 'sweep', *(argument for argument in argv if argument != '--overwrite')])
    console = Console()
    try:
        (baseline, freezeout), data = read_arms(arguments.family, [BASELINE, FREEZEOUT], arguments.overrides, 1.0)
        first = baseline.config.seed
        seeds = {
            'choosing_seeds': list(range(first, first + arguments.choose_seeds)),
            'judging_seeds': list(
                range(first + arguments.choose_seeds, first + arguments.choose_seeds + arguments.judge_seeds)
            ),
        }
        now = identity(baseline, freezeout, seeds)
        prepare_folder(arguments.out, now, arguments.overwrite)
        sweep = Sweep(arguments.out, baseline, freezeout, data, console)
        # Composer takes over SIGTERM when it is imported, and that has happened.
        with stoppable():
            study = sweep.explore(arguments.trials, seeds['choosing_seeds'], arguments.budget)
            trials = [(trial.params, trial.values) for trial in completed(study)]
            settings = chosen(trials, arguments.keep, sweep.default)
            rows, judged = results(settings, sweep.judge(settings, seeds['judging_seeds']))
        result = {
            'format': FORMAT,
            'family': arguments.family.resolve().name,
            'command': command,
            'identity': now,
            **seeds,
            'trials': [
                {'setting': setting, 'accuracy': accuracy, 'predicted_saving': saving}
                for setting, (accuracy, saving) in trials
            ],
            'judged': rows,
        }
        if not rows:
            print('no run has a record; their logs are in the folders of the settings', file=sys.stderr)
            return 1
        sentence = report(arguments.out, result, judged)
    except Stopped as error:
        print(f'stopped; to go on: {command}', file=sys.stderr)
        return 128 + error.signal_number
    except Refused as error:
        print(*error.lines, sep='\n', file=sys.stderr)
        return 2
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    console.print(f'{sentence}\nTable and plot: {arguments.out / TABLE}', markup=False, highlight=False, soft_wrap=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
