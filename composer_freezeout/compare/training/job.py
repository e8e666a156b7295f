"""One run, in a process of its own."""

import json
import re
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composer_freezeout.compare.judging.reading import read
from composer_freezeout.compare.training.folder import held
from composer_freezeout.results.files import RECORD
from composer_freezeout.results.record import Record
from composer_freezeout.run.faults import Refused
from composer_freezeout.run.processes import execute

__all__ = ['LOG', 'Job', 'Outcome', 'last_line', 'train']

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


def train(job: Job) -> Outcome:
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
    exit_code = execute(job.command, job.output / LOG, held())
    seconds = time.monotonic() - since
    message = last_line((job.output / LOG).read_text(encoding='utf-8', errors='replace'))
    try:
        record = read(job.output / RECORD, Record, 'its log tells more') if exit_code == 0 else None
    except (OSError, Refused) as error:
        return Outcome(job, None, exit_code, f'left no record: {error}', seconds)
    return Outcome(job, record, exit_code, '' if record else message, seconds)
