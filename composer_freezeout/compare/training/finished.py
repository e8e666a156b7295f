"""Runs that have been done before, and may be taken over."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from composer_freezeout.compare.arms.family import Refused, and_more, differences
from composer_freezeout.compare.training.job import Job
from composer_freezeout.results.environment import environment
from composer_freezeout.results.files import RECORD

__all__ = ['check_environment', 'finished']

# Keys of a configuration that say nothing about the training.
_WHERE = frozenset({'output', 'overwrite', 'progress_bar'})


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


def check_environment(records: Mapping[Path, Mapping[str, Any]]) -> None:
    """Makes sure that runs to come can be compared with those that have been done.

    Args:
        records (Mapping[Path, Mapping[str, Any]]): The finished runs, by path.

    Raises:
        Refused: If versions or hardware are others now.
    """
    if not records:
        return
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
