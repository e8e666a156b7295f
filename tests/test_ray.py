"""Trainings on a Ray cluster of two nodes on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from composer_freezeout.compare import command as compare
from composer_freezeout.compare.training.job import Job

pytest.importorskip('ray')
on_ray = pytest.importorskip('composer_freezeout.compare.training.on_ray')
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

QUICKSTART = Path(__file__).parent.parent / 'yamls' / 'quickstart'
SMALL = ['model.name=resnet8', 'train_data.image_size=8', 'eval_data.image_size=8', 'max_duration=4ep']


@pytest.fixture
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={'num_cpus': 1})
    yield found
    found.shutdown()


def started(out: Path, address: str, *arguments: str) -> subprocess.Popen[str]:
    code = 'import sys; from composer_freezeout.cli import main; sys.exit(main(sys.argv[1:]))'
    command = [sys.executable, '-c', code, 'compare', str(QUICKSTART), '--out', str(out), '--ray', address, *arguments]
    return subprocess.Popen([*command, *SMALL], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def trainings(node: Any) -> list[psutil.Process]:
    """The processes that train on a node."""
    raylet = psutil.Process(node.all_processes['raylet'][0].process.pid)
    found = []
    for process in raylet.children(recursive=True):
        try:
            if 'composer_freezeout.run' in process.cmdline():
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)


def test_a_lost_node_costs_nothing_but_the_run_that_was_on_it(cluster, tmp_path):
    node = cluster.add_node(num_cpus=1)
    out = tmp_path / 'out'
    process = started(out, cluster.address, '--seeds', '2', '--arms', 'baseline,baseline_short,freezeout')
    wait_for(lambda: len(list(out.glob('*/seed*/record.json'))) >= 2 and trainings(node), process)
    finished = {path: path.stat().st_mtime_ns for path in out.glob('*/seed*/record.json')}
    orphans = trainings(node)
    cluster.remove_node(node, allow_graceful=False)
    text, errors = process.communicate()
    assert process.returncode == 0, errors
    assert len(list(out.glob('*/seed1[78]/record.json'))) == 6
    assert all(path.with_name('output.txt').exists() for path in out.glob('*/seed*/record.json'))
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert json.loads((out / 'comparison.json').read_text())['failures'] == []
    assert '[6/6] ' in text and (out / 'report.html').exists()
    assert not psutil.wait_procs(orphans, timeout=60)[1]


def test_the_trainings_end_with_the_command(cluster, tmp_path):
    out = tmp_path / 'out'
    process = started(out, cluster.address, '--arms', 'baseline,freezeout')
    wait_for(lambda: (out / 'baseline' / 'seed17').exists() and trainings(cluster.head_node), process)
    running = trainings(cluster.head_node)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGINT
    assert errors.splitlines()[-1].startswith('stopped; to go on: composer-freezeout compare ')
    assert not psutil.wait_procs(running, timeout=60)[1]
    again = started(out, cluster.address, '--arms', 'baseline,freezeout')
    _, errors = again.communicate()
    assert again.returncode == 0, errors
    assert len(list(out.glob('*/seed17/record.json'))) == 2


def die(job: Job, content: bytes, folder: str, variables: dict[str, str]) -> None:
    with job.file.open('a') as file:
        file.write('died\n')
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_whose_worker_dies_is_done_again_twice_and_then_reported(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, '_train_there', die)
    tries = tmp_path / 'tries'
    tries.touch()
    with on_ray.OnRay(cluster.address, 1, 0, None) as executor:
        assert executor.workers == 1
        outcome = executor.submit(Job('arm', 17, tries, (), tmp_path / 'out', {})).result()
    assert tries.read_text() == 'died\n' * 3
    assert outcome.record is None and outcome.message == 'lost 3 times with its node or worker: WorkerCrashedError'
    assert (tmp_path / 'out' / 'output.txt').read_text() == f'{outcome.message}\n'


def test_what_no_node_has_is_refused(cluster, tmp_path):
    process = started(tmp_path / 'out', cluster.address, '--cpus', '64')
    _, errors = process.communicate()
    assert process.returncode == 2
    assert f"--ray: no node at '{cluster.address}' has 64 CPUs and 0 GPUs" in errors.splitlines()[-1]


def test_no_cluster_is_a_line(tmp_path, capsys):
    assert compare.main([str(QUICKSTART), '--out', str(tmp_path / 'out'), '--ray', 'nonsense', *SMALL]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("--ray: no cluster is to be had at 'nonsense'")
