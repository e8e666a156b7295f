"""``composer-freezeout plan FILE [--target SAVING] [key=value …]``: FreezeOut, planned for the run of a YAML file."""

import argparse
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from composer_freezeout.run.config import ConfigError, Fault, RunConfig, describe, load

if TYPE_CHECKING:
    from composer_freezeout.plan.make import CostAware, Plan

__all__ = ['main', 'print_plan']

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
    parser.add_argument('--image-size', type=_count, metavar='PIXELS', help='where neither data nor the file tell it')
    profile = parser.add_mutually_exclusive_group()
    profile.add_argument('--no-profile', action='store_true', help='measure nothing')
    profile.add_argument(
        '--profile-steps', type=_count, default=5, metavar='N', help='steps to measure for each number of frozen '
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


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f'must be a whole number of at least 1, got {text!r}')
    return int(text)


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
    from composer_freezeout.plan.make import plan_as_json
    from composer_freezeout.plan.plots import plot_frozen, plot_schedules
    from composer_freezeout.run.record import write_json

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
        f'# {_measurement(plan)}',
        _yaml_costs(plan.cost_aware.unit_costs),
    ]
    try:
        file.write_text('\n'.join([*lines, '']), encoding='utf-8')
    except OSError as error:
        raise ConfigError([Fault('--unit-costs', f'{str(file)!r} cannot be written: {error}')]) from error
    console.print(f'Written to {file}: unit_costs', highlight=False, soft_wrap=True)


def _yaml_costs(unit_costs: Sequence[float]) -> str:
    return f'unit_costs: [{", ".join(f"{cost:g}" for cost in unit_costs)}]'


def _tell_unreachable(plan: 'Plan') -> int:
    if plan.target is None or plan.prediction.t_0 is not None:
        return 0
    largest = plan.prediction.largest
    fault = f'{plan.target:.1%} is out of reach: t_0 in (0, 1) saves between 0 and {largest:.1%} ({plan.relied_on})'
    print(f'command line: --target: {fault}; give less', file=sys.stderr)
    return 2


# --- on the terminal


def print_plan(plan: 'Plan', console: Console, file: str) -> None:
    """Prints a plan for people.

    Args:
        plan (Plan): The plan.
        console (Console): Where to; tables adapt to its width.
        file (str): The YAML file, for the command to copy.
    """
    channels, height, width = plan.image_shape
    schedule = f'{plan.how_scale}, t_0 {plan.t_0:g}, {"scaled" if plan.scale_lr else "unscaled"}'
    if plan.unit_costs is not None:
        schedule += f', shifted by unit_costs (cost_shift {plan.cost_shift:g})'
    size = f'{plan.duration} of batches of {plan.batch_size}, images of {channels}x{height}x{width}'
    _print_lines(console, [f'{plan.run_name}: {schedule}', size], 'bold')
    console.print()
    console.print(_unit_table(plan))
    if any(unit.freezes_at != unit.t_i for unit in plan.units):
        _print_lines(console, [f'In {plan.stages} stages: the units of each freeze when the last of them is due.'])
    console.print()
    console.print('What it saves, by three models of what a step costs', style='bold')
    console.print(_prediction_table(plan))
    if plan.measured is not None:
        _print_lines(console, [_measurement(plan)])
    if plan.cost_aware is not None:
        _print_lines(console, _shifted(plan.cost_aware))
    console.print()
    _print_lines(console, [f'Warning: {warning}.' for warning in plan.warnings], 'yellow')
    _print_lines(console, [f'Note: {note}.' for note in plan.notes])
    _print_lines(
        console,
        [
            'What freezing costs in accuracy is not predicted: train the arms of a comparison '
            '(composer-freezeout compare yamls/<family> --out <folder>).'
        ],
    )
    console.print()
    if plan.prediction.t_0 is not None:
        _print_advice(plan, console, file)


def _print_lines(console: Console, lines: Sequence[str], style: str = '') -> None:
    for line in lines:
        console.print(escape(line), style=style, highlight=False)


def _unit_table(plan: 'Plan') -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style='bold')
    table.add_column('unit', overflow='fold')
    for heading in ('parame-\nters', 'forward\nMFLOPs', 'of the\nstep', 'ms per\nstep', 't_i', 'freezes\nin epoch'):
        table.add_column(heading, justify='right', no_wrap=True)
    never = 'never' if any(unit.freeze_epoch for unit in plan.units) else '–'
    for unit in plan.units:
        table.add_row(
            escape(unit.name),
            f'{unit.parameters:,}',
            f'{unit.forward_flops / 1e6:,.2f}',
            f'{unit.step_share:.1%}',
            _milliseconds(unit.forward_seconds, unit.backward_seconds),
            f'{unit.t_i:.3f}',
            never if unit.freeze_epoch is None else str(unit.freeze_epoch),
        )
    return table


def _milliseconds(forward: float | None, backward: float | None) -> str:
    if forward is None or backward is None:
        return '–'
    milliseconds = 1e3 * (forward + backward)
    return f'{milliseconds:,.1f}' if milliseconds < 1e3 else f'{milliseconds:,.0f}'


def _prediction_table(plan: 'Plan') -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style='bold')
    table.add_column('model')
    table.add_column('saved', justify='right')
    table.add_column('at most\n(t_0→0)', justify='right')
    if plan.target is not None:
        table.add_column(f't_0 for\n{plan.target:.3g}', justify='right')
        table.add_column('first\nfreeze', justify='right')
    table.add_column('meaning')
    for prediction in plan.predictions:
        solved = []
        if plan.target is not None:
            reachable = prediction.t_0 is not None and prediction.first_freeze is not None
            solved = [f'{prediction.t_0:.3f}', f'{prediction.first_freeze:.3f}'] if reachable else ['none', '–']
        table.add_row(
            prediction.model,
            f'{prediction.saving:.1%}',
            f'{prediction.largest:.1%}',
            *solved,
            escape(prediction.meaning),
            style='bold' if prediction.model == plan.relied_on else '',
        )
    return table


def _measurement(plan: 'Plan') -> str:
    measured = plan.measured
    assert measured is not None
    text = (
        f'Measured: {measured.device}, {measured.precision}, median of {measured.repeats} steps of '
        f'{measured.batch_size} samples at {measured.points} of {len(plan.units)} numbers of frozen units'
    )
    if measured.batch_size != plan.batch_size:
        text += f'; passes scaled to {plan.batch_size} samples'
    text += f'. A step takes {measured.step_seconds:.3g} s'
    if measured.load_seconds is None:
        return f'{text}.'
    return f'{text}, and loading a batch {measured.load_seconds:.2g} s.'


def _shifted(cost_aware: 'CostAware') -> list[str]:
    costs = 'unit_costs' if cost_aware.measured_at_each else 'unit_costs (roughly; --unit-costs FILE measures each)'
    saving = (
        f'Cost-aware: with freeze times shifted by these {costs}, on average the same as the paper’s, it saves '
        f'{cost_aware.saving:.1%} instead of {cost_aware.paper_saving:.1%} (seconds)'
    )
    return [f'{saving}.', *([_yaml_costs(cost_aware.unit_costs)] if cost_aware.measured_at_each else [])]


def _print_advice(plan: 'Plan', console: Console, file: str) -> None:
    prediction = plan.prediction
    assert plan.target is not None and prediction.t_0 is not None
    t_0 = f'{prediction.t_0:.3f}'
    _print_lines(console, [f'To save {plan.target:.1%} ({prediction.model}):'])
    if plan.algorithm is not None:
        command = f'  composer run {file} algorithms.{plan.algorithm}.t_0={t_0}'
    else:
        command = f'  algorithms:\n    - name: freezeout\n      t_0: {t_0}\n      how_scale: {plan.how_scale}'
    console.print(escape(command), highlight=False, soft_wrap=True)
    console.print()


if __name__ == '__main__':
    sys.exit(main())
