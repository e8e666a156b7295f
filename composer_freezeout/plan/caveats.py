"""Where freezing does not pay, or training would refuse the settings."""

from collections.abc import Mapping

from composer_freezeout.freezing.observing.partition import Partition
from composer_freezeout.plan.plan import Plan, Prediction

__all__ = []

# From this share of a step on, waiting for data is worth a warning.
_WAITS = 0.1
# A model of which no more than this can be saved is worth one, too.
_HARDLY_SAVES = 0.15
# The smallest t_0 that the paper tried.
_TRIED = 0.3


def _with_warnings(plan: Plan, partition: Partition) -> Plan:
    return Plan(**{**vars(plan), 'warnings': tuple(_warnings(plan, partition))})


def _warnings(plan: Plan, partition: Partition) -> list[str]:
    warnings = []
    measured, prediction, last = plan.measured, plan.prediction, plan.units[-1]
    if measured is not None and measured.wait_share is not None and measured.wait_share > _WAITS:
        seconds = _by_model(plan)['seconds'].saving
        warnings.append(
            f'input-bound: {measured.wait_share:.0%} of a step is waiting for data, which freezing does not shorten; '
            f'the saving of the wall clock shrinks from {seconds:.1%} to {measured.saving_with_wait:.1%}'
        )
    if prediction.largest < _HARDLY_SAVES:
        warnings.append(
            f'freezing can save at most {prediction.largest:.1%} of this model ({prediction.model}), whatever t_0 is; '
            f'its last unit, {last.name}, which trains to the end, is {last.step_share:.0%} of a step'
        )
    bad_cuts = partition.describe_bad_cuts()
    if bad_cuts is not None:
        warnings.append(bad_cuts)
    chosen = {plan.t_0: plan.units[0].t_i}
    if prediction.t_0 is not None and prediction.first_freeze is not None:
        chosen[prediction.t_0] = prediction.first_freeze
    for t_0, first_freeze in chosen.items():
        if plan.warmup >= first_freeze:
            warnings.append(
                f't_0 {t_0:.3f} is refused in training: the warm-up ends at progress {plan.warmup:.4f}, and the first '
                f'unit freezes at {first_freeze:.4f}; shorten t_warmup or raise t_0'
            )
        if t_0 < _TRIED:
            warnings.append(f't_0 {t_0:.3f} is below what the paper tried ({_TRIED} to 0.9)')
    return warnings


def _by_model(plan: Plan) -> Mapping[str, Prediction]:
    return {prediction.model: prediction for prediction in plan.predictions}
