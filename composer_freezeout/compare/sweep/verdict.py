"""What a sweep comes to, in a sentence."""

from collections.abc import Mapping

from composer_freezeout.compare.judging.clock import WALL, Clock
from composer_freezeout.compare.judging.curve import Gain
from composer_freezeout.compare.judging.score import BY_ACCURACY, Score
from composer_freezeout.compare.report.text import number_text, points_text
from composer_freezeout.results.stats import Difference

__all__ = ['verdict']


def verdict(gains: Mapping[str, Gain], clock: Clock = WALL, level: float = 0.05, score: Score = BY_ACCURACY) -> str:
    """Says whether any setting is better than a baseline in the same time.

    Args:
        gains (Mapping[str, Gain]): By name of the setting.
        clock (Clock): What training times are compared by; where there are none to compare, gains are by FLOPs.
        level (float): Of the tests, corrected for their number by Holm's method; in ``(0, 1)``.
        score (Score): What runs are compared by.

    Returns:
        str: A sentence, and where times are not wall-clock, why.
    """
    note = f' {clock.note}' if clock.note else ''
    return f'{_found(gains, "time" if clock.decides else "FLOPs", level, score)}{note}'


def _found(gains: Mapping[str, Gain], cost: str, level: float, score: Score) -> str:
    compared: dict[str, tuple[Gain, Difference]] = {
        name: (gain, gain.difference) for name, gain in gains.items() if gain.difference is not None
    }
    if not compared:
        return f"No setting can be judged: none has finished runs with {cost} in the range of the baselines'."
    best = max(compared, key=lambda name: compared[name][1].value)
    gain, difference = compared[best]
    lead = f'the best, {best}, is {_apart(difference, score)} (mean of {gain.seeds} seeds)'
    tested = {name: gain.p_holm for name, (gain, _) in compared.items() if gain.p_holm is not None}
    if not tested:
        return f"Whether a setting lies above the baselines' curve cannot be told without spread; {lead}."
    sure = [name for name, p in tested.items() if p < level]
    above = sorted(name for name in sure if compared[name][1].value > 0)
    number = f'{len(tested)} comparison{"s" if len(tested) > 1 else ""}'
    corrected = f'at equal {cost}, at the {100 * level:g} % level, corrected for {number}'
    if above:
        names = ', '.join(above)
        return f"Above the baselines' curve: {len(above)} of {len(compared)} settings ({names}), {corrected}; {lead}."
    return (
        f"No setting is shown to lie above the baselines' curve {corrected} ({len(sure)} of {len(compared)} lie below "
        f'it, the others are undecided); {lead}.'
    )


def _apart(difference: Difference, score: Score) -> str:
    if score == BY_ACCURACY:
        return f'{points_text(difference, score)} points from it'
    side = 'better' if difference.value >= 0 else 'worse'
    return f'{number_text(abs(difference.value), score.digits, score.factor)} {side} than it in {score.name}'
