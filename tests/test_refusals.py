"""What a run cannot do is said in one line that names the file or the key and the remedy, and nothing is lost."""

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torchvision.io import write_png

from composer_freezeout.run.command import main
from composer_freezeout.run.config import load
from composer_freezeout.run.error_lines import told

RUN = """\
run_name: tiny
model: {name: resnet8, num_classes: 10, in_channels: 1}
train_data: {name: digits, batch_size: 479}
optimizer: {name: sgd, lr: 0.1, momentum: 0.9}
algorithms: [{name: freezeout, t_0: 0.5}]
max_duration: 1ep
progress_bar: false
"""


@pytest.fixture
def yaml(tmp_path) -> Path:
    path = tmp_path / 'tiny.yaml'
    path.write_text(RUN)
    return path


@pytest.fixture
def refused(tmp_path, yaml, capfd) -> Callable[..., str]:
    """Runs with overrides, and returns the one line that it ends with."""

    def run(*overrides: str, output: Path = tmp_path / 'out') -> str:
        capfd.readouterr()
        assert main([str(yaml), f'output={output}', *overrides]) == 2
        line = capfd.readouterr().err.strip()
        assert len(line.splitlines()) == 1, line
        return line

    return run


# --- values


@pytest.mark.parametrize(
    ('override', 'line'),
    [
        ('algorithms.0.t_warmup=1.9ep', "command line: algorithms.0.t_warmup: must be a time string such as '5ep'"),
        ('train_data=' + '[' * 3000, 'command line: train_data: nested deeper than 50 levels'),
        ('seed=' + '9' * 5000, 'command line: seed: holds a number of thousands of digits'),
        ('seed=9223372036854775808', 'command line: seed: 9223372036854775808 is beyond 64 bits'),
        ('run_name=2026-02-30', "command line: run_name: the value '2026-02-30' is not YAML: day is out of range"),
        ('run_name=2026-02-20', 'command line: run_name: datetime.date(2026, 2, 20) (date) is no plain value; put it'),
        ('output="a\\0b"', 'holds a character that no file can hold'),
        ('callbacks.0.name=lr_monitor', "command line: callbacks.0.name: 'callbacks' is an empty list; give it as a"),
    ],
)
def test_values(override, line, refused, yaml):
    yaml.write_text(f'{RUN}callbacks: []\n')
    assert line in refused(override)


@pytest.mark.parametrize(
    ('text', 'line'),
    [
        ('loggers: ' + '[' * 3000, 'line 8: nested deeper than 50 levels'),
        ('loggers: &a [*a]\n', 'nested deeper than 50 levels with all aliases'),
        ('x0: &x0 [1]\n' + ''.join(f'x{i + 1}: &x{i + 1} [{f"*x{i}, " * 10}]\n' for i in range(9)), 'more than 10,000'),
        ('loggers: [' + '1, ' * 20_000 + ']\n', 'line 8: more than 10,000 values'),
        ('#' * 1_000_000, 'has more than 1,000,000 characters'),
        ('loggers: [{name: file, 3: 4}]\n', 'loggers.0: the key 3 (integer) must be a string'),
    ],
)
def test_files(text, line, refused, yaml):
    yaml.write_text(RUN + text)
    assert refused().startswith(f'{yaml}: ') and line in refused()


def test_an_override_changes_no_other_place_that_shares_an_alias(yaml):
    yaml.write_text(RUN.replace('train_data: ', 'train_data: &data ') + 'eval_data: *data\n')
    config = load(yaml, ['train_data.batch_size=10'])
    assert config.eval_data is not None
    assert (config.train_data.batch_size, config.eval_data.batch_size) == (10, 479)


def test_what_a_constructor_refuses_is_blamed_on_the_command_line_if_that_set_it(refused, yaml):
    assert refused('optimizer.lr=-1').startswith(f'{yaml} with optimizer.lr=-1: optimizer: Invalid learning rate')
    assert refused('model.name=wrn', 'model.depth=11').startswith('command line: model.depth: depth must be 6n+4')
    yaml.write_text(RUN.replace('lr: 0.1', 'lr: -1.0'))
    assert refused('max_duration=2ep').startswith(f'{yaml}: optimizer: Invalid learning rate')


# --- memory


def test_data_that_memory_cannot_hold(refused):
    data = 'train_data={name: synthetic, batch_size: 4, channels: 1, num_samples: 10000000000000}'
    line = refused(data)
    assert 'train_data.num_samples: 10000000000000 images take 10,320,000.0 GB, and' in line
    assert 'of memory are free; take fewer num_samples or a smaller image_size' in line


def test_a_network_that_memory_cannot_hold(refused, yaml):
    line = refused('model.name=wrn', 'model.widen_factor=1000')
    assert line.startswith(f'{yaml} with model.name=wrn model.widen_factor=1000: model: weights and gradients of wrn')
    assert 'of memory are free; choose a smaller network' in line


# --- files


@pytest.mark.parametrize('how', ['cache: true', 'image_size: 8', 'image_size: 8, num_workers: 1'])
@pytest.mark.parametrize('damage', ['cut short', 'text'])
def test_an_image_that_cannot_be_read(how, damage, refused, tmp_path):
    for kind in 'ab':
        (tmp_path / 'train' / kind).mkdir(parents=True)
        for index in range(2):
            write_png(torch.zeros(3, 8, 8, dtype=torch.uint8), str(tmp_path / 'train' / kind / f'{index}.png'))
    image = tmp_path / 'train' / 'b' / '1.png'
    image.write_bytes(image.read_bytes()[:40] if damage == 'cut short' else b'text')
    data = f'train_data={{name: image_folder, root: {tmp_path}, batch_size: 2, {how}}}'
    line = refused(data, 'model={name: resnet8, num_classes: 2}')
    assert f'{image} cannot be read as an image' in line and line.endswith('replace or remove it')


def test_an_output_where_nothing_can_be_written(refused, yaml, tmp_path):
    assert 'is a file; give a folder' in refused(output=yaml)
    assert f'cannot be created: {str(yaml)!r} is a file' in refused(output=yaml / 'below' / 'it')
    assert "output: '/proc/nowhere/out' cannot be written to" in refused(output=Path('/proc/nowhere/out'))


def test_a_truncated_checkpoint_is_not_resumed_from(refused, yaml, tmp_path):
    out = tmp_path / 'out'
    assert main([str(yaml), f'output={out}', 'checkpoint={interval: 1ba}']) == 0
    (out / 'record.json').unlink()
    latest = (out / 'checkpoints' / 'latest-rank0.pt').resolve()
    latest.write_bytes(latest.read_bytes()[:5000])
    line = refused('checkpoint={interval: 1ba, resume: true}')
    assert "checkpoint.resume: '" in line and 'latest-rank0.pt' in line and 'cannot be loaded' in line
    # What the line says to do helps.
    earlier = latest.with_name('ep0-ba2-rank0.pt')
    latest.write_bytes(earlier.read_bytes())
    assert main([str(yaml), f'output={out}', 'checkpoint={interval: 1ba, resume: true}']) == 0


# --- full disks


def run_with_files_of_at_most(size: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A disk that is full, as far as a larger file can tell."""
    return subprocess.run(
        [sys.executable, '-m', 'composer_freezeout.run', *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONDONTWRITEBYTECODE': '1'},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )


def test_a_full_disk_at_a_checkpoint_loses_no_earlier_one(yaml, tmp_path):
    out = tmp_path / 'out'
    arguments = [str(yaml), f'output={out}', 'algorithms=[]', 'checkpoint={interval: 1ba, resume: true}']
    assert main([*arguments, 'max_duration=2ba']) == 0
    (out / 'record.json').unlink()
    done = run_with_files_of_at_most(100_000, *arguments)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last == f'{out}: File too large; free some space there, and continue with checkpoint.resume=true'
    assert main(arguments) == 0
    assert json.loads((out / 'record.json').read_text())['resumed_at_batch'] == [2]


def test_a_full_disk_at_the_end_does_not_lose_the_record(yaml, tmp_path):
    out = tmp_path / 'out'
    done = run_with_files_of_at_most(4000, yaml, f'output={out}')
    assert done.returncode == 2, done.stderr
    assert 'cannot be written: File too large; the run is done, and its record is printed' in done.stderr
    assert json.loads(done.stdout)['run_name'] == 'tiny'
    assert not (out / 'record.json').exists()


# --- what the machine is at fault for


def raised(error: BaseException, while_handling: BaseException) -> BaseException:
    error.__context__ = while_handling
    return error


FULL = OSError(errno.ENOSPC, 'No space left on device')


@pytest.mark.parametrize(
    ('error', 'line'),
    [
        (PermissionError(errno.EACCES, 'Permission denied', 'x.pt'), 'x.pt: Permission denied; change its permissions'),
        (FULL, 'a file: No space left on device; free some space'),
        # As torch.save does.
        (raised(RuntimeError('unexpected pos 64 vs 0'), FULL), 'a file: No space left on device; free some space'),
        (MemoryError(), 'not enough memory (for Python); take smaller batches'),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), 'not enough memory (DefaultCPU'),
    ],
)
def test_it_is_told_in_a_line(error, line):
    assert (told(error) or '').startswith(line)


@pytest.mark.parametrize(
    'error',
    [
        RuntimeError('shapes do not match'),
        ConnectionResetError(errno.ECONNRESET, 'Connection reset by peer'),
        # Looking for a file is no reason for what is raised later.
        raised(KeyError('x'), FileNotFoundError(errno.ENOENT, 'No such file or directory', 'x.yaml')),
    ],
)
def test_what_only_a_traceback_explains_has_one(error):
    assert told(error) is None
