"""What a comparison comes to, in sentences."""

from collections.abc import Sequence

from composer_freezeout.compare.arms.known import BASELINE, BASELINE_SHORT, COST_AWARE, FREEZEOUT
from composer_freezeout.compare.judging.comparison import Comparison
from composer_freezeout.compare.judging.verdict import ArmResult, arm_results, best_in_the_same_time
from composer_freezeout.compare.report.text import counted, interval_text, number_text, p_text
from composer_freezeout.results.stats import CONFIDENCE, Difference

__all__ = ['are', 'best_sentences', 'conclusion', 'cost_aware_sentences', 'reservations', 'verdict_sentence']


def conclusion(comparison: Comparison) -> list[str]:
    """What the numbers say, and what has to be known about them.

    Args:
        comparison (Comparison): The runs.

    Returns:
        list[str]: The verdict on ``freezeout`` in one sentence, that on the cost-aware one beside it, the best arm that
        freezes, then reservations.
    """
    results = arm_results(comparison)
    return [
        verdict_sentence(results),
        *cost_aware_sentences(results),
        *best_sentences(results),
        *reservations(comparison),
    ]


def verdict_sentence(results: Sequence[ArmResult]) -> str:
    result = next((result for result in results if result.arm == FREEZEOUT), None)
    if result is None:
        return f'No verdict: {FREEZEOUT} has no finished run.'
    return _judged(result, results)


def cost_aware_sentences(results: Sequence[ArmResult]) -> list[str]:
    return [
        f'With freeze times shifted by measured costs, which is not the paper’s FreezeOut: {_judged(result, results)}'
        for result in results
        if result.arm == COST_AWARE
    ]


def best_sentences(results: Sequence[ArmResult]) -> list[str]:
    best = best_in_the_same_time(results)
    reference = BASELINE_SHORT if any(result.arm == BASELINE_SHORT for result in results) else BASELINE
    if best is None:
        return [f'No arm that freezes took as little time as {reference}.']
    if sum(result.freezes for result in results) < 2:
        return []
    rule = f'{best.arm} has the highest mean accuracy of the arms that freeze and took no more time than {reference}'
    if best.arm in (FREEZEOUT, COST_AWARE):  # which have been judged
        return [f'{rule}.']
    return [f'{rule}. {_judged(best, results)}']


def _judged(result: ArmResult, results: Sequence[ArmResult]) -> str:
    head = f'Undecided whether {result.arm} pays' if result.verdict == 'undecided' else f'{result.arm} {result.verdict}'
    saved = result.measured_saving or 0.0
    times = [f'{number_text(abs(saved), 1, 100)} % {"less" if saved >= 0 else "more"} training time than {BASELINE}']
    if result.control != BASELINE:
        times.append(f'{number_text(result.control_time_ratio, 3)} times that of {result.control}')
    time = f'it took {", ".join(times)}'
    difference = result.difference
    if difference is None:
        return f'{head}: there are no two accuracies to compare; {time}.'
    n = {other.arm: other.accuracy.n for other in results if other.accuracy is not None}
    both = n[result.arm], n[result.control or '']
    runs = 'one run each' if both == (1, 1) else f'{both[0]} and {counted(both[1], "run")}'
    if difference.interval is None:
        spread = f'{runs}, {"too few for an interval" if min(both) == 1 else "without any spread"}'
    else:
        p = f'p {_equals(difference.p)}'
        if result.arm != FREEZEOUT:
            arms = sum(other.p_holm is not None for other in results)
            p += f', {p_text(result.p_holm)} after Holm’s correction for {counted(arms, "arm")}'
        spread = f'95 % interval {interval_text(difference.interval, 2, 100, sign=True)}, {p}, {runs}'
    reason = _reason(result)
    return f'{head}: its accuracy is {_compared(difference)} {result.control}’s ({spread}){reason}; {time}.'


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


def reservations(comparison: Comparison) -> list[str]:
    notes = []
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


def are(items: Sequence[object]) -> str:
    return 'is' if len(items) == 1 else 'are'
