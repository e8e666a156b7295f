"""What a comparison comes to, in sentences."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from composer_freezeout.compare.arms.known import (
    BASELINE,
    FREEZEOUT,
    SHORTENED,
    STATIC,
    is_baseline,
)
from composer_freezeout.compare.judging.comparison import Comparison
from composer_freezeout.compare.judging.curve import Gain
from composer_freezeout.compare.judging.score import BY_ACCURACY, Score
from composer_freezeout.compare.judging.verdict import ArmResult, arm_results
from composer_freezeout.compare.report.text import are, counted, number_text, p_sentence, points_interval_text
from composer_freezeout.results.stats import Difference

__all__ = ['ENOUGH_LENGTHS', 'Conclusion', 'conclude', 'conclusion']

# Of the baseline, that make a curve.
ENOUGH_LENGTHS = 4
# Of a step in company over one alone: up to here, wall-clock is taken for that of the training.
DISTURBED = 1.10


@dataclass(frozen=True)
class Conclusion:
    """What the numbers say, and what has to be known about them.

    Attributes:
        verdict (str): On ``freezeout``, in one sentence.
        count (str): How many arms pay; empty with only one arm that freezes.
        arms (tuple[str, ...]): How it compares with the static arm, and a sentence on each other arm that freezes.
        reservations (tuple[str, ...]): What restricts all of it.
        not_tried (str): What this says nothing about.
    """

    verdict: str
    count: str
    arms: tuple[str, ...]
    reservations: tuple[str, ...]
    not_tried: str


def conclude(comparison: Comparison, results: Sequence[ArmResult]) -> Conclusion:
    """Puts into sentences what the numbers say.

    Args:
        comparison (Comparison): The runs.
        results (Sequence[ArmResult]): Of :func:`~composer_freezeout.compare.judging.verdict.arm_results`.

    Returns:
        Conclusion: The sentences.
    """
    sentences = {r.arm: _sentence(r, comparison) for r in results if r.freezes}
    missing = f'No verdict: {FREEZEOUT} has no finished run.'
    return Conclusion(
        verdict=sentences.pop(FREEZEOUT, missing),
        count=_count(results),
        arms=(*_versus_static(results, comparison.score), *sentences.values()),
        reservations=tuple(_reservations(comparison, results)),
        not_tried=_not_tried(comparison),
    )


def conclusion(comparison: Comparison) -> list[str]:
    """The sentences of :func:`conclude`, as they are printed.

    Args:
        comparison (Comparison): The runs.

    Returns:
        list[str]: The verdict first.
    """
    found = conclude(comparison, arm_results(comparison))
    return [line for line in (found.verdict, found.count, found.not_tried, *found.reservations, *found.arms) if line]


def _versus_static(results: Sequence[ArmResult], score: Score) -> list[str]:
    by_name = {result.arm: result.versus_static for result in results}
    difference = by_name.get(FREEZEOUT)
    if difference is None:
        return []
    interval = points_interval_text(difference, score)
    known = f' (95 % interval {interval}, {p_sentence(difference.p)})' if difference.interval else ''
    return [
        f'The {score.name} of {FREEZEOUT} is {_apart(difference, score)} that of {STATIC}, whose first layers are '
        f'frozen from the start and which is predicted to save as much{known}.'
    ]


def _count(results: Sequence[ArmResult]) -> str:
    verdicts = Counter(r.verdict for r in results if r.freezes)
    if verdicts.total() < 2:
        return ''
    kinds = {'pays': ('pays', 'pay'), 'does not pay': ('does not pay', 'do not pay')}
    kinds |= {'undecided': ('is undecided', 'are undecided'), 'not judged': ('is not judged', 'are not judged')}
    parts = [f'{verdicts[v]} {words[verdicts[v] > 1]}' for v, words in kinds.items() if v and verdicts[v]]
    listed = f'{", ".join(parts[:-1])} and {parts[-1]}' if len(parts) > 1 else parts[0]
    none = '' if verdicts['pays'] else ' None is shown to pay.'
    return f'Of {verdicts.total()} arms that freeze, {listed}.{none}'


def _sentence(result: ArmResult, comparison: Comparison) -> str:
    if result.verdict == 'not judged':
        return f'{result.arm} is not judged: {_why_not(result, comparison)}{_saved(result, comparison)}'
    gain = result.gain
    assert gain is not None and gain.difference is not None, 'it has been judged'
    head = f'Undecided whether {result.arm} pays' if result.verdict == 'undecided' else f'{result.arm} {result.verdict}'
    equal = comparison.clock.training_time if result.judged_by == 'time' else 'FLOPs'
    score = comparison.score
    compared = _compared(gain, gain.difference, score)
    return f'{head}: at equal {equal} its {score.name} is {compared}{_reason(result)}.{_saved(result, comparison)}'


def _compared(gain: Gain, difference: Difference, score: Score) -> str:
    return f'{_apart(difference, score)} the baseline’s ({_certainty(gain, difference, score)})'


def _apart(difference: Difference, score: Score) -> str:
    amount = number_text(abs(difference.value), score.digits, score.factor)
    side = 'above' if score.quality(difference.value) >= 0 else 'below'
    return f'{amount} {"points " if score == BY_ACCURACY else ""}{side}'


def _certainty(gain: Gain, difference: Difference, score: Score) -> str:
    """Interval and p-value of a difference, and how many seeds they come from."""
    seeds = counted(gain.seeds, 'seed')
    if difference.interval is None:
        return f'{seeds}, {"too few for an interval" if gain.seeds == 1 else "without any spread"}'
    corrected = f' after Holm’s correction for {gain.tests} arms' if gain.tests > 1 else ''
    of = '' if score == BY_ACCURACY else 'of the gain '
    interval = points_interval_text(difference, score)
    return f'95 % interval {of}{interval}, {p_sentence(gain.p_holm)}{corrected}, {seeds}'


def _why_not(result: ArmResult, comparison: Comparison) -> str:
    gain, by_time, score = result.gain, result.judged_by == 'time', comparison.score
    if gain is None or gain.end is None:
        if result.accuracy is None:
            return 'it has no accuracies.'
        return f'there is no seed that it and the baselines of all lengths have an {score.name} with.'
    cost, end = (f'{number_text(value, 1)} s' if by_time else number_text(value, 3) for value in (gain.cost, gain.end))
    what = comparison.clock.training_time if by_time else 'FLOPs, as a share of the whole baseline’s,'
    less, longest = ('less', 'shortest') if gain.outside == 'below' else ('more', 'longest')
    found = f'its {what} of {cost} is {less} than that of the {longest} baseline ({end}), outside of the curve.'
    return f'{found}{_by_flops(result, score)}' if by_time else found


def _by_flops(result: ArmResult, score: Score) -> str:
    gain = result.by_flops
    if gain is None or gain.difference is None:
        return ''
    return f' At equal FLOPs its {score.name} is {_compared(gain, gain.difference, score)}.'


def _saved(result: ArmResult, comparison: Comparison) -> str:
    if result.measured_saving is None:
        return ''
    more = 'less' if result.measured_saving >= 0 else 'more'
    saved = number_text(abs(result.measured_saving), 1, 100)
    return f' It took {saved} % {more} {comparison.clock.training_time} than the whole {BASELINE}.'


def _reason(result: ArmResult) -> str:
    """Why a difference with an interval decides nothing."""
    difference = result.gain.difference if result.gain else None
    if result.verdict != 'undecided' or difference is None or difference.interval is None:
        return ''
    low, high = difference.interval
    if low <= 0 <= high:
        return ', and the interval includes zero'
    return ', which is not enough with so many arms compared'


def _reservations(comparison: Comparison, results: Sequence[ArmResult]) -> list[str]:
    notes = [comparison.clock.note] if comparison.clock.note else []
    if len(comparison.seeds) == 1:
        notes.append('One seed is a demonstration, not a measurement: nothing here has a spread.')
    if comparison.scale < 1:
        notes.append(
            f'Reduced scale: epochs and batches per epoch × {comparison.scale:g}. A short run has less to spare than '
            'the full one; the numbers are not those of the full recipe.'
        )
    lengths = [r for r in results if is_baseline(r.arm)]
    if len(lengths) < ENOUGH_LENGTHS and any(r.freezes for r in results):
        notes.append(_few_lengths(len(lengths)))
    if comparison.company is not None and comparison.company > DISTURBED:
        notes.append(
            f'{comparison.workers} runs were trained side by side, and a step took {comparison.company:.2f} times as '
            'long as alone: wall-clock tells of the company, too.'
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


def _few_lengths(number: int) -> str:
    if number == 1:
        return 'The baseline was run in one length only: arms that took another time are not judged.'
    shape = 'a straight line' if number == 2 else 'a guess'
    return (
        f'The baseline was run in {number} lengths only: between them its curve is {shape}, and arms that took less '
        'time than all of them, or more, are not judged.'
    )


def _not_tried(comparison: Comparison) -> str:
    """What a reader might take this for, and it is not."""
    absent = [arm for arm in comparison.absent_arms if arm not in SHORTENED]
    devices = sorted({run.record.effective.device for run in comparison.runs})
    where = ' and '.join('a GPU' if device == 'gpu' else f'a {device.upper()}' for device in devices)
    parts = [f'anything but this recipe on {where}', *([f'the arms {", ".join(absent)}'] if absent else [])]
    return f'Not tried: {"; ".join(parts)}.'
