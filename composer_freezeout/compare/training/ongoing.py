"""A comparison that is being run."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from composer_freezeout.compare.arms.dry_run import Data
from composer_freezeout.compare.arms.family import Arm
from composer_freezeout.compare.arms.known import BASELINE, SHORTENED, round_order
from composer_freezeout.compare.arms.lengths import shortened, total_batches
from composer_freezeout.compare.judging.clock import seconds_ratio
from composer_freezeout.compare.judging.manifest import Failure, Manifest
from composer_freezeout.compare.training.executor import Executor
from composer_freezeout.compare.training.finished import check_environment, finished
from composer_freezeout.compare.training.job import Job, Outcome
from composer_freezeout.results.files import MANIFEST, RECORD, write_json
from composer_freezeout.results.record import Record
from composer_freezeout.run.faults import Refused

__all__ = ['OngoingComparison', 'batches_in_the_same_time', 'clear']


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

    def short_job(self, name: str, batches: int) -> Job:
        """Some batches of the baseline, in a folder that is to be removed."""
        job, config = self.job(BASELINE, self.seeds[0]), self.by_name[BASELINE].config
        short = shortened(config, self.data.batches_per_epoch, batches)
        silent = ('loggers=[]', 'callbacks=[]', 'checkpoint=null')
        return Job(name, job.seed, job.file, (*job.overrides, *short, *silent), self.out / f'.{name}', {})

    @property
    def batches(self) -> int:
        """How many batches a run of the baseline has."""
        return total_batches(self.by_name[BASELINE].config, self.data.batches_per_epoch)

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

    def check_environment(self, executor: Executor) -> None:
        """Makes sure that runs to come can be compared with those that are finished.

        Args:
            executor (Executor): Where they will be trained.

        Raises:
            Refused: If versions, hardware or the company are others now.
        """
        check_environment(
            {self.record_path(*key): record for key, record in self.records.items()}, executor.environment
        )
        there, workers = self.manifest.workers or 1, executor.workers
        if self.records and there != workers and len(self.records) < len(self.schedule()):
            line = (
                f'{there} runs were trained side by side, and now {workers} would be, so that times cannot be compared'
            )
            raise Refused(f'--workers: {self.out}: {line}; use --workers {there}, --allow-mixed or another --out')

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
        write_json(self.out / MANIFEST, self.manifest.model_dump(exclude_none=True))

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


def clear(comparison: OngoingComparison) -> None:
    """Removes the runs that are to be trained again."""
    for name, seed in comparison.schedule():
        shutil.rmtree(comparison.record_path(name, seed).parent, ignore_errors=True)
