"""The trials of a search: settings that Optuna draws, tried with the choosing seeds."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import optuna
from optuna.trial import TrialState

from composer_freezeout.compare.judging.score import BY_ACCURACY, Score
from composer_freezeout.compare.sweep.searching import OWNER
from composer_freezeout.compare.training.finished import finished
from composer_freezeout.compare.training.folder import claimed_run
from composer_freezeout.compare.training.job import Job, Outcome
from composer_freezeout.compare.training.runner import Runner
from composer_freezeout.results.record import Record
from composer_freezeout.run.faults import Refused

__all__ = ['KIND', 'Trials', 'completed']

# What the times of all settings' runs are noted under.
KIND = 'setting'


@dataclass(eq=False)
class _Open:
    """A setting that is being tried.

    Attributes:
        trials (list[optuna.Trial]): Those that have drawn it: with several at once it may be drawn again.
        waiting (list[Job]): Its runs that have not begun.
        missing (set[int]): Seeds of the runs that are not over.
        claims (contextlib.ExitStack): Keeps other commands away from its runs.
        records (dict[int, Record]): Of those that are.
        failure (str, optional): Why the setting is out; None if it isn't.
    """

    trials: list[optuna.Trial]
    waiting: list[Job]
    missing: set[int]
    claims: contextlib.ExitStack
    records: dict[int, Record] = field(default_factory=dict)
    failure: str | None = None


class Trials:
    """The runs of a search.

    Args:
        study (optuna.Study): What draws settings.
        jobs_of (Callable[[optuna.Trial], list[Job]]): Draws a setting, and gives its runs.
        runner (Runner): Where it is told how far it is.
        trials (int): How many settings are tried, in ``[1, ∞)``.
        seeds (int): How many runs each has, in ``[1, ∞)``.
        budget (float, optional): Seconds after which no further setting is tried.
        owner (str, optional): What tells others whose trials these are.
        score (Score): What settings are chosen by, besides their saving.
    """

    def __init__(
        self,
        study: optuna.Study,
        jobs_of: Callable[[optuna.Trial], list[Job]],
        runner: Runner,
        trials: int,
        seeds: int,
        budget: float | None = None,
        owner: str | None = None,
        score: Score = BY_ACCURACY,
    ):
        self._study, self._jobs_of, self._runner = study, jobs_of, runner
        self._trials, self._seeds, self._budget = trials, seeds, budget
        self._owner, self._score, self._begun = owner, score, time.monotonic()
        self._open: dict[str, _Open] = {}
        runner.done = self._drawn * seeds

    @property
    def _drawn(self) -> int:
        """How many settings have been tried, or are being tried, here or elsewhere."""
        states = (TrialState.COMPLETE, TrialState.RUNNING)
        return len(self._study.get_trials(deepcopy=False, states=states)) + len(_given_up(self._study))

    def next_job(self) -> Job | None:
        """A run of a setting that is being tried, or else of a new one."""
        while True:
            for setting in self._open.values():
                if setting.waiting:
                    return setting.waiting.pop(0)
            if self._drawn >= self._trials:
                return None
            if self._budget is not None and time.monotonic() - self._begun > self._budget:
                self._runner.say(f'The budget is spent after {self._drawn} of {self._trials} settings.')
                self._trials = self._drawn
                return None
            self._draw()

    def _draw(self) -> None:
        trial = self._study.ask()
        if self._owner is not None:
            trial.set_user_attr(OWNER, self._owner)
        jobs = self._jobs_of(trial)
        if (same := self._open.get(jobs[0].label)) is not None:
            same.trials.append(trial)
            self._runner.done += len(jobs)
            return
        with contextlib.ExitStack() as claims:
            try:
                for job in jobs:
                    claims.enter_context(claimed_run(job.output))
            except Refused:
                # Another machine is just trying it.
                self._study.tell(trial, state=TrialState.FAIL)
                return
            done = finished(jobs)
            waiting = [job for job in jobs if job not in done]
            setting = _Open([trial], waiting, {job.seed for job in jobs}, claims.pop_all())
        self._open[jobs[0].label] = setting
        for job, record in done.items():
            self._runner.take_over(record, KIND)
            self._add(setting, job, record)

    def note(self, outcome: Outcome) -> None:
        """Tells Optuna of a setting as soon as all its runs are over."""
        setting = self._open[outcome.job.label]
        if outcome.record is not None and self._score.of(outcome.record) is not None:
            self._add(setting, outcome.job, outcome.record)
            return
        # A setting that diverges or doesn't suit the model is out. What runs of it has to end before it is drawn again.
        setting.failure = setting.failure or outcome.message or f'no {self._score.name}'
        self._runner.done += len(setting.waiting)
        setting.missing -= {outcome.job.seed, *(job.seed for job in setting.waiting)}
        setting.waiting.clear()
        self._close(setting, outcome.job.label)

    def _add(self, setting: _Open, job: Job, record: Record) -> None:
        setting.records[job.seed] = record
        setting.missing.discard(job.seed)
        self._close(setting, job.label)

    def _close(self, setting: _Open, label: str) -> None:
        if setting.missing:
            return
        del self._open[label]
        setting.claims.close()
        records = setting.records.values()
        values = [(self._score.quality_of(record) or 0.0, record.predicted_saving or 0.0) for record in records]
        for trial in setting.trials:
            if setting.failure is not None:
                trial.set_user_attr('failure', setting.failure)
                self._study.tell(trial, state=TrialState.FAIL)
            else:
                self._study.tell(trial, [float(np.mean(column)) for column in zip(*values, strict=True)])

    @property
    def left(self) -> Sequence[str]:
        """One entry for each run that has not begun."""
        waiting = sum(len(setting.waiting) for setting in self._open.values())
        return [KIND] * (waiting + max(0, self._trials - self._drawn) * self._seeds)


def completed(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that have a quality and a saving."""
    return study.get_trials(states=(TrialState.COMPLETE,))


def _given_up(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return [trial for trial in study.get_trials(states=(TrialState.FAIL,)) if 'failure' in trial.user_attrs]
