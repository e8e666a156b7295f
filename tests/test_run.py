"""Runs from a YAML file to a record."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from composer_freezeout.method.schedule import freeze_times
from composer_freezeout.results.environment import environment
from composer_freezeout.run import images
from composer_freezeout.run.build import assemble
from composer_freezeout.run.command import main
from composer_freezeout.run.config import load
from composer_freezeout.run.yaml_files import read_yaml

ROOT = Path(__file__).parent.parent

# 3 batches an epoch.
TINY = """\
run_name: tiny
model: {name: resnet8, num_classes: 10, in_channels: 1}
train_data: {name: digits, batch_size: 479, augment: {crop_padding: 1}}
eval_data: {name: digits, batch_size: 360}
optimizer: {name: sgd, lr: 5e-2, momentum: 0.9}
max_duration: 2ep
seed: 3
progress_bar: false
"""
FREEZEOUT = 'algorithms=[{name: freezeout, t_0: 0.5}]'
COSINE = 'scheduler.name=cosine_annealing'


@pytest.fixture(scope='module')
def yaml(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('yaml') / 'tiny.yaml'
    path.write_text(TINY)
    return path


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / 'record.json').read_text())


def measured(content: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in a run that is done again."""
    rows = [{key: row[key] for key in ('batch', 'train', 'eval', 'trainable_parameters')} for row in content['epochs']]
    return {'epochs': rows, **{key: content[key] for key in ('effective', 'units', 'lr_trace', 'final')}}


@pytest.fixture(scope='module')
def frozen(yaml, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('frozen') / 'out'
    assert main([str(yaml), FREEZEOUT, f'output={folder}']) == 0
    return folder


def test_the_record_tells_the_whole_run(yaml, frozen):
    content = record(frozen)
    assert content['format'] == 1 and content['run_name'] == 'tiny' and content['seed'] == 3
    assert content['config_file'] == str(yaml) and FREEZEOUT in content['command']
    assert content['started_at'] <= content['finished_at']
    config = content['config']
    assert config['optimizer'] | {'lr': 0.05, 'momentum': 0.9, 'nesterov': False} == config['optimizer']
    assert config['algorithms'][0] | {'name': 'freezeout', 't_0': 0.5, 'how_scale': 'cubic'} == config['algorithms'][0]
    assert config['train_data']['shuffle'] is True and config['precision'] == 'fp32'

    effective = content['effective']
    assert effective['batches_per_epoch'] == 3 and effective['total_batches'] == 6
    assert (effective['global_batch_size'], effective['train_samples'], effective['eval_samples']) == (479, 1437, 360)
    assert (effective['world_size'], effective['device'], effective['precision']) == (1, 'cpu', 'fp32')
    assert effective['algorithms'][0].startswith('FreezeOut(t_0=0.5,')
    groups = effective['optimizer']['groups']
    assert sum(group['parameters'] for group in groups) == effective['parameters_total']
    assert all(group['momentum'] == 0.9 and group['unit'] for group in groups)

    rows = content['epochs']
    assert [(row['epoch'], row['batch']) for row in rows] == [(1, 3), (2, 6)]
    assert rows[0]['trainable_parameters'] > rows[1]['trainable_parameters'] > 0
    assert content['final'] == rows[-1]['eval'] and set(content['final']) == {'CrossEntropy', 'MulticlassAccuracy'}
    assert all(math.isfinite(row['train']['loss']) for row in rows)
    assert content['training_seconds'] * (1 + 1e-9) >= sum(row['training_seconds'] for row in rows)
    assert 0 < content['data_wait_share'] < 1 and content['evaluation_seconds'] > 0
    assert content['peak_memory_bytes'] > 10**7 and content['resumed_at_batch'] == []
    assert {'versions', 'hardware', 'git'} <= set(content)


def test_the_units_and_their_learning_rates_are_in_the_record(frozen):
    content = record(frozen)
    units = content['units']
    times = freeze_times(len(units), 0.5, 'cubic')
    assert [unit['t_i'] for unit in units] == pytest.approx(times)
    assert sum(unit['parameters'] for unit in units) == content['effective']['parameters_total']
    trace = content['lr_trace']
    assert trace['batch'] == list(range(6))
    for unit, t in zip(units, times, strict=True):
        for batch, rate in zip(trace['batch'], trace['lr'][unit['name']], strict=True):
            progress = batch / 6
            if progress >= t:
                assert not rate
            else:
                assert rate == pytest.approx(0.05 / t * (1 + math.cos(math.pi * progress / t)) / 2, rel=1e-12)
    # The first units left the optimizer at the end of the first epoch.
    assert trace['lr'][units[0]['name']][3:] == [None] * 3


def test_a_run_is_repeated_from_its_own_configuration(frozen, tmp_path):
    assert main([str(frozen / 'config.yaml'), f'output={tmp_path}']) == 0
    assert measured(record(tmp_path)) == measured(record(frozen))
    again, first = (read_yaml(folder / 'config.yaml') for folder in (tmp_path, frozen))
    assert again == first | {'output': str(tmp_path)}


def test_the_trace_is_what_the_optimizer_stepped_with(yaml, tmp_path):
    used = []
    parts = assemble(load(yaml, [COSINE, f'output={tmp_path}']))
    optimizer = parts.keywords['optimizers']
    optimizer.register_step_post_hook(lambda optimizer, *_: used.append(optimizer.param_groups[0]['lr']))
    run = parts.build()
    run.trainer.fit()
    run.trainer.close()
    assert len(used) == 6 and len(set(used)) > 1
    assert run.recorder.learning_rates.result().model_dump() == {'batch': list(range(6)), 'lr': {'group0': used}}
    # Composer steps its schedulers before it counts the batch: they are one batch late.
    assert used == pytest.approx([0.05 * (1 + math.cos(math.pi * max(b - 1, 0) / 6)) / 2 for b in range(6)])
    assert run.recorder.optimizer['groups'][0]['lr'] == 0.05


def test_the_seed_gives_the_model_whatever_the_algorithms(yaml):
    def weights(*overrides: str) -> dict[str, torch.Tensor]:
        return assemble(load(yaml, overrides)).keywords['model'].state_dict()

    plain = weights()
    for overrides in ([FREEZEOUT], ['algorithms=[{name: ema}, {name: layer_freezing}]'], [COSINE]):
        assert all(torch.equal(plain[key], value) for key, value in weights(*overrides).items())
    assert not torch.equal(plain['module.conv1.weight'], weights('seed=4')['module.conv1.weight'])


def test_a_finished_run_is_not_overwritten_unless_told(yaml, frozen, tmp_path, capsys):
    before = record(frozen)
    assert main([str(yaml), f'output={frozen}']) == 2
    assert 'output: ' in (error := capsys.readouterr().err) and 'already holds the record' in error
    assert 'overwrite=true' in error
    # Nothing is lost to a run that does not start.
    assert main([str(yaml), f'output={frozen}', 'overwrite=true', 'algorithms=[{name: freezeout, t_0: 9}]']) == 2
    assert record(frozen) == before

    short = [str(yaml), f'output={tmp_path}', 'max_duration=1ba', 'checkpoint.interval=1ba', 'loggers=[{name: file}]']
    assert main(short) == 0
    assert main([*short, 'max_duration=2ba', 'overwrite=true']) == 0
    assert record(tmp_path)['effective']['total_batches'] == 2


def test_a_file_is_no_output_folder(yaml, capsys):
    assert main([str(yaml), f'output={yaml}']) == 2
    assert 'is a file' in capsys.readouterr().err
    assert main([str(yaml), f'output={yaml}/below']) == 2
    assert 'cannot be created' in capsys.readouterr().err


@pytest.fixture
def crash(monkeypatch):
    """The sixth batch breaks."""
    original, calls = images.ImageTensors.__getitems__, []

    def break_at_the_sixth(self, indices):
        calls.append(len(indices))
        if sum(size == 479 for size in calls) == 6:
            raise RuntimeError('the disk is gone')
        return original(self, indices)

    monkeypatch.setattr(images.ImageTensors, '__getitems__', break_at_the_sixth)
    return monkeypatch


def test_what_breaks_in_training_is_raised_and_leaves_no_record(yaml, tmp_path, crash):
    with pytest.raises(RuntimeError, match='the disk is gone'):
        main([str(yaml), f'output={tmp_path}'])
    assert not (tmp_path / 'record.json').exists() and (tmp_path / 'config.yaml').exists()


def test_an_interrupted_run_is_continued(yaml, tmp_path, crash, capsys):
    arguments = [str(yaml), FREEZEOUT, 'max_duration=3ep', 'checkpoint={interval: 1ep}', 'loggers=[{name: file}]']
    broken, whole = [f'output={tmp_path / name}' for name in ('broken', 'whole')]
    with pytest.raises(RuntimeError, match='the disk is gone'):
        main([*arguments, broken])
    crash.undo()

    assert main([*arguments, broken]) == 2
    assert 'holds checkpoints of an unfinished run; set checkpoint.resume=true' in capsys.readouterr().err
    assert main([*arguments, broken, 'checkpoint.resume=true']) == 0
    assert main([*arguments, whole]) == 0
    resumed, uninterrupted = record(tmp_path / 'broken'), record(tmp_path / 'whole')
    assert resumed['resumed_at_batch'] == [3]
    assert measured(resumed) == measured(uninterrupted)
    assert [path.name for path in sorted((tmp_path / 'broken').glob('log*'))] == ['log.2.txt', 'log.txt']


def test_loggers_write_into_the_output_folder(yaml, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loggers = 'loggers=[{name: file}, {name: tensorboard}]'
    assert (
        main([str(yaml), FREEZEOUT, loggers, 'max_duration=2ba', 'callbacks=[{name: lr_monitor}]', 'output=out']) == 0
    )
    assert 'freezeout/progress' in (tmp_path / 'out' / 'log.txt').read_text()
    assert list((tmp_path / 'out' / 'tensorboard').rglob('events*'))
    assert [path.name for path in tmp_path.iterdir()] == ['out']


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
    'algorithm',
    [
        'blurpool',
        'channels_last',
        'colout',
        'cutmix',
        'cutout',
        'ema, half_life: 2ba',
        'ghost_batchnorm',
        'gradient_clipping, clipping_type: norm, clipping_threshold: 1',
        'label_smoothing',
        'layer_freezing',
        'mixup',
        'progressive_resizing, initial_scale: 0.75',
        'sam',
        'selective_backprop, start: 0.0, end: 0.9',
        'squeeze_excite',
        'swa, swa_start: 0.3dur, swa_end: 0.7dur, update_interval: 1ba',
        'weight_standardization',
    ],
)
def test_algorithms_of_composer_by_name(yaml, tmp_path, algorithm):
    overrides = [f'algorithms=[{{name: {algorithm}}}]', 'max_duration=3ba', 'train_data.image_size=16']
    assert main([str(yaml), *overrides, 'train_data.batch_size=64', f'output={tmp_path}']) == 0
    assert record(tmp_path)['effective']['total_batches'] == 3


def test_run_without_evaluation_and_with_microbatches(yaml, tmp_path):
    overrides = ['eval_data=null', 'microbatch_size=64', 'train_subset_num_batches=2', 'max_duration=1ep']
    assert main([str(yaml), *overrides, 'deterministic=true', f'output={tmp_path}']) == 0
    torch.use_deterministic_algorithms(False)
    content = record(tmp_path)
    assert content['final'] == {} and content['effective']['eval_samples'] is None
    assert content['effective']['total_batches'] == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_what_needs_a_gpu_says_so(yaml, tmp_path, capsys):
    assert main([str(yaml), 'device=gpu', f'output={tmp_path}']) == 2
    assert 'command line: device: ' in capsys.readouterr().err
    assert main([str(yaml), 'precision=amp_bf16', 'microbatch_size=auto', f'output={tmp_path}']) == 2
    precision, microbatch_size = capsys.readouterr().err.splitlines()
    assert 'precision: ' in precision and 'microbatch_size: ' in microbatch_size


def test_parts_that_do_not_go_together(yaml, tmp_path, capsys):
    scheduler = 'scheduler={name: cosine_annealing_with_warmup, t_warmup: 1ba, t_max: 1ep}'
    assert main([str(yaml), scheduler, f'output={tmp_path}']) == 2
    error = capsys.readouterr().err
    # They may be what the command line gave.
    assert error.startswith(f'{yaml} with {scheduler} output={tmp_path}: the parts of this run do not go together: ')
    assert error.count('\n') == 1


def test_another_number_of_costs_than_units_is_told(yaml, tmp_path, capsys):
    assert main([str(yaml), 'algorithms=[{name: freezeout, unit_costs: [2, 1, 0]}]', f'output={tmp_path}']) == 2
    (line,) = capsys.readouterr().err.splitlines()
    told = 'unit_costs must hold one number per unit: the model has 8 units, got 3 numbers'
    assert line.startswith(f'command line: algorithms.0.unit_costs: {told}')
    assert not (tmp_path / 'record.json').exists()


def test_help(capsys):
    with pytest.raises(SystemExit) as ended:
        main(['--help'])
    assert ended.value.code == 0 and 'key=value' in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2


# As users start it.


def composer(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    launcher = Path(sys.executable).with_name('composer')
    return subprocess.run(
        [launcher, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_launcher_from_a_checkout(tmp_path):
    done = composer('run', 'yamls/quickstart.yaml', 'max_duration=2ba', 'train_data.image_size=8', f'output={tmp_path}')
    assert done.returncode == 0, done.stderr
    assert '100%' in done.stderr  # the progress bar
    assert 'Warning' not in done.stderr
    assert record(tmp_path)['run_name'] == 'quickstart-freezeout'


def test_launcher_with_two_processes(tmp_path):
    overrides = ['max_duration=2ba', 'train_data.image_size=8', f'output={tmp_path}']
    done = composer('-n', 2, 'run', 'yamls/quickstart.yaml', *overrides)
    assert done.returncode == 0, done.stderr + done.stdout
    content = record(tmp_path)
    assert content['effective']['world_size'] == 2 and content['effective']['batches_per_epoch'] == 22


def test_a_finished_run_tells_its_result(yaml, tmp_path, capfd):
    assert main([str(yaml), FREEZEOUT, f'output={tmp_path}']) == 0
    result, frozen, path = capfd.readouterr().out.splitlines()
    content = record(tmp_path)
    accuracy, saving = content['final']['MulticlassAccuracy'], content['predicted_saving']
    assert result == (
        f'tiny: {content["training_seconds"]:.1f} s of training, accuracy {accuracy:.2%}, '
        f'{saving:.1%} of the FLOPs saved by freezing (predicted)'
    )
    assert frozen.startswith('frozen: 7 of 8 units, from module.conv1 at batch ') and frozen.endswith(', of 6 batches')
    assert path == f'record: {tmp_path / "record.json"}'


def test_cpu_time_is_kept_as_wall_clock_is(frozen):
    content = record(frozen)
    rows = [row['training_cpu_seconds'] for row in content['epochs']]
    assert content['training_cpu_seconds'] * (1 + 1e-9) >= sum(rows) and min(rows) > 0
    segments = sum(segment['cpu_seconds'] for segment in content['segments'])
    assert segments <= content['training_cpu_seconds'] * (1 + 1e-9)


@pytest.mark.slow
def test_launcher_from_an_installation(yaml, tmp_path, monkeypatch):
    for name in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT'):
        monkeypatch.delenv(name, raising=False)
    done = composer('-m', 'composer_freezeout.run', yaml, 'max_duration=1ba', 'output=here', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # Nobody has said how threads are to wait, in this process or above it.
    assert record(tmp_path / 'here')['openmp'] == {'wait_policy': None, 'spin_count': '1000'}
    # That of the package, wherever it was started.
    assert (record(tmp_path / 'here')['git'] is None) == (environment()['git'] is None)


def test_exit_code_and_message_pass_the_launcher(yaml, tmp_path):
    done = composer('-n', 2, 'run', yaml, 'optimizer.lrr=1', f'output={tmp_path}')
    assert done.returncode == 2
    assert done.stderr.count("optimizer.lrr: SGD has no argument 'lrr'; did you mean 'lr'?") == 1
    assert 'Traceback' not in done.stderr + done.stdout


def test_a_crash_is_a_traceback_and_exit_code_1(yaml, tmp_path):
    # Diverges on purpose, and a callback refuses to go on.
    arguments = [yaml, 'optimizer.lr=1e30', 'callbacks=[{name: nan_monitor}]', f'output={tmp_path}']
    done = subprocess.run(
        [sys.executable, '-m', 'composer_freezeout.run', *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert 'Traceback' in done.stderr and 'NaN' in done.stderr
    assert not (tmp_path / 'record.json').exists()


@pytest.mark.parametrize('damage', ['text', 'empty', 'cut short', 'another dict', 'another model'])
def test_checkpoints_that_cannot_be_loaded(damage, yaml, tmp_path, capfd):
    small = ['max_duration=2ba']
    assert main([str(yaml), f'output={tmp_path / "first"}', 'checkpoint={interval: 1ba}', *small]) == 0
    (checkpoint,) = (tmp_path / 'first' / 'checkpoints').glob('*ba1-rank0.pt')
    if damage == 'text':
        checkpoint.write_text('not a checkpoint')
    elif damage == 'empty':
        checkpoint.write_bytes(b'')
    elif damage == 'cut short':
        checkpoint.write_bytes(checkpoint.read_bytes()[:2000])
    elif damage == 'another dict':
        torch.save({'weights': 1}, checkpoint)
    else:
        small.append('model.name=resnet14')
    capfd.readouterr()
    second = [f'output={tmp_path / "second"}', f'checkpoint.load_path={checkpoint}', *small]
    assert main([str(yaml), *second]) == 2
    error = capfd.readouterr().err
    assert 'checkpoint.load_path: ' in error or 'do not go together' in error
    assert str(checkpoint) in error or damage == 'another model'
    assert 'Traceback' not in error
