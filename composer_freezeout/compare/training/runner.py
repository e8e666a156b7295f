"""Many runs, one after another, and how far they are."""

import contextlib
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from composer_freezeout.compare.judging.clock import cores
from composer_freezeout.compare.training.job import LOG, Job, Outcome, train
from composer_freezeout.results.record import Record

__all__ = ['Runner', 'remaining_seconds', 'warm_up']


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


@dataclass
class Runner:
    """Does runs one after another, and shows how far it is: a bar on a terminal, else a line for each run.

    Attributes:
        console (Console): Where it is shown.
        total (int): Number of runs.
        done (int): How many of them are over.
        seconds (dict[str, list[float]]): How long the finished ones took, by label.
    """

    console: Console
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

    def train(self, job: Job, pending: Sequence[str], kind: str = '') -> Outcome:
        """Does a run, and tells what came of it.

        Args:
            job (Job): The run.
            pending (Sequence[str]): Labels of the runs after it.
            kind (str): What its time is noted under. Default: its label.

        Returns:
            Outcome: What came of it.
        """
        kind = kind or job.label
        left = _estimate(remaining_seconds([kind, *pending], self.seconds))
        self.progress.update(self.task, description=f'{job.label} seed {job.seed}', left=left)
        outcome = train(job)
        if outcome.record is not None:
            self.seconds.setdefault(kind, []).append(outcome.seconds)
        self._count()
        estimate = _estimate(remaining_seconds(pending, self.seconds)) if pending else 'done'
        self.say(f'[{self.done}/{self.total}] {job.label} seed {job.seed}: {_result(outcome)}; {estimate}')
        return outcome

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
    return seconds if accuracy is None else f'{accuracy:.2%} in {seconds}'


def warm_up(job: Job, console: Console) -> None:
    """Does a run that is thrown away, so that the first measured one doesn't pay for cold caches.

    Args:
        job (Job): A short run; its folder is removed afterwards.
        console (Console): Where a failure is told.
    """
    try:
        outcome = train(job)
        if outcome.record is None:
            console.print(
                f'the warm-up run failed with exit code {outcome.exit_code}: {outcome.message}',
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
    finally:
        shutil.rmtree(job.output, ignore_errors=True)
