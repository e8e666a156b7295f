"""A record holds what its run has trained itself, wherever that began."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from composer_freezeout.run.command import main

from .test_run import TINY, record

# 3 batches an epoch.
FREEZEOUT = 'algorithms=[{name: freezeout, t_0: 0.5}]'
SAVE = 'checkpoint={interval: 1ba}'


@pytest.fixture(scope='module')
def yaml(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('yaml') / 'tiny.yaml'
    path.write_text(TINY)
    return path


@pytest.fixture(scope='module')
def first(yaml, tmp_path_factory) -> Path:
    """A finished run of two epochs, with a checkpoint of each batch."""
    folder = tmp_path_factory.mktemp('first') / 'out'
    assert main([str(yaml), FREEZEOUT, SAVE, f'output={folder}']) == 0
    return folder


@pytest.fixture
def refused(yaml, tmp_path, capfd) -> Callable[..., str]:
    def run(*overrides: str) -> str:
        capfd.readouterr()
        assert main([str(yaml), f'output={tmp_path / "out"}', *overrides]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        return line

    return run


def checkpoint(folder: Path, batch: int) -> str:
    (path,) = (folder / 'checkpoints').glob(f'ep*-ba{batch}-rank0.pt')
    return str(path)


def from_here(path: object) -> str:
    return f'checkpoint.load_path={path}'


WEEK = 7 * 24 * 3600.0


def trained_for_a_week(saved: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of a run that has taken longer than any test does."""
    saved['state']['callbacks']['Recorder'].update(training_seconds=WEEK, training_cpu_seconds=WEEK)
    return saved


# In the last checkpoint of a batch the last epoch is not counted yet.
@pytest.mark.parametrize('duration', ['2ep', '1ep', '6ba', '3ba', '2874sp'])
def test_nothing_is_taken_for_trained_that_another_run_has_trained(duration, first, refused, tmp_path):
    path = checkpoint(first, 6)
    line = refused(FREEZEOUT, from_here(path), f'max_duration={duration}')
    assert line.startswith(f'command line: checkpoint.load_path: {path!r} has been trained for ')
    assert f'and max_duration is {duration}, so that nothing is left to train; ' in line
    assert 'give a longer max_duration to go on with its schedule' in line
    assert f'to start a new run from weights, write model.weights={path} and leave out checkpoint.load_path' in line
    assert not (tmp_path / 'out' / 'record.json').exists() and not (tmp_path / 'out' / 'config.yaml').exists()


def test_a_run_that_goes_on_from_another_counts_its_own_part(yaml, first, tmp_path, capfd):
    path = str(tmp_path / 'of-a-week-rank0.pt')
    torch.save(trained_for_a_week(torch.load(checkpoint(first, 4), weights_only=False)), path)
    assert main([str(yaml), FREEZEOUT, from_here(path.replace('rank0', 'rank{rank}')), f'output={tmp_path}']) == 0
    out, content, whole = capfd.readouterr().out, record(tmp_path), record(first)
    assert content['started_from'] == {'path': path.replace('rank0', 'rank{rank}'), 'batches': 4, 'epochs': 1}
    assert content['effective']['total_batches'] == 2 and content['resumed_at_batch'] == []
    assert [(row['epoch'], row['batch']) for row in content['epochs']] == [(2, 6)]
    assert content['lr_trace']['batch'] == [4, 5]
    assert sum(segment['batches'] for segment in content['segments']) <= 1
    for measured in (content, content['epochs'][0]):
        assert 0 < measured['training_seconds'] < WEEK and 0 < measured['training_cpu_seconds'] < WEEK
    assert content['predicted_saving'] is None
    # It is the other run's schedule that goes on, to the bit.
    assert content['final'] == whole['final'] and content['units'] == whole['units']
    assert f'went on from {content["started_from"]["path"]}, after 4 batches' in out and 'of 6 batches' in out


def test_what_goes_on_from_another_run_and_is_interrupted_counts_its_own_part(yaml, first, tmp_path):
    path = checkpoint(first, 2)
    arguments = [str(yaml), FREEZEOUT, f'checkpoint={{interval: 1ba, resume: true, load_path: {path}}}']
    out = f'output={tmp_path}'
    assert main([*arguments, out]) == 0
    once = record(tmp_path)
    (tmp_path / 'record.json').unlink()
    latest = tmp_path / 'checkpoints' / 'latest-rank0.pt'
    os.remove(latest)
    os.symlink(checkpoint(tmp_path, 4), latest)
    assert main([*arguments, out]) == 0
    again = record(tmp_path)
    assert again['started_from'] == once['started_from'] == {'path': path, 'batches': 2, 'epochs': 0}
    assert again['effective']['total_batches'] == 4 and again['resumed_at_batch'] == [4]
    assert again['lr_trace'] == once['lr_trace'] and again['final'] == once['final'] == record(first)['final']


def test_a_run_of_its_own_that_lacks_only_its_record_gets_it(yaml, tmp_path):
    arguments = [str(yaml), 'checkpoint={interval: 1ep, resume: true}', f'output={tmp_path}']
    assert main(arguments) == 0
    content = record(tmp_path)
    (tmp_path / 'record.json').unlink()
    assert main(arguments) == 0
    again = record(tmp_path)
    assert again['started_from'] is None and again['epochs'] == content['epochs']
    assert again['effective']['total_batches'] == 6


def test_a_run_is_not_resumed_to_be_shorter_than_it_is(yaml, refused, tmp_path):
    resume = 'checkpoint={interval: 1ep, resume: true}'
    assert main([str(yaml), resume, f'output={tmp_path / "out"}']) == 0
    (tmp_path / 'out' / 'record.json').unlink()
    line = refused(resume, 'max_duration=1ep')
    assert "max_duration: '1ep' is less than the 2 epochs that" in line and 'give at least as much' in line


def test_lengthened_training_counts_as_long_as_it_is(yaml, tmp_path, capfd):
    lengthened = 'algorithms=[{name: freezeout, t_0: 0.3, const_time: true}]'
    assert main([str(yaml), lengthened, SAVE, f'output={tmp_path / "first"}']) == 0
    batches = record(tmp_path / 'first')['effective']['total_batches']
    assert batches > 7
    later, last = (checkpoint(tmp_path / 'first', batch) for batch in (7, batches))
    capfd.readouterr()
    assert main([str(yaml), lengthened, from_here(last), f'output={tmp_path / "last"}']) == 2
    assert 'nothing is left to train' in capfd.readouterr().err
    assert main([str(yaml), lengthened, from_here(later), f'output={tmp_path / "later"}']) == 0
    assert record(tmp_path / 'later')['effective']['total_batches'] == batches - 7


def state_dict(path: Path) -> None:
    torch.save({'conv1.weight': torch.zeros(2)}, path)


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path.with_suffix('.harm'),)


@pytest.mark.parametrize(
    ('make', 'told'),
    [
        (
            state_dict,
            "is no checkpoint of a run: it has no 'state'; to start a new run from weights, write model.weights=",
        ),
        (lambda path: torch.save([1], path), "it has no 'state'"),
        (lambda path: path.write_bytes(b''), 'is damaged or not a file of torch.save'),
        (lambda path: path.write_bytes(b'PK\3\4 and more'), 'is damaged or not a file of torch.save'),
        (lambda path: path.mkdir(), 'is not a file; give the path of one'),
        (lambda path: torch.save({'state': Harmful(path)}, path), 'holds Python objects ('),
    ],
)
def test_what_is_no_checkpoint_is_told_in_a_line(make, told, refused, tmp_path):
    path = tmp_path / 'given.pt'
    make(path)
    line = refused(from_here(path))
    assert line.startswith('command line: checkpoint.load_path: ') and told in line
    assert not path.with_suffix('.harm').exists()


def test_a_checkpoint_is_not_removed_before_it_is_loaded(first, yaml, capfd):
    assert main([str(yaml), FREEZEOUT, from_here(checkpoint(first, 4)), f'output={first}', 'overwrite=true']) == 2
    assert 'would be removed by overwrite: true; choose another output' in capfd.readouterr().err
    assert checkpoint(first, 4)
