"""The baseline in an arm's own time: the curve, its uncertainty, and verdicts on records with a known truth."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from scipy.stats import ttest_rel

from composer_freezeout.compare.judging.clock import WALL
from composer_freezeout.compare.judging.comparable import FinishedRun
from composer_freezeout.compare.judging.comparison import Comparison
from composer_freezeout.compare.judging.curve import Baselines, Curve, Gain, Line, Run
from composer_freezeout.compare.judging.verdict import arm_results
from composer_freezeout.results.record import Record

from .records import record


def line(*points: tuple[float, float]) -> Line:
    return Line(*np.array(points, dtype=float).T)


# --- the line


def test_the_line_goes_through_its_points_in_any_order_and_rises_between_them():
    found = line((100, 0.92), (60, 0.80), (80, 0.90))
    assert found.at(np.array([60.0, 80.0, 100.0])) == pytest.approx([0.80, 0.90, 0.92])
    between = found.at(np.linspace(60, 100, 200))
    assert (np.diff(between) > 0).all()


def test_a_dip_between_lengths_is_pooled():
    found = line((60, 0.80), (80, 0.92), (90, 0.90), (100, 0.95))
    assert found.at(np.array([80.0, 85.0, 90.0])) == pytest.approx([0.91] * 3)


def test_lengths_that_cost_the_same_are_one_point():
    assert float(line((80, 0.90), (80, 0.92), (100, 0.95)).at(80.0)) == pytest.approx(0.91)


def test_a_single_length_is_a_level():
    found = line((100, 0.9))
    assert float(found.at(101.0)) == 0.9 and found.cost_of(0.8) == 100 and found.cost_of(0.95) is None


def test_the_cost_of_an_accuracy():
    found = line((60, 0.80), (80, 0.90), (90, 0.90), (100, 0.95))
    assert found.cost_of(0.90) == pytest.approx(80) and found.cost_of(0.7) == 60 and found.cost_of(0.96) is None
    assert float(found.at(found.cost_of(0.93) or 0)) == pytest.approx(0.93)


# --- gains


def runs(costs: list[float], accuracies: list[float]) -> dict[int, Run]:
    return {seed: Run(*pair) for seed, pair in enumerate(zip(costs, accuracies, strict=True))}


def compared(baselines: list[dict[int, Run]], arm: dict[int, Run]) -> Gain:
    gain = Baselines(baselines).gain(arm)
    assert gain is not None
    return gain


def test_at_a_point_of_the_curve_the_test_is_the_paired_one():
    first, second = [0.90, 0.92, 0.91, 0.95], [0.89, 0.90, 0.91, 0.92]
    points = [runs([60.0] * 4, [0.7] * 4), runs([80.0] * 4, second), runs([100.0] * 4, [0.97] * 4)]
    difference = compared(points, runs([80.0] * 4, first)).difference
    assert difference is not None
    expected = ttest_rel(first, second)
    assert difference.p == pytest.approx(expected.pvalue) and difference.dof == 3
    assert difference.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_between_two_points_the_gain_is_over_the_line():
    points = [runs([60.0, 60.0], [0.80, 0.82]), runs([100.0, 100.0], [0.90, 0.92])]
    found = compared(points, runs([70.0, 70.0], [0.84, 0.86]))
    assert found.difference is not None and found.difference.value == pytest.approx(0.015)
    # What a seed does to all runs alike is no spread.
    assert found.difference.p is None and found.seeds == 2


def test_the_spread_of_the_curve_and_of_the_times_widens_the_interval():
    steady = [80.0] * 4

    def width(low: list[float], times: list[float]) -> float:
        points = [runs([60.0] * 4, low), runs([100.0] * 4, [0.95] * 4)]
        difference = compared(points, runs(times, [0.90, 0.91, 0.92, 0.91])).difference
        assert difference is not None and difference.interval is not None
        return difference.interval[1] - difference.interval[0]

    assert width([0.85, 0.88, 0.82, 0.85], steady) > 1.5 * width([0.85] * 4, steady)
    assert width([0.85] * 4, [65.0, 90.0, 90.0, 75.0]) > 1.5 * width([0.85] * 4, steady)


@pytest.mark.parametrize(('cost', 'outside', 'end'), [(58.0, 'below', 60), (103.0, 'above', 100)])
def test_outside_of_the_curve_nothing_is_said(cost, outside, end):
    points = [runs([60.0], [0.8]), runs([100.0], [0.9])]
    found = compared(points, runs([cost], [0.99]))
    assert (found.difference, found.outside, found.end) == (None, outside, end)
    # Up to 2 % beyond an end, what is there counts.
    assert compared(points, runs([59.0], [0.85])).difference.value == pytest.approx(0.05)


def test_only_seeds_that_all_have_are_compared():
    points = [runs([60.0] * 3, [0.8] * 3), runs([100.0] * 2, [0.9] * 2)]
    assert compared(points, runs([80.0] * 3, [0.85] * 3)).seeds == 2
    assert Baselines(points).gain({7: Run(80.0, 0.9)}) is None and Baselines([]).gain(runs([1.0], [0.9])) is None


def test_the_band_is_the_interval_of_the_curve():
    curve = Curve(np.full((3, 2), [60.0, 100.0]), np.array([[0.80, 0.90], [0.81, 0.90], [0.82, 0.90]]))
    low, high = curve.band(np.array([60.0, 100.0]))
    # Student's t for 2 degrees of freedom at 97.5 % is 4.303.
    assert low.interval == pytest.approx((0.81 - 4.303 * 0.01 / 3**0.5, 0.81 + 4.303 * 0.01 / 3**0.5), abs=1e-5)
    assert (high.value, high.interval) == (pytest.approx(0.9), None)


# --- records with a known truth

SEEDS = 10
LENGTHS = {'baseline': 1.0, 'baseline_0.9': 0.9, 'baseline_0.8': 0.8, 'baseline_0.7': 0.7, 'baseline_0.6': 0.6}
FASTER = {'freezeout': 0.8, 'freezeout_linear': 0.74, 'layer_freezing': 0.86}


def truth(time):
    """Accuracy of the baseline in a share of its whole time, in points: from 90.7 at 0.6 to 93 at 1."""
    return 94 - np.exp(2 * (1 - time))


def draws(gains: dict[str, float], number: int, seed: int) -> Iterator[Comparison]:
    """Comparisons of arms that have a gain over the baseline in their own time, in points.

    An accuracy has a standard deviation of 0.4 points, and one of 0.4 that all runs of a seed share; a time one of 3 %.
    """
    random = np.random.default_rng(seed)
    times = LENGTHS | {arm: FASTER[arm] for arm in gains}
    # Without a prediction there are no FLOPs to compare as well, which takes half of the time.
    template = {arm: Record.model_validate(record(arm, 0) | {'predicted_saving': None}) for arm in times}
    for _ in range(number):
        shared, found = random.normal(0, 0.4, SEEDS), []
        for arm, time in times.items():
            points = truth(time) + gains.get(arm, 0) + shared + random.normal(0, 0.4, SEEDS)
            seconds = 100 * time * random.normal(1, 0.03, SEEDS)
            for s in range(SEEDS):
                changes = {'training_seconds': seconds[s], 'seed': s, 'final': {'MulticlassAccuracy': points[s] / 100}}
                found.append(FinishedRun(arm, s, f'{arm}/{s}', template[arm].model_copy(update=changes)))
        yield Comparison('f', 'c', tuple(times), tuple(range(SEEDS)), 1.0, (), tuple(found), WALL)


def verdicts(comparison: Comparison) -> dict[str, str]:
    return {result.arm: result.verdict for result in arm_results(comparison) if result.verdict}


def right(gain: float, verdict: str) -> dict[str, int]:
    """In how many of 100 comparisons of three arms with the same true gain each gets a verdict."""
    counts = Counter(
        arm for one in draws(dict.fromkeys(FASTER, gain), 100, 13) for arm, v in verdicts(one).items() if v == verdict
    )
    return {arm: counts[arm] for arm in FASTER}


@pytest.mark.parametrize(('gain', 'verdict'), [(1.0, 'pays'), (0.0, 'undecided'), (-1.0, 'does not pay')])
def test_a_known_gain_at_equal_time_is_judged_right_in_95_of_100_draws(gain, verdict):
    assert min(right(gain, verdict).values()) >= 95


@pytest.mark.parametrize(
    'gains', [{'freezeout': 0.0}, dict.fromkeys(FASTER, 0.0), {**dict.fromkeys(FASTER, 1.0), 'freezeout': 0.0}]
)
def test_an_arm_without_gain_or_loss_is_called_so_at_most_at_the_stated_rate(gains):
    # 5 % for all arms together, and twice the standard deviation of a share of so many draws.
    number, level = 200, 0.05
    wrong = 0
    for comparison in draws(gains, number, 29):
        found = verdicts(comparison)
        wrong += any(found[arm] != 'undecided' for arm, gain in gains.items() if not gain)
    assert wrong / number <= level + 2 * (level * (1 - level) / number) ** 0.5
