"""Trainings side by side: who gets which cores and GPUs, what waits for what, and that all end together."""

import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from composer_freezeout.compare import command as compare
from composer_freezeout.compare.arms.family import read_arms
from composer_freezeout.compare.judging.comparison import load
from composer_freezeout.compare.judging.manifest import new_manifest
from composer_freezeout.compare.report.sentences import conclusion
from composer_freezeout.compare.report.tables import environment_grid
from composer_freezeout.compare.training.job import Job, Outcome
from composer_freezeout.compare.training.ongoing import OngoingComparison
from composer_freezeout.compare.training.places import Place, places, usable_cores
from composer_freezeout.compare.training.rounds import Rounds
from composer_freezeout.compare.training.runner import JobList, Runner
from composer_freezeout.results.record import Record
from composer_freezeout.run.faults import Refused
from composer_freezeout.run.processes import execute

from . import records

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / 'yamls' / 'quickstart'
SMALL = ['model.name=resnet8', 'train_data.image_size=8', 'eval_data.image_size=8', 'max_duration=4ep']
two_cores = pytest.mark.skipif(len(usable_cores()) < 2, reason='needs two cores')


# --- places


def test_a_single_run_has_the_machine_as_it_is():
    assert places(1, ['0', '1'], [0, 1]) == [Place()]


def test_each_has_cores_of_its_own_and_as_many_threads(monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    found = places(2, [], [4, 5, 6, 7, 8])
    # Equal shares: their times are to be compared.
    assert [place.cores for place in found] == [(4, 5), (6, 7)]
    assert all(place.environment == {'OMP_NUM_THREADS': '2'} for place in found)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    assert places(2, [], [0, 1, 2, 3])[0].environment == {'OMP_NUM_THREADS': '1'}


def test_each_has_gpus_of_its_own():
    found = places(2, ['2', '3', '5', '7'], [0])
    assert [place.environment for place in found] == [{'CUDA_VISIBLE_DEVICES': '2,3'}, {'CUDA_VISIBLE_DEVICES': '5,7'}]
    assert not found[0].cores


@pytest.mark.parametrize(
    ('gpus', 'message'),
    [([], '3 trainings side by side need a core each, and there are 2'), (['0'], 'need a GPU each, and there are 1')],
)
def test_more_than_there_is_room_for(gpus, message, refusal):
    with refusal(message, Refused):
        places(3, gpus, [0, 1])


def test_more_threads_than_cores(monkeypatch, refusal):
    monkeypatch.setenv('OMP_NUM_THREADS', '4')
    with refusal('OMP_NUM_THREADS is 4, but each of the trainings side by side has 1', Refused):
        places(2, [], [0, 1])


@two_cores
def test_a_process_is_kept_to_the_cores_of_its_place(tmp_path):
    core = usable_cores()[-1]

    def inside() -> None:
        Place((core,)).settle()
        execute([sys.executable, '-c', 'import os; print(os.sched_getaffinity(0))'], tmp_path / 'log')

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert (tmp_path / 'log').read_text() == f'{{{core}}}\n'
    assert len(usable_cores()) > 1


def test_what_is_tied_to_a_process_ends_with_it(tmp_path):
    pid = tmp_path / 'pid'
    child = f'sleep 100 & echo $! > {pid}.part; mv {pid}.part {pid}; wait'
    code = f'from composer_freezeout.run.processes import execute; execute(["sh", "-c", {child!r}], tied=True)'
    parent = subprocess.Popen([sys.executable, '-c', code])
    while not pid.exists():
        assert parent.poll() is None
        time.sleep(0.05)
    grandchild = psutil.Process(int(pid.read_text()))
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while grandchild.is_running() and grandchild.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_tied_keeps_its_exit_code_and_output(tmp_path):
    log = tmp_path / 'log'
    assert execute(['sh', '-c', 'cat; echo said; exit 3'], log, tied=True) == 3
    assert log.read_text() == 'said\n'


# --- the order


class Slots:
    """Trains nothing: runs end when the test says so."""

    def __init__(self, workers: int):
        self.workers = workers
        self.begun: list[Job] = []

    def environment(self) -> dict[str, object]:
        return {}

    def submit(self, job: Job) -> Future[Outcome]:
        self.begun.append(job)
        future: Future[Outcome] = Future()
        content = Record.model_validate(records.record(job.label, job.seed, seconds=10.0))
        future.set_result(Outcome(job, content, 0, '', 1.0))
        return future

    def __enter__(self) -> 'Slots':
        return self

    def __exit__(self, *error: object) -> None: ...


@pytest.fixture
def comparison(tmp_path) -> OngoingComparison:
    names = ['baseline', 'baseline_short', 'freezeout']
    arms, data = read_arms(QUICKSTART, names, SMALL, 1.0)
    return OngoingComparison(
        tmp_path, arms, data, [17, 18], new_manifest(QUICKSTART, names, [17, 18], 1.0, SMALL, 'command')
    )


def test_a_shortened_baseline_waits_while_others_go_on(comparison):
    runner = Runner(Console(), Slots(2), 6)
    rounds = Rounds(comparison, runner)
    begun = [job for _ in range(4) if (job := rounds.next_job())]
    assert [(job.label, job.seed) for job in begun] == [
        ('baseline', 17), ('freezeout', 17), ('freezeout', 18), ('baseline', 18),
    ]  # fmt: skip
    assert rounds.next_job() is None
    for job in begun[:2]:
        content = Record.model_validate(records.record(job.label, job.seed, seconds=10.0))
        rounds.note(Outcome(job, content, 0, '', 1.0))
    short = rounds.next_job()
    assert short is not None and (short.label, short.seed) == ('baseline_short', 17)
    assert rounds.next_job() is None and rounds.left == ['baseline_short']


def test_without_its_arms_a_shortened_baseline_is_not_run(comparison, capsys):
    runner = Runner(Console(), Slots(2), 6)
    rounds = Rounds(comparison, runner)
    while (job := rounds.next_job()) is not None:
        failed = job.label == 'freezeout'
        content = None if failed else Record.model_validate(records.record(job.label, job.seed, seconds=10.0))
        rounds.note(Outcome(job, content, int(failed), 'out of luck', 1.0))
    assert rounds.missing == 4
    assert 'baseline_short seed 18: not run: its length is that of baseline and freezeout' in capsys.readouterr().out


def test_no_more_run_at_once_than_there_are_places(tmp_path, capsys):
    jobs = [Job('arm', seed, Path('file'), (), tmp_path, {}) for seed in range(5)]
    work, most, slots = JobList(jobs), [], Slots(2)
    submit = slots.submit

    def watched(job: Job) -> Future[Outcome]:
        future = submit(job)
        most.append(len(slots.begun) - len(work.outcomes))
        return future

    slots.submit = watched
    with Runner(Console(), slots, 5) as runner:
        runner.run(work)
    assert max(most) == 2
    assert {outcome.job for outcome in work.outcomes} == set(jobs)
    assert '[5/5] arm seed 4: ' in capsys.readouterr().out


# --- what the report says


@pytest.mark.parametrize(('company', 'told'), [(1.03, False), (1.25, True)])
def test_the_report_tells_of_company(company, told, tmp_path):
    records.folder(tmp_path, {'baseline': [0.9, 0.8], 'freezeout': [0.8, 0.9]})
    path = tmp_path / 'comparison.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'workers': 4, 'company': company}))
    comparison = load(tmp_path)
    disturbed = f'4 runs were trained side by side, and a step took {company:.2f} times as long as alone'
    assert any(disturbed in line for line in conclusion(comparison)) == told
    assert f'4: a step took {company:.2f} × as long as alone' in str(environment_grid(comparison))


# --- whole comparisons


def command(out: Path, *arguments: str) -> list[str]:
    code = 'import sys; from composer_freezeout.cli import main; sys.exit(main(sys.argv[1:]))'
    return [sys.executable, '-c', code, 'compare', str(QUICKSTART), '--out', str(out), *arguments, *SMALL]


def test_too_many_workers_are_refused_before_anything_is_trained(tmp_path, capsys):
    assert compare.main([str(QUICKSTART), '--out', str(tmp_path / 'out'), '--workers', '1000', *SMALL]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('--workers: 1000 trainings side by side need a core each, and there are ')
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@two_cores
def test_a_comparison_with_two_workers(tmp_path, capsys):
    out = tmp_path / 'out'
    arguments = ['--workers', '2', '--arms', 'baseline,freezeout']
    done = subprocess.run(command(out, *arguments), capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((out / 'comparison.json').read_text())
    assert manifest['workers'] == 2 and manifest['company'] > 0
    assert f'a step takes {manifest["company"]:.2f} times as long as alone' in done.stdout
    found = [json.loads(path.read_text()) for path in out.glob('*/seed*/record.json')]
    assert len(found) == 2
    assert {record['hardware']['usable_cores'] for record in found} == {1}
    assert {path.name for path in out.iterdir() if path.is_dir()} == {'baseline', 'freezeout'}
    # Others that run one after another could not be compared with them.
    assert (
        compare.main([str(QUICKSTART), '--out', str(out), '--seeds', '2', '--arms', 'baseline,freezeout', *SMALL]) == 2
    )
    assert 'hardware.usable_cores was 1 in a finished run' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1200)
@two_cores
def test_all_trainings_end_with_the_command(tmp_path):
    out = tmp_path / 'out'
    arguments = command(out, '--workers', '2', '--arms', 'baseline,freezeout')
    # The last one holds.
    process = subprocess.Popen(
        [*arguments, 'max_duration=400ep'], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    logs = [out / name / 'output.txt' for name in ('.company0', '.company1')]
    while not all(log.exists() for log in logs):
        assert process.poll() is None
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGINT
    assert errors.splitlines()[-1].startswith('stopped; to go on: composer-freezeout compare ')
    assert not psutil.wait_procs(children, timeout=10)[1]
    assert not any(folder.exists() for folder in (log.parent for log in logs))
