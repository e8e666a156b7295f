"""One run of a comparison, while other commands train others in the same folder."""

from dataclasses import replace

from rich.console import Console

from composer_freezeout.compare.arms.known import BASELINE, SHORTENED
from composer_freezeout.compare.training.company import WARM_UP_BATCHES, warm_up
from composer_freezeout.compare.training.executor import Executor
from composer_freezeout.compare.training.folder import claimed_run, prepare_folder, writing
from composer_freezeout.compare.training.job import Job
from composer_freezeout.compare.training.ongoing import OngoingComparison
from composer_freezeout.compare.training.runner import JobList, Runner
from composer_freezeout.run.faults import Refused

__all__ = ['run_one']


def run_one(comparison: OngoingComparison, arm: str, overwrite: bool, executor: Executor, console: Console) -> bool:
    """Does one run, if it isn't finished.

    Args:
        comparison (OngoingComparison): With one seed.
        arm (str): What to train.
        overwrite (bool): Whether to train again what is finished.
        executor (Executor): Where.
        console (Console): Where progress is told.

    Returns:
        bool: Whether it has no record.

    Raises:
        Refused: If the arm is none, another command is training it, or its length is not known yet.
    """
    (seed,) = comparison.seeds
    if arm not in comparison.by_name:
        raise Refused(f'--only: no arm {arm!r} here; choose from {", ".join(comparison.by_name)}')
    job = comparison.job(arm, seed)
    if arm in SHORTENED and (job := comparison.with_duration(job)) is None:
        sources = f'{BASELINE} and {SHORTENED[arm]}'
        raise Refused(f'--only: the length of {arm} is that of {sources}; train these with seed {seed} first')
    own = comparison.manifest.model_copy(update={'arms': [arm]})
    with writing(comparison.out):
        comparison.manifest = prepare_folder(comparison.out, own, overwrite=False)
        comparison.write()
    with claimed_run(job.output):
        # Another command may just have done it.
        comparison.take_over()
        if not overwrite and (arm, seed) in comparison.records:
            console.print(f'{arm} seed {seed} is finished already.', highlight=False)
            return False
        short = comparison.short_job('warm_up', WARM_UP_BATCHES)
        warm_up(_beside(short, f'{arm}-{seed}'), executor, console)
        with Runner(console, executor, 1) as runner:
            work = JobList([job])
            runner.run(work)
        (outcome,) = work.outcomes
        with writing(comparison.out):
            comparison.manifest = prepare_folder(comparison.out, own, overwrite=False)
            comparison.note(outcome)
    return outcome.record is None


def _beside(job: Job, name: str) -> Job:
    """The same run in a folder that no other command uses."""
    return replace(job, output=job.output.with_name(f'{job.output.name}-{name}'))
