"""Many runs, and how far they are."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from composer_freezeout.compare.judging.clock import cores
from composer_freezeout.compare.training.executor import Executor
from composer_freezeout.compare.training.job import LOG, Job, Outcome
from composer_freezeout.results.record import Record

__all__ = ['JobList', 'Runner', 'Work', 'remaining_seconds']


def remaining_seconds(pending: Sequence[str], known: Mapping[str, Sequence[float]]) -> float | None:
    """Estimates how long the runs that are left will take.

    Args:
        pending (Sequence[str]): Label of each.
        known (Mapping[str, Sequence[float]]): Seconds of the finished runs, by label.

    Returns:
        float, optional: In ``[0, ∞)``: for each the mean of its label, or of all labels' means where none is finished.
        None if nothing is known.
    """
    means = {label: sum(seconds) / len(seconds) for label, seconds in known.items() if seconds}
    if not means and pending:
        return None
    overall = sum(means.values()) / len(means) if means else 0.0
    return sum(means.get(label, overall) for label in pending)


def _estimate(seconds: float | None) -> str:
    if seconds is None:
        return 'time left unknown'
    minutes = math.ceil(seconds / 60)
    left = f'{minutes // 60} h {minutes % 60:02} min' if minutes >= 60 else f'{minutes} min'
    return f'about {left} left, until {datetime.now() + timedelta(seconds=seconds):%H:%M}'


class Work(Protocol):
    """Runs to be done, some of which may have to wait for others."""

    def next_job(self) -> Job | None:
        """The run to begin now; None if there is none, or all that are left wait for what is running."""
        ...

    def note(self, outcome: Outcome) -> None:
        """Takes what came of a run."""
        ...

    @property
    def left(self) -> Sequence[str]:
        """What the times of the runs that have not begun are noted under."""
        ...


@dataclass
class Runner:
    """Does runs, and shows how far it is: a bar on a terminal, else a line for each run.

    Attributes:
        console (Console): Where it is shown.
        executor (Executor): Where they are done.
        total (int): Number of runs.
        done (int): How many of them are over.
        seconds (dict[str, list[float]]): How long the finished ones took, by label.
    """

    console: Console
    executor: Executor
    total: int
    done: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns = (
            TextColumn('{task.description}'),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn('{task.fields[left]}'),
        )
        self.progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.progress.add_task('starting', total=self.total, left='')

    def __enter__(self) -> 'Runner':
        """Shows the bar."""
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leaves the bar as it is."""
        self.progress.update(self.task, left='')
        if self.console.is_terminal:
            self.progress.stop()

    def say(self, line: str) -> None:
        """Prints a line, above the bar if there is one."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def take_over(self, record: Record, label: str) -> None:
        """Counts a run that had been done before."""
        # Without times that can be read, nothing is known of how long it took.
        with contextlib.suppress(ValueError):
            started, ended = map(datetime.fromisoformat, (record.started_at, record.finished_at))
            self.seconds.setdefault(label, []).append((ended - started).total_seconds())
        self._count()

    def skip(self, label: str, seed: int, why: str) -> None:
        """Counts a run that cannot be done."""
        self._count()
        self.say(f'[{self.done}/{self.total}] {label} seed {seed}: not run: {why}')

    def run(self, work: Work) -> None:
        """Does all runs, as many at once as there are places for, and tells what came of each.

        Args:
            work (Work): The runs.
        """
        running: dict[Future[Outcome], Job] = {}
        while True:
            while len(running) < self.executor.workers and (job := work.next_job()) is not None:
                running[self.executor.submit(job)] = job
                self._show(list(running.values()), work)
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                del running[future]
                outcome = future.result()
                if outcome.record is not None:
                    self.seconds.setdefault(_kind(outcome.job), []).append(outcome.seconds)
                work.note(outcome)
                self._tell(outcome, [*map(_kind, running.values()), *work.left])
            self._show(list(running.values()), work)

    def _tell(self, outcome: Outcome, pending: Sequence[str]) -> None:
        self._count()
        estimate = self._estimate(pending) if pending else 'done'
        job = outcome.job
        self.say(f'[{self.done}/{self.total}] {job.label} seed {job.seed}: {_result(outcome)}; {estimate}')

    def _show(self, running: Sequence[Job], work: Work) -> None:
        names = ', '.join(f'{job.label} seed {job.seed}' for job in running)
        left = self._estimate([*map(_kind, running), *work.left])
        self.progress.update(self.task, description=names, left=left)

    def _estimate(self, pending: Sequence[str]) -> str:
        seconds = remaining_seconds(pending, self.seconds)
        return _estimate(None if seconds is None else seconds / min(self.executor.workers, len(pending) or 1))

    def _count(self) -> None:
        self.done += 1
        self.progress.update(self.task, completed=self.done)


def _result(outcome: Outcome) -> str:
    if outcome.record is None:
        log = outcome.job.output / LOG
        return f'failed with exit code {outcome.exit_code}: {outcome.message or "no output"} (log: {log})'
    accuracy = outcome.record.accuracy
    seconds = f'{outcome.record.training_seconds:.1f} s of training'
    if outcome.record.effective.device == 'cpu' and outcome.record.training_cpu_seconds is not None:
        # Fewer than in other runs tell at once that the machine is busy.
        seconds += f' on {cores([outcome.record]):.1f} cores'
    if accuracy is not None:
        return f'{accuracy:.2%} in {seconds}'
    metric = outcome.record.metric
    value = None if metric is None else outcome.record.final.get(metric.name)
    return seconds if metric is None or value is None else f'{metric.name} {value:.4f} in {seconds}'


def _kind(job: Job) -> str:
    return job.kind or job.label


class JobList:
    """Runs that wait for no other.

    Args:
        jobs (Sequence[Job]): In the order in which they are to begin.
    """

    def __init__(self, jobs: Sequence[Job]):
        self._jobs = list(jobs)
        self.outcomes: list[Outcome] = []

    def next_job(self) -> Job | None:
        """The next one."""
        return self._jobs.pop(0) if self._jobs else None

    def note(self, outcome: Outcome) -> None:
        """Keeps what came of a run."""
        self.outcomes.append(outcome)

    @property
    def left(self) -> Sequence[str]:
        """What the times of those are noted under that have not begun."""
        return [_kind(job) for job in self._jobs]
