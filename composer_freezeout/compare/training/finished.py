"""Runs that have been done before, and may be taken over."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from composer_freezeout.compare.arms.family import and_more
from composer_freezeout.compare.judging.reading import read
from composer_freezeout.compare.training.job import Job
from composer_freezeout.results.differences import differences
from composer_freezeout.results.files import RECORD
from composer_freezeout.results.record import Record
from composer_freezeout.run.faults import Refused

__all__ = ['check_environment', 'finished']

# Keys of a configuration that say nothing about the training.
_WHERE = frozenset({'output', 'overwrite', 'progress_bar'})


def finished(jobs: Iterable[Job]) -> dict[Job, Record]:
    """The records of the runs that have been done before.

    Args:
        jobs (Iterable[Job]): The runs.

    Returns:
        dict[Job, Record]: Record of each that is finished.

    Raises:
        Refused: If a record is damaged, or that of a run with another configuration.
    """
    records: dict[Job, Record] = {}
    lines: list[str] = []
    others: dict[str, list[Path]] = {}
    for job in jobs:
        path = job.output / RECORD
        try:
            records[job] = read(path, Record, 'remove it, and the run is done again')
        except FileNotFoundError:
            continue
        except Refused as error:
            lines += error.lines
            continue
        for key, (there, here) in differences(records[job].config, {**job.expected, 'seed': job.seed}).items():
            if key.partition('.')[0] not in _WHERE | job.free:
                others.setdefault(f'{key} is {there!r} in a finished run and would be {here!r} now', []).append(path)
    lines += [
        f'{and_more(paths)}: {difference}; train all again with --overwrite, or choose another --out'
        for difference, paths in others.items()
    ]
    if lines:
        raise Refused(lines)
    return records


def check_environment(records: Mapping[Path, Record], environment: Callable[[], Mapping[str, Any]]) -> None:
    """Makes sure that runs to come can be compared with those that have been done.

    Args:
        records (Mapping[Path, Record]): The finished runs, by path.
        environment (Callable[[], Mapping[str, Any]]): Tells versions and hardware of the runs to come.

    Raises:
        Refused: If versions or hardware are others now.
    """
    if not records:
        return
    now = environment()
    for path, record in records.items():
        then = {'versions': record.versions, 'hardware': record.hardware}
        lines = [
            f'{path}: {key} was {there!r} in a finished run and is {here!r} now, so that times cannot be compared; '
            'use --allow-mixed, --overwrite or another --out'
            for key, (there, here) in differences(then, {part: now[part] for part in then}).items()
            # The launcher sets the number of threads where the environment doesn't.
            if key != 'hardware.threads'
        ]
        if lines:
            # The first one is enough: the others are told when the runs are compared.
            raise Refused(lines)
