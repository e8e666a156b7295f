"""A plan on the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from composer_freezeout.planning.plan import CostAware, Plan

__all__ = ['measurement', 'print_plan', 'yaml_costs']


def yaml_costs(unit_costs: Sequence[float]) -> str:
    """FreezeOut's ``unit_costs`` as a line of YAML."""
    return f'unit_costs: [{", ".join(f"{cost:g}" for cost in unit_costs)}]'


def print_plan(plan: Plan, console: Console, file: str) -> None:
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
    console.print('What it saves, by each model of what a step costs', style='bold')
    console.print(_prediction_table(plan))
    if plan.measured is not None:
        _print_lines(console, [measurement(plan)])
    if plan.cost_aware is not None:
        _print_lines(console, _shifted(plan.cost_aware))
    console.print()
    _print_lines(console, [f'Warning: {warning}.' for warning in plan.warnings], 'yellow')
    _print_lines(console, [f'Note: {note}.' for note in plan.notes])
    _print_lines(
        console,
        [
            'What freezing costs in accuracy is not predicted: train the arms of a comparison '
            '(composer-freezeout compare FAMILY).'
        ],
    )
    console.print()
    if plan.prediction.t_0 is not None:
        _print_advice(plan, console, file)


def _print_lines(console: Console, lines: Sequence[str], style: str = '') -> None:
    for line in lines:
        console.print(escape(line), style=style, highlight=False)


def _unit_table(plan: Plan) -> Table:
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


def _prediction_table(plan: Plan) -> Table:
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


def measurement(plan: Plan) -> str:
    """How the seconds of a plan were measured, in sentences; the plan has some."""
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


def _shifted(cost_aware: CostAware) -> list[str]:
    costs = 'unit_costs' if cost_aware.measured_at_each else 'unit_costs (roughly; --unit-costs FILE measures each)'
    saving = (
        f'Cost-aware: with freeze times shifted by these {costs}, on average the same as the paper’s, it saves '
        f'{cost_aware.saving:.1%} instead of {cost_aware.paper_saving:.1%} (seconds)'
    )
    return [f'{saving}.', *([yaml_costs(cost_aware.unit_costs)] if cost_aware.measured_at_each else [])]


def _print_advice(plan: Plan, console: Console, file: str) -> None:
    prediction = plan.prediction
    assert plan.target is not None and prediction.t_0 is not None
    t_0 = f'{prediction.t_0:.3f}'
    _print_lines(console, [f'To save {plan.target:.1%} ({prediction.model}):'])
    if plan.algorithm is not None:
        command = f'  composer-freezeout run {file} algorithms.{plan.algorithm}.t_0={t_0}'
    else:
        command = f'  algorithms:\n    - name: freezeout\n      t_0: {t_0}\n      how_scale: {plan.how_scale}'
    console.print(escape(command), highlight=False, soft_wrap=True)
    console.print()
