"""What the numbers say about each arm, and which of them pay."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from composer_freezeout.compare.arms.known import BASELINE, BASELINE_SHORT, FREEZEOUT, FREEZING, SHORTENED
from composer_freezeout.compare.judging.clock import Clock
from composer_freezeout.compare.judging.comparison import Comparison
from composer_freezeout.results.record import Record
from composer_freezeout.results.stats import CONFIDENCE, Difference, Ratio, Summary, holm, ratio, summary, welch

__all__ = ['EQUAL_TIME', 'ArmResult', 'Verdict', 'arm_results', 'best_in_the_same_time']

# Mean training times that differ by no more than this share count as equal.
EQUAL_TIME = 0.03

Verdict = Literal['pays', 'does not pay', 'undecided']


@dataclass(frozen=True)
class ArmResult:
    """The numbers of an arm with at least one finished run.

    Times are wall-clock, but for those that are compared: they are by the comparison's clock.

    Attributes:
        arm (str): Its name.
        freezes (bool): Whether an algorithm freezes parameters in it.
        accuracy (Summary, optional): Top-1 accuracy of the last evaluations, in ``[0, 1]``; None without evaluations.
        seconds (Summary): Training time.
        time (Summary): Training time, by the comparison's clock.
        memory (Summary): Peak memory, in bytes.
        time_ratio (Ratio, optional): Training time over the baseline's; None if there are no times to compare.
        measured_saving (float, optional): Share of the baseline's training time that was saved, in ``(-∞, 1)``; None
            for the baseline, and if there are no times to compare.
        predicted_saving (float, optional): The same, predicted from FLOPs; None if nothing is predicted.
        versus_baseline (Difference, optional): Accuracy less that of the baseline.
        versus_short (Difference, optional): Accuracy less that of the shortened baseline.
        control (str, optional): The arm without freezing that the verdict is against; None for such an arm itself.
        control_time_ratio (float, optional): Mean training time over the control's.
        difference (Difference, optional): Accuracy less that of the control.
        p_holm (float, optional): Its p-value, corrected for the number of arms that freeze.
        verdict (Verdict, optional): Of an arm that freezes.
    """

    arm: str
    freezes: bool
    accuracy: Summary | None
    seconds: Summary
    time: Summary
    memory: Summary
    time_ratio: Ratio | None
    measured_saving: float | None
    predicted_saving: float | None
    versus_baseline: Difference | None = None
    versus_short: Difference | None = None
    control: str | None = None
    control_time_ratio: float | None = None
    difference: Difference | None = None
    p_holm: float | None = None
    verdict: Verdict | None = None


def arm_results(comparison: Comparison) -> list[ArmResult]:
    """Compares every arm with the baselines.

    The control of an arm is the slowest of the baseline and the shortened baseline that took no more time than the arm,
    or the quickest if the arm took less than both; that of an arm in :data:`SHORTENED` is always the baseline that was
    shortened to its time, if there is one. The arm *pays* if its accuracy is higher than the
    control's and it took no more time; it *does not pay* if its accuracy is lower and the control took no more time.
    Higher and lower are decided by Welch's test at 5 %, for all arms but ``freezeout`` after Holm's correction. Times
    are compared as means, of which :data:`EQUAL_TIME` is the tolerance. Everything else is *undecided*, as is
    everything where :mod:`composer_freezeout.compare.judging.clock` finds no times to compare.

    Args:
        comparison (Comparison): The runs.

    Returns:
        list[ArmResult]: Arms with at least one finished run, in the comparison's order.
    """
    numbers = {arm: _numbers(comparison, arm) for arm in comparison.arms if comparison.of(arm)}
    results = [_compared(arm, numbers, comparison.clock) for arm in numbers]
    return [_judged(result) for result in _corrected(results)]


@dataclass(frozen=True)
class _Numbers:
    """What was measured in the runs of an arm, by seed."""

    records: Sequence[Record]
    accuracies: Sequence[float]
    times: Sequence[float]


def _numbers(comparison: Comparison, arm: str) -> _Numbers:
    records = [run.record for run in comparison.of(arm)]
    accuracies = [record.accuracy for record in records if record.accuracy is not None]
    return _Numbers(records, accuracies, [comparison.clock.seconds(record) for record in records])


def _compared(arm: str, numbers: Mapping[str, _Numbers], clock: Clock) -> ArmResult:
    own = numbers[arm]
    predictions = [record.predicted_saving for record in own.records if record.predicted_saving is not None]
    freezes = any(entry.get('name') in FREEZING for record in own.records for entry in record.algorithms)
    time_ratio = ratio(own.times, numbers[BASELINE].times) if clock.decides else None
    control = _control(arm, numbers) if freezes else None

    def difference(other: str) -> Difference | None:
        theirs = numbers[other].accuracies if other in numbers and other != arm else ()
        return welch(own.accuracies, theirs) if own.accuracies and theirs else None

    return ArmResult(
        arm=arm,
        freezes=freezes,
        accuracy=summary(own.accuracies) if own.accuracies else None,
        seconds=summary([record.training_seconds for record in own.records]),
        time=summary(own.times),
        memory=summary([record.peak_memory_bytes for record in own.records]),
        time_ratio=time_ratio,
        measured_saving=None if arm == BASELINE or time_ratio is None else 1 - time_ratio.value,
        predicted_saving=summary(predictions).mean if freezes and predictions else None,
        versus_baseline=difference(BASELINE),
        versus_short=difference(BASELINE_SHORT),
        control=control,
        control_time_ratio=ratio(own.times, numbers[control].times).value if control and clock.decides else None,
        difference=difference(control) if control else None,
    )


def _control(arm: str, numbers: Mapping[str, _Numbers]) -> str:
    own = next((short for short, source in SHORTENED.items() if source == arm and short in numbers), None)
    if own is not None:
        return own
    means = {name: summary(numbers[name].times).mean for name in (BASELINE, BASELINE_SHORT) if name in numbers}
    limit = summary(numbers[arm].times).mean * (1 + EQUAL_TIME)
    no_slower = [name for name in means if means[name] <= limit]
    return max(no_slower, key=means.__getitem__) if no_slower else min(means, key=means.__getitem__)


def _corrected(results: Sequence[ArmResult]) -> list[ArmResult]:
    """With the p-values corrected for the number of arms that freeze."""
    p = {r.arm: r.difference.p for r in results if r.difference is not None and r.difference.p is not None}
    corrected = dict(zip(p, holm(list(p.values())), strict=True))
    return [replace(result, p_holm=corrected.get(result.arm)) for result in results]


def _judged(result: ArmResult) -> ArmResult:
    return replace(result, verdict=_verdict(result)) if result.freezes else result


def _verdict(result: ArmResult) -> Verdict:
    difference, time_ratio = result.difference, result.control_time_ratio
    if difference is None or time_ratio is None:
        return 'undecided'
    # freezeout was singled out before anything was measured.
    p = difference.p if result.arm == FREEZEOUT else result.p_holm
    if p is None or p >= 1 - CONFIDENCE:
        return 'undecided'
    if difference.value > 0 and time_ratio <= 1 + EQUAL_TIME:
        return 'pays'
    if difference.value < 0 and time_ratio >= 1 / (1 + EQUAL_TIME):
        return 'does not pay'
    return 'undecided'


def best_in_the_same_time(results: Sequence[ArmResult]) -> ArmResult | None:
    """The arm that freezes with the highest mean accuracy among those that took no more time than the control.

    The control is the shortened baseline, or the baseline where there is none.

    Args:
        results (Sequence[ArmResult]): Of :func:`arm_results`.

    Returns:
        ArmResult, optional: The quicker one of two with the same accuracy; None if no arm qualifies.
    """
    means = {result.arm: result.time.mean for result in results}
    limit = means.get(BASELINE_SHORT, means[BASELINE]) * (1 + EQUAL_TIME)
    eligible = [r for r in results if r.freezes and r.accuracy is not None and r.time.mean <= limit]
    return max(eligible, key=lambda r: (r.accuracy.mean if r.accuracy else 0.0, -r.time.mean), default=None)
