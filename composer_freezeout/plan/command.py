"""``composer-freezeout plan FILE [--target SAVING] [key=value …]``: FreezeOut, planned for the run of a YAML file."""

import argparse
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from composer_freezeout.plan.terminal import measurement, print_plan, yaml_costs
from composer_freezeout.run.arguments import count
from composer_freezeout.run.config import RunConfig, load
from composer_freezeout.run.faults import ConfigError, Fault, describe

if TYPE_CHECKING:
    from composer_freezeout.plan.plan import Plan

__all__ = ['main']

_PLAN_EPILOG = """\
examples:
  composer-freezeout plan yamls/resnet56_cifar10/freezeout.yaml
  composer-freezeout plan yamls/resnet56_cifar10/freezeout.yaml --target 0.15
  composer-freezeout plan yamls/quickstart.yaml --no-profile algorithms.0.how_scale=linear
  composer-freezeout plan yamls/quickstart.yaml --profile-steps 30 --unit-costs costs.yaml
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Plans, prints, and writes the plan and its plots.

    Args:
        argv (Sequence[str], optional): Command line. Default: the process's.

    Returns:
        int: 0, or 2 if the command line or the configuration is at fault.
    """
    parser = _plan_parser()
    arguments = parser.parse_intermixed_args(argv)
    if arguments.unit_costs is not None and arguments.no_profile:
        parser.error('argument --unit-costs: not allowed with argument --no-profile: costs are measured')
    console = Console()
    try:
        config = load(arguments.file, arguments.overrides)
        out = arguments.out or Path('runs') / 'plan' / config.run_name
        if out.exists() and not out.is_dir():
            raise ConfigError([Fault('--out', f'{str(out)!r} is a file; give a folder')])
        if arguments.unit_costs is not None and arguments.unit_costs.exists():
            raise ConfigError([Fault('--unit-costs', f'{str(arguments.unit_costs)!r} exists; give a new file')])
        plan = _make_plan(config, arguments, console)
        print_plan(plan, console, arguments.file)
        _write_plan(plan, out, console)
        if arguments.unit_costs is not None:
            _write_unit_costs(plan, arguments.unit_costs, console)
    except ConfigError as error:
        for fault in error.faults:
            print(_told(fault, arguments), file=sys.stderr)
        return 2
    return _tell_unreachable(plan)


def _told(fault: Fault, arguments: argparse.Namespace) -> str:
    if fault.path.startswith('--'):
        return f'command line: {fault.path}: {fault.message}'
    return describe(fault, arguments.file, arguments.overrides)


def _plan_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='composer-freezeout plan',
        description='Plan FreezeOut for the run of a YAML file: what freezes when, and what that saves by three models '
        'of cost, one of them measured here within about 30 seconds. Nothing is trained or downloaded.',
        epilog=_PLAN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('file', help='the YAML file')
    parser.add_argument('overrides', nargs='*', metavar='key=value', help='values that replace those of the file')
    parser.add_argument(
        '--target', type=_saving, metavar='SAVING', help='find t_0 for a saving, in (0, 1): 0.15 for 15 %%'
    )
    parser.add_argument('--out', type=Path, help='folder for plan.json and the plots (default: runs/plan/<run_name>)')
    parser.add_argument(
        '--unit-costs', type=Path, metavar='FILE', help='measure what freezing each unit saves, and write it as YAML: '
        "FreezeOut's unit_costs",
    )  # fmt: skip
    parser.add_argument('--image-size', type=count, metavar='PIXELS', help='where neither data nor the file tell it')
    profile = parser.add_mutually_exclusive_group()
    profile.add_argument('--no-profile', action='store_true', help='measure nothing')
    profile.add_argument(
        '--profile-steps', type=count, default=5, metavar='N', help='steps to measure for each number of frozen '
        'units, fewer where time runs out (default: 5)',
    )  # fmt: skip
    return parser


def _saving(text: str) -> float:
    try:
        saving = float(text)
    except ValueError:
        saving = math.nan
    if not 0 < saving < 1:
        raise argparse.ArgumentTypeError(f'must be a share in (0, 1), such as 0.15, got {text!r}')
    return saving


def _make_plan(config: RunConfig, arguments: argparse.Namespace, console: Console) -> 'Plan':
    with console.status('planning, and measuring for up to half a minute …'), warnings.catch_warnings():
        # Of the libraries about themselves.
        warnings.simplefilter('ignore')
        # Imported here: torch and Composer take seconds, and a typing error should be told at once.
        from composer_freezeout.plan.make import make_plan

        return make_plan(
            config,
            target=arguments.target,
            profile_repeats=None if arguments.no_profile else arguments.profile_steps,
            image_size=arguments.image_size,
            every_unit=arguments.unit_costs is not None,
        )


def _write_plan(plan: 'Plan', out: Path, console: Console) -> None:
    from composer_freezeout.plan.plan import plan_as_json
    from composer_freezeout.plan.plots import plot_frozen, plot_schedules
    from composer_freezeout.results.files import write_json

    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / 'plan.json', plan_as_json(plan))
        plot_schedules(plan, out / 'schedules.png')
        plot_frozen(plan, out / 'frozen.png')
    except OSError as error:
        raise ConfigError([Fault('--out', f'{str(out)!r} cannot be written: {error}')]) from error
    console.print(f'Written to {out}: plan.json, schedules.png, frozen.png', highlight=False, soft_wrap=True)


def _write_unit_costs(plan: 'Plan', file: Path, console: Console) -> None:
    if plan.cost_aware is None:
        fault = 'freezing was not seen to save anything, so there are no costs to write; measure more steps'
        raise ConfigError([Fault('--unit-costs', f'{fault} with --profile-steps')])
    lines = [
        f'# FreezeOut for {plan.run_name}: milliseconds that freezing each unit takes off a step, first unit first.',
        f'# {measurement(plan)}',
        yaml_costs(plan.cost_aware.unit_costs),
    ]
    try:
        file.write_text('\n'.join([*lines, '']), encoding='utf-8')
    except OSError as error:
        raise ConfigError([Fault('--unit-costs', f'{str(file)!r} cannot be written: {error}')]) from error
    console.print(f'Written to {file}: unit_costs', highlight=False, soft_wrap=True)


def _tell_unreachable(plan: 'Plan') -> int:
    if plan.target is None or plan.prediction.t_0 is not None:
        return 0
    largest = plan.prediction.largest
    fault = f'{plan.target:.1%} is out of reach: t_0 in (0, 1) saves between 0 and {largest:.1%} ({plan.relied_on})'
    print(f'command line: --target: {fault}; give less', file=sys.stderr)
    return 2


# --- on the terminal


if __name__ == '__main__':
    sys.exit(main())
