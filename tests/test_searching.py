"""Several commands in one search: whose trials are whose, and who waits for whom."""

import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import optuna
import pytest
from rich.console import Console

from composer_freezeout.cli import main
from composer_freezeout.compare.sweep.searching import OWNER, abandoned, elsewhere, searching
from composer_freezeout.compare.sweep.trials import Trials, completed
from composer_freezeout.compare.training.folder import claimed_run
from composer_freezeout.compare.training.job import Job, Outcome
from composer_freezeout.compare.training.runner import Runner
from composer_freezeout.results.record import Record

from . import records

QUICKSTART = Path(__file__).parent.parent / 'yamls' / 'quickstart'


class Instant:
    """Trains nothing: every run has ended as soon as it begins, that of some settings in failure."""

    def __init__(self, workers: int, failing: str = ''):
        self.workers, self.failing = workers, failing
        self.begun: list[Job] = []

    def environment(self) -> dict[str, object]:
        return {}

    def submit(self, job: Job) -> Future[Outcome]:
        self.begun.append(job)
        future: Future[Outcome] = Future()
        content = None if job.label == self.failing else Record.model_validate(records.record('freezeout', job.seed))
        future.set_result(Outcome(job, content, int(content is None), 'out of luck', 1.0))
        return future

    def __enter__(self) -> 'Instant':
        return self

    def __exit__(self, *error: object) -> None: ...


@pytest.fixture
def study() -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.RandomSampler(seed=0)
    return optuna.create_study(directions=['maximize', 'maximize'], sampler=sampler)


def search(study: optuna.Study, out: Path, executor: Instant, trials: int) -> None:
    def jobs_of(trial: optuna.Trial) -> list[Job]:
        name = f'setting{trial.suggest_int("number", 0, 2)}'
        return [Job(name, seed, Path('file'), (), out / name / f'seed{seed}', {}) for seed in (1, 2)]

    with Runner(Console(), executor, trials * 2) as runner:
        runner.run(Trials(study, jobs_of, runner, trials, 2, None, 'me'))


def test_settings_are_tried_side_by_side(study, tmp_path):
    executor = Instant(3)
    search(study, tmp_path, executor, 6)
    assert len(completed(study)) == 6
    assert all(trial.values[0] == 0.9 and trial.user_attrs[OWNER] == 'me' for trial in completed(study))


def test_a_setting_that_fails_is_out_with_all_its_runs(study, tmp_path):
    study.enqueue_trial({'number': 0})
    executor = Instant(1, failing='setting0')
    search(study, tmp_path, executor, 1)
    (trial,) = study.trials
    assert trial.user_attrs['failure'] == 'out of luck' and trial.state.name == 'FAIL'
    assert [job.seed for job in executor.begun] == [1]


def test_what_another_machine_is_trying_is_not_tried(study, tmp_path):
    study.enqueue_trial({'number': 0})
    study.enqueue_trial({'number': 1})
    executor = Instant(1)
    with claimed_run(tmp_path / 'setting0' / 'seed2'):
        search(study, tmp_path, executor, 1)
    assert {job.label for job in executor.begun} == {'setting1'}
    assert len(completed(study)) == 1


def test_settings_that_others_try_count(study, tmp_path):
    study.ask()
    executor = Instant(1)
    search(study, tmp_path, executor, 1)
    assert not executor.begun


def test_a_trial_is_abandoned_when_its_command_has_ended(study, tmp_path):
    code = (
        'import sys, time; from pathlib import Path\n'
        'from composer_freezeout.compare.sweep.searching import searching\n'
        'with searching(Path(sys.argv[1])) as owner: print(owner, flush=True); time.sleep(100)\n'
    )
    process = subprocess.Popen([sys.executable, '-c', code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    trial = study.ask()
    trial.set_user_attr(OWNER, process.stdout.readline().strip())
    study.ask()  # as of a command that names none
    assert [found.number for found in elsewhere(study, tmp_path)] == [0]
    assert [found.number for found in abandoned(study, tmp_path)] == [1]
    process.kill()
    process.communicate()
    assert [found.number for found in abandoned(study, tmp_path)] == [0, 1]
    with searching(tmp_path) as owner:
        assert (tmp_path / owner).exists()
    assert not (tmp_path / owner).exists()


def test_there_is_nothing_to_join(tmp_path, capsys):
    assert main(['sweep', str(QUICKSTART), '--out', str(tmp_path / 'out'), '--join']) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('--join: searches with another command in ') and 'begin there without --join' in line
