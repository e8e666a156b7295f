"""Runs on a Ray cluster: one task for each. Ray decides where, and does again what a lost node or worker costs."""

import contextlib
import logging
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, TaskCancelledError

from composer_freezeout.compare.training.job import LOG, Job, Outcome, outcome_of, prepare_output
from composer_freezeout.results.environment import environment
from composer_freezeout.results.files import write_bytes
from composer_freezeout.run.faults import Refused
from composer_freezeout.run.processes import execute

__all__ = ['RERUNS', 'OnRay']

# How often a run is done again whose node or worker was lost.
RERUNS = 2


@dataclass(frozen=True)
class _Left:
    """What a run has left on its node.

    Attributes:
        exit_code (int): Of its process.
        seconds (float): How long it took.
        files (Mapping[str, bytes]): Content of the files of its folder.
    """

    exit_code: int
    seconds: float
    files: Mapping[str, bytes]


def _train_there(job: Job, content: bytes, folder: str, variables: Mapping[str, str]) -> _Left:
    """Trains on a node, which may share no files with the command's machine."""
    # Where it is there, paths of data may be relative to it.
    with contextlib.suppress(OSError):
        os.chdir(folder)
    with tempfile.TemporaryDirectory(prefix='composer-freezeout-') as own:
        file, output = Path(own, job.file.name), Path(own, 'output')
        output.mkdir()
        file.write_bytes(content)
        since = time.monotonic()
        command = [sys.executable, *job.arguments(file, output)]
        # Ray ends the children of a worker that is lost, but not theirs.
        exit_code = execute(command, output / LOG, environment=variables, tied=True)
        seconds = time.monotonic() - since
        found = [path for path in output.rglob('*') if path.is_file() and not path.is_symlink()]
        return _Left(exit_code, seconds, {str(path.relative_to(output)): path.read_bytes() for path in found})


class OnRay:
    """Trains on a cluster that is running.

    Args:
        address (str): Where it is, as ``ray.init`` takes it.
        cpus (int): Processors of each training, in ``[1, ∞)``.
        gpus (int, optional): GPUs of each training, in ``[0, ∞)``. Default: one if there are any.
        workers (int, optional): How many are trained at once. Default: as many as there is room for.

    Raises:
        Refused: If there is no such cluster, or no node with enough processors and GPUs.
    """

    def __init__(self, address: str, cpus: int, gpus: int | None, workers: int | None):
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = (str(error).splitlines() or ['no answer'])[0]
            raise Refused(
                f'--ray: no cluster is to be had at {address!r} ({reason}); start one with ray start'
            ) from error
        nodes = [node['Resources'] for node in ray.nodes() if node['Alive']]
        if gpus is None:
            gpus = int(any(node.get('GPU') for node in nodes))
        self.workers = workers or sum(_room(node, cpus, gpus) for node in nodes)
        if not any(_room(node, cpus, gpus) for node in nodes):
            ray.shutdown()
            raise Refused(f'--ray: no node at {address!r} has {cpus} CPUs and {gpus} GPUs; see --cpus and --gpus')
        self._variables = {} if gpus else {'OMP_NUM_THREADS': str(cpus)}
        self._options: dict[str, Any] = {'num_cpus': cpus, 'num_gpus': gpus, 'max_retries': RERUNS}
        self._remote = ray.remote(_train_there).options(**self._options)
        self._running: set[ray.ObjectRef] = set()
        self._pool = ThreadPoolExecutor(self.workers)

    def environment(self) -> dict[str, Any]:
        """Versions and hardware of a node."""
        remote = ray.remote(environment).options(**self._options, runtime_env={'env_vars': self._variables})
        return ray.get(remote.remote())

    def submit(self, job: Job) -> Future[Outcome]:
        """Takes a run, and trains it on a node that has room."""
        return self._pool.submit(self._train, job)

    def _train(self, job: Job) -> Outcome:
        prepare_output(job)
        task = replace(job, output=Path('output'), expected={})
        since = time.monotonic()
        reference = self._remote.remote(task, job.file.read_bytes(), os.getcwd(), self._variables)
        self._running.add(reference)
        try:
            left: _Left = ray.get(reference)
        except RayTaskError as error:
            return _lost(job, str(error.cause), since)
        except TaskCancelledError:
            return _lost(job, 'stopped', since)
        except RayError as error:
            return _lost(job, f'lost {RERUNS + 1} times with its node or worker: {type(error).__name__}', since)
        finally:
            self._running.discard(reference)
        for name, content in left.files.items():
            path = job.output / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, content)
        return outcome_of(job, left.exit_code, left.seconds)

    def __enter__(self) -> 'OnRay':
        """Begins."""
        return self

    def __exit__(self, *error: object) -> None:
        """Stops what is running, and leaves the cluster."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for reference in list(self._running):
            # A task that is interrupted ends its training.
            ray.cancel(reference)
        self._pool.shutdown()
        ray.shutdown()


def _room(node: Mapping[str, float], cpus: int, gpus: int) -> int:
    """How many trainings a node has room for at once."""
    room = int(node.get('CPU', 0) // cpus)
    return min(room, int(node.get('GPU', 0) // gpus)) if gpus else room


def _lost(job: Job, message: str, since: float) -> Outcome:
    (job.output / LOG).write_text(f'{message}\n', encoding='utf-8')
    return Outcome(job, None, 1, message, time.monotonic() - since)
