"""The runs of a sweep: settings are searched for, and the best ones are judged."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from rich.console import Console

from composer_freezeout.compare.arms.curve import length_arm
from composer_freezeout.compare.arms.dry_run import Data
from composer_freezeout.compare.arms.family import Arm, make_arm
from composer_freezeout.compare.arms.known import round_order
from composer_freezeout.compare.judging.score import BY_ACCURACY, Score
from composer_freezeout.compare.sweep.results import baseline_name
from composer_freezeout.compare.sweep.searching import abandoned, elsewhere, searching
from composer_freezeout.compare.sweep.settings import (
    WARM_UPS,
    Setting,
    default_setting,
    name_of,
    space_of,
    suggest,
)
from composer_freezeout.compare.sweep.trials import KIND, Trials
from composer_freezeout.compare.training.executor import Executor
from composer_freezeout.compare.training.finished import finished
from composer_freezeout.compare.training.job import Job
from composer_freezeout.compare.training.runner import JobList, Runner
from composer_freezeout.results.record import Record
from composer_freezeout.run.faults import Refused

__all__ = ['Sweep']

# Optuna's own journal.
STUDY = 'study.log'


@dataclass
class Sweep:
    """A sweep that is being run.

    Attributes:
        out (Path): Folder of the results.
        baseline (Arm): The arm without freezing.
        freezeout (Arm): The arm whose settings are explored.
        data (Data): What they are trained on.
        console (Console): Where progress is told.
        executor (Executor): Where runs are trained.
        joins (bool): Whether another command has begun the search, and judges.
        score (Score): What settings are chosen and judged by, besides what they cost.
    """

    out: Path
    baseline: Arm
    freezeout: Arm
    data: Data
    console: Console
    executor: Executor
    joins: bool = False
    score: Score = BY_ACCURACY

    def __post_init__(self) -> None:
        places = [i for i, entry in enumerate(self.freezeout.config.algorithms) if entry.name == 'freezeout']
        if not places:
            raise Refused(f'{self.freezeout.file}: algorithms: has no freezeout, whose settings are searched; add it')
        self.index = places[0]
        self.default = default_setting(self.freezeout.config.algorithms[self.index].arguments)
        self.space = space_of(self.default, fine_tunes=self.baseline.config.model.weights is not None)
        self.warm_ups = tuple(dict.fromkeys([*WARM_UPS, self.default['t_warmup']]))

    def setting_arm(self, setting: Setting) -> Arm:
        """The arm with FreezeOut of other settings."""
        own = tuple(f'algorithms.{self.index}.{key}={json.dumps(value)}' for key, value in setting.items())
        return make_arm(name_of(setting), self.freezeout.file, (*self.freezeout.overrides, *own))

    def baseline_arm(self, percent: int) -> Arm:
        """The baseline, compressed to a share of its duration."""
        return length_arm(self.baseline, percent / 100, self.data, baseline_name(percent))

    def job(self, arm: Arm, seed: int) -> Job:
        """The run of an arm with a seed."""
        return Job(arm.name, seed, arm.file, arm.overrides, self.out / arm.name / f'seed{seed}', arm.resolved)

    def _study(self) -> optuna.Study:
        """The trials so far, those that an interruption has left unfinished next in line."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = self.out / STUDY
        try:
            study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(path))),
                study_name='freezeout',
                directions=['maximize', 'maximize'],
                load_if_exists=True,
            )
        except (ValueError, KeyError, TypeError) as error:
            # Whatever Optuna stumbles over in a damaged journal.
            raise Refused(f'{path} is damaged ({error!r}); remove it: finished runs are taken over') from error
        # After an interruption another seed: the draws of the first one have been made. So have those of others.
        seed = self.baseline.config.seed + len(study.trials) + (os.getpid() if self.joins else 0)
        study.sampler = optuna.samplers.TPESampler(seed=seed)
        for trial in [] if self.joins else abandoned(study, self.out):
            # Of an interrupted sweep. Its runs are taken over when the setting is tried again.
            study.tell(trial.number, state=TrialState.FAIL)
            if trial.params:
                study.enqueue_trial(trial.params)
        if not study.trials:
            study.enqueue_trial(self.default)
        return study

    def explore(self, trials: int, seeds: Sequence[int], budget: float | None) -> optuna.Study:
        """Looks for settings with a high quality and a high saving.

        Args:
            trials (int): How many settings are tried, in ``[1, ∞)``.
            seeds (Sequence[int]): The choosing seeds.
            budget (float, optional): Seconds after which no further setting is tried.

        Returns:
            optuna.Study: The trials.
        """

        def jobs_of(trial: optuna.Trial) -> list[Job]:
            arm = self.setting_arm(suggest(trial, self.warm_ups, self.space.least_t_0))
            return [replace(self.job(arm, seed), kind=KIND) for seed in seeds]

        study = self._study()
        with (
            searching(self.out) as owner,
            Runner(self.console, self.executor, trials * len(seeds)) as runner,
        ):
            runner.run(Trials(study, jobs_of, runner, trials, len(seeds), budget, owner, self.score))
        if not self.joins and elsewhere(study, self.out):
            self.console.print('Waiting for the settings that other commands are trying.', highlight=False)
            while elsewhere(study, self.out):
                time.sleep(1)
        return study

    def judge(self, settings: Sequence[Setting], seeds: Sequence[int]) -> dict[str, dict[int, Record]]:
        """Trains settings and baselines of several lengths with the judging seeds, interleaved.

        Args:
            settings (Sequence[Mapping[str, Any]]): The settings.
            seeds (Sequence[int]): The judging seeds.

        Returns:
            dict[str, dict[int, Record]]: Records by name and seed.
        """
        arms = {
            arm.name: arm
            for arm in [*map(self.baseline_arm, self.space.lengths), *(self.setting_arm(item) for item in settings)]
        }
        schedule = [(name, seed) for n, seed in enumerate(seeds) for name in round_order(list(arms), n)]
        jobs = [self.job(arms[name], seed) for name, seed in schedule]
        done = finished(jobs)
        records: dict[str, dict[int, Record]] = {name: {} for name in arms}
        with Runner(self.console, self.executor, len(jobs)) as runner:
            for job, record in done.items():
                runner.take_over(record, job.label)
            todo = JobList([job for job in jobs if job not in done])
            runner.run(todo)
        for job, record in [*done.items(), *((outcome.job, outcome.record) for outcome in todo.outcomes)]:
            if record is not None:
                records[job.label][job.seed] = record
        return records
