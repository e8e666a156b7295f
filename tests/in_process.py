"""Trains the runs of a comparison in the process of the test: the same runs, without the seconds of another Python."""

import contextlib
from concurrent.futures import Future
from typing import Any

from composer_freezeout.compare.training.job import LOG, Job, Outcome, outcome_of, prepare_output
from composer_freezeout.results.environment import environment
from composer_freezeout.run.command import main


class InProcess:
    """An executor with one place."""

    workers = 1

    def environment(self) -> dict[str, Any]:
        return environment()

    def submit(self, job: Job) -> Future[Outcome]:
        prepare_output(job)
        arguments = job.arguments(job.file, job.output)
        with (job.output / LOG).open('w') as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            exit_code = main(arguments[arguments.index(str(job.file)) :])
        future: Future[Outcome] = Future()
        future.set_result(outcome_of(job, exit_code, 1.0))
        return future

    def __enter__(self) -> 'InProcess':
        return self

    def __exit__(self, *error: object) -> None:
        pass
