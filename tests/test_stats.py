"""Numbers worked out by hand or published, and samples that are too small for any."""

import math

import pytest
import scipy.stats

from composer_freezeout.results.stats import Difference, holm, paired, pareto_front, ratio, summary, welch


def test_summary():
    result = summary([2.0, 4.0, 6.0])
    assert (result.n, result.mean, result.std) == (3, 4.0, 2.0)
    # Student's t for 2 degrees of freedom at 97.5 % is 4.303.
    assert result.interval == pytest.approx((4 - 4.3027 * 2 / math.sqrt(3), 4 + 4.3027 * 2 / math.sqrt(3)), abs=1e-4)


def test_one_value_has_no_spread():
    result = summary([3.0])
    assert (result.n, result.mean, result.std, result.interval) == (1, 3.0, None, None)


def test_equal_values_have_a_spread_of_zero():
    # A mean of 0.1 + 0.2 and 0.3 would otherwise differ from both in the last bit.
    result = summary([0.1 + 0.2, 0.3, 0.3])
    assert result.std == 0 and result.interval == (result.mean, result.mean)


@pytest.mark.parametrize('values', [[], [1.0, math.nan], [math.inf]])
def test_what_is_no_number_is_refused(values, refusal):
    for function in (summary, lambda v: welch(v, [1.0]), lambda v: ratio([1.0], v)):
        with refusal('must be finite numbers, at least one'):
            function(values)


def test_welch_by_hand():
    first, second = [1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0]
    result = welch(first, second)
    variances = (5 / 3) / 4, 4 / 3
    assert result.value == -1.5
    assert result.t == pytest.approx(-1.5 / math.sqrt(sum(variances)))
    assert result.dof == pytest.approx(sum(variances) ** 2 / (variances[0] ** 2 / 3 + variances[1] ** 2 / 2))
    assert result.interval is not None and result.p is not None
    assert sum(result.interval) / 2 == pytest.approx(-1.5) and result.interval[0] < 0 < result.interval[1]
    assert result.p > 0.05


def test_the_interval_and_the_p_value_agree():
    result = welch([0.91, 0.92, 0.93], [0.88, 0.885, 0.89])
    assert result.interval is not None and result.p is not None
    assert result.interval[0] > 0 and result.p < 0.05


def test_welch_without_a_spread_decides_nothing():
    for first, second in [([1.0], [2.0, 3.0]), ([1.0, 2.0], [3.0]), ([1.0, 1.0], [2.0, 2.0]), ([1.0] * 3, [1.0] * 3)]:
        result = welch(first, second)
        assert result.value == first[0] - sum(second) / len(second) or first == [1.0, 2.0]
        assert (result.interval, result.t, result.dof, result.p) == (None, None, None, None)


def test_one_sample_without_a_spread_is_tested_by_the_other_ones():
    result = welch([0.1, 0.1, 0.1], [0.2, 0.2, 0.3])
    assert result.p == pytest.approx(0.0572, abs=1e-4) and result.dof == pytest.approx(2)


def test_pairs_are_tested_by_their_differences():
    first, second = [3.0, 5.5, 4.0, 8.0], [2.0, 5.0, 4.5, 6.0]
    expected = scipy.stats.ttest_rel(first, second)
    found = paired(first, second)
    assert found.value == pytest.approx(0.75) and found.dof == 3
    assert (found.t, found.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert paired([3.0], [2.0]) == Difference(1.0)


def test_ratio_adds_relative_variances():
    result = ratio([8.0, 10.0, 12.0], [15.0, 20.0, 25.0])
    assert result.value == 0.5
    assert result.std == pytest.approx(0.5 * math.sqrt(0.2**2 + 0.25**2))
    assert ratio([8.0], [16.0, 16.0]).std is None
    with pytest.raises(ValueError, match='a mean is 0'):
        ratio([1.0], [-1.0, 1.0])


def test_holm():
    # 4 × 0.005, 3 × 0.01, 2 × 0.03, and 0.04, which must not fall below the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == [] and holm([0.03]) == [0.03]


def test_the_front_has_no_beaten_point():
    costs = [3.0, 1.0, 2.0, 2.0, 4.0]
    gains = [0.9, 0.5, 0.8, 0.7, 0.9]
    assert pareto_front(costs, gains) == [1, 2, 0]
    # Of two points that are the same, neither beats the other.
    assert pareto_front([1.0, 1.0], [0.5, 0.5]) == [0, 1]
    assert pareto_front([], []) == []
