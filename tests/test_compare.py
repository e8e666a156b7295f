"""The comparison runner, on the smallest network."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from composer_freezeout.compare import command as compare
from composer_freezeout.compare.arms import family as families
from composer_freezeout.compare.arms import known, lengths
from composer_freezeout.compare.judging.manifest import new_manifest
from composer_freezeout.compare.training import finished, job, ongoing, runner
from composer_freezeout.results.record import Record
from composer_freezeout.run.config import load
from composer_freezeout.run.faults import ConfigError, Refused
from composer_freezeout.run.processes import Stopped, execute

from . import records
from .in_process import InProcess

ROOT = Path(__file__).parent.parent

QUICKSTART = ROOT / 'yamls' / 'quickstart'
BASELINE, FREEZEOUT = QUICKSTART / 'baseline.yaml', QUICKSTART / 'freezeout.yaml'
SMALL = ['model.name=resnet8', 'train_data.image_size=8', 'eval_data.image_size=8', 'max_duration=4ep']
MEASURED = ['baseline', 'baseline_short', 'freezeout']


@pytest.fixture(scope='module')
def family(tmp_path_factory) -> Path:
    """The quickstart with an arm that fails, but not before it runs: its layers are in no model."""
    folder = tmp_path_factory.mktemp('families') / 'family'
    shutil.copytree(QUICKSTART, folder)
    text = (folder / 'freezeout.yaml').read_text()
    (folder / 'failing.yaml').write_text(text.replace('    t_0: 0.8', '    layers: [none_such]'))
    return folder


@pytest.fixture(scope='module')
def comparison(family, tmp_path_factory) -> SimpleNamespace:
    """Four runs at half the scale; the arm that fails is not the last one."""
    out = tmp_path_factory.mktemp('comparison') / 'out'
    arguments = [str(family), '--out', str(out), '--scale', '0.5', *SMALL]
    text, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(text), contextlib.redirect_stderr(errors):
        patch.setattr(compare, 'executor', lambda *_: InProcess())
        code = compare.main([*arguments, '--arms', 'failing,baseline,freezeout,baseline_short'])
    return SimpleNamespace(out=out, arguments=arguments, code=code, text=text.getvalue(), errors=errors.getvalue())


def record(out: Path, arm: str, seed: int = 17) -> dict:
    return json.loads((out / arm / f'seed{seed}' / 'record.json').read_text())


# ---------------------------------------------------------------------------------------------------------------------
# A whole comparison
# ---------------------------------------------------------------------------------------------------------------------


def test_every_arm_has_a_record_and_a_line(comparison):
    lines = comparison.text.splitlines()
    for arm in MEASURED:
        seconds = record(comparison.out, arm)['training_seconds']
        told = f'in {seconds:.1f} s of training on '
        assert any(f'{arm} seed 17: ' in line and told in line and ' cores' in line for line in lines)
    assert f'Report: {comparison.out / "report.html"}' in comparison.text
    assert '\x1b' not in comparison.text and '\r' not in comparison.text


def test_a_failed_run_is_reported_and_the_rest_goes_on(comparison):
    (failure,) = json.loads((comparison.out / 'comparison.json').read_text())['failures']
    log = comparison.out / 'failing' / 'seed17' / 'output.txt'
    assert comparison.code == 1
    assert (failure['arm'], failure['seed']) == ('failing', 17)
    assert failure['exit_code'] != 0
    assert 'layers: no expression matches' in failure['message'] and failure['message'] in log.read_text()
    (line,) = [line for line in comparison.text.splitlines() if 'failing seed 17' in line]
    assert failure['message'] in line and str(log) in line
    assert '1 run has no record; to try again: composer-freezeout compare' in comparison.errors
    assert 'Traceback' not in comparison.errors


def test_the_scale_holds_for_all_arms(comparison):
    assert json.loads((comparison.out / 'comparison.json').read_text())['scale'] == 0.5
    for arm in MEASURED:
        assert record(comparison.out, arm)['config']['train_subset_num_batches'] == 11
    assert record(comparison.out, 'baseline')['effective']['total_batches'] == 22
    assert record(comparison.out, 'freezeout')['effective']['total_batches'] == 22


def test_the_control_has_the_time_that_freezeout_took(comparison):
    records = {arm: record(comparison.out, arm) for arm in MEASURED}
    # By CPU time where other processes held up one of the runs: see test_clock.
    shares = [
        records['freezeout'][key] / records['baseline'][key] for key in ('training_seconds', 'training_cpu_seconds')
    ]
    batches = records['baseline_short']['effective']['total_batches']
    assert batches in {max(1, round(22 * share)) for share in shares}
    # Its cosine is compressed, not cut off.
    assert records['baseline_short']['config']['max_duration'] == f'{batches}ba'
    assert records['baseline_short']['run_name'] == 'quickstart-baseline_short'


def test_the_warm_up_leaves_nothing_behind(comparison):
    folders = {path.name for path in comparison.out.iterdir() if path.is_dir()}
    assert folders == {*MEASURED, 'failing'}
    assert 'Warming up' in comparison.text
    assert not any('warm' in key for key in json.loads((comparison.out / 'comparison.json').read_text())['arms'])


def test_finished_runs_are_not_done_again(comparison, capsys):
    path = comparison.out / 'comparison.json'
    files = {file: file.stat().st_mtime_ns for file in comparison.out.glob('*/seed17/*')}
    before = json.loads(path.read_text())
    assert compare.main([*comparison.arguments, '--arms', ','.join(MEASURED)]) == 0
    text = capsys.readouterr().out
    assert '3 of 3 runs are finished already.' in text
    assert 'Warming up' not in text
    assert {file: file.stat().st_mtime_ns for file in comparison.out.glob('*/seed17/*')} == files
    after = json.loads(path.read_text())
    # The arm that was left out this time is not forgotten.
    assert after['arms'] == before['arms'] and after['failures'] == before['failures']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['optimizer.lr=0.2'], 'optimizer.lr is 0.1 in a finished run and would be 0.2 now'),
        (['--scale', '1'], 'has scale 0.5, and this one 1.0'),
    ],
)
def test_other_runs_than_those_in_the_folder_are_refused(arguments, message, comparison, capsys):
    files = {file: file.stat().st_mtime_ns for file in comparison.out.rglob('*')}
    assert compare.main([*comparison.arguments, *arguments, '--arms', ','.join(MEASURED)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and '--overwrite' in line and '--out' in line
    assert {file: file.stat().st_mtime_ns for file in comparison.out.rglob('*')} == files


def test_runs_of_another_machine_are_refused(comparison, tmp_path, capsys):
    out = tmp_path / 'out'
    shutil.copytree(comparison.out, out)
    path = out / 'freezeout' / 'seed17' / 'record.json'
    content = json.loads(path.read_text())
    content['hardware']['cpu'] = 'abacus'
    path.write_text(json.dumps(content))
    arguments = [str(out) if value == str(comparison.out) else value for value in comparison.arguments]
    assert compare.main([*arguments, '--arms', ','.join(MEASURED)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "hardware.cpu was 'abacus'" in line and '--allow-mixed' in line
    assert compare.main([*arguments, '--arms', ','.join(MEASURED), '--allow-mixed']) == 0


def test_each_run_has_a_process_of_its_own(tmp_path):
    out = tmp_path / 'out'
    command = [sys.executable, str(ROOT / 'benchmarks' / 'compare.py'), str(QUICKSTART), '--out', str(out), *SMALL]
    command += ['--arms', 'baseline', '--lengths', 'none', 'max_duration=2ba']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert record(out, 'baseline')['command'].startswith('composer -m composer_freezeout.run ')
    assert record(out, 'baseline')['effective']['total_batches'] == 2
    assert 'Traceback' not in done.stderr and '\x1b' not in done.stdout


@pytest.mark.slow
def test_a_stopped_comparison_goes_on(tmp_path):
    out = tmp_path / 'out'
    arguments = [str(QUICKSTART), '--out', str(out), '--arms', 'baseline,freezeout', '--seeds', '2', *SMALL]
    command = [sys.executable, str(ROOT / 'benchmarks' / 'compare.py'), *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    record, log = out / 'baseline' / 'seed17' / 'record.json', out / 'freezeout' / 'seed17' / 'output.txt'
    while not (record.exists() and log.exists()):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert errors.splitlines()[-1].startswith('stopped; to go on: composer-freezeout compare ')
    finished = record.stat().st_mtime_ns
    assert not log.with_name('record.json').exists()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert '1 of 4 runs are finished already.' in done.stdout
    assert record.stat().st_mtime_ns == finished
    assert len(list(out.glob('*/seed1[78]/record.json'))) == 4


# ---------------------------------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('missing', 'arguments', 'message'),
    [
        ('freezeout.yaml', [], 'has no freezeout.yaml'),
        ('baseline.yaml', [], 'has no baseline.yaml'),
        (None, ['optimiser.lr=1'], "unknown key 'optimiser'; did you mean 'optimizer'?"),
        (None, ['train_data.batch_size=5000'], 'train_data.batch_size: 5000 is more than the 1437 samples there are'),
        (None, ['output=here'], 'command line: output: give the folder of the comparison with --out'),
        (None, ['max_duration=1000sp'], "max_duration: '1000sp' cannot be shortened in batches"),
        (None, ['--arms', 'baseline,freezout'], "--arms: no arm 'freezout' in this family; choose from baseline, "),
        (None, ['--arms', 'freezeout'], "--arms: 'baseline' is missing"),
        (None, ['--arms', 'baseline,baseline_short'], "--arms: 'freezeout' is missing"),
    ],
)
def test_faults_are_told_before_anything_is_trained(missing, arguments, message, tmp_path, capsys):
    family = tmp_path / 'family'
    shutil.copytree(QUICKSTART, family)
    if missing:
        (family / missing).unlink()
    assert compare.main([str(family), '--out', str(tmp_path / 'out'), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / 'out').exists()


def test_the_faults_of_all_files_are_told_at_once(family, tmp_path, capsys):
    folder = tmp_path / 'family'
    shutil.copytree(family, folder)
    for name, old, new in [('freezeout', 't_0: 0.8', 't_0: 8'), ('baseline', 'lr: 0.1', 'lr: fast')]:
        path = folder / f'{name}.yaml'
        path.write_text(path.read_text().replace(old, new))
    assert compare.main([str(folder), '--out', str(tmp_path / 'out')]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f'{folder / "baseline.yaml"}: optimizer.lr: ')
    assert second.startswith(f'{folder / "freezeout.yaml"}: algorithms.0.t_0: ')


def test_arms_that_differ_in_more_than_freezing_are_refused(tmp_path, capsys):
    family = tmp_path / 'family'
    shutil.copytree(QUICKSTART, family)
    path = family / 'freezeout.yaml'
    path.write_text(path.read_text().replace('weight_decay: 5e-4', 'weight_decay: 1e-3'))
    assert compare.main([str(family), '--out', str(tmp_path / 'out')]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'{path}: optimizer.weight_decay: is 0.001, but 0.0005 in baseline.yaml')


@pytest.mark.parametrize('argument', [['--scale', '0'], ['--scale', '1.5'], ['--scale', 'x'], ['--seeds', '0']])
def test_numbers_out_of_range_are_refused(argument, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        compare.main([str(QUICKSTART), '--out', str(tmp_path / 'out'), *argument])
    assert exit.value.code == 2
    assert f'got {argument[1]!r}' in capsys.readouterr().err


def test_a_folder_with_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / 'thesis.txt').write_text('do not lose')
    assert compare.main([str(QUICKSTART), '--out', str(tmp_path), *SMALL]) == 2
    assert 'is not empty and holds no comparison.json' in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.txt']


# ---------------------------------------------------------------------------------------------------------------------
# Arms and their order
# ---------------------------------------------------------------------------------------------------------------------


def test_arms_of_a_family(tmp_path):
    for name in ('zebra', 'freezeout_linear', 'freezeout', 'baseline'):
        (tmp_path / f'{name}.yaml').touch()
    assert families.family_arms(tmp_path) == ['baseline', 'baseline_short', 'freezeout', 'freezeout_linear', 'zebra']
    (tmp_path / 'layer_freezing.yaml').touch()
    assert families.family_arms(tmp_path)[:4] == [
        'baseline',
        'baseline_short',
        'layer_freezing',
        'layer_freezing_matched',
    ]
    (tmp_path / 'freezeout_cost_aware.yaml').touch()
    assert {'baseline_short_cost_aware', 'freezeout_cost_aware'} < set(families.family_arms(tmp_path))
    with pytest.raises(Refused, match="'freezeout_cost_aware' is missing, which baseline_short_cost_aware is comp"):
        families.choose_arms(families.family_arms(tmp_path), 'baseline,baseline_short_cost_aware')


def test_each_shortened_baseline_waits_for_its_arm():
    names = ['baseline', 'baseline_short', 'baseline_short_cost_aware', 'freezeout', 'freezeout_cost_aware']
    for number in range(5):
        order = known.round_order(names, number)
        assert sorted(order) == names
        for short, arm in [('baseline_short', 'freezeout'), ('baseline_short_cost_aware', 'freezeout_cost_aware')]:
            assert order.index(short) > max(order.index('baseline'), order.index(arm))


def test_no_arm_is_always_at_the_same_place():
    names = ['baseline', 'baseline_short', 'a', 'b', 'freezeout']
    rounds = [known.round_order(names, number) for number in range(5)]
    assert all(sorted(order) == sorted(names) for order in rounds)
    for order in rounds:
        assert order.index('baseline_short') > max(order.index('baseline'), order.index('freezeout'))
    for name in ('baseline', 'a', 'b', 'freezeout'):
        places = Counter(order.index(name) for order in rounds)
        assert max(places.values()) <= 2, name
    assert len({order[0] for order in rounds}) >= 4
    assert known.round_order(names, 5) == rounds[0]


def test_without_the_shortened_baseline_every_arm_is_everywhere_once():
    names = list('abcd')
    rounds = [known.round_order(names, number) for number in range(4)]
    assert all({order[place] for order in rounds} == set(names) for place in range(4))


def test_layer_freezing_is_matched_to_freezeout():
    found, data = families.read_arms(
        QUICKSTART, ['baseline', 'layer_freezing_matched', 'freezeout'], ['max_duration=20ep', *SMALL[:3]], 1.0
    )
    matched = {arm.name: arm for arm in found}['layer_freezing_matched']
    assert data.batches_per_epoch == 22
    (entry,) = matched.resolved['algorithms']
    assert 0 < entry['freeze_start'] < 0.5
    assert matched.overrides[-1] == f'algorithms.0.freeze_start={entry["freeze_start"]}'
    saving, target = (float(text.rstrip('%')) for text in re.findall(r'[\d.]+%', matched.note))
    assert saving == pytest.approx(target, abs=2.0)
    assert matched.config.run_name == 'quickstart-layer_freezing_matched'


def test_what_cannot_be_matched_is_said():
    found, _ = families.read_arms(
        QUICKSTART, ['baseline', 'layer_freezing_matched'], ['max_duration=2ep', *SMALL[:3]], 1.0
    )
    assert found[1].resolved['algorithms'][0]['freeze_start'] == 0
    assert found[1].note.startswith('freeze_start=0: LayerFreezing saves at most')


# ---------------------------------------------------------------------------------------------------------------------
# Durations
# ---------------------------------------------------------------------------------------------------------------------


def a_record(arm: str, seconds: float, batches: int) -> Record:
    content = records.record(arm, 17, seconds=seconds)
    return Record.model_validate(content | {'effective': content['effective'] | {'total_batches': batches}})


WARM_UP = ['scheduler.name=cosine_annealing_with_warmup', 'scheduler.t_warmup=3ep']


def test_scaling_keeps_the_shape_of_the_schedule():
    config = load(BASELINE, ['max_duration=160ep', *WARM_UP[:1], 'scheduler.t_warmup=5ep'])
    assert lengths.scaled(config, 0.1, 48) == [
        'max_duration=16ep', 'train_subset_num_batches=5', 'scheduler.t_warmup=0.03125dur',
    ]  # fmt: skip
    config = load(FREEZEOUT, ['max_duration=160ep', 'algorithms.0.t_warmup=5ep'])
    assert lengths.scaled(config, 0.1, 48)[-1] == 'algorithms.0.t_warmup=0.03125dur'
    assert lengths.scaled(config, 1.0, 48) == []


def test_scaling_a_duration_in_batches():
    config = load(BASELINE, ['max_duration=1000ba'])
    assert lengths.scaled(config, 0.5, 100) == ['max_duration=250ba', 'train_subset_num_batches=50']


def test_nothing_is_scaled_below_one():
    config = load(BASELINE, ['max_duration=12ep'])
    assert lengths.scaled(config, 0.001, 22) == ['max_duration=1ep', 'train_subset_num_batches=1']


def test_times_as_shares():
    steps = ['scheduler.name=multi_step', 'scheduler.milestones=[6ep, 0.75dur, 220ba]']
    config = load(BASELINE, ['max_duration=12ep', *steps])
    # The last milestone is one of batches: 220 of 264.
    assert lengths.relative_times(config, 22) == ['scheduler.milestones=[0.5dur, 0.75dur, 0.83333333dur]']
    relative = load(BASELINE, ['max_duration=12ep', *steps, *lengths.relative_times(config, 22)])
    assert lengths.relative_times(relative, 22) == []


def test_a_shortened_run_warms_up_for_the_same_share():
    config = load(BASELINE, ['max_duration=12ep', *WARM_UP])
    assert lengths.shortened(config, 22, 131) == ['max_duration=131ba', 'scheduler.t_warmup=0.25dur']


def test_durations_that_count_no_batches_are_refused(refusal):
    with refusal("'5tok' cannot be shortened in batches", ConfigError):
        lengths.total_batches(load(BASELINE, ['max_duration=5tok']), 22)


def test_batches_in_the_same_time():
    def records(*seconds: float) -> list[Record]:
        return [a_record('baseline', value, 200) for value in seconds]

    assert ongoing.batches_in_the_same_time(records(10, 30), records(12, 18)) == 150
    assert ongoing.batches_in_the_same_time(records(10), records(0.001)) == 1
    assert ongoing.batches_in_the_same_time(records(10), []) is None


def test_each_shortened_baseline_has_the_time_of_its_arm(tmp_path):
    family = tmp_path / 'family'
    shutil.copytree(QUICKSTART, family)
    shutil.copy(family / 'freezeout.yaml', family / 'freezeout_cost_aware.yaml')
    names = families.family_arms(family)
    found, data = families.read_arms(family, names, SMALL[:3], 1.0)
    comparison = ongoing.OngoingComparison(
        tmp_path / 'out', found, data, [17], new_manifest(family, names, [17], 1.0, [], 'command')
    )
    times = {'baseline': 10.0, 'freezeout': 9.0, 'freezeout_cost_aware': 6.0}
    for name, seconds in times.items():
        comparison.records[name, 17] = a_record(name, seconds, 100)
    for short, batches in [('baseline_short', 90), ('baseline_short_cost_aware', 60)]:
        short_job = comparison.with_duration(comparison.job(short, 17))
        assert short_job is not None and f'max_duration={batches}ba' in short_job.overrides
        assert f'run_name=quickstart-{short}' in short_job.overrides
        assert 'max_duration' in short_job.free


# ---------------------------------------------------------------------------------------------------------------------
# Single runs
# ---------------------------------------------------------------------------------------------------------------------


def test_the_estimate_takes_the_mean_of_each_label():
    known = {'baseline': [10.0, 20.0], 'freezeout': [5.0]}
    assert runner.remaining_seconds(['baseline', 'freezeout', 'freezeout'], known) == 25.0
    # Nothing is known of it: the mean of the labels.
    assert runner.remaining_seconds(['other'], known) == 10.0
    assert runner.remaining_seconds(['baseline'], {}) is None
    assert runner.remaining_seconds([], {}) == 0.0


def test_the_last_line_is_not_that_of_the_launcher():
    log = (
        'Traceback (most recent call last):\n'
        'RuntimeError: out of luck\n\n'
        'ERROR:composer.cli.launcher:Rank 0 crashed with exit code 1.\n'
        'Waiting up to 30 seconds for all training processes to terminate. Press Ctrl-C to exit immediately.\n'
        'Global rank 0 (PID 123) exited with code 1\n'
    )
    assert job.last_line(log) == 'RuntimeError: out of luck'
    assert job.last_line('') == ''


def one_job(output: Path, **config: object) -> job.Job:
    return job.Job('arm', 3, BASELINE, (), output, config, frozenset({'max_duration'}))


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ({'a': {'b': 1}, 'seed': 3}, None),
        ({'a': {'b': 1}, 'seed': 3, 'output': 'elsewhere', 'max_duration': '7ba'}, None),
        # A setting of today that is not used.
        ({'a': {'b': 1}, 'seed': 3, 'gone': None}, None),
        ({'a': {'b': 2}, 'seed': 3}, 'a.b is 2 in a finished run and would be 1 now'),
        ({'a': {'b': 1}, 'seed': 4}, 'seed is 4'),
        ({'a': {'b': 1, 'c': 0}, 'seed': 3}, 'a.c is 0 in a finished run and would be absent now'),
    ],
)
def test_which_runs_count_as_finished(config, message, tmp_path, refusal):
    one = one_job(tmp_path, a={'b': 1}, max_duration='5ba', algorithms=[])
    assert finished.finished([one]) == {}
    records.write(tmp_path / 'record.json', records.record('baseline', 3) | {'config': {**config, 'algorithms': []}})
    if message is None:
        assert finished.finished([one])[one].seed == 3
    else:
        with refusal(message, Refused):
            finished.finished([one])


@pytest.mark.parametrize('content', ['{"conf', '{}', '[' * 100_000, '"\\ud800"', '\0'])
def test_a_damaged_record_is_named(content, tmp_path):
    path = tmp_path / 'record.json'
    path.write_text(content)
    with pytest.raises(Refused) as raised:
        finished.finished([one_job(tmp_path)])
    assert all(
        line.startswith(f'{path}') and 'remove it, and the run is done again' in line for line in raised.value.lines
    )


def alive(process: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    return False


def test_nothing_of_a_run_outlives_it(tmp_path):
    started = tmp_path / 'started'
    child = f'["sh", "-c", "trap : TERM; echo $$ > {started}; while true; do sleep 0.1; done"]'
    code = f'import subprocess, time; subprocess.Popen({child}); time.sleep(60)'

    def stop(*_: object) -> None:
        raise Stopped(signal.SIGALRM)

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        watcher = f'while [ ! -s {started} ]; do sleep 0.05; done; kill -USR1 {os.getpid()}'
        helper = subprocess.Popen(['sh', '-c', watcher])
        with pytest.raises(Stopped):
            execute([sys.executable, '-c', code], tmp_path / 'log')
        helper.wait()
    finally:
        signal.signal(signal.SIGUSR1, before)
    deadline = time.monotonic() + 10
    while alive(int(started.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.01)
