"""Trains every arm of a family and compares them.

``python benchmarks/compare.py yamls/quickstart --out runs/quickstart``

An arm is a YAML file of the family's folder. Each is trained in a process of its own, through Composer's launcher. The
arm ``baseline_short`` is added: the baseline, given no more time than FreezeOut took.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from composer_freezeout.config import ConfigError, describe, load
from composer_freezeout.report import comparison_table, plot_learning_rates, results

BASELINE, FREEZEOUT, BASELINE_SHORT = 'baseline', 'freezeout', 'baseline_short'
# The order of the table; other arms come after these.
ORDER = [BASELINE, 'layer_freezing', FREEZEOUT]
PLOT = 'learning_rates.png'


def arms(family: Path) -> list[str]:
    """Names of a family's arms, the baseline first.

    Args:
        family (Path): The folder.

    Returns:
        list[str]: Names of its YAML files.

    Raises:
        ValueError: If the folder lacks the baseline or FreezeOut.
    """
    names = {path.stem for path in family.glob('*.yaml')}
    missing = sorted({BASELINE, FREEZEOUT} - names)
    if missing:
        raise ValueError(f'{family} has no {missing[0]}.yaml; give a folder with a file per arm, as yamls/quickstart')
    return [name for name in ORDER if name in names] + sorted(names - set(ORDER))


def train(file: Path, output: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Trains one arm in a process of its own.

    Args:
        file (Path): Its YAML file.
        output (Path): Folder for its record.
        overrides (Sequence[str]): ``key=value`` pairs laid over the file.

    Returns:
        dict[str, Any]: Its record.

    Raises:
        subprocess.CalledProcessError: If the run fails.
    """
    launcher = [sys.executable, '-m', 'composer', '-m', 'composer_freezeout.run']
    subprocess.run([*launcher, str(file), f'output={output}', *overrides], check=True)
    return json.loads((output / 'record.json').read_text(encoding='utf-8'))


def batches_in_the_same_time(baseline: dict[str, Any], freezeout: dict[str, Any]) -> int:
    """Batches that the baseline does in the time that FreezeOut took.

    Args:
        baseline (dict[str, Any]): Record of the baseline.
        freezeout (dict[str, Any]): Record of FreezeOut.

    Returns:
        int: In ``[1, ∞)``.
    """
    share = freezeout['training_seconds'] / baseline['training_seconds']
    return max(1, round(baseline['effective']['total_batches'] * share))


def compare(family: Path, out: Path, overrides: Sequence[str], console: Console) -> dict[str, dict[str, Any]]:
    """Trains all arms of a family in turn, and the baseline once more for no longer than FreezeOut took.

    Args:
        family (Path): Folder with a YAML file per arm.
        out (Path): Folder for the records, one subfolder per arm.
        overrides (Sequence[str]): ``key=value`` pairs laid over every file.
        console (Console): Where progress is told.

    Returns:
        dict[str, dict[str, Any]]: Record of each arm.

    Raises:
        ConfigError: If a file or an override is at fault.
        subprocess.CalledProcessError: If a run fails.
        ValueError: If an arm is missing.
    """
    names = arms(family)
    configs = {name: load(family / f'{name}.yaml', overrides) for name in names}
    records = {}
    for number, name in enumerate(names, start=1):
        console.rule(f'{number} of {len(names) + 1}: {name}')
        records[name] = train(family / f'{name}.yaml', out / name, overrides)

    batches = batches_in_the_same_time(records[BASELINE], records[FREEZEOUT])
    console.rule(f'{len(names) + 1} of {len(names) + 1}: {BASELINE_SHORT}, in the time that FreezeOut took')
    short = [f'run_name={configs[BASELINE].run_name}_short', f'max_duration={batches}ba']
    records[BASELINE_SHORT] = train(family / f'{BASELINE}.yaml', out / BASELINE_SHORT, [*overrides, *short])
    return records


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, compares, and prints the table and the path of the plot.

    Args:
        argv (Sequence[str], optional): Command line. Default: the process's.

    Returns:
        int: 0; 2 if the command or a file is at fault; the exit code of a run that failed.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('family', type=Path, help='folder with a YAML file per arm')
    parser.add_argument('--out', type=Path, required=True, help='folder for the records, one subfolder per arm')
    parser.add_argument('--overwrite', action='store_true', help='train again what the folder already holds')
    parser.add_argument('overrides', nargs='*', metavar='key=value', help='laid over the file of every arm')
    arguments = parser.parse_intermixed_args(argv)
    overrides = [*arguments.overrides, *(['overwrite=true'] if arguments.overwrite else [])]
    console = Console()
    try:
        records = compare(arguments.family, arguments.out, overrides, console)
    except ConfigError as error:
        for fault in error.faults:
            print(describe(fault, arguments.family, overrides), file=sys.stderr)
        return 2
    except ValueError as error:
        parser.error(str(error))
    except subprocess.CalledProcessError as error:
        print(f'a run failed (exit code {error.returncode}); its messages are above', file=sys.stderr)
        return error.returncode

    plot = arguments.out / PLOT
    plot_learning_rates(records[FREEZEOUT], plot)
    hardware = records[BASELINE]['hardware']
    console.print()
    console.print(comparison_table(results(records), f'{arguments.family.name}, one run per arm'))
    console.print(f'One seed on {hardware["cpu"]}, {hardware["threads"]} threads: a demonstration, not a measurement.')
    console.print(f'{BASELINE_SHORT}: the baseline with its schedule compressed into the time that FreezeOut took.')
    console.print(f'Records: {arguments.out}    Learning rates and freeze points: {plot}', soft_wrap=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
