from fractions import Fraction
from pathlib import Path

import pytest
import torch
from composer.models import ComposerModel

from composer_freezeout import FreezeOut
from composer_freezeout.costs.flops import step_flops_by_units_frozen, unit_flops
from composer_freezeout.costs.predict import freezeout_saving, partition_for
from composer_freezeout.costs.saving import (
    in_stages,
    interpolated,
    largest_saving,
    paper_costs,
    predicted_saving,
    saving_by_t_0,
    solve_t_0,
    with_loading,
)
from composer_freezeout.method.schedule import freeze_stages, freeze_times
from composer_freezeout.run.config import ModelConfig
from composer_freezeout.run.models import build_model


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


# --- the paper's model


def densenet_costs(k: int, m: int) -> list[int]:
    """The authors' costs of a DenseNet-BC's convolutions: growth rate k, m bottlenecks in each of three blocks."""
    costs, n = [3 * 2 * k * 32 * 32 * 9], 2
    for side in (32, 16, 8):
        for _ in range(m):
            costs.append(n * 4 * k * k * side * side + 4 * 9 * k * k * side * side)
            n += 1
        n //= 2
    return costs


def reference_saving(costs: list[int], t_0: float, exponent: int) -> float:
    """The authors' estimate, straight from its definition."""
    spent = sum(c * (t_0 + (1 - t_0) * i / len(costs)) ** exponent for i, c in enumerate(costs))
    return 1 - (sum(costs) + spent) / (2 * sum(costs))


@pytest.mark.parametrize('how_scale', ['squared', 'cubic'])
@pytest.mark.parametrize('t_0', [tenths / 10 for tenths in range(1, 10)])
@pytest.mark.parametrize(('k', 'm'), [(12, 12), (24, 16)])
def test_the_paper_model_is_the_published_estimate(k, m, t_0, how_scale):
    costs = densenet_costs(k, m)
    head = [*costs, 0]  # it trains to the end and isn't counted
    saving = predicted_saving(paper_costs(head), freeze_times(len(head), t_0, how_scale))
    assert saving == pytest.approx(reference_saving(costs, t_0, 3 if how_scale == 'cubic' else 2), rel=1e-12)


@pytest.mark.parametrize(
    ('k', 'm', 'how_scale', 't_0', 'saving'),
    [
        # Worked out with exact fractions, apart from this package.
        (12, 12, 'cubic', 0.8, 0.17781330248290658),
        (12, 12, 'squared', 0.5, 0.2804919649379109),
        (24, 16, 'cubic', 0.3, 0.4096153256853744),
        (24, 16, 'squared', 0.9, 0.06581581391430823),
    ],
)
def test_the_paper_model_in_numbers(k, m, how_scale, t_0, saving):
    head = [*densenet_costs(k, m), 0]
    assert predicted_saving(paper_costs(head), freeze_times(len(head), t_0, how_scale)) == pytest.approx(
        saving, rel=1e-12
    )


def test_the_paper_model_by_hand():
    assert paper_costs([1, 2, 4]) == [14, 13, 11]


# --- FLOPs, by hand


def hand_saving(forward: list[int], t_0: float, exponent: int) -> float:
    """Saving where the gradients of a unit's weights and of its input each cost what its forward pass does."""
    last = len(forward) - 1
    times = [(Fraction(t_0) + (1 - Fraction(t_0)) * i / last) ** exponent for i in range(last)] + [Fraction(1)]
    step = [sum(forward) + sum(forward[k:]) + sum(forward[k + 1 :]) for k in range(last + 1)]
    begun = [Fraction(0), *times[:-1]]
    spent = sum(cost * (end - begin) for cost, begin, end in zip(step, begun, times, strict=True))
    return float(1 - spent / step[0])


def resnet56_multiply_adds() -> list[int]:
    """He et al., section 4.2: 55 convolutions of 3x3 in the order of use, and the head; shortcuts have no weights."""
    units = [32 * 32 * 9 * 3 * 16]
    for side, channels in ((32, 16), (16, 32), (8, 64)):
        for conv in range(18):
            inputs = channels // 2 if conv == 0 and channels > 16 else channels
            units.append(side * side * 9 * inputs * channels)
    return [*units, 64 * 10]


def densenet_multiply_adds(layers: int) -> list[int]:
    """DenseNet-BC, k = 12: bottlenecks of a 1x1 to 48 channels and a 3x3 to 12, so many in each of three blocks."""
    channels = 24
    units = [32 * 32 * 9 * 3 * channels]
    for side in (32, 16, 8):
        for _ in range(layers):
            units += [side * side * channels * 48, side * side * 9 * 48 * 12]
            channels += 12
        if side > 8:  # the transition's 1x1 convolution comes before its pooling
            units.append(side * side * channels * (channels // 2))
            channels //= 2
    return [*units, channels * 100]


MULTIPLY_ADDS = {
    'resnet56': resnet56_multiply_adds(),
    'densenet22': densenet_multiply_adds(3),
    'densenet76': densenet_multiply_adds(12),
}


def images(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(2, 3, size, size), torch.zeros(2, dtype=torch.long)


def network(name: str) -> ComposerModel:
    if name == 'resnet56':
        return build_model(ModelConfig(name='resnet56', num_classes=10))
    depth = {'depth': int(name.removeprefix('densenet')), 'growth_rate': 12}
    return build_model(ModelConfig(name='densenet_bc', num_classes=100, **depth))


def test_flops_of_a_densenets_units_by_hand():
    model = network('densenet22')
    units = partition_for(model, images(32), FreezeOut().settings).units
    counted = unit_flops(model, images(32), units)
    # Two operations each, two samples.
    assert [unit.forward for unit in counted] == [4 * count for count in MULTIPLY_ADDS['densenet22']]
    costs = step_flops_by_units_frozen(model, images(32), units)
    for t_0, how_scale, exponent in ((0.8, 'cubic', 3), (0.5, 'linear', 1)):
        saving = saving_by_t_0(costs, times(len(costs), how_scale))(t_0)
        assert saving == pytest.approx(hand_saving(MULTIPLY_ADDS['densenet22'], t_0, exponent), rel=1e-9)


@pytest.mark.parametrize(
    ('name', 't_0', 'how_scale', 'exponent'),
    [
        ('resnet56', 0.8, 'cubic', 3),
        pytest.param('resnet56', 0.5, 'linear', 1, marks=pytest.mark.slow),
        pytest.param('densenet76', 0.8, 'cubic', 3, marks=pytest.mark.slow),
        pytest.param('densenet76', 0.5, 'linear', 1, marks=pytest.mark.slow),
    ],
)
def test_the_predicted_saving_by_hand(name, t_0, how_scale, exponent):
    saving = freezeout_saving(network(name), images(32), FreezeOut(t_0, how_scale).settings)
    assert saving == pytest.approx(hand_saving(MULTIPLY_ADDS[name], t_0, exponent), rel=1e-9)


# --- seconds


def test_measured_costs_are_interpolated():
    assert interpolated({4: 2.0, 0: 10.0, 2: 8.0}, 5) == [10.0, 9.0, 8.0, 5.0, 2.0]
    assert interpolated({0: 3.0}, 1) == [3.0]
    with pytest.raises(ValueError, match='no cost for 4 of 5 units frozen; measure 0 and 4'):
        interpolated({0: 1.0, 3: 1.0}, 5)


def test_waiting_for_data():
    # Workers load during the step, so that only the slower of the two counts; without workers both do.
    assert with_loading([4.0, 3.0, 1.0], 2.0, overlapped=True) == [4.0, 3.0, 2.0]
    assert with_loading([4.0, 3.0, 1.0], 2.0, overlapped=False) == [6.0, 5.0, 3.0]


# --- the inverse


def times(num_units: int, how_scale: str):
    return lambda t_0: freeze_times(num_units, t_0, how_scale)


@pytest.mark.parametrize('how_scale', ['linear', 'squared', 'cubic'])
@pytest.mark.parametrize('t_0', [0.05, 0.3, 0.8, 0.99])
def test_the_inverse_finds_t_0(how_scale, t_0):
    saving = saving_by_t_0(paper_costs([5, 3, 2, 1, 1]), times(5, how_scale))
    assert solve_t_0(saving, saving(t_0)) == pytest.approx(t_0, abs=1e-9)


def test_the_inverse_by_hand():
    # Two units, linear: the first freezes at t_0, after which a step costs 2 of 8.
    assert solve_t_0(saving_by_t_0([8, 2], times(2, 'linear')), 0.3) == pytest.approx(1 - 0.3 * 8 / 6, abs=1e-12)


@pytest.mark.parametrize('target', [0.0, -0.1, 0.76, 1.0])
def test_a_target_out_of_reach_is_refused(target, refusal):
    saving = saving_by_t_0([8, 2], times(2, 'linear'))
    assert largest_saving(saving) == pytest.approx(0.75, abs=1e-5)
    with refusal(rf'a saving of {100 * target:.1f}% is out of reach: .* between 0 and 75.0% here; take a target'):
        solve_t_0(saving, target)


def test_the_inverse_with_units_that_cost_more():
    costs = paper_costs([5, 3, 2, 1, 1])
    freezeout = FreezeOut(how_scale='squared', unit_costs=[5, 3, 2, 1, 1])
    saving = saving_by_t_0(costs, lambda t_0: freezeout.freeze_times(5, t_0))
    # Expensive units freeze earlier, so less has to be frozen for it than by the paper's times.
    t_0 = solve_t_0(saving, 0.1)
    assert saving(t_0) == pytest.approx(0.1, abs=1e-12)
    assert t_0 > solve_t_0(saving_by_t_0(costs, times(5, 'squared')), 0.1)
    assert saving(1.0) == 0


@pytest.mark.parametrize(('num_units', 'kept'), [(20, (0.82, 0.93, 0.97)), (56, (0.79, 0.90, 0.94))])
def test_what_stages_keep_of_the_saving_is_as_documented(num_units, kept):
    costs, times = [float(num_units - frozen) for frozen in range(num_units)], freeze_times(num_units)
    whole = predicted_saving(costs, times)
    shares = [predicted_saving(in_stages(costs, freeze_stages(num_units, most)), times) / whole for most in (4, 8, 12)]
    assert tuple(round(share, 2) for share in shares) == kept
    text = (Path(__file__).parent.parent / 'docs' / 'speed.md').read_text(encoding='utf-8')
    assert all(f'{share:.0%}'.replace('%', ' %') in text for share in shares)
