"""What times are compared by, on quiet and on busy machines."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from composer_freezeout.compare.judging.clock import choose_clock, seconds_ratio
from composer_freezeout.compare.judging.comparison import Comparison, load
from composer_freezeout.compare.judging.verdict import ArmResult, arm_results
from composer_freezeout.compare.report.page import render
from composer_freezeout.compare.report.sentences import conclusion
from composer_freezeout.compare.report.terminal import comparison_table
from composer_freezeout.results.record import Record

from .records import edit, folder, record

ARMS = {'baseline': [0.93, 0.931, 0.932], 'baseline_short': [0.90, 0.901, 0.902], 'freezeout': [0.92, 0.923, 0.922]}
CPU = {'baseline': 190.0, 'baseline_short': 173.0, 'freezeout': 171.0}
# Two threads, which have 1.9 cores.
QUIET = {arm: cpu / 1.9 for arm, cpu in CPU.items()}
# While the shortened baseline ran, there was other work to do.
BUSY = QUIET | {'baseline_short': 250.0}
INFLATED = CPU | {'baseline_short': 240.0}


def compared(out: Path, seconds: dict[str, float], cpu: dict[str, float] | None) -> Comparison:
    return load(folder(out, ARMS, seconds, cpu))


def freezeout(comparison: Comparison) -> ArmResult:
    return next(result for result in arm_results(comparison) if result.arm == 'freezeout')


def terminal(comparison: Comparison) -> str:
    stream = io.StringIO()
    Console(file=stream, width=110).print(comparison_table(comparison))
    return stream.getvalue()


def test_on_a_quiet_machine_times_are_wall_clock(tmp_path):
    comparison = compared(tmp_path / 'new', QUIET, CPU)
    assert (comparison.clock.kind, comparison.clock.note) == ('wall-clock', '')
    # Nothing else is said than of records without CPU seconds.
    old = compared(tmp_path / 'old', QUIET, None)
    assert conclusion(comparison) == conclusion(old) and terminal(comparison) == terminal(old)
    assert 'CPU time' not in render(old)['report.md']
    (row,) = [line for line in render(comparison)['report.md'].splitlines() if line.startswith('| freezeout | 1 |')]
    assert '| 90.00 | 171.00 |' in row


def test_on_a_busy_machine_cpu_seconds_are_compared(tmp_path):
    comparison = compared(tmp_path, BUSY, CPU)
    assert comparison.clock.kind == 'CPU'
    result = freezeout(comparison)
    # By wall-clock it took a third of the shorter baseline's time.
    assert result.measured_saving == pytest.approx(0.1)
    assert (result.verdict, result.judged_by) == ('pays', 'time')
    verdict, _, *others = conclusion(comparison)
    assert 'at equal CPU time of training' in verdict
    assert verdict.endswith('10.0 % less CPU time of training than the whole baseline.')
    assert 'training had 0.69 to 1.90 processor cores' in others[0] and 'CPU times are compared instead' in others[0]
    assert 'CPU' in terminal(comparison) and '171.0' in terminal(comparison)
    files = render(comparison)
    for text in (files['report.md'], files['report.html']):
        assert 'gain at equal CPU time' in text and comparison.clock.note in text
    assert 'Accuracy against CPU time of training' in files['accuracy_time.svg']


def test_on_a_machine_that_is_too_busy_arms_are_judged_by_flops(tmp_path):
    folder(tmp_path, ARMS, BUSY, INFLATED)
    for seed in range(3):
        edit(tmp_path / f'baseline_short/seed{seed}/record.json', 'effective', 'total_batches', value=16)
    comparison = load(tmp_path)
    assert comparison.clock.kind == 'none'
    result = freezeout(comparison)
    assert (result.verdict, result.judged_by, result.by_time) == ('pays', 'FLOPs', None)
    assert (result.time_ratio, result.measured_saving) == (None, None)
    verdict, _, note, *_ = conclusion(comparison)
    assert (
        verdict.startswith('freezeout pays: at equal FLOPs its accuracy is 2.07 points above') and 'took' not in verdict
    )
    assert 'CPU time for the same work differs by up to' in note and 'again on a quiet machine' in note
    assert '20.0' in terminal(comparison)  # the predicted saving
    files = render(comparison)
    assert 'gain at equal time' not in files['report.md'] and 'gain at equal FLOPs' in files['report.md']
    # Nothing is drawn over time.
    names = {'accuracy_time.svg', 'engagement.svg', 'learning_rates.svg', 'memory.svg'}
    assert {name for name in files if name.endswith('.svg')} == names
    assert 'Accuracy against FLOPs' in files['accuracy_time.svg']


def runs(**changes: Any) -> dict[str, list[Record]]:
    """A quiet run and a busy one."""
    quiet, busy = record('baseline', 0, seconds=100, cpu=190), record('freezeout', 0, seconds=200, cpu=171)
    return {row['run_name']: [Record.model_validate(row | changes)] for row in (quiet, busy)}


@pytest.mark.parametrize(
    ('changes', 'kind'),
    [
        ({}, 'CPU'),
        ({'openmp': None}, 'none'),
        ({'openmp': {'wait_policy': 'ACTIVE', 'spin_count': None}}, 'none'),
        ({'openmp': {'wait_policy': None, 'spin_count': 'INFINITY'}}, 'none'),
        ({'openmp': {'wait_policy': 'passive', 'spin_count': None}}, 'CPU'),
        ({'openmp': None, 'hardware': {'threads': 1}}, 'CPU'),
        ({'training_cpu_seconds': None}, 'wall-clock'),
        ({'effective': record('baseline', 0)['effective'] | {'device': 'gpu'}}, 'wall-clock'),
    ],
)
def test_cpu_seconds_are_taken_where_they_tell_something(changes, kind):
    assert choose_clock(runs(**changes)).kind == kind


def test_a_shortened_baseline_gets_the_time_that_its_arm_takes_on_a_quiet_machine():
    baseline, freezeout = runs().values()
    assert seconds_ratio(freezeout, baseline) == pytest.approx(0.9)
    quiet = [Record.model_validate(record('freezeout', 0, seconds=88, cpu=171))]
    assert seconds_ratio(quiet, baseline) == pytest.approx(0.88)
