"""Settings against baselines of several lengths."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from composer_freezeout.compare.judging.clock import WALL, Clock
from composer_freezeout.results.stats import Summary, holm, summary

__all__ = ['TOLERANCE', 'Judged', 'above_the_line', 'p_value', 'verdict']

# Outside of the baselines' times, by more than this share, nothing is known of their line.
TOLERANCE = 0.02


class Judged(NamedTuple):
    """How a setting compares with baselines in the same training time.

    Attributes:
        difference (Summary, optional): Of accuracies, one for each seed; None if the baselines took other times.
        p (float, optional): Two-sided, of the difference being 0; None with one seed, or without any spread.
    """

    difference: Summary | None
    p: float | None


def above_the_line(
    seconds: float, accuracies: Sequence[float], times: Sequence[float], lines: Sequence[Sequence[float]]
) -> Summary | None:
    """Compares a setting with the line through the baselines of several lengths.

    For each seed the accuracy of a baseline in the setting's time is read off that seed's line, between its points.
    Times are means over the seeds: that a single run was held up by something else says nothing of a setting.

    Args:
        seconds (float): Mean training time of the setting.
        accuracies (Sequence[float]): Its accuracies, shape ``(seeds,)``, in ``[0, 1]``.
        times (Sequence[float]): Mean training times of the baselines, shape ``(lengths,)``.
        lines (Sequence[Sequence[float]]): Their accuracies, shape ``(seeds, lengths)``.

    Returns:
        Summary, optional: Accuracy less that on the line; None if the time is outside of the line's, or without seeds.
    """
    if not accuracies or not min(times) * (1 - TOLERANCE) <= seconds <= max(times) * (1 + TOLERANCE):
        return None
    order = np.argsort(times)
    ordered = np.asarray(times)[order]
    return summary(
        [
            accuracy - float(np.interp(seconds, ordered, np.asarray(line)[order]))
            for accuracy, line in zip(accuracies, lines, strict=True)
        ]
    )


def p_value(difference: Summary) -> float | None:
    """Probability of a mean as far from 0 as this one, if there were no difference (Student's t test).

    Args:
        difference (Summary): Differences of pairs.

    Returns:
        float, optional: In ``[0, 1]``; None with one pair, or without spread.
    """
    if not difference.std:
        return None
    from scipy.stats import t

    statistic = difference.mean / (difference.std / difference.n**0.5)
    return float(2 * t.sf(abs(statistic), difference.n - 1))


def verdict(judged: Mapping[str, Judged], clock: Clock = WALL, level: float = 0.05) -> str:
    """Says whether any setting lies above the baselines' line.

    Args:
        judged (Mapping[str, Judged]): By name of the setting.
        clock (Clock): What training times are compared by.
        level (float): Of the tests, corrected for their number by Holm's method; in ``(0, 1)``.

    Returns:
        str: A sentence.
    """
    if not clock.decides:
        return clock.note
    compared = {name: found.difference for name, found in judged.items() if found.difference is not None}
    if not compared:
        return "No setting can be judged: none has finished runs with training times in the range of the baselines'."
    best = max(compared, key=lambda name: compared[name].mean)
    lead = f'the best, {best}, is {100 * compared[best].mean:+.2f} points from it (mean of {compared[best].n} seeds)'
    tested = [(name, found.p) for name, found in judged.items() if found.p is not None]
    if not tested:
        return f"Whether a setting lies above the baselines' line cannot be told without spread; {lead}."
    adjusted = holm([p for _, p in tested])
    sure = {name for (name, _), p in zip(tested, adjusted, strict=True) if p < level}
    above = sorted(name for name in sure if compared[name].mean > 0)
    corrected = (
        f'at the {100 * level:g} % level, corrected for {len(tested)} comparison{"s" if len(tested) > 1 else ""}'
    )
    if above:
        names = ', '.join(above)
        return f"Above the baselines' line: {len(above)} of {len(compared)} settings ({names}), {corrected}; {lead}."
    below = sum(compared[name].mean < 0 for name in sure)
    return (
        f"No setting is shown to lie above the baselines' line {corrected} ({below} of {len(compared)} lie below it, "
        f'the others are undecided); {lead}.'
    )
