"""Where freezing does not pay, or training would refuse the settings."""

from composer_freezeout.freezing.observing.partition import Partition
from composer_freezeout.planning.content import PlanContent

__all__ = ['warnings_of']

# From this share of a step on, waiting for data is worth a warning.
_WAITS = 0.1
# A model of which no more than this can be saved is worth one, too.
_HARDLY_SAVES = 0.15
# The smallest t_0 that the paper tried.
_TRIED = 0.3


def warnings_of(plan: PlanContent, partition: Partition) -> tuple[str, ...]:
    """What a user should know before training.

    Args:
        plan (PlanContent): The plan.
        partition (Partition): The units that it is for.

    Returns:
        tuple[str, ...]: Sentences without a full stop.
    """
    bad_cuts = partition.describe_bad_cuts()
    return (*_waits(plan), *_hardly_saves(plan), *([] if bad_cuts is None else [bad_cuts]), *_unusual_t_0(plan))


def _waits(plan: PlanContent) -> list[str]:
    measured = plan.measured
    if measured is None or measured.wait_share is None or measured.wait_share <= _WAITS:
        return []
    seconds = next(prediction.saving for prediction in plan.predictions if prediction.model == 'seconds')
    return [
        f'input-bound: {measured.wait_share:.0%} of a step is waiting for data, which freezing does not shorten; '
        f'the saving of the wall clock shrinks from {seconds:.1%} to {measured.saving_with_wait:.1%}'
    ]


def _hardly_saves(plan: PlanContent) -> list[str]:
    prediction, last = plan.prediction, plan.units[-1]
    if prediction.largest >= _HARDLY_SAVES:
        return []
    return [
        f'freezing can save at most {prediction.largest:.1%} of this model ({prediction.model}), whatever t_0 is; '
        f'its last unit, {last.name}, which trains to the end, is {last.step_share:.0%} of a step'
    ]


def _unusual_t_0(plan: PlanContent) -> list[str]:
    chosen, found = {plan.t_0: plan.units[0].t_i}, plan.prediction
    if found.t_0 is not None and found.first_freeze is not None:
        chosen[found.t_0] = found.first_freeze
    warnings = []
    for t_0, first_freeze in chosen.items():
        if plan.warmup >= first_freeze:
            warnings.append(
                f't_0 {t_0:.3f} is refused in training: the warm-up ends at progress {plan.warmup:.4f}, and the first '
                f'unit freezes at {first_freeze:.4f}; shorten t_warmup or raise t_0'
            )
        if t_0 < _TRIED:
            warnings.append(f't_0 {t_0:.3f} is below what the paper tried ({_TRIED} to 0.9)')
    return warnings
