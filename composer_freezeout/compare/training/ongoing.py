"""A comparison that is being run."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from composer_freezeout.compare.arms.dry_run import Data
from composer_freezeout.compare.arms.family import Arm
from composer_freezeout.compare.arms.known import BASELINE, SHORTENED, round_order
from composer_freezeout.compare.arms.lengths import shortened
from composer_freezeout.compare.judging.clock import seconds_ratio
from composer_freezeout.compare.judging.manifest import Failure, Manifest
from composer_freezeout.compare.training.finished import finished
from composer_freezeout.compare.training.job import Job, Outcome
from composer_freezeout.compare.training.runner import Runner, warm_up
from composer_freezeout.results.files import MANIFEST, RECORD, write_json
from composer_freezeout.results.record import Record

__all__ = ['WARM_UP_BATCHES', 'OngoingComparison', 'batches_in_the_same_time', 'clear', 'run_all']

# Of the run that is thrown away.
WARM_UP_BATCHES = 5


@dataclass
class OngoingComparison:
    """A comparison that is being run.

    Attributes:
        out (Path): Folder of the results.
        arms (Sequence[Arm]): The arms.
        data (Data): What they are trained on.
        seeds (Sequence[int]): The seeds, one for each round.
        manifest (Manifest): What ``comparison.json`` says.
        records (dict[tuple[str, int], Record]): Of the finished runs, by arm and seed.
    """

    out: Path
    arms: Sequence[Arm]
    data: Data
    seeds: Sequence[int]
    manifest: Manifest
    records: dict[tuple[str, int], Record] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.by_name = {arm.name: arm for arm in self.arms}

    def job(self, name: str, seed: int) -> Job:
        """The run of an arm with a seed; the duration of a shortened baseline is left to :meth:`with_duration`."""
        arm = self.by_name[name]
        free = frozenset({'max_duration', 'scheduler'}) if name in SHORTENED else frozenset()
        return Job(name, seed, arm.file, arm.overrides, self.record_path(name, seed).parent, arm.resolved, free)

    def with_duration(self, job: Job) -> Job | None:
        """Gives a shortened baseline the time that its arm took, as far as is known by now; None if nothing is."""
        batches = batches_in_the_same_time(self._of(BASELINE), self._of(SHORTENED[job.label]))
        if batches is None:
            return None
        config = self.by_name[job.label].config
        return replace(job, overrides=(*job.overrides, *shortened(config, self.data.batches_per_epoch, batches)))

    def warm_up_job(self) -> Job:
        """A few batches of the baseline, which leave nothing behind."""
        job, config = self.job(BASELINE, self.seeds[0]), self.by_name[BASELINE].config
        short = shortened(config, self.data.batches_per_epoch, WARM_UP_BATCHES)
        silent = ('loggers=[]', 'callbacks=[]', 'checkpoint=null')
        return Job('warm-up', job.seed, job.file, (*job.overrides, *short, *silent), self.out / 'warm_up', {})

    def record_path(self, name: str, seed: int) -> Path:
        """Where the record of a run is."""
        return self.out / name / f'seed{seed}' / RECORD

    @property
    def has_baseline(self) -> bool:
        """Whether there is something to compare with."""
        return bool(self._of(BASELINE))

    def schedule(self) -> list[tuple[str, int]]:
        """Arm and seed of every run, in the order in which they are run."""
        names = [arm.name for arm in self.arms]
        return [(name, seed) for number, seed in enumerate(self.seeds) for name in round_order(names, number)]

    def take_over(self) -> None:
        """Finds the finished runs.

        Raises:
            Refused: If one of them has another configuration.
        """
        records = finished(self.job(name, seed) for name, seed in self.schedule())
        self.records = {(job.label, job.seed): record for job, record in records.items()}

    def note(self, outcome: Outcome) -> None:
        """Adds what came of a run, and writes the manifest."""
        job, failure = outcome.job, None
        if outcome.record is None:
            failure = Failure(arm=job.label, seed=job.seed, exit_code=outcome.exit_code, message=outcome.message)
        else:
            self.records[job.label, job.seed] = outcome.record
        self.manifest = self.manifest.with_outcome(job.label, job.seed, failure)
        self.write()

    def write(self) -> None:
        """Writes the manifest."""
        write_json(self.out / MANIFEST, self.manifest.model_dump())

    def _of(self, name: str) -> list[Record]:
        return [record for (arm, _), record in self.records.items() if arm == name]


def batches_in_the_same_time(baseline: Sequence[Record], freezeout: Sequence[Record]) -> int | None:
    """Batches that the baseline does in the time that FreezeOut takes.

    Args:
        baseline (Sequence[Record]): Records of the baseline.
        freezeout (Sequence[Record]): Records of FreezeOut.

    Returns:
        int, optional: In ``[1, ∞)``; None if there is no record of one of them.
    """
    if not baseline or not freezeout:
        return None
    return max(1, round(baseline[0].effective.total_batches * seconds_ratio(freezeout, baseline)))


def run_all(comparison: OngoingComparison, console: Console) -> int:
    """Does the runs that are not finished.

    Args:
        comparison (OngoingComparison): What to run.
        console (Console): Where progress is told.

    Returns:
        int: How many runs have no record.
    """
    schedule = comparison.schedule()
    comparison.write()
    if taken_over := len(comparison.records):
        console.print(f'{taken_over} of {len(schedule)} runs are finished already.', highlight=False)
    if taken_over < len(schedule):
        console.print(f'Warming up with {WARM_UP_BATCHES} batches of the baseline.', highlight=False)
        warm_up(comparison.warm_up_job(), console)
    missing = 0
    with Runner(console, len(schedule)) as runner:
        for name, seed in schedule:
            if (record := comparison.records.get((name, seed))) is not None:
                runner.take_over(record, name)
        todo = [key for key in schedule if key not in comparison.records]
        for position, (name, seed) in enumerate(todo):
            job = comparison.job(name, seed)
            if name in SHORTENED and (job := comparison.with_duration(job)) is None:
                sources = f'{BASELINE} and {SHORTENED[name]}'
                runner.skip(name, seed, f'its length is that of {sources}, and one of them has no run')
                missing += 1
                continue
            outcome = runner.train(job, [label for label, _ in todo[position + 1 :]])
            comparison.note(outcome)
            missing += outcome.record is None
    return missing


def clear(comparison: OngoingComparison) -> None:
    """Removes the runs that are to be trained again."""
    for name, seed in comparison.schedule():
        shutil.rmtree(comparison.record_path(name, seed).parent, ignore_errors=True)
