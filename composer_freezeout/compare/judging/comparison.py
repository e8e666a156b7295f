"""A comparison that has been run, read and checked.

A comparison is a folder with a manifest, ``comparison.json``, and one record per run,
``<arm>/seed<seed>/record.json``. Accuracy, or what else runs are compared by, is that of a run's last evaluation, never
the best one; time is that of training, from the start of fit to its end without evaluations, the first batch included.
"""

from dataclasses import dataclass
from pathlib import Path

from composer_freezeout.compare.arms.known import ARMS, BASELINE, FINE_TUNING_ARMS
from composer_freezeout.compare.judging.clock import Clock, choose_clock
from composer_freezeout.compare.judging.comparable import FinishedRun, incomparable
from composer_freezeout.compare.judging.manifest import Failure, Manifest
from composer_freezeout.compare.judging.reading import read
from composer_freezeout.compare.judging.score import BY_ACCURACY, Score, score_of
from composer_freezeout.results.files import MANIFEST, RECORD
from composer_freezeout.results.record import Record
from composer_freezeout.run.faults import Refused

__all__ = ['Comparison', 'load']


@dataclass(frozen=True)
class Comparison:
    """What was run, and how.

    Attributes:
        family (str): Name of the family of configurations.
        command (str): The command that made the comparison.
        arms (tuple[str, ...]): Its arms, in the order of the tables.
        seeds (tuple[int, ...]): Its seeds.
        scale (float): Share of the family's epochs, and of its batches per epoch, that was trained; in ``(0, 1]``.
        overrides (tuple[str, ...]): ``key=value`` pairs laid over every configuration.
        runs (tuple[FinishedRun, ...]): Finished runs, by arm and seed.
        clock (Clock): What their times are compared by.
        score (Score): What else they are compared by.
        failures (tuple[Failure, ...]): Runs that failed and have no record.
        missing (tuple[tuple[str, int], ...]): Arm and seed of the runs that have neither a record nor failed.
        differences (tuple[str, ...]): Why the runs are not comparable; empty if they are.
        workers (int, optional): How many runs were trained side by side; None if one after another.
        company (float, optional): Time of a step with all of them running over that of one alone; None if not measured.
    """

    family: str
    command: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    scale: float
    overrides: tuple[str, ...]
    runs: tuple[FinishedRun, ...]
    clock: Clock
    failures: tuple[Failure, ...] = ()
    missing: tuple[tuple[str, int], ...] = ()
    differences: tuple[str, ...] = ()
    score: Score = BY_ACCURACY
    workers: int | None = None
    company: float | None = None

    @property
    def absent_arms(self) -> list[str]:
        """Arms of a full comparison that are not part of this one, from random weights or from some that were there."""
        fine_tunes = any(run.record.weights is not None for run in self.runs)
        return [arm for arm in (FINE_TUNING_ARMS if fine_tunes else ARMS) if arm not in self.arms]

    def of(self, arm: str) -> list[FinishedRun]:
        """Finished runs of an arm, by seed."""
        return [run for run in self.runs if run.arm == arm]


def load(folder: Path, allow_mixed: bool = False) -> Comparison:
    """Reads a comparison and checks that its runs differ in nothing but the arm and the seed.

    Args:
        folder (Path): Folder of the comparison.
        allow_mixed (bool): Takes runs that are not comparable, and lists in ``differences`` why they are not.

    Returns:
        Comparison: What is there; runs without a record are listed.

    Raises:
        Refused: If the manifest or a record cannot be read, if the baseline has no finished run, or, one line for
            each difference, if the runs are not comparable.
    """
    try:
        manifest = read(folder / MANIFEST, Manifest, 'give the output folder of a comparison')
    except FileNotFoundError as error:
        remedy = 'give the output folder of a comparison'
        raise Refused(f'{folder / MANIFEST} cannot be read: {error.strerror}; {remedy}') from error
    seeds = sorted(manifest.seeds)
    runs, absent = _runs(folder, manifest.arms, seeds)
    if not any(run.arm == BASELINE for run in runs):
        raise Refused(
            f'{folder} has no finished run of the arm {BASELINE!r}, which all others are compared with; run it first'
        )
    differences = incomparable(runs)
    if differences and not allow_mixed:
        lines = [f'{folder}: {difference}' for difference in differences]
        raise Refused([*lines, 'these runs are not comparable; run them anew, or allow mixed records'])
    failed = {(failure.arm, failure.seed): failure for failure in manifest.failures}
    return Comparison(
        family=manifest.family,
        command=manifest.command,
        arms=tuple(manifest.arms),
        seeds=tuple(seeds),
        scale=manifest.scale,
        overrides=tuple(manifest.overrides),
        runs=tuple(runs),
        clock=choose_clock({arm: [run.record for run in runs if run.arm == arm] for arm in manifest.arms}),
        # Of a run that failed and then succeeded, only the success counts.
        failures=tuple(failed[run] for run in absent if run in failed),
        missing=tuple(run for run in absent if run not in failed),
        differences=tuple(differences),
        score=score_of([run.record for run in runs]),
        workers=manifest.workers,
        company=manifest.company,
    )


def _runs(folder: Path, arms: list[str], seeds: list[int]) -> tuple[list[FinishedRun], list[tuple[str, int]]]:
    """The runs that have a record, and arm and seed of the others."""
    runs, absent = [], []
    for arm in arms:
        for seed in seeds:
            path = f'{arm}/seed{seed}/{RECORD}'
            try:
                record = read(folder / path, Record, 'delete it and run the comparison again')
                runs.append(FinishedRun(arm, seed, path, record))
            except FileNotFoundError:
                absent.append((arm, seed))
    return runs, absent
