"""The runs of a comparison in their order: round by round, each shortened baseline after the arms it waits for."""

from collections.abc import Sequence

from rich.console import Console

from composer_freezeout.compare.arms.known import BASELINE, DERIVED, SHORTENED
from composer_freezeout.compare.training.company import WARM_UP_BATCHES, measure_company, warm_up
from composer_freezeout.compare.training.executor import Executor
from composer_freezeout.compare.training.job import Job, Outcome
from composer_freezeout.compare.training.ongoing import OngoingComparison
from composer_freezeout.compare.training.runner import Runner

__all__ = ['Rounds', 'run_all']


class Rounds:
    """The runs of a comparison that are not finished.

    Args:
        comparison (OngoingComparison): The comparison.
        runner (Runner): Where it is told that a run cannot be done.
    """

    def __init__(self, comparison: OngoingComparison, runner: Runner):
        self._comparison, self._runner = comparison, runner
        self._waiting = [key for key in comparison.schedule() if key not in comparison.records]
        self._running: set[tuple[str, int]] = set()
        self.missing = 0

    def next_job(self) -> Job | None:
        """The first run in the order whose length is known."""
        for name, seed in list(self._waiting):
            if self._waits(name, seed):
                continue
            self._waiting.remove((name, seed))
            job = self._comparison.job(name, seed)
            if name in SHORTENED and (job := self._comparison.with_duration(job)) is None:
                sources = f'{BASELINE} and {SHORTENED[name]}'
                self._runner.skip(name, seed, f'its length is that of {sources}, and one of them has no run')
                self.missing += 1
                continue
            self._running.add((name, seed))
            return job
        return None

    def _waits(self, name: str, seed: int) -> bool:
        """Whether runs are not over, up to the round of a shortened baseline, that its length is taken from."""
        if name not in SHORTENED:
            return False
        unfinished = {*self._waiting, *self._running}
        return any(source in DERIVED[name] and other <= seed for source, other in unfinished)

    def note(self, outcome: Outcome) -> None:
        """Adds what came of a run to the comparison."""
        self._running.remove((outcome.job.label, outcome.job.seed))
        self._comparison.note(outcome)
        self.missing += outcome.record is None

    @property
    def left(self) -> Sequence[str]:
        """The arms of the runs that have not begun."""
        return [name for name, _ in self._waiting]


def run_all(comparison: OngoingComparison, executor: Executor, console: Console) -> int:
    """Does the runs that are not finished.

    Args:
        comparison (OngoingComparison): What to run.
        executor (Executor): Where.
        console (Console): Where progress is told.

    Returns:
        int: How many runs have no record.
    """
    schedule = comparison.schedule()
    comparison.write()
    if taken_over := len(comparison.records):
        console.print(f'{taken_over} of {len(schedule)} runs are finished already.', highlight=False)
    if taken_over < len(schedule):
        _before_the_first(comparison, executor, console)
    with Runner(console, executor, len(schedule)) as runner:
        for name, seed in schedule:
            if (record := comparison.records.get((name, seed))) is not None:
                runner.take_over(record, name)
        rounds = Rounds(comparison, runner)
        runner.run(rounds)
    return rounds.missing


def _before_the_first(comparison: OngoingComparison, executor: Executor, console: Console) -> None:
    console.print(f'Warming up with {WARM_UP_BATCHES} batches of the baseline.', highlight=False)
    warmed_up = warm_up(comparison.short_job('warm_up', WARM_UP_BATCHES), executor, console)
    workers = executor.workers
    if workers == 1 or (comparison.manifest.workers == workers and comparison.manifest.company is not None):
        return
    company = None
    if warmed_up is not None:
        console.print(f'Trying whether {workers} runs side by side hold each other up.', highlight=False)
        company = measure_company(warmed_up, comparison.batches, comparison.short_job, executor)
    if company is not None:
        line = f'With {workers} runs side by side, a step takes {company:.2f} times as long as alone.'
        console.print(line, highlight=False)
    comparison.manifest = comparison.manifest.model_copy(update={'workers': workers, 'company': company})
    comparison.write()
