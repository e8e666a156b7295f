"""What runs before the first measured one: a warm-up, and whether runs side by side hold each other up."""

import math
import shutil
from collections.abc import Callable, Sequence

from rich.console import Console

from composer_freezeout.compare.training.executor import Executor
from composer_freezeout.compare.training.job import Job, Outcome
from composer_freezeout.results.record import Record

__all__ = ['WARM_UP_BATCHES', 'measure_company', 'warm_up']

# Of the run that is thrown away.
WARM_UP_BATCHES = 5
# How long the runs that are to keep each other company train: the seconds by which they start apart weigh little then.
_SECONDS = 10.0


def warm_up(job: Job, executor: Executor, console: Console) -> Record | None:
    """Does a run that is thrown away, so that the first measured one doesn't pay for cold caches.

    Args:
        job (Job): A short run; its folder is removed afterwards.
        executor (Executor): Where it is done.
        console (Console): Where a failure is told.

    Returns:
        Record, optional: What it measured; None if it failed.
    """
    (outcome,) = _thrown_away([job], executor)
    if outcome.record is None:
        line = f'the warm-up run failed with exit code {outcome.exit_code}: {outcome.message}'
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return outcome.record


def measure_company(
    warmed_up: Record, most: int, short_job: Callable[[str, int], Job], executor: Executor
) -> float | None:
    """How much longer a step takes while all places are occupied than while the others are empty.

    Args:
        warmed_up (Record): Of a run of :data:`WARM_UP_BATCHES`.
        most (int): Batches of a whole run, in ``[1, ∞)``: the runs of this check are not longer.
        short_job (Callable[[str, int], Job]): Makes a run of some name and number of batches.
        executor (Executor): With several places.

    Returns:
        float, optional: Time of a step in company over that of one alone; None if a run failed or is too short to tell.
    """
    step = _step_seconds(warmed_up)
    batches = most if not step else max(WARM_UP_BATCHES, min(most, math.ceil(_SECONDS / step)))
    (alone,) = _thrown_away([short_job('alone', batches)], executor)
    copies = [short_job(f'company{number}', batches) for number in range(executor.workers)]
    records = [outcome.record for outcome in (alone, *_thrown_away(copies, executor))]
    steps = [None if record is None else _step_seconds(record) for record in records]
    known = [step for step in steps if step]
    return sum(known[1:]) / len(copies) / known[0] if len(known) == len(steps) else None


def _step_seconds(record: Record) -> float | None:
    """Mean time of a step, but for the first one; None if there was no other."""
    first, batches = record.first_batch_seconds, record.effective.total_batches
    return None if first is None or batches < 2 else (record.training_seconds - first) / (batches - 1)


def _thrown_away(jobs: Sequence[Job], executor: Executor) -> list[Outcome]:
    try:
        futures = [executor.submit(job) for job in jobs]
        return [future.result() for future in futures]
    finally:
        for job in jobs:
            shutil.rmtree(job.output, ignore_errors=True)
