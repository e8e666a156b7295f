"""``composer-freezeout plan FILE [--target SAVING] [key=value …]``: FreezeOut, planned for the run of a YAML file."""

import argparse
import math
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from composer_freezeout.method.finetuning import FINE_TUNING
from composer_freezeout.planning.advice import as_python
from composer_freezeout.planning.plan import Plan
from composer_freezeout.planning.terminal import measurement, print_plan, yaml_costs
from composer_freezeout.results.files import make_folder, try_folder, write_bytes, write_json, write_text
from composer_freezeout.run.arguments import count
from composer_freezeout.run.config import RunConfig, load
from composer_freezeout.run.error_lines import lines_of
from composer_freezeout.run.families import find_config, names
from composer_freezeout.run.faults import ConfigError, Fault
from composer_freezeout.run.plugins import add_import_option, load_plugins
from composer_freezeout.run.threads import settle_threads

__all__ = ['main']

_DESCRIPTION = """\
Plan FreezeOut for the run of a YAML file: what freezes when, and what that saves by three models of cost, one of
them measured here within about 30 seconds. Nothing is trained or downloaded.
"""
_EPILOG = """\
examples:
  composer-freezeout plan quickstart
  composer-freezeout plan resnet56_cifar10 --target 0.15
  composer-freezeout plan my.yaml --finetune
  composer-freezeout plan my.yaml --no-profile algorithms.0.how_scale=linear
  composer-freezeout plan my.yaml --profile-steps 30 --unit-costs costs.yaml
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Plans, prints, and writes the plan and its plots.

    Args:
        argv (Sequence[str], optional): Command line. Default: the process's.

    Returns:
        int: 0, or 2 if the command line, the configuration, a file or the machine is at fault.
    """
    parser = _parser()
    arguments = parser.parse_intermixed_args(argv)
    if arguments.unit_costs is not None and arguments.no_profile:
        parser.error('argument --unit-costs: not allowed with argument --no-profile: costs are measured')
    console = Console()
    settle_threads()
    file: str | Path = arguments.file
    try:
        load_plugins(arguments.imports)
        file = find_config(arguments.file)
        config = load(file, arguments.overrides)
        out = arguments.out or Path('runs') / 'plan' / config.run_name
        _check_places(out, arguments.unit_costs)
        plan = _make_plan(config, arguments, console)
        print_plan(plan, console, arguments.file, _settings(arguments))
        _write_plan(plan, out, console)
        if arguments.unit_costs is not None:
            _write_unit_costs(plan, arguments.unit_costs, console)
    except Exception as error:
        lines = lines_of(error, file, arguments.overrides)
        if lines is None:
            raise
        print(*lines, sep='\n', file=sys.stderr)
        return 2
    return _tell_unreachable(plan)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='composer-freezeout plan',
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('file', help=f'a YAML file, or a family that comes with the package: {", ".join(names())}')
    parser.add_argument('overrides', nargs='*', metavar='key=value', help='values that replace those of the file')
    add_import_option(parser)
    parser.add_argument(
        '--target', type=_saving, metavar='SAVING', help='find t_0 for a saving, in (0, 1): 0.15 for 15 %%'
    )
    parser.add_argument(
        '--finetune',
        action='store_true',
        help=f"plan FreezeOut's setting for fine-tuning ({as_python(FINE_TUNING)}) instead of the file's",
    )
    parser.add_argument(
        '--out',
        type=Path,
        metavar='FOLDER',
        help='folder for plan.json and the plots (default: runs/plan/<run_name>)',
    )
    parser.add_argument(
        '--unit-costs',
        type=Path,
        metavar='FILE',
        help="measure what freezing each unit saves, and write it as YAML: FreezeOut's unit_costs",
    )
    parser.add_argument('--image-size', type=count, metavar='PIXELS', help='where neither data nor the file tell it')
    profile = parser.add_mutually_exclusive_group()
    profile.add_argument('--no-profile', action='store_true', help='measure nothing')
    profile.add_argument(
        '--profile-steps',
        type=count,
        default=5,
        metavar='N',
        help='steps to measure for each number of frozen units, fewer where time runs out (default: 5)',
    )
    return parser


def _saving(text: str) -> float:
    try:
        saving = float(text)
    except ValueError:
        saving = math.nan
    if not 0 < saving < 1:
        raise argparse.ArgumentTypeError(f'must be a share in (0, 1), such as 0.15, got {text!r}')
    return saving


def _check_places(out: Path, unit_costs: Path | None) -> None:
    """Tries whether results can be written, before half a minute of measuring.

    Raises:
        ConfigError: If they can't.
    """
    with _writing('--out'):
        if out.exists() and not out.is_dir():
            raise ConfigError([Fault('--out', f'{str(out)!r} is a file; give a folder')])
        try_folder(out)
    if unit_costs is not None:
        with _writing('--unit-costs'):
            if unit_costs.exists():
                raise ConfigError([Fault('--unit-costs', f'{str(unit_costs)!r} exists; give a new file')])
            try_folder(unit_costs.parent)


@contextmanager
def _writing(option: str) -> Iterator[None]:
    """Tells what stands in the way of a file as a fault of the option that names its place."""
    try:
        yield
    except OSError as error:
        fault = f'{error.filename} cannot be written: {error.strerror}; choose another place'
        raise ConfigError([Fault(option, fault)]) from error


def _make_plan(config: RunConfig, arguments: argparse.Namespace, console: Console) -> Plan:
    with console.status('planning, and measuring for up to half a minute …'), warnings.catch_warnings():
        # Of the libraries about themselves.
        warnings.simplefilter('ignore')
        # Imported here: torch and Composer take seconds, and a typing error should be told at once.
        from composer_freezeout.planning.look import look_at
        from composer_freezeout.planning.make import make_plan

        measure, settings = not arguments.no_profile, _settings(arguments)
        return make_plan(
            look_at(config, arguments.image_size, measure=measure, settings=settings),
            target=arguments.target,
            repeats=arguments.profile_steps,
            every_unit=arguments.unit_costs is not None,
        )


def _settings(arguments: argparse.Namespace) -> Mapping[str, Any] | None:
    """Arguments of FreezeOut that stand in place of those of the file."""
    return FINE_TUNING if arguments.finetune else None


def _write_plan(plan: Plan, out: Path, console: Console) -> None:
    from composer_freezeout.planning.plots import plot_frozen, plot_schedules

    with _writing('--out'):
        make_folder(out)
        write_json(out / 'plan.json', plan.to_dict())
        write_bytes(out / 'schedules.png', plot_schedules(plan))
        write_bytes(out / 'frozen.png', plot_frozen(plan))
    console.print(f'Written to {out}: plan.json, schedules.png, frozen.png', highlight=False, soft_wrap=True)


def _write_unit_costs(plan: Plan, file: Path, console: Console) -> None:
    if plan.cost_aware is None:
        fault = 'freezing was not seen to save anything, so there are no costs to write; measure more steps'
        raise ConfigError([Fault('--unit-costs', f'{fault} with --profile-steps')])
    lines = [
        f'# FreezeOut for {plan.run_name}: milliseconds that freezing each unit takes off a step, first unit first.',
        f'# {measurement(plan)}',
        yaml_costs(plan.cost_aware.unit_costs),
    ]
    with _writing('--unit-costs'):
        make_folder(file.parent)
        write_text(file, '\n'.join([*lines, '']))
    console.print(f'Written to {file}: unit_costs', highlight=False, soft_wrap=True)


def _tell_unreachable(plan: Plan) -> int:
    if plan.target is None or plan.prediction.t_0 is not None:
        return 0
    largest = plan.prediction.largest
    fault = f'{plan.target:.1%} is out of reach: t_0 in (0, 1) saves between 0 and {largest:.1%} ({plan.relied_on})'
    print(f'command line: --target: {fault}; give less', file=sys.stderr)
    return 2


# --- on the terminal


if __name__ == '__main__':
    sys.exit(main())
