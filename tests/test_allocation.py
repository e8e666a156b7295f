"""Freeze times shifted by what the units cost."""

import math

import numpy as np
import pytest
from scipy.optimize import LinearConstraint, minimize

from composer_freezeout.costs.saving import predicted_saving
from composer_freezeout.method.allocation import check_unit_costs, cost_aware_times, measured_unit_costs
from composer_freezeout.method.schedule import freeze_times

SETTINGS = [('cubic', 0.8), ('squared', 0.7), ('linear', 0.5), ('cubic', 0.05), ('linear', 0.999)]


def random_costs(seed: int, n: int) -> list[float]:
    """Costs of very different sizes, some of them 0 or equal; none in particular for the last unit."""
    generator = np.random.default_rng(seed)
    costs = generator.exponential(size=n) ** 2 * (generator.random(n) > 0.2)
    costs[n // 2] = costs[0] = max(costs[0], 1e-3)
    return costs.tolist()


def reference(times: tuple[float, ...], costs: list[float], shift: float) -> np.ndarray:
    """The definition, handed to a general solver."""
    paper, n = np.array(times[:-1]), len(times) - 1
    relative = np.array(costs[:-1]) / np.mean(costs[:-1])
    steps = np.eye(n, k=1)[:-1] - np.eye(n)[:-1]
    found = minimize(
        lambda t: shift * relative @ t + 0.5 * ((t - paper) ** 2).sum(),
        paper,
        jac=lambda t: shift * relative + t - paper,
        bounds=[(paper[0], 1.0)] * n,
        constraints=[LinearConstraint(steps, 0, np.inf), LinearConstraint(np.ones(n), paper.sum(), paper.sum())],
        method='SLSQP',
        options={'ftol': 1e-14, 'maxiter': 500},
    )
    assert found.success
    return found.x


@pytest.mark.parametrize(('how_scale', 't_0'), SETTINGS)
@pytest.mark.parametrize('shift', [0.01, 0.25, 1.0])
def test_it_is_the_minimum_that_it_is_defined_as(how_scale, t_0, shift):
    for seed in range(4):
        times = freeze_times(9, t_0, how_scale)
        costs = random_costs(seed, 9)
        # The objective is quadratic: with 1e-14 of it to spare, times are off by about the square root.
        assert cost_aware_times(times, costs, shift)[:-1] == pytest.approx(reference(times, costs, shift), abs=1e-6)


@pytest.mark.parametrize(('how_scale', 't_0'), SETTINGS)
@pytest.mark.parametrize('n', [2, 3, 8, 21, 110])
def test_what_holds_for_all_costs(n, how_scale, t_0):
    paper = freeze_times(n, t_0, how_scale)
    for seed in range(40):
        costs = random_costs(seed, n)
        times = cost_aware_times(paper, costs, 0.01 + seed / 50)
        assert len(times) == n and times[-1] == 1.0
        assert list(times) == sorted(times)
        assert paper[0] <= times[0] and max(times) <= 1
        assert math.fsum(times) == pytest.approx(math.fsum(paper), rel=1e-12)
        # What the training costs, but for what no freeze time changes; the sums are rounded.
        spent, before = (math.fsum(c * t for c, t in zip(costs[:-1], ts, strict=False)) for ts in (times, paper))
        assert spent <= before * (1 + 1e-12)
        steps = [sum(costs[k:]) for k in range(n)]
        assert predicted_saving(steps, times) >= predicted_saving(steps, paper) - 1e-12


def test_a_shift_by_hand():
    # The mean cost is 2: moved by 0.1 · (1, 1.5, 0.5), and back by 0.1 for the mean.
    times = cost_aware_times((0.4, 0.6, 0.8, 1.0), [2, 3, 1, 9], 0.1)
    assert times == pytest.approx((0.4, 0.55, 0.85, 1.0), abs=1e-14)


def test_order_comes_before_cost():
    # The second unit would be the first to freeze: both freeze together, and not before the first one did.
    times = cost_aware_times((0.4, 0.5, 0.6, 1.0), [0, 3, 0, 0], 1.0)
    assert times[0] == times[1]
    assert times == pytest.approx((0.4, 0.4, 0.7, 1.0), abs=1e-14)


@pytest.mark.parametrize(('how_scale', 't_0'), SETTINGS)
@pytest.mark.parametrize('cost', [1, 0.1, 7e-3, 1e300, 5e-324])
def test_equal_costs_give_the_papers_times(how_scale, t_0, cost):
    for n in (2, 3, 8, 21):
        # Whatever the last one's, which never freezes.
        assert freeze_times(n, t_0, how_scale, [cost] * (n - 1) + [3 * cost]) == freeze_times(n, t_0, how_scale)


def test_without_room_nothing_is_shifted():
    assert freeze_times(5, 1.0, 'cubic', [4, 3, 2, 1, 0]) == (1.0,) * 5
    assert freeze_times(2, 0.5, 'cubic', [4, 0]) == freeze_times(2, 0.5, 'cubic')
    nearly = freeze_times(5, math.nextafter(1.0, 0.0), 'linear', [1, 2, 3, 4, 5])
    assert list(nearly) == sorted(nearly) and max(nearly) <= 1


@pytest.mark.parametrize('factor', [1e-320, 1e-9, 1e3, 5e307])
def test_the_unit_of_cost_does_not_matter(factor):
    costs = [3.0, 1.0, 0.0, 2.0, 0.0]
    expected = freeze_times(5, unit_costs=costs)
    # Next to the smallest number that floating point knows costs have three digits.
    digits = 1e-3 if factor < 1e-300 else 1e-12
    assert freeze_times(5, unit_costs=[cost * factor for cost in costs]) == pytest.approx(expected, rel=digits)


def test_a_larger_shift_saves_more():
    steps, costs = [100, 70, 50, 35, 30, 28], [30, 20, 15, 5, 2, 0]
    savings = [predicted_saving(steps, freeze_times(6, unit_costs=costs, cost_shift=s)) for s in (0.02, 0.1, 0.25)]
    assert savings == sorted(savings) and len(set(savings)) == 3
    assert savings[0] > predicted_saving(steps, freeze_times(6))


def test_measured_costs_are_never_negative():
    # A step with three units frozen came out dearer than one with two: both are taken to cost 6.5.
    assert measured_unit_costs([10.0, 8.0, 6.0, 7.0, 5.0]) == [2.0, 1.5, 0.0, 1.5, 0.0]
    assert measured_unit_costs([1.23456, 0.0]) == [1.23, 0.0]
    assert measured_unit_costs([1.0]) == [0.0]


@pytest.mark.parametrize('n', [2, 4, 6])
def test_another_number_of_costs_than_units_is_refused(n):
    with pytest.raises(ValueError, match=rf'the model has 5 units, got {n} numbers; `composer-freezeout plan FILE --'):
        freeze_times(5, unit_costs=[1.0] * n)


@pytest.mark.parametrize('costs', [(1, 2.5, 0), [0, 1e-9, 5], [5, 0, 0]])
def test_these_are_costs(costs):
    check_unit_costs(costs)
