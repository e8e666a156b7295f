"""What the numbers say about each arm, and which of them pay."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from composer_freezeout.compare.arms.known import BASELINE, BASELINE_SHORT, FREEZEOUT, FREEZING, SHORTENED
from composer_freezeout.compare.judging.comparison import Comparison, accuracy
from composer_freezeout.results.stats import CONFIDENCE, Difference, Ratio, Summary, holm, ratio, summary, welch

__all__ = ['EQUAL_TIME', 'ArmResult', 'Verdict', 'arm_results', 'best_in_the_same_time']

# Mean training times that differ by no more than this share count as equal.
EQUAL_TIME = 0.03
Verdict = Literal['pays', 'does not pay', 'undecided']


@dataclass(frozen=True)
class ArmResult:
    """The numbers of an arm with at least one finished run.

    Attributes:
        arm (str): Its name.
        freezes (bool): Whether an algorithm freezes parameters in it.
        accuracy (Summary, optional): Top-1 accuracy of the last evaluations, in ``[0, 1]``; None without evaluations.
        seconds (Summary): Training time.
        memory (Summary): Peak memory, in bytes.
        time_ratio (Ratio): Training time over the baseline's.
        measured_saving (float, optional): Share of the baseline's training time that was saved, in ``(-∞, 1)``; None
            for the baseline.
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
    memory: Summary
    time_ratio: Ratio
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
    are compared as means, of which :data:`EQUAL_TIME` is the tolerance. Everything else is *undecided*.

    Args:
        comparison (Comparison): The runs.

    Returns:
        list[ArmResult]: Arms with at least one finished run, in the comparison's order.
    """
    seconds = {arm: [run.record['training_seconds'] for run in comparison.of(arm)] for arm in comparison.arms}
    accuracies = {
        arm: [value for run in comparison.of(arm) if (value := accuracy(run)) is not None] for arm in comparison.arms
    }

    def difference(arm: str, other: str) -> Difference | None:
        known = arm != other and accuracies[arm] and accuracies.get(other)
        return welch(accuracies[arm], accuracies[other]) if known else None

    rows: list[dict[str, Any]] = []
    for arm in comparison.arms:
        runs = comparison.of(arm)
        if not runs:
            continue
        predictions = [saving for run in runs if (saving := run.record['predicted_saving']) is not None]
        time_ratio = ratio(seconds[arm], seconds[BASELINE])
        freezes = any(entry.get('name') in FREEZING for run in runs for entry in run.record['config']['algorithms'])
        row = {
            'arm': arm,
            'freezes': freezes,
            'accuracy': summary(accuracies[arm]) if accuracies[arm] else None,
            'seconds': summary(seconds[arm]),
            'memory': summary([run.record['peak_memory_bytes'] for run in runs]),
            'time_ratio': time_ratio,
            'measured_saving': None if arm == BASELINE else 1 - time_ratio.value,
            'predicted_saving': summary(predictions).mean if freezes and predictions else None,
            'versus_baseline': difference(arm, BASELINE),
            'versus_short': difference(arm, BASELINE_SHORT),
        }
        if freezes:
            row['control'] = _control(arm, seconds)
            row['control_time_ratio'] = ratio(seconds[arm], seconds[row['control']]).value
            row['difference'] = difference(arm, row['control'])
        rows.append(row)

    tested = [row for row in rows if row.get('difference') is not None and row['difference'].p is not None]
    for row, p in zip(tested, holm([row['difference'].p for row in tested]), strict=True):
        row['p_holm'] = p
    for row in rows:
        if row['freezes']:
            p = row['difference'].p if row['arm'] == FREEZEOUT and row['difference'] else row.get('p_holm')
            row['verdict'] = _judge_difference(row['difference'], p, row['control_time_ratio'])
    return [ArmResult(**row) for row in rows]


def best_in_the_same_time(results: Sequence[ArmResult]) -> ArmResult | None:
    """The arm that freezes with the highest mean accuracy among those that took no more time than the control.

    The control is the shortened baseline, or the baseline where there is none.

    Args:
        results (Sequence[ArmResult]): Of :func:`arm_results`.

    Returns:
        ArmResult, optional: The quicker one of two with the same accuracy; None if no arm qualifies.
    """
    means = {result.arm: result.seconds.mean for result in results}
    limit = means.get(BASELINE_SHORT, means[BASELINE]) * (1 + EQUAL_TIME)
    eligible = [r for r in results if r.freezes and r.accuracy is not None and r.seconds.mean <= limit]
    return max(eligible, key=lambda r: (r.accuracy.mean if r.accuracy else 0.0, -r.seconds.mean), default=None)


def _control(arm: str, seconds: Mapping[str, Sequence[float]]) -> str:
    own = next((short for short, source in SHORTENED.items() if source == arm and seconds.get(short)), None)
    if own is not None:
        return own
    means = {name: summary(seconds[name]).mean for name in (BASELINE, BASELINE_SHORT) if seconds.get(name)}
    limit = summary(seconds[arm]).mean * (1 + EQUAL_TIME)
    no_slower = [name for name in means if means[name] <= limit]
    return max(no_slower, key=means.__getitem__) if no_slower else min(means, key=means.__getitem__)


def _judge_difference(difference: Difference | None, p: float | None, time_ratio: float) -> Verdict:
    if difference is None or p is None or p >= 1 - CONFIDENCE:
        return 'undecided'
    if difference.value > 0 and time_ratio <= 1 + EQUAL_TIME:
        return 'pays'
    if difference.value < 0 and time_ratio >= 1 / (1 + EQUAL_TIME):
        return 'does not pay'
    return 'undecided'
