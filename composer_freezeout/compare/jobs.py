"""Runs in processes of their own: started, watched, taken over where they are finished, and counted."""

import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from composer_freezeout.compare.arms import Refused, and_more, differences
from composer_freezeout.run.command import RECORD
from composer_freezeout.run.processes import execute

__all__ = [
    'LOG',
    'Job',
    'Outcome',
    'Runner',
    'check_environment',
    'finished',
    'last_line',
    'remaining_seconds',
    'warm_up',
    'write_json',
]

# Not log.txt, which is what the run's own file logger writes.
LOG = 'output.txt'

# Keys of a configuration that say nothing about the training.
_WHERE = frozenset({'output', 'overwrite', 'progress_bar'})


# ---------------------------------------------------------------------------------------------------------------------
# One run
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Job:
    """One run to be had.

    Attributes:
        label (str): What is trained; runs of one label take about the same time.
        seed (int): In ``[0, 2**32)``.
        file (Path): The YAML file.
        overrides (tuple[str, ...]): ``key=value`` pairs laid over it, but for the seed and the output.
        output (Path): Folder for its record.
        expected (Mapping[str, Any]): The configuration that its record will hold, but for the seed and the output.
        free (frozenset[str]): Keys of the configuration that a finished run may have other values of.
    """

    label: str
    seed: int
    file: Path
    overrides: tuple[str, ...]
    output: Path
    expected: Mapping[str, Any]
    free: frozenset[str] = frozenset()

    @property
    def command(self) -> list[str]:
        """What trains it, through Composer's launcher."""
        launcher = [sys.executable, '-m', 'composer', '-m', 'composer_freezeout.run']
        own = [f'output={json.dumps(str(self.output))}', f'seed={self.seed}', 'progress_bar=false']
        return [*launcher, str(self.file), *self.overrides, *own]


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        job (Job): The run.
        record (Mapping[str, Any], optional): What it left behind; None if it failed.
        exit_code (int): Of its process, 0 if it was taken over.
        message (str): The last line of its log, if it failed.
        seconds (float): Wall-clock of the process, with everything around the training.
    """

    job: Job
    record: Mapping[str, Any] | None
    exit_code: int
    message: str
    seconds: float


def finished(jobs: Iterable[Job]) -> dict[Job, dict[str, Any]]:
    """The records of the runs that have been done before.

    Args:
        jobs (Iterable[Job]): The runs.

    Returns:
        dict[Job, dict[str, Any]]: Record of each that is finished.

    Raises:
        Refused: If a record is damaged, or that of a run with another configuration.
    """
    records, lines = {}, []
    others: dict[str, list[Path]] = {}
    for job in jobs:
        path = job.output / RECORD
        try:
            record = json.loads(path.read_text(encoding='utf-8'))
            found = differences(record['config'], {**job.expected, 'seed': job.seed})
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            lines.append(f'{path}: not a record ({error}); remove it, and the run is done again')
            continue
        records[job] = record
        for key, (there, here) in found.items():
            if key.partition('.')[0] not in _WHERE | job.free:
                others.setdefault(f'{key} is {there!r} in a finished run and would be {here!r} now', []).append(path)
    lines += [
        f'{and_more(paths)}: {difference}; train all again with --overwrite, or choose another --out'
        for difference, paths in others.items()
    ]
    if lines:
        raise Refused(lines)
    return records


def last_line(log: str) -> str:
    """The last thing that a run said, before Composer's launcher had its say.

    Args:
        log (str): Output of the run.

    Returns:
        str: A line; empty if there is none.
    """
    launcher = re.compile(r'ERROR:composer\.cli\.launcher|Waiting up to \d+ seconds|Global rank \d+ ')
    lines = [line.strip() for line in log.splitlines()]
    return next((line for line in reversed(lines) if line and not launcher.match(line)), '')


def run(job: Job) -> Outcome:
    """Trains, after removing what an unfinished run has left, unless that is to be continued.

    Args:
        job (Job): The run.

    Returns:
        Outcome: With the record, or with what went wrong.
    """
    resumes = bool((job.expected.get('checkpoint') or {}).get('resume'))
    if not resumes:
        shutil.rmtree(job.output, ignore_errors=True)
    job.output.mkdir(parents=True, exist_ok=True)
    since = time.monotonic()
    exit_code = execute(job.command, job.output / LOG)
    seconds = time.monotonic() - since
    message = last_line((job.output / LOG).read_text(encoding='utf-8', errors='replace'))
    try:
        record = json.loads((job.output / RECORD).read_text(encoding='utf-8')) if exit_code == 0 else None
    except (OSError, ValueError) as error:
        return Outcome(job, None, exit_code, f'left no record: {error}', seconds)
    return Outcome(job, record, exit_code, '' if record else message, seconds)


# ---------------------------------------------------------------------------------------------------------------------
# Many runs
# ---------------------------------------------------------------------------------------------------------------------


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

    def take_over(self, record: Mapping[str, Any], label: str) -> None:
        """Counts a run that had been done before."""
        started, ended = (datetime.fromisoformat(record[key]) for key in ('started_at', 'finished_at'))
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
        outcome = run(job)
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
    accuracy = outcome.record['final'].get('MulticlassAccuracy')
    seconds = f'{outcome.record["training_seconds"]:.1f} s of training'
    return seconds if accuracy is None else f'{accuracy:.2%} in {seconds}'


def warm_up(job: Job, console: Console) -> None:
    """Does a run that is thrown away, so that the first measured one doesn't pay for cold caches.

    Args:
        job (Job): A short run; its folder is removed afterwards.
        console (Console): Where a failure is told.
    """
    try:
        outcome = run(job)
        if outcome.record is None:
            console.print(
                f'the warm-up run failed with exit code {outcome.exit_code}: {outcome.message}',
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
    finally:
        shutil.rmtree(job.output, ignore_errors=True)


def check_environment(records: Mapping[Path, Mapping[str, Any]]) -> None:
    """Makes sure that runs to come can be compared with those that have been done.

    Args:
        records (Mapping[Path, Mapping[str, Any]]): The finished runs, by path.

    Raises:
        Refused: If versions or hardware are others now.
    """
    if not records:
        return
    from composer_freezeout.run.record import environment

    now = environment()
    lines = []
    for path, record in records.items():
        for part in ('versions', 'hardware'):
            lines += [
                f'{path}: {part}.{key} was {there!r} in a finished run and is {here!r} now, so that times cannot be '
                'compared; use --allow-mixed, --overwrite or another --out'
                for key, (there, here) in differences(record[part], now[part]).items()
                # The launcher sets the number of threads where the environment doesn't.
                if (part, key) != ('hardware', 'threads')
            ]
        if lines:
            # The first one is enough: the others are told when the runs are compared.
            raise Refused(lines)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file in one step: whoever reads it finds the old or the new one.

    Args:
        path (Path): The file; its folder exists.
        content (Mapping[str, Any]): What JSON can hold.
    """
    part = path.with_name(f'{path.name}.part')
    part.write_text(json.dumps(content, indent=1, allow_nan=False) + '\n', encoding='utf-8')
    os.replace(part, path)
