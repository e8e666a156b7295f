"""What a comparison comes to, in sentences."""

from collections.abc import Sequence
from dataclasses import dataclass

from composer_freezeout.compare.arms.known import BASELINE, BASELINE_SHORT, COST_AWARE, FREEZEOUT
from composer_freezeout.compare.judging.clock import Clock
from composer_freezeout.compare.judging.comparison import Comparison
from composer_freezeout.compare.judging.verdict import ArmResult, arm_results, best_in_the_same_time
from composer_freezeout.compare.report.text import are, counted, interval_text, number_text, p_text
from composer_freezeout.results.stats import CONFIDENCE, Difference

__all__ = ['Conclusion', 'conclude', 'conclusion']


@dataclass(frozen=True)
class Conclusion:
    """What the numbers say, and what has to be known about them.

    Attributes:
        verdict (str): On ``freezeout``, in one sentence.
        remarks (tuple[str, ...]): The verdict on the cost-aware one beside it, and the best arm that freezes.
        reservations (tuple[str, ...]): What restricts all of it.
    """

    verdict: str
    remarks: tuple[str, ...]
    reservations: tuple[str, ...]


def conclude(comparison: Comparison, results: Sequence[ArmResult]) -> Conclusion:
    """Puts into sentences what the numbers say.

    Args:
        comparison (Comparison): The runs.
        results (Sequence[ArmResult]): Of :func:`~composer_freezeout.compare.judging.verdict.arm_results`.

    Returns:
        Conclusion: The sentences.
    """
    result = next((result for result in results if result.arm == FREEZEOUT), None)
    reservations = tuple(_reservations(comparison))
    if result is None:
        verdict = f'No verdict: {FREEZEOUT} has no finished run.'
    elif not comparison.clock.decides:
        return Conclusion('No verdict: other processes used the machine during training.', (), reservations)
    else:
        verdict = _judged(result, results, comparison.clock)
    remarks = [*_cost_aware(results, comparison.clock), *_best(results, comparison.clock)]
    return Conclusion(verdict, tuple(remarks), reservations)


def conclusion(comparison: Comparison) -> list[str]:
    """The sentences of :func:`conclude`, as they are printed.

    Args:
        comparison (Comparison): The runs.

    Returns:
        list[str]: The verdict first.
    """
    found = conclude(comparison, arm_results(comparison))
    return [found.verdict, *found.remarks, *found.reservations]


def _cost_aware(results: Sequence[ArmResult], clock: Clock) -> list[str]:
    lead = 'With freeze times shifted by measured costs, which is not the paper’s FreezeOut'
    return [f'{lead}: {_judged(result, results, clock)}' for result in results if result.arm == COST_AWARE]


def _best(results: Sequence[ArmResult], clock: Clock) -> list[str]:
    if not clock.decides:
        return []
    best = best_in_the_same_time(results)
    reference = BASELINE_SHORT if any(result.arm == BASELINE_SHORT for result in results) else BASELINE
    if best is None:
        return [f'No arm that freezes took as little time as {reference}.']
    if sum(result.freezes for result in results) < 2:
        return []
    rule = f'{best.arm} has the highest mean accuracy of the arms that freeze and took no more time than {reference}'
    if best.arm in (FREEZEOUT, COST_AWARE):  # which have been judged
        return [f'{rule}.']
    return [f'{rule}. {_judged(best, results, clock)}']


def _judged(result: ArmResult, results: Sequence[ArmResult], clock: Clock) -> str:
    head = f'Undecided whether {result.arm} pays' if result.verdict == 'undecided' else f'{result.arm} {result.verdict}'
    time = _time(result, clock)
    difference = result.difference
    if difference is None:
        return f'{head}: there are no two accuracies to compare; {time}.'
    spread = _spread(result, difference, results)
    compared = f'its accuracy is {_compared(difference)} {result.control}’s ({spread}){_reason(result)}'
    return f'{head}: {compared}; {time}.'


def _time(result: ArmResult, clock: Clock) -> str:
    saved = result.measured_saving or 0.0
    more = 'less' if saved >= 0 else 'more'
    times = [f'{number_text(abs(saved), 1, 100)} % {more} {clock.training_time} than {BASELINE}']
    if result.control != BASELINE:
        times.append(f'{number_text(result.control_time_ratio, 3)} times that of {result.control}')
    return f'it took {", ".join(times)}'


def _spread(result: ArmResult, difference: Difference, results: Sequence[ArmResult]) -> str:
    """Interval and p-value of a difference, and how many runs they come from."""
    n = {other.arm: other.accuracy.n for other in results if other.accuracy is not None}
    both = n[result.arm], n[result.control or '']
    runs = 'one run each' if both == (1, 1) else f'{both[0]} and {counted(both[1], "run")}'
    if difference.interval is None:
        return f'{runs}, {"too few for an interval" if min(both) == 1 else "without any spread"}'
    p = f'p {_equals(difference.p)}'
    if result.arm != FREEZEOUT:
        arms = sum(other.p_holm is not None for other in results)
        p += f', {p_text(result.p_holm)} after Holm’s correction for {counted(arms, "arm")}'
    return f'95 % interval {interval_text(difference.interval, 2, 100, sign=True)}, {p}, {runs}'


def _compared(difference: Difference) -> str:
    points = number_text(abs(difference.value), 2, 100)
    return f'{points} points {"higher" if difference.value >= 0 else "lower"} than'


def _equals(p: float | None) -> str:
    text = p_text(p)
    return text if text.startswith('<') else f'= {text}'


def _reason(result: ArmResult) -> str:
    """Why a difference with an interval decides nothing."""
    difference, ratio = result.difference, result.control_time_ratio
    if result.verdict != 'undecided' or difference is None or difference.interval is None or ratio is None:
        return ''
    low, high = difference.interval
    if low <= 0 <= high:
        return ', and the interval includes zero'
    if result.arm != FREEZEOUT and result.p_holm is not None and result.p_holm >= 1 - CONFIDENCE:
        return ', which is not enough with so many arms compared'
    return f', but in {"more" if ratio > 1 else "less"} time'


def _reservations(comparison: Comparison) -> list[str]:
    notes = [comparison.clock.note] if comparison.clock.note else []
    if len(comparison.seeds) == 1:
        notes.append('One seed is a demonstration, not a measurement: nothing here has a spread.')
    if comparison.scale < 1:
        notes.append(
            f'Reduced scale: epochs and batches per epoch × {comparison.scale:g}. A short run has less to spare than '
            'the full one; the numbers are not those of the full recipe.'
        )
    if comparison.differences:
        notes.append(
            f'The runs are not comparable ({counted(len(comparison.differences), "difference")}, listed in the '
            'report): they differ in more than the arm and the seed.'
        )
    if comparison.failures:
        notes.append(f'{counted(len(comparison.failures), "run")} failed and {are(comparison.failures)} left out.')
    if comparison.missing:
        notes.append(f'{counted(len(comparison.missing), "run")} {are(comparison.missing)} not there (yet).')
    return notes
