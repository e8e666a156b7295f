import pytest

from composer_freezeout.cost import predicted_saving


def test_saving_is_the_time_spent_at_each_cost():
    # 8 for a quarter of the run, 6 for another, 2 for the second half: 4.5 of 8.
    assert predicted_saving([8, 6, 2], [0.25, 0.5, 1.0]) == pytest.approx(1 - 4.5 / 8, rel=1e-15)


def test_nothing_freezes_nothing_saved():
    assert predicted_saving([8, 6, 2], [1.0, 1.0, 1.0]) == 0
    assert predicted_saving([8, 8, 8], [0.1, 0.2, 1.0]) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize('costs', [[], [1.0, 2.0], [0, 0, 0], [-1, 1, 1]])
def test_bad_costs_are_refused(costs):
    with pytest.raises(ValueError, match=r'step costs for 3 freeze times|must cost more than nothing'):
        predicted_saving(costs, [0.25, 0.5, 1.0])
