"""A plan on the terminal."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from composer_freezeout.method.schedule import lr_factor
from composer_freezeout.planning.advice import as_lines, as_python
from composer_freezeout.planning.content import CostAware, PlanContent, PlannedUnit

__all__ = ['describe_schedule', 'measurement', 'print_plan', 'yaml_costs']


def yaml_costs(unit_costs: Sequence[float]) -> str:
    """FreezeOut's ``unit_costs`` as a line of YAML."""
    return f'unit_costs: [{", ".join(f"{cost:g}" for cost in unit_costs)}]'


def describe_schedule(plan: PlanContent) -> str:
    """The settings that decide when units freeze, in a few words."""
    schedule = f'{plan.how_scale}, t_0 {plan.t_0:g}, {"scaled" if plan.scale_lr else "unscaled"}'
    schedule += '' if plan.anneal is None else f', anneal {plan.anneal}'
    return schedule + ('' if plan.unit_costs is None else f', shifted by unit_costs (cost_shift {plan.cost_shift:g})')


def print_plan(
    plan: PlanContent, console: Console, file: str | None = None, settings: Mapping[str, Any] | None = None
) -> None:
    """Prints a plan for people.

    Args:
        plan (PlanContent): The plan.
        console (Console): Where to; tables adapt to its width.
        file (str, optional): The YAML file, for the command to copy; None for a model of Python.
        settings (Mapping[str, Any], optional): Arguments of FreezeOut that the plan has in place of the file's.
    """
    kind = 'images' if len(plan.image_shape) == 3 else 'samples'
    size = f'{plan.duration} of batches of {plan.batch_size}, {kind} of {"x".join(map(str, plan.image_shape))}'
    _print_lines(console, [f'{plan.run_name}: {describe_schedule(plan)}', size], 'bold')
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
    compare = '' if file is None else ' (composer-freezeout compare FAMILY)'
    arms = 'train with and without it' if file is None else 'train the arms of a comparison'
    _print_lines(console, [f'What freezing costs in accuracy is not predicted: {arms}{compare}.'])
    console.print()
    _print_advice(plan, console, file, settings or {})


def _print_lines(console: Console, lines: Sequence[str], style: str = '') -> None:
    for line in lines:
        console.print(escape(line), style=style, highlight=False)


def _unit_table(plan: PlanContent) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style='bold')
    table.add_column('unit', overflow='fold')
    columns = _columns(plan)
    for heading in columns:
        table.add_column(heading, justify='right', no_wrap=True)
    for unit in plan.units:
        table.add_row(escape(unit.name), *(cell(unit) for cell in columns.values()))
    return table


def _columns(plan: PlanContent) -> dict[str, Callable[[PlannedUnit], str]]:
    """What the table tells of a unit besides its name, by heading: only what is known."""
    columns: dict[str, Callable[[PlannedUnit], str]] = {
        'parame-\nters': lambda unit: f'{unit.parameters:,}',
        'forward\nMFLOPs': lambda unit: f'{unit.forward_flops / 1e6:,.2f}',
        'of the\nstep': lambda unit: f'{unit.step_share:.1%}',
    }
    if plan.measured is not None:
        columns['ms per\nstep'] = lambda unit: _milliseconds(unit.forward_seconds, unit.backward_seconds)
    columns['starts\nat lr'] = lambda unit: _first_rates(unit, plan)
    columns['t_i'] = lambda unit: f'{unit.t_i:.3f}'
    if any(unit.freeze_epoch for unit in plan.units):
        columns['freezes\nin epoch'] = lambda unit: _or_never(unit.freeze_epoch)
    elif any(unit.freeze_batch for unit in plan.units):
        columns['freezes\nat batch'] = lambda unit: _or_never(unit.freeze_batch)
    return columns


def _or_never(moment: int | None) -> str:
    return 'never' if moment is None else f'{moment:,}'


def _first_rates(unit: PlannedUnit, plan: PlanContent) -> str:
    """The rates that a unit begins with, without a warm-up."""
    factor = lr_factor(0.0, unit.t_i, plan.scale_lr, anneal=plan.anneal)
    rates = sorted({rate * factor for rate in unit.learning_rates})
    return '–'.join(f'{rate:.2g}' for rate in dict.fromkeys([*rates[:1], *rates[-1:]])) or 'none'


def _milliseconds(forward: float | None, backward: float | None) -> str:
    if forward is None or backward is None:
        return '–'
    milliseconds = 1e3 * (forward + backward)
    return f'{milliseconds:,.1f}' if milliseconds < 1e3 else f'{milliseconds:,.0f}'


def _prediction_table(plan: PlanContent) -> Table:
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


def measurement(plan: PlanContent) -> str:
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


def _print_advice(plan: PlanContent, console: Console, file: str | None, settings: Mapping[str, Any]) -> None:
    t_0 = plan.prediction.t_0
    if t_0 is None and not settings:
        return
    title, in_python = 'To train as planned', file is None or bool(settings)
    if t_0 is not None:
        title = f'To save {plan.target:.1%} ({plan.prediction.model})'
        # Where an entry of the file has the other settings already, t_0 is all that changes.
        others = {} if plan.algorithm is not None else {'how_scale': plan.how_scale}
        others |= {'scale_lr': plan.scale_lr} if file is None else {}
        settings = {'t_0': round(t_0, 3), **others} | {name: settings[name] for name in settings if name != 't_0'}
    if in_python:
        title += f', in Python: {as_python(settings)}'
    if file is None:
        _print_lines(console, [title])
        return
    _print_lines(console, [f'{title}; for the YAML file:' if in_python else f'{title}:'])
    for line in as_lines(settings, file, plan.algorithm):
        console.print(escape(f'  {line}'), highlight=False, soft_wrap=True)
    console.print()
