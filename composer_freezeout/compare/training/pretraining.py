"""The weights that the arms of a family begin with: ``pretrain.yaml``, trained once in the folder of the results."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from composer_freezeout.compare.arms.dry_run import resolve
from composer_freezeout.compare.training.executor import Executor
from composer_freezeout.compare.training.finished import finished
from composer_freezeout.compare.training.folder import claimed_run
from composer_freezeout.compare.training.job import LOG, Job
from composer_freezeout.compare.training.runner import JobList, Runner
from composer_freezeout.run.config import load
from composer_freezeout.run.error_lines import describe
from composer_freezeout.run.families import PRETRAIN
from composer_freezeout.run.faults import ConfigError, Fault, Refused
from composer_freezeout.run.processes import stoppable

__all__ = ['Pretraining', 'pretraining', 'split_overrides', 'with_weights']

_OWN = f'{PRETRAIN}.'
# Where the data are and what trains, which is the same for all runs on a machine.
_SHARED = frozenset(
    f'{role}_data.{key}' for role in ('train', 'eval') for key in ('name', 'root', 'num_workers', 'cache')
) | {'device', 'precision', 'microbatch_size'}


@dataclass(frozen=True)
class Pretraining:
    """The run that trains the weights.

    Attributes:
        job (Job): It.
        device (str): What it trains on: ``auto``, ``cpu`` or ``gpu``.
    """

    job: Job
    device: str

    @property
    def overrides(self) -> tuple[str, ...]:
        """What gives its weights to an arm."""
        weights = self.job.output / 'checkpoints' / 'latest-rank0.pt'
        return (f'model.weights={json.dumps(str(weights))}',)

    def is_finished(self) -> bool:
        """Whether it has been done before.

        Raises:
            Refused: If it was done with another configuration.
        """
        return bool(finished([self.job]))

    def train(self, executor: Callable[[str], Executor], console: Console) -> None:
        """Does it, if it isn't finished.

        Args:
            executor (Callable[[str], Executor]): Makes what trains, for a device.
            console (Console): Where progress is told.

        Raises:
            Refused: If it fails, or if another command is doing it.
        """
        with claimed_run(self.job.output):
            if self.is_finished():
                return
            line = f'Training the weights that the arms begin with: {self.job.file}'
            console.print(line, markup=False, highlight=False, soft_wrap=True)
            # Composer has taken over SIGTERM when it was imported.
            with stoppable(), executor(self.device) as trained, Runner(console, trained, 1) as runner:
                work = JobList([self.job])
                runner.run(work)
        (outcome,) = work.outcomes
        if outcome.record is None:
            log = self.job.output / LOG
            raise Refused(f'{log}: without its weights there is nothing to fine-tune; mend what it tells of')

    def clear(self) -> None:
        """Removes what it has left."""
        shutil.rmtree(self.job.output, ignore_errors=True)


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tells what is laid over the arms from what is laid over the pretraining.

    Args:
        overrides (Sequence[str]): ``key=value`` pairs of a command line.

    Returns:
        tuple[list[str], list[str]]: Those of the arms; and those of the pretraining, which are written with a
        ``pretrain.`` before them, with those of the arms that say where the data are and what trains.
    """
    arms = [override for override in overrides if not override.startswith(_OWN)]
    shared = [override for override in arms if override.partition('=')[0] in _SHARED]
    return arms, [*shared, *(override.removeprefix(_OWN) for override in overrides if override.startswith(_OWN))]


def pretraining(family: Path, out: Path, overrides: Sequence[str]) -> Pretraining | None:
    """The pretraining of a family.

    Args:
        family (Path): Folder with a YAML file per arm.
        out (Path): Folder of the results.
        overrides (Sequence[str]): ``key=value`` pairs of the command line.

    Returns:
        Pretraining, optional: None if the family has none, or the command line names other weights.

    Raises:
        Refused: With all that is wrong with its configuration.
    """
    file = family / f'{PRETRAIN}.yaml'
    arms, own = split_overrides(overrides)
    if not file.is_file():
        if len(arms) < len(overrides):
            raise Refused(f'command line: {PRETRAIN}: {family} has no {file.name}, whose keys these are; remove them')
        return None
    if any(override.partition('=')[0] == 'model.weights' for override in arms):
        return None
    try:
        config = load(file, own)
        if config.checkpoint is None:
            raise ConfigError([Fault('checkpoint', 'is missing: the arms begin with its weights; give an interval')])
        job = Job(PRETRAIN, config.seed, file, tuple(own), out / PRETRAIN, resolve(config))
    except ConfigError as error:
        raise Refused(describe(fault, file, own) for fault in error.faults) from error
    return Pretraining(job, config.device)


def with_weights(
    family: Path,
    out: Path,
    overrides: Sequence[str],
    check: Callable[[Sequence[str]], object],
    executor: Callable[[str], Executor],
    console: Console,
    anew: bool = False,
) -> list[str]:
    """What is laid over every arm, with the weights of the pretraining if the family has one, which is done if need be.

    Args:
        family (Path): Folder with a YAML file per arm.
        out (Path): Folder of the results.
        overrides (Sequence[str]): ``key=value`` pairs of the command line.
        check (Callable[[Sequence[str]], object]): Reads the arms with some overrides, to tell what is wrong with them
            before the weights are trained.
        executor (Callable[[str], Executor]): Makes what trains, for a device.
        console (Console): Where progress is told.
        anew (bool): Whether to do it again if it has been done.

    Returns:
        list[str]: ``key=value`` pairs.

    Raises:
        Refused: If something is wrong with the pretraining or the arms, or it fails.
    """
    before, (own, _) = pretraining(family, out, overrides), split_overrides(overrides)
    if before is None:
        return own
    if anew or not before.is_finished():
        check([*own, 'model.weights=null'])
        if anew:
            before.clear()
        before.train(executor, console)
    return [*own, *before.overrides]
