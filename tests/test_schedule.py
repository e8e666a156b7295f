import math

import pytest
from scipy.integrate import quad

from composer_freezeout.method.schedule import check_schedule, freeze_times, lr_factor, lr_factors, units_frozen

POWER = {'linear': 1, 'squared': 2, 'cubic': 3}


def reference_lr(t: float, t_i: float, scale_lr: bool) -> float:
    """The paper's equation, letter by letter."""
    if t >= t_i:
        return 0.0
    lr_0 = 1 / t_i if scale_lr else 1.0
    return 0.5 * lr_0 * (1 + math.cos(math.pi * t / t_i))


@pytest.mark.parametrize('how_scale', POWER)
@pytest.mark.parametrize('t_0', [0.01, 0.3, 0.5, 0.8, 0.999, 1.0])
@pytest.mark.parametrize('n', [2, 3, 21, 100])
def test_freeze_times_follow_the_formula(n, t_0, how_scale):
    times = freeze_times(n, t_0, how_scale)
    expected = [(t_0 + (1 - t_0) * i / (n - 1)) ** POWER[how_scale] for i in range(n)]
    assert times == pytest.approx(expected, rel=1e-12, abs=0)
    assert times[-1] == 1.0
    assert list(times) == sorted(times)


def test_published_freeze_time_of_the_default():
    # Section 3 of the paper: with the cubic scale t_0 = 0.8 becomes 0.8³.
    assert freeze_times(50)[0] == pytest.approx(0.512, rel=1e-12)


@pytest.mark.parametrize('t_0', [0.1, 0.3, 0.7, 0.8])
def test_the_head_never_freezes_early(t_0):
    # Computed by the formula it is 0.9999999999999993 for t_0 = 0.3 and n = 4, say.
    assert {freeze_times(n, t_0, 'cubic')[-1] for n in range(2, 200)} == {1.0}


def test_a_single_unit_ignores_t_0():
    assert freeze_times(1, 0.2) == (1.0,)


@pytest.mark.parametrize('scale_lr', [True, False])
@pytest.mark.parametrize('t_i', [0.001, 0.125, 0.512, 0.9, 1.0])
def test_lr_factor_follows_the_formula(t_i, scale_lr):
    for step in range(1000):
        t = step / 1000
        # The naive formula cancels near t_i: absolute error of a few ulp of the peak.
        peak = 1 / t_i if scale_lr else 1.0
        assert lr_factor(t, t_i, scale_lr) == pytest.approx(reference_lr(t, t_i, scale_lr), rel=1e-12, abs=4e-16 * peak)


@pytest.mark.parametrize('t_i', [0.001, 0.125, 0.512, 0.9, 1.0])
def test_a_shared_cosine_is_broken_off_at_the_freeze(t_i):
    peak = lr_factor(0.0, t_i, anneal='shared')
    for step in range(1000):
        t = step / 1000
        cosine = 0.5 * (1 + math.cos(math.pi * t)) if t < t_i else 0.0
        assert lr_factor(t, t_i, False, anneal='shared') == pytest.approx(cosine, rel=1e-12, abs=4e-16)
        assert lr_factor(t, t_i, anneal='shared') == pytest.approx(peak * cosine, rel=1e-12, abs=4e-16 * peak)


@pytest.mark.parametrize('anneal', [None, 'shared'])
@pytest.mark.parametrize('t_i', [0.001, 0.125, 0.512, 0.9, 1.0])
def test_scaled_units_travel_as_far_as_one_that_trains_to_the_end(t_i, anneal):
    travelled, _ = quad(lambda t: lr_factor(t, t_i, anneal=anneal), 0, t_i)
    assert travelled == pytest.approx(0.5, rel=1e-9)


def test_at_the_end_of_training_both_cosines_are_one():
    for t in (0.0, 0.3, 0.999):
        assert lr_factor(t, 1.0, anneal='shared') == lr_factor(t, 1.0, False, anneal='shared') == lr_factor(t, 1.0)


@pytest.mark.parametrize('anneal', [None, 'shared'])
@pytest.mark.parametrize('warmup', [0.0, 0.2])
@pytest.mark.parametrize('scale_lr', [True, False])
def test_factors_of_all_units_are_those_of_each(scale_lr, warmup, anneal):
    times = freeze_times(7, 0.7)
    for t in (0.0, 0.1, 0.2, times[0], 0.6, 0.99):
        each = [lr_factor(t, t_i, scale_lr, warmup, anneal) for t_i in times]
        assert lr_factors(t, times, scale_lr, warmup, anneal) == each


def test_lr_factor_is_precise_where_the_naive_formula_cancels():
    # 1e-9 before the freeze the value is (π·1e-9/2)² to first order; the naive formula gives 0 there.
    t_i = 1.0
    t = 1 - 2**-30
    expected = (math.pi / 2 * 2**-30) ** 2
    assert lr_factor(t, t_i) == pytest.approx(expected, rel=1e-12, abs=0)


def test_lr_factor_at_the_ends():
    assert lr_factor(0.0, 0.5, True) == 2.0
    assert lr_factor(0.0, 0.5, False) == 1.0
    assert lr_factor(0.5, 0.5) == 0.0
    assert lr_factor(0.9, 0.5) == 0.0


def test_warmup_rises_linearly_to_the_cosine():
    at_end = reference_lr(0.1, 0.5, True)
    # t = 0 starts at 0, half-way has half of the value at the end, and from the end on it is the plain cosine.
    assert lr_factor(0.0, 0.5, True, warmup=0.1) == 0.0
    assert lr_factor(0.05, 0.5, True, warmup=0.1) == pytest.approx(at_end / 2, rel=1e-12)
    assert lr_factor(0.1, 0.5, True, warmup=0.1) == pytest.approx(at_end, rel=1e-12)
    assert lr_factor(0.3, 0.5, True, warmup=0.1) == lr_factor(0.3, 0.5, True)


def test_units_frozen_counts_the_times_reached():
    times = (0.25, 0.5, 0.5, 1.0)
    #        before  at     between  both      end
    assert [units_frozen(t, times) for t in (0.0, 0.25, 0.49, 0.5, 0.999999)] == [0, 1, 1, 3, 3]


@pytest.mark.parametrize('t', [-0.1, 1.0, 1.5, math.nan])
def test_progress_out_of_range_is_refused(t):
    with pytest.raises(ValueError, match=r'progress must be in \[0, 1\), got'):
        units_frozen(t, (0.5, 1.0))


@pytest.mark.parametrize('t_0', [0, 0.0, -0.1, 1.4, math.nan, math.inf])
def test_t_0_out_of_range_is_refused(t_0):
    with pytest.raises(ValueError, match=r't_0 must be in \(0, 1\], got'):
        check_schedule(t_0, 'cubic')


@pytest.mark.parametrize('t_0', ['0.5', None, True, [0.5]])
def test_t_0_of_another_type_is_refused(t_0):
    with pytest.raises(TypeError, match='t_0 must be a number'):
        check_schedule(t_0, 'cubic')


def test_unknown_scale_is_refused():
    with pytest.raises(ValueError, match="linear, squared, cubic, got 'quartic'"):
        freeze_times(3, 0.5, 'quartic')


def test_no_units_and_vanishing_t_0_are_refused():
    with pytest.raises(ValueError, match='num_units must be at least 1, got 0'):
        freeze_times(0)
    with pytest.raises(ValueError, match='is zero in floating point'):
        freeze_times(3, 1e-120, 'cubic')
