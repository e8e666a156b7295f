"""Clocks, the trace of learning rates, and the JSON file."""

import errno
import json
import multiprocessing
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from composer import Logger, State

from composer_freezeout.results import environment as environments
from composer_freezeout.results import files
from composer_freezeout.results.differences import ABSENT, differences
from composer_freezeout.results.environment import checkout, environment
from composer_freezeout.results.files import json_safe, write_json
from composer_freezeout.results.record import Record
from composer_freezeout.run import clocks
from composer_freezeout.run.clocks import Stopwatch, cpu_seconds
from composer_freezeout.run.recorder import Recorder

RESULTS = Path(__file__).parents[1] / 'benchmarks' / 'results'
NO_LOGGER = cast(Logger, None)


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def perf_counter(self) -> float:
            return self.now

        def process_time(self) -> float:
            return self.now / 2

    clock = Clock()
    monkeypatch.setattr(clocks, 'time', clock)
    return clock


def state(batch: int = 0, optimizer: Any = None, **keys: Any) -> State:
    return cast(
        State,
        SimpleNamespace(
            timestamp=SimpleNamespace(batch=SimpleNamespace(value=batch)),
            device=SimpleNamespace(name='cpu'),
            optimizers=[optimizer],
            model=torch.nn.Linear(2, 3),
            algorithms=[],
            total_loss_dict={'loss/train/total': float(batch)},
            train_metric_values={'Accuracy': torch.tensor(0.5)},
            eval_metric_values={'Accuracy': torch.tensor(0.25)},
            eval_metrics={},
            **keys,
        ),
    )


def test_stopwatch(clock):
    watch = Stopwatch()
    clock.now += 1
    assert watch.seconds() == 0
    watch.start()
    clock.now += 2
    watch.start()  # already running
    clock.now += 3
    assert watch.seconds() == 5
    watch.stop()
    clock.now += 4
    watch.stop()
    assert watch.seconds() == 5
    watch.start()
    clock.now += 6
    watch.cancel()
    assert watch.seconds() == 5
    watch.reset(50)
    assert watch.seconds() == 50


def test_stopwatch_waits_for_work_before_each_reading(clock):
    def finish_the_work():
        clock.now += 1

    watch = Stopwatch(finish_the_work)
    watch.start()
    watch.stop()
    assert watch.seconds() == 1


def train_one_epoch(recorder: Recorder, clock, batches: range, optimizer, evaluate: bool = True) -> None:
    for batch in batches:
        recorder.before_dataloader(state(), NO_LOGGER)
        clock.now += 1
        recorder.after_dataloader(state(), NO_LOGGER)
        clock.now += 10
        recorder.after_train_batch(state(batch, optimizer), NO_LOGGER)
        recorder.batch_end(state(batch), NO_LOGGER)
    recorder.before_dataloader(state(), NO_LOGGER)
    clock.now += 3  # the loader finds that it is at its end
    end = state(batches.stop)
    recorder.epoch_end(end, NO_LOGGER)
    if evaluate:
        recorder.eval_before_all(end, NO_LOGGER)
        clock.now += 100
        recorder.eval_after_all(end, NO_LOGGER)
    recorder.epoch_checkpoint(end, NO_LOGGER)


@pytest.fixture
def sgd():
    return torch.optim.SGD(torch.nn.Linear(2, 3).parameters(), lr=0.1)


def test_training_time_stands_still_during_evaluation(clock, sgd):
    recorder = Recorder()
    recorder.fit_start(state(), NO_LOGGER)
    train_one_epoch(recorder, clock, range(2), sgd)
    train_one_epoch(recorder, clock, range(2, 4), sgd, evaluate=False)
    recorder.fit_end(state(), NO_LOGGER)
    clock.now += 1000
    recorder.eval_before_all(state(), NO_LOGGER)
    clock.now += 100
    recorder.eval_after_all(state(), NO_LOGGER)
    clock.now += 1000
    assert recorder.training.seconds() == 2 * (2 * 11 + 3)
    assert recorder.evaluation.seconds() == 200
    assert recorder.data_wait.seconds() == 4
    first, second = recorder.epochs
    assert [row.training_seconds for row in recorder.epochs] == [25, 25]
    assert [row.training_cpu_seconds for row in recorder.epochs] == pytest.approx([12.5, 12.5])
    assert recorder.training_cpu.seconds() == pytest.approx(25)
    assert [row.data_wait_seconds for row in recorder.epochs] == [2, 2]
    assert (first.epoch, first.batch, first.train, first.eval) == (
        1,
        2,
        {'Accuracy': 0.5, 'loss': 0.5},
        {'Accuracy': 0.25},
    )
    assert second.train['loss'] == 2.5 and second.eval == {}
    assert second.trainable_parameters == 9
    recorder.finish(state(4))
    assert len(recorder.epochs) == 2 and recorder.epochs[1].eval == {'Accuracy': 0.25}


def test_a_run_that_ends_within_an_epoch_has_its_row(clock, sgd):
    recorder = Recorder()
    recorder.fit_start(state(), NO_LOGGER)
    recorder.after_train_batch(state(0, sgd), NO_LOGGER)
    recorder.batch_end(state(0), NO_LOGGER)
    recorder.finish(state(1))
    recorder.finish(state(1))
    assert [row.batch for row in recorder.epochs] == [1]


@pytest.mark.parametrize('batches', [1, 2, 10, 11, 12, 1000])
def test_the_trace_is_bounded_and_has_both_ends(sgd, batches):
    recorder = Recorder(max_points=10)
    for batch in range(batches):
        sgd.param_groups[0]['lr'] = batch / 10
        recorder.after_train_batch(state(batch, sgd), NO_LOGGER)
    trace = recorder.learning_rates.result().model_dump()
    assert trace['batch'][0] == 0 and trace['batch'][-1] == batches - 1
    assert len(trace['batch']) <= 11
    assert trace['batch'] == sorted(set(trace['batch']))
    assert trace['lr'] == {'group0': [batch / 10 for batch in trace['batch']]}
    strides = {b - a for a, b in zip(trace['batch'][:-1], trace['batch'][1:-1], strict=False)}
    assert len(strides) <= 1
    if batches <= 10:
        assert trace['batch'] == list(range(batches))


def test_the_trace_follows_units_and_is_null_where_they_have_left():
    layers = [torch.nn.Linear(1, 1, bias=False) for _ in range(3)]
    groups = [
        {'params': list(layer.parameters()), 'freezeout_unit': name}
        for layer, name in zip(layers, ['head', 'stem', 'stem'], strict=True)
    ]
    optimizer = torch.optim.SGD(groups, lr=0.5)
    recorder = Recorder()
    recorder.after_train_batch(state(0, optimizer), NO_LOGGER)
    del optimizer.param_groups[1:]
    recorder.after_train_batch(state(1, optimizer), NO_LOGGER)
    assert recorder.learning_rates.result().model_dump() == {
        'batch': [0, 1],
        'lr': {'head': [0.5, 0.5], 'stem': [0.5, None], 'stem#2': [0.5, None]},
    }


def test_hyperparameters_are_read_back_from_the_optimizer():
    optimizer = torch.optim.AdamW(torch.nn.Linear(2, 3).parameters(), lr=0.1, betas=(0.8, 0.9))
    recorder = Recorder()
    recorder.after_train_batch(state(0, optimizer), NO_LOGGER)
    optimizer.param_groups[0]['lr'] = 7
    recorder.after_train_batch(state(1, optimizer), NO_LOGGER)
    assert recorder.optimizer['name'] == 'AdamW'
    (group,) = recorder.optimizer['groups']
    assert group['unit'] is None and group['parameters'] == 9
    assert (group['lr'], group['betas'], group['weight_decay']) == (0.1, [0.8, 0.9], 0.01)
    assert 'params' not in group


def test_a_checkpoint_carries_the_record(clock, sgd):
    recorder = Recorder(max_points=4)
    recorder.fit_start(state(), NO_LOGGER)
    train_one_epoch(recorder, clock, range(6), sgd)
    saved = json.loads(json.dumps(recorder.state_dict()))
    clock.now += 1000
    resumed = Recorder(max_points=4)
    resumed.load_state_dict(saved)
    resumed.fit_start(state(6), NO_LOGGER)
    train_one_epoch(resumed, clock, range(6, 9), sgd)
    assert resumed.training.seconds() == 9 * 11 + 2 * 3  # not what passed in between
    assert resumed.evaluation.seconds() == 200 and resumed.data_wait.seconds() == 9
    assert resumed.resumed_at == [6] and [row.batch for row in resumed.epochs] == [6, 9]
    train_one_epoch(recorder, clock, range(6, 9), sgd)
    assert resumed.learning_rates.result() == recorder.learning_rates.result()


def test_segments_end_where_something_freezes(clock):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def run(recorder: Recorder, batches: range) -> None:
        now = state(batches.start, optimizer)
        now.model = model
        recorder.fit_start(now, NO_LOGGER)
        for batch in batches:
            now = state(batch, optimizer)
            now.model, now.batch = model, torch.zeros(2)
            if batch == 5:
                model[0].requires_grad_(False)
            recorder.batch_start(now, NO_LOGGER)
            clock.now += 100 if batch == batches.start else 2 if batch < 5 else 1
            cast(Any, now).timestamp.batch.value += 1
            recorder.batch_end(now, NO_LOGGER)

    def end(recorder: Recorder, batch: int) -> None:
        recorder.fit_end(state(batch, optimizer), NO_LOGGER)

    def row(batch: int, batches: int, seconds: float, parameters: int) -> dict[str, Any]:
        measured = {'batch': batch, 'batches': batches, 'seconds': seconds, 'cpu_seconds': seconds / 2}
        return {**measured, 'units_frozen': None, 'trainable_parameters': parameters}

    def rows(recorder: Recorder) -> list[dict[str, Any]]:
        found = [segment.model_dump() for segment in recorder.segments.done]
        return [{**row, 'cpu_seconds': pytest.approx(row['cpu_seconds'])} for row in found]

    whole = Recorder()
    run(whole, range(8))
    end(whole, 8)
    assert whole.first_batch_seconds == 100
    assert rows(whole) == [row(1, 4, 8, 25), row(5, 3, 3, 16)]

    # The first batch of a resumed run allocates anew, and is in no segment either.
    model.requires_grad_(True)
    first, second = Recorder(), Recorder()
    run(first, range(4))
    second.load_state_dict(first.state_dict())
    run(second, range(4, 8))
    end(second, 8)
    assert second.first_batch_seconds == 100
    assert rows(second) == [row(1, 3, 6, 25), row(5, 3, 3, 16)]


def test_cpu_time_of_a_run_that_an_earlier_version_began_is_unknown(clock, sgd):
    recorder = Recorder()
    recorder.fit_start(state(), NO_LOGGER)
    train_one_epoch(recorder, clock, range(6), sgd)
    saved = recorder.state_dict()
    del saved['training_cpu_seconds'], saved['epochs'][0]['training_cpu_seconds']
    resumed = Recorder()
    resumed.load_state_dict(saved)
    resumed.fit_start(state(6), NO_LOGGER)
    train_one_epoch(resumed, clock, range(6, 9), sgd)
    assert resumed.results(cast(State, state(9)))['training_cpu_seconds'] is None
    assert [row.training_cpu_seconds for row in resumed.epochs] == [None, None]


def test_cpu_time_is_that_of_data_workers_too_while_they_run_and_when_they_have_ended():
    def of_others() -> float:
        return cpu_seconds() - time.process_time()

    before = of_others()
    worker = multiprocessing.get_context('spawn').Process(target=sum, args=(range(10**12),))
    worker.start()
    while (running := of_others() - before) < 0.3:
        time.sleep(0.01)
    worker.terminate()
    worker.join()
    assert of_others() - before >= running - 0.02  # it is told in ticks while it runs


def test_cpu_time_is_that_of_all_threads():
    def work() -> None:
        while time.thread_time() < 0.2:
            pass

    before = cpu_seconds()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert cpu_seconds() - before >= 0.2


def test_json_has_no_nan(tmp_path):
    content = {'a': float('nan'), 'b': [float('inf'), 1.5], 'c': (1, None, True, 'x'), 2: {}}
    assert json_safe(content) == {'a': None, 'b': [None, 1.5], 'c': [1, None, True, 'x'], '2': {}}
    write_json(tmp_path / 'record.json', content)
    assert json.loads((tmp_path / 'record.json').read_text())['b'] == [None, 1.5]


def test_a_file_is_written_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / 'record.json'
    write_json(path, {'old': 1})

    def fail(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(files.os, 'replace', fail)
    with pytest.raises(OSError, match="No space left on device: '.*record.json'"):
        write_json(path, {'new': 1})
    assert json.loads(path.read_text()) == {'old': 1}
    with pytest.raises(TypeError):
        write_json(path, {'object': object()})
    assert json.loads(path.read_text()) == {'old': 1} and list(tmp_path.iterdir()) == [path]


def test_environment():
    facts = environment()
    assert facts['versions']['torch'] == torch.__version__.partition('+')[0]
    assert {'python', 'composer', 'torchvision', 'numpy', 'composer_freezeout'} <= set(facts['versions'])
    hardware = facts['hardware']
    assert hardware['cpu'] and hardware['memory_bytes'] > 0 and hardware['threads'] == torch.get_num_threads()
    assert (hardware['gpu'] is None) == (not torch.cuda.is_available())


def test_the_commit_is_that_of_the_package_and_not_of_the_working_directory(tmp_path, monkeypatch):
    def git(*arguments: str) -> None:
        subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=b', *arguments], check=True, capture_output=True)

    package = tmp_path / 'package'
    package.mkdir()
    (package / '__init__.py').touch()
    assert checkout(package) is None
    monkeypatch.chdir(tmp_path)
    git('init')
    git('commit', '--allow-empty', '-m', 'first')
    # As of a wheel in a virtual environment that lies in the user's own repository.
    assert checkout(package) is None
    monkeypatch.setattr(environments, '_PACKAGE', package)
    assert environment()['git'] is None
    git('add', '.')
    git('commit', '-m', 'second')
    monkeypatch.chdir('/')
    committed = checkout(package)
    assert committed is not None and len(committed['commit']) == 40 and committed['dirty'] is False
    (tmp_path / 'new').touch()
    assert checkout(package) == {**committed, 'dirty': True}


@pytest.mark.parametrize('path', sorted(RESULTS.glob('*/*/*/record.json'))[::13], ids=str)
def test_committed_records_are_read_and_would_be_written_as_they_are(path):
    text = path.read_text()
    assert Record.model_validate_json(text).model_dump(exclude_unset=True) == json.loads(text)
    assert list(Record.model_validate_json(text).model_dump(exclude_unset=True)) == list(json.loads(text))


def test_differences_name_the_key_and_both_values():
    one = {'lr': 0.1, 'algorithms': [{'name': 'ema'}], 'seed': 1}
    other = {'lr': 0.1, 'algorithms': [], 'seed': 2}
    assert differences(one, one) == {}
    found = differences(one, other)
    assert found['seed'] == (1, 2) and found['algorithms.0.name'] == ('ema', ABSENT)


def test_a_setting_that_came_later_and_is_not_used_is_no_difference():
    assert differences({'model': {'name': 'resnet8'}}, {'model': {'name': 'resnet8', 'weights': None}}) == {}
    assert differences({'model': {'freeze': ['stem']}}, {'model': {}})['model.freeze.0'] == ('stem', ABSENT)


def test_max_points():
    with pytest.raises(ValueError, match='at least 2, got 1'):
        Recorder(max_points=1)
