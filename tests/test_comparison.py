"""What makes runs comparable, and the verdict on constructed numbers."""

from pathlib import Path

import pytest

from composer_freezeout.compare.judging.comparison import load
from composer_freezeout.compare.judging.verdict import arm_results, best_arm

from .records import FREEZEOUT, edit, folder, manifest, write

THREE = {'baseline': [0.93, 0.931, 0.932], 'baseline_short': [0.90, 0.901, 0.902], 'freezeout': [0.92, 0.923, 0.922]}
SHORTER = {'baseline_short': 80.0, 'freezeout': 80.0, 'freezeout_linear': 80.0, 'layer_freezing': 80.0}


def freezeout(out: Path, accuracies, seconds=SHORTER, arm='freezeout'):
    results = arm_results(load(folder(out, accuracies, seconds)))
    return next(result for result in results if result.arm == arm)


# --- reading


def test_runs_are_read_in_the_order_of_the_arms(tmp_path):
    comparison = load(folder(tmp_path, {'baseline': [0.9, 0.8], 'freezeout': [0.7, 0.6]}))
    assert [(run.arm, run.seed) for run in comparison.runs] == [
        ('baseline', 0),
        ('baseline', 1),
        ('freezeout', 0),
        ('freezeout', 1),
    ]
    assert comparison.runs[3].path == 'freezeout/seed1/record.json'
    assert (comparison.failures, comparison.missing, comparison.differences) == ((), (), ())


def test_what_is_not_there_is_listed(tmp_path):
    failed = [
        {'arm': 'freezeout', 'seed': 1, 'exit_code': 137, 'message': 'killed'},
        # It failed at first, and was run again.
        {'arm': 'freezeout', 'seed': 0, 'exit_code': 1, 'message': 'mistake'},
    ]
    folder(tmp_path, {'baseline': [0.9] * 3, 'freezeout': [0.8]}, failures=failed)
    comparison = load(tmp_path)
    assert [(failure.arm, failure.seed, failure.exit_code) for failure in comparison.failures] == [
        ('freezeout', 1, 137)
    ]
    assert comparison.missing == (('freezeout', 2),)


def test_an_arm_without_runs_is_no_error_but_the_baseline_is(tmp_path, refusal):
    folder(tmp_path, {'baseline': [0.9], 'freezeout': []})
    assert [result.arm for result in arm_results(load(tmp_path))] == ['baseline']
    (tmp_path / 'baseline/seed0/record.json').unlink()
    with refusal("has no finished run of the arm 'baseline'"):
        load(tmp_path)


def test_a_folder_that_is_none(tmp_path, refusal):
    with refusal('comparison.json cannot be read: No such file'):
        load(tmp_path)


@pytest.mark.parametrize('file', ['comparison.json', 'baseline/seed0/record.json'])
def test_a_damaged_file_is_named(file, tmp_path, refusal):
    folder(tmp_path, {'baseline': [0.9]})
    text = (tmp_path / file).read_text()
    for damaged in (text[:-20], '[]', ''):
        (tmp_path / file).write_text(damaged)
        with refusal(f'{file}'):
            load(tmp_path)


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('training_seconds', 0.0),
        ('training_seconds', None),
        ('final', {'MulticlassAccuracy': 'high'}),
        ('epochs', [{'epoch': 1}]),
        ('format', 2),
    ],
)
def test_a_wrong_value_is_named(key, value, tmp_path):
    folder(tmp_path, {'baseline': [0.9]})
    edit(tmp_path / 'baseline/seed0/record.json', key, value=value)
    with pytest.raises(ValueError, match=rf'baseline/seed0/record.json: {key}'):
        load(tmp_path)


@pytest.mark.parametrize(
    ('key', 'value'), [('arms', ['../baseline']), ('arms', ['baseline', 'baseline']), ('scale', 0.0), ('seeds', [])]
)
def test_a_wrong_manifest_is_refused(key, value, tmp_path):
    folder(tmp_path, {'baseline': [0.9]})
    edit(tmp_path / 'comparison.json', key, value=value)
    with pytest.raises(ValueError, match=f'comparison.json: {key}'):
        load(tmp_path)


# --- comparable runs


@pytest.mark.parametrize(
    ('run', 'keys', 'value', 'message'),
    [
        ('freezeout/seed0', ('config', 'optimizer', 'lr'), 0.2, 'config.optimizer.lr is 0.2'),
        ('baseline/seed1', ('config', 'max_duration'), '1ep', 'config.max_duration is "1ep"'),
        (
            'freezeout/seed0',
            ('config', 'algorithms'),
            [{'name': 'ema'}, FREEZEOUT],
            'config.algorithms.0.name is "ema"',
        ),
        ('freezeout/seed1', ('config', 'algorithms', 0, 't_0'), 0.5, 'config.algorithms.0.t_0 is 0.5'),
        ('baseline/seed1', ('config', 'scheduler'), None, 'config.scheduler.name is absent'),
        ('freezeout/seed0', ('versions', 'torch'), '2.6.0', 'versions.torch is "2.6.0"'),
        ('freezeout/seed0', ('hardware', 'threads'), 8, 'hardware.threads is 8'),
        ('freezeout/seed0', ('effective', 'device'), 'gpu', 'effective.device is "gpu"'),
        ('freezeout/seed0', ('seed',), 7, 'seed is 7'),
    ],
)
def test_mixed_runs_are_refused_and_listed(run, keys, value, message, tmp_path):
    folder(tmp_path, {'baseline': [0.9, 0.8], 'freezeout': [0.7, 0.6]})
    edit(tmp_path / run / 'record.json', *keys, value=value)
    with pytest.raises(ValueError) as raised:
        load(tmp_path)
    assert message in str(raised.value) and f'{run}/record.json' in str(raised.value)
    assert any(message in line for line in load(tmp_path, allow_mixed=True).differences)


@pytest.mark.parametrize(
    ('run', 'keys', 'value'),
    [
        ('freezeout/seed0', ('config', 'run_name'), 'other'),
        ('freezeout/seed0', ('config', 'overwrite'), True),
        ('freezeout/seed0', ('git',), {'commit': 'def', 'dirty': True}),
        ('baseline_short/seed1', ('config', 'max_duration'), '17ba'),
    ],
)
def test_these_may_differ(run, keys, value, tmp_path):
    folder(tmp_path, {'baseline': [0.9, 0.8], 'baseline_short': [0.8, 0.7], 'freezeout': [0.7, 0.6]})
    edit(tmp_path / run / 'record.json', *keys, value=value)
    assert load(tmp_path).differences == ()


def test_records_with_the_same_difference_are_one_line(tmp_path):
    folder(tmp_path, {'baseline': [0.9, 0.8], 'freezeout': [0.7, 0.6]})
    for seed in (0, 1):
        edit(tmp_path / f'freezeout/seed{seed}/record.json', 'hardware', 'threads', value=8)
    assert load(tmp_path, allow_mixed=True).differences == (
        'hardware.threads is 8 in freezeout/seed0/record.json, freezeout/seed1/record.json, '
        'but 2 in baseline/seed0/record.json',
    )


# --- numbers


def test_savings_are_relative_to_the_baseline(tmp_path):
    result = freezeout(
        tmp_path, {'baseline': [0.9, 0.9], 'freezeout': [0.8, 0.8]}, {'baseline': 200.0, 'freezeout': 150.0}
    )
    assert result.measured_saving == pytest.approx(0.25) and result.predicted_saving == 0.2
    # Each arm's times spread by 1 % between two seeds: a standard deviation of 1 % / √2.
    assert result.time_ratio.std == pytest.approx(0.75 * 0.01, rel=1e-3)


def test_a_run_without_evaluation_has_a_time_only(tmp_path):
    baseline, result = arm_results(load(folder(tmp_path, {'baseline': [0.9, 0.8], 'freezeout': [None, None]})))
    assert result.accuracy is None and result.gain is None and result.verdict == 'not judged'
    assert result.seconds.n == 2 and baseline.verdict is None


# --- the verdict


def test_it_pays_if_it_is_more_accurate_in_the_same_time(tmp_path):
    result = freezeout(tmp_path, THREE)
    assert (result.verdict, result.judged_by) == ('pays', 'time')
    assert result.gain is not None and result.gain.difference is not None
    assert result.gain.difference.value == pytest.approx(0.0207, abs=1e-4)


def test_it_does_not_pay_if_it_is_less_accurate_in_the_same_time(tmp_path):
    assert freezeout(tmp_path, THREE | {'freezeout': [0.88, 0.883, 0.882]}).verdict == 'does not pay'


def test_it_is_undecided_if_the_interval_includes_zero(tmp_path):
    result = freezeout(tmp_path, THREE | {'freezeout': [0.89, 0.901, 0.92]})
    assert result.verdict == 'undecided' and result.gain is not None and result.gain.difference is not None
    low, high = result.gain.difference.interval or (1, 1)
    assert low < 0 < high


@pytest.mark.parametrize(
    ('seconds', 'verdict', 'outside'),
    [
        (90.0, 'undecided', None),  # as accurate as a baseline halfway between the two
        (80.0, 'pays', None),
        (99.0, 'does not pay', None),
        (77.0, 'not judged', 'below'),
        (103.0, 'not judged', 'above'),
    ],
)
def test_an_arm_is_judged_in_its_own_time(seconds, verdict, outside, tmp_path):
    accuracies = THREE | {'layer_freezing': [0.915, 0.9155, 0.9175]}
    result = freezeout(tmp_path, accuracies, SHORTER | {'layer_freezing': seconds}, 'layer_freezing')
    assert result.verdict == verdict and result.gain is not None and result.gain.outside == outside


def test_baselines_of_all_lengths_make_the_curve(tmp_path):
    accuracies = THREE | {'baseline_0.7': [0.86, 0.861, 0.862], 'baseline_0.9': [0.925, 0.926, 0.927]}
    seconds = SHORTER | {'baseline_0.7': 70.0, 'baseline_0.9': 90.0, 'freezeout': 70.0}
    result = freezeout(tmp_path, accuracies, seconds)
    assert result.verdict == 'pays' and result.gain is not None and result.gain.difference is not None
    assert result.gain.difference.value == pytest.approx(0.0607, abs=1e-4)


def test_flops_are_a_cost_beside_time(tmp_path):
    folder(tmp_path, THREE, SHORTER)
    for seed in range(3):
        edit(tmp_path / f'baseline_short/seed{seed}/record.json', 'effective', 'total_batches', value=15)
    result = next(r for r in arm_results(load(tmp_path)) if r.arm == 'freezeout')
    # 20 batches with a fifth of the FLOPs saved, between baselines of 15 and of 20.
    assert result.by_flops is not None and result.by_flops.cost == pytest.approx(0.8) and result.by_flops.difference
    assert result.by_flops.difference.value == pytest.approx(0.0207 - 0.03 * 0.2, abs=1e-4)


def test_freezeout_that_trains_longer_costs_what_the_baseline_does(tmp_path):
    folder(tmp_path, THREE, SHORTER)
    for seed in range(3):
        path = tmp_path / f'freezeout/seed{seed}/record.json'
        edit(path, 'effective', 'total_batches', value=25)
        edit(path, 'predicted_saving', value=0.0)
        edit(path, 'config', 'algorithms', value=[FREEZEOUT | {'const_time': True}])
    result = next(r for r in arm_results(load(tmp_path)) if r.arm == 'freezeout')
    assert result.flops == 1.0


def test_one_seed_decides_nothing(tmp_path):
    result = freezeout(tmp_path, {'baseline': [0.93], 'baseline_short': [0.5], 'freezeout': [0.92]})
    assert result.verdict == 'undecided' and result.gain is not None and result.gain.difference is not None
    assert result.gain.difference.value == pytest.approx(0.42)


def test_runs_without_any_spread_decide_nothing(tmp_path):
    result = freezeout(tmp_path, {'baseline': [0.93] * 2, 'baseline_short': [0.5] * 2, 'freezeout': [0.92] * 2})
    assert result.verdict == 'undecided'


def test_with_the_whole_baseline_alone_only_arms_of_its_time_are_judged(tmp_path):
    accuracies = {'baseline': [0.93, 0.931, 0.932], 'freezeout': [0.90, 0.903, 0.902]}
    assert freezeout(tmp_path / 'less', accuracies).verdict == 'not judged'
    assert freezeout(tmp_path / 'same', accuracies, {'freezeout': 100.0}).verdict == 'does not pay'


def test_all_arms_are_corrected_for_their_number(tmp_path):
    # Both p-values are just below 0.05; with two arms, that is too little.
    close = [0.9025, 0.9060, 0.9058]
    assert freezeout(tmp_path / 'alone', THREE | {'freezeout': close}, SHORTER).verdict == 'pays'
    accuracies = THREE | {'freezeout': close, 'freezeout_linear': close}
    for result in arm_results(load(folder(tmp_path / 'two', accuracies, SHORTER)))[2:]:
        gain = result.gain
        assert gain is not None and gain.difference is not None and gain.difference.p is not None
        assert gain.difference.p < 0.05 < 2 * gain.difference.p == pytest.approx(gain.p_holm)
        assert result.verdict == 'undecided' and gain.tests == 2


def test_the_best_arm_is_the_one_with_the_highest_gain(tmp_path):
    # More accurate than freezeout, but in more time.
    accuracies = THREE | {'layer_freezing': [0.928, 0.929, 0.93]}
    best = best_arm(arm_results(load(folder(tmp_path / 'a', accuracies, SHORTER | {'layer_freezing': 95.0}))))
    assert best is not None and best.arm == 'freezeout'
    assert best_arm(arm_results(load(folder(tmp_path / 'b', THREE, SHORTER | {'freezeout': 70.0})))) is None


def test_manifests_may_have_further_fields(tmp_path):
    folder(tmp_path, {'baseline': [0.9]})
    write(tmp_path / 'comparison.json', manifest(['baseline'], [0], note='something'))
    assert load(tmp_path).arms == ('baseline',)
