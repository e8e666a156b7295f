"""Statistics of repeated runs: mean and interval, Welch's test, the jackknife, ratios, Holm's correction, Pareto front.

What a sample is too small for is None, never NaN.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special, stats

__all__ = [
    'CONFIDENCE',
    'Difference',
    'Ratio',
    'Summary',
    'holm',
    'jackknife',
    'paired',
    'pareto_front',
    'ratio',
    'summary',
    'welch',
]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """One sample.

    Attributes:
        n (int): Its size, in ``[1, ∞)``.
        mean (float): Its mean.
        std (float, optional): Its standard deviation with n − 1 in the denominator; None with one value.
        interval (tuple[float, float], optional): 95 % confidence interval of the mean by Student's t; None with one
            value.
    """

    n: int
    mean: float
    std: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Difference:
    """A difference and its test against 0: of two means by :func:`welch`, of anything by :func:`jackknife`.

    Attributes:
        value (float): The difference.
        interval (tuple[float, float], optional): Its 95 % confidence interval.
        t (float, optional): The statistic.
        dof (float, optional): Degrees of freedom, in ``[1, ∞)``.
        p (float, optional): Two-sided, in ``[0, 1]``.

    All but ``value`` are None if a sample has one value only, or if there is no spread.
    """

    value: float
    interval: tuple[float, float] | None = None
    t: float | None = None
    dof: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class Ratio:
    """Ratio of two means.

    Attributes:
        value (float): First mean over second mean.
        std (float, optional): The samples' standard deviations carried over to it; None if one of them has none.
    """

    value: float
    std: float | None


def summary(values: Sequence[float]) -> Summary:
    """Mean, spread and confidence interval of a sample.

    Args:
        values (Sequence[float]): Finite numbers, at least one.

    Returns:
        Summary: Of the sample.

    Raises:
        ValueError: If there are no values, or if one is not finite.
    """
    _check(values)
    n, mean = len(values), _mean(values)
    if n == 1:
        return Summary(n, mean, None, None)
    if _constant(values):
        return Summary(n, mean, 0.0, (mean, mean))
    std = float(np.std(values, ddof=1))
    # Of the distribution in scipy.stats, without what makes it slow.
    half = float(special.stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * std / math.sqrt(n)
    return Summary(n, mean, std, (mean - half, mean + half))


def welch(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Tests whether two samples have the same mean, without taking their variances to be equal.

    Args:
        first (Sequence[float]): Finite numbers, at least one.
        second (Sequence[float]): Finite numbers, at least one.

    Returns:
        Difference: First mean minus second mean; degrees of freedom by Welch and Satterthwaite.

    Raises:
        ValueError: If a sample is empty, or if a number is not finite.
    """
    _check(first)
    _check(second)
    difference = _mean(first) - _mean(second)
    if min(len(first), len(second)) == 1 or (_constant(first) and _constant(second)):
        return Difference(difference)
    with warnings.catch_warnings():
        # A sample without spread is no error here: the other one's is taken into account.
        warnings.filterwarnings('ignore', 'Precision loss occurred', RuntimeWarning)
        result: Any = stats.ttest_ind(first, second, equal_var=False)
        low, high = result.confidence_interval(CONFIDENCE)
    return Difference(
        difference, (float(low), float(high)), float(result.statistic), float(result.df), float(result.pvalue)
    )


def jackknife(estimate: float, without: Sequence[float]) -> Difference:
    """Tests an estimate against 0 by what it is without each sample in turn (Tukey, 1958).

    Leaving out a sample shows what it adds to the estimate. These contributions, one for each sample, have the estimate
    as their mean, and are tested as a sample of their own by Student's t. For a mean, that is the usual test.

    Args:
        estimate (float): Of all samples.
        without (Sequence[float]): The same without each one, shape ``(n,)``, at least two.

    Returns:
        Difference: The estimate, with ``n − 1`` degrees of freedom.

    Raises:
        ValueError: If there are fewer than two samples, or if a number is not finite.
    """
    _check([estimate, *without])
    if len(without) < 2:
        raise ValueError(f'must be estimates without each of at least two samples, got {list(without)}')
    others = np.asarray(without, dtype=float)
    values = estimate + (len(others) - 1) * (others.mean() - others)
    # Rounding in the last bits of numbers as large as the estimates is no spread.
    if float(np.ptp(others)) <= 1e-12 * max(1.0, abs(estimate)):
        return Difference(estimate)
    result: Any = stats.ttest_1samp(values, 0.0)
    low, high = result.confidence_interval(CONFIDENCE)
    t, dof = float(result.statistic), float(result.df)
    return Difference(estimate, (float(low), float(high)), t, dof, float(result.pvalue))


def paired(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Tests whether pairs have the same mean, by Student's t for the differences within each.

    Args:
        first (Sequence[float]): Finite numbers, shape ``(pairs,)``, at least one.
        second (Sequence[float]): Finite numbers, shape ``(pairs,)``.

    Returns:
        Difference: First mean minus second mean.

    Raises:
        ValueError: If there is no pair, or if a number is not finite.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    _check(differences)
    total, n = sum(differences), len(differences)
    if n == 1:
        return Difference(total)
    return jackknife(total / n, [(total - difference) / (n - 1) for difference in differences])


def ratio(first: Sequence[float], second: Sequence[float]) -> Ratio:
    """Ratio of two means; the relative variances of the samples add up.

    Args:
        first (Sequence[float]): Finite numbers, at least one, of mean other than 0.
        second (Sequence[float]): The same, independent of the first.

    Returns:
        Ratio: First over second.

    Raises:
        ValueError: If a sample is empty, has mean 0, or if a number is not finite.
    """
    above, below = summary(first), summary(second)
    if not above.mean or not below.mean:
        raise ValueError(f'a mean is 0 in {list(first)} or {list(second)}: its relative spread has no meaning')
    value = above.mean / below.mean
    if above.std is None or below.std is None:
        return Ratio(value, None)
    return Ratio(value, abs(value) * math.hypot(above.std / above.mean, below.std / below.mean))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values of several tests so that the chance of any false finding stays below the level (Holm, 1979).

    Args:
        p_values (Sequence[float]): Shape ``(m,)``, in ``[0, 1]``.

    Returns:
        list[float]: Shape ``(m,)``, in ``[0, 1]``, in the order of the argument.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind='stable')
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted.tolist()


def pareto_front(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Points that no other point beats: as cheap or cheaper with as much gain or more, and better in one of the two.

    Args:
        costs (Sequence[float]): Shape ``(n,)``, the lower the better.
        gains (Sequence[float]): Shape ``(n,)``, the higher the better.

    Returns:
        list[int]: Indices, by rising cost.
    """
    points = list(zip(costs, gains, strict=True))

    def beaten(cost: float, gain: float) -> bool:
        return any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)

    return sorted((i for i, point in enumerate(points) if not beaten(*point)), key=lambda i: (costs[i], i))


def _check(values: Sequence[float]) -> None:
    if not len(values) or not all(math.isfinite(value) for value in values):
        raise ValueError(f'must be finite numbers, at least one, got {list(values)}; leave out runs without a result')


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _constant(values: Sequence[float]) -> bool:
    # Differences in the last bits are rounding, not spread.
    return math.isclose(min(values), max(values), rel_tol=1e-12)
