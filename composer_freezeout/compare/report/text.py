"""Numbers to text."""

from collections.abc import Sequence

from composer_freezeout.compare.judging.curve import Gain
from composer_freezeout.compare.judging.score import BY_ACCURACY, Score
from composer_freezeout.results.stats import Difference, Summary

__all__ = [
    'NOTHING',
    'are',
    'counted',
    'gain_text',
    'interval_text',
    'number_text',
    'p_sentence',
    'p_text',
    'points_interval_text',
    'points_text',
    'score_text',
    'seconds_text',
    'spread_text',
    'summary_text',
]

NOTHING = '–'


def number_text(value: float | None, digits: int, factor: float = 1.0, sign: bool = False) -> str:
    """A number times a factor, with a plus if wanted and the minus of mathematics."""
    if value is None:
        return NOTHING
    text = f'{value * factor:{"+" if sign else ""}.{digits}f}'
    # No minus before what rounds to zero.
    if not text.strip('+-0.'):
        text = text.lstrip('+-')
    return text.replace('-', '−')


def spread_text(mean: float | None, std: float | None, digits: int, factor: float = 1.0) -> str:
    """Mean ± standard deviation, as far as they are known."""
    text = number_text(mean, digits, factor)
    return text if mean is None or std is None else f'{text} ± {number_text(std, digits, factor)}'


def summary_text(value: Summary | None, digits: int, factor: float = 1.0) -> str:
    """Mean ± standard deviation of a sample."""
    return NOTHING if value is None else spread_text(value.mean, value.std, digits, factor)


def seconds_text(value: Summary) -> str:
    """Mean ± standard deviation of times, with more digits for short ones."""
    return summary_text(value, 2 if value.mean < 10 else 1)


def interval_text(value: tuple[float, float] | None, digits: int, factor: float = 1.0, sign: bool = False) -> str:
    """Both ends of an interval."""
    return NOTHING if value is None else ' to '.join(number_text(end, digits, factor, sign) for end in value)


def p_text(value: float | None) -> str:
    """A p-value, with three digits."""
    return NOTHING if value is None else '< 0.001' if value < 0.001 else f'{value:.3f}'


def p_sentence(value: float | None) -> str:
    """A p-value as a sentence has it: ``p = 0.013``, ``p < 0.001``."""
    text = p_text(value)
    return f'p {text}' if text.startswith('<') else f'p = {text}'


def points_text(difference: Difference | None, score: Score = BY_ACCURACY) -> str:
    """A difference of accuracies in percentage points, or of what else runs are compared by."""
    return number_text(difference.value if difference else None, score.digits, score.factor, sign=True)


def points_interval_text(difference: Difference | None, score: Score = BY_ACCURACY) -> str:
    """The same of both ends of its interval."""
    interval = difference.interval if difference else None
    return interval_text(interval, score.digits, score.factor, sign=True)


def gain_text(gain: Gain | None, score: Score = BY_ACCURACY) -> str:
    """A gain with its interval, as far as they are known, or on which side of the curve there is none."""
    if gain is None:
        return NOTHING
    if gain.outside is not None:
        return 'below the curve’s start' if gain.outside == 'below' else 'beyond the curve’s end'
    text, difference = points_text(gain.difference, score), gain.difference
    return f'{text} ({points_interval_text(difference, score)})' if difference and difference.interval else text


def score_text(value: Summary | None, score: Score) -> str:
    """Accuracies, or what else runs are compared by: mean ± standard deviation."""
    return summary_text(value, score.digits, score.factor)


def counted(n: int, noun: str) -> str:
    """``1 run``, ``2 runs``."""
    return f'{n} {noun}{"" if n == 1 else "s"}'


def are(items: Sequence[object]) -> str:
    """The verb to :func:`counted`."""
    return 'is' if len(items) == 1 else 'are'
