"""One run, in a process of its own."""

import json
import re
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from composer_freezeout.compare.judging.reading import read
from composer_freezeout.compare.training.folder import clear_folder, held
from composer_freezeout.results.files import RECORD
from composer_freezeout.results.record import Record
from composer_freezeout.run.faults import Refused
from composer_freezeout.run.plugins import imports
from composer_freezeout.run.processes import execute

__all__ = ['LOG', 'Job', 'Outcome', 'last_line', 'outcome_of', 'prepare_output', 'train']

# Not log.txt, which is what the run's own file logger writes.
LOG = 'output.txt'


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
        kind (str): What its time is noted under. Default: its label.
        imports (tuple[str, ...]): Modules with models and data sets of the user's own. Default: this process's.
    """

    label: str
    seed: int
    file: Path
    overrides: tuple[str, ...]
    output: Path
    expected: Mapping[str, Any]
    free: frozenset[str] = frozenset()
    kind: str = ''
    imports: tuple[str, ...] = field(default_factory=imports)

    @property
    def command(self) -> list[str]:
        """What trains it, through Composer's launcher."""
        return [sys.executable, *self.arguments(self.file, self.output)]

    def arguments(self, file: Path, output: Path) -> list[str]:
        """What a Python gets to train it, with the file and the output in some places."""
        launcher = ['-m', 'composer', '-m', 'composer_freezeout.run']
        own = [f'output={json.dumps(str(output))}', f'seed={self.seed}', 'progress_bar=false']
        named = [f'--import={module}' for module in self.imports]
        return [*launcher, str(file), *named, *self.overrides, *own]


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        job (Job): The run.
        record (Record, optional): What it left behind; None if it failed.
        exit_code (int): Of its process, 0 if it was taken over.
        message (str): The last line of its log, if it failed.
        seconds (float): Wall-clock of the process, with everything around the training.
    """

    job: Job
    record: Record | None
    exit_code: int
    message: str
    seconds: float


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


def train(job: Job, environment: Mapping[str, str] | None = None, stop: threading.Event | None = None) -> Outcome:
    """Trains here, after removing what an unfinished run has left, unless that is to be continued.

    Args:
        job (Job): The run.
        environment (Mapping[str, str], optional): Variables that it has besides this process's.
        stop (threading.Event, optional): Ends it when it is set.

    Returns:
        Outcome: With the record, or with what went wrong.
    """
    prepare_output(job)
    since = time.monotonic()
    exit_code = execute(job.command, job.output / LOG, held(), environment, stop)
    return outcome_of(job, exit_code, time.monotonic() - since)


def prepare_output(job: Job) -> None:
    """Makes the folder of a run, and removes what an unfinished one has left, unless that is to be continued."""
    resumes = bool((job.expected.get('checkpoint') or {}).get('resume'))
    job.output.mkdir(parents=True, exist_ok=True)
    if not resumes:
        clear_folder(job.output)


def outcome_of(job: Job, exit_code: int, seconds: float) -> Outcome:
    """Reads what a run has left in its folder.

    Args:
        job (Job): The run.
        exit_code (int): Of its process.
        seconds (float): How long it took.

    Returns:
        Outcome: With the record, or with what went wrong.
    """
    message = last_line((job.output / LOG).read_text(encoding='utf-8', errors='replace'))
    try:
        record = read(job.output / RECORD, Record, 'its log tells more') if exit_code == 0 else None
    except (OSError, Refused) as error:
        return Outcome(job, None, exit_code, f'left no record: {error}', seconds)
    return Outcome(job, record, exit_code, '' if record else message, seconds)
