"""What makes runs comparable, and the verdict on constructed numbers."""

from pathlib import Path

import pytest

from composer_freezeout.compare.judging.comparison import load
from composer_freezeout.compare.judging.verdict import arm_results, best_in_the_same_time

from .records import FREEZEOUT, edit, folder, manifest, write

THREE = {'baseline': [0.93, 0.931, 0.932], 'baseline_short': [0.90, 0.901, 0.902], 'freezeout': [0.92, 0.921, 0.922]}
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
        ('baseline/seed1', ('config', 'scheduler'), None, 'config.scheduler is null'),
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
    assert result.accuracy is None and result.difference is None and result.verdict == 'undecided'
    assert result.seconds.n == 2 and baseline.verdict is None


# --- the verdict


def test_it_pays_if_it_is_more_accurate_in_the_same_time(tmp_path):
    result = freezeout(tmp_path, THREE)
    assert (result.verdict, result.control) == ('pays', 'baseline_short')


def test_it_does_not_pay_if_it_is_less_accurate_in_the_same_time(tmp_path):
    result = freezeout(tmp_path, THREE | {'freezeout': [0.88, 0.881, 0.882]})
    assert (result.verdict, result.control) == ('does not pay', 'baseline_short')


def test_it_is_undecided_if_the_interval_includes_zero(tmp_path):
    result = freezeout(tmp_path, THREE | {'freezeout': [0.89, 0.901, 0.92]})
    assert result.verdict == 'undecided' and result.difference is not None
    assert result.difference.interval is not None and result.difference.interval[0] < 0 < result.difference.interval[1]


@pytest.mark.parametrize(
    ('seconds', 'accuracies', 'verdict'),
    [
        (82.0, [0.92, 0.921, 0.922], 'pays'),
        (83.0, [0.92, 0.921, 0.922], 'undecided'),
        (60.0, [0.92, 0.921, 0.922], 'pays'),
        (78.0, [0.88, 0.881, 0.882], 'does not pay'),
        (77.0, [0.88, 0.881, 0.882], 'undecided'),
        (99.0, [0.88, 0.881, 0.882], 'does not pay'),
    ],
)
def test_more_time_is_no_merit_and_less_is_no_fault(seconds, accuracies, verdict, tmp_path):
    result = freezeout(tmp_path, THREE | {'freezeout': accuracies}, SHORTER | {'freezeout': seconds})
    assert result.verdict == verdict


def test_one_seed_decides_nothing(tmp_path):
    result = freezeout(tmp_path, {'baseline': [0.93], 'baseline_short': [0.5], 'freezeout': [0.92]})
    assert result.verdict == 'undecided'
    assert result.difference is not None and result.difference.value == pytest.approx(0.42)


def test_runs_without_any_spread_decide_nothing(tmp_path):
    result = freezeout(tmp_path, {'baseline': [0.93] * 2, 'baseline_short': [0.5] * 2, 'freezeout': [0.92] * 2})
    assert result.verdict == 'undecided'


def test_without_a_shortened_baseline_the_whole_one_is_the_control(tmp_path):
    accuracies = {'baseline': [0.93, 0.931, 0.932], 'freezeout': [0.90, 0.901, 0.902]}
    # Less accurate in less time: neither is better.
    result = freezeout(tmp_path / 'less', accuracies)
    assert (result.control, result.verdict) == ('baseline', 'undecided')
    result = freezeout(tmp_path / 'same', accuracies, {'freezeout': 100.0})
    assert result.verdict == 'does not pay'


def test_an_arm_that_takes_the_whole_time_has_the_whole_baseline_as_its_control(tmp_path):
    accuracies = THREE | {'freezeout_const_time': [0.94, 0.941, 0.942]}
    result = freezeout(tmp_path, accuracies, SHORTER, 'freezeout_const_time')
    assert (result.control, result.verdict) == ('baseline', 'pays')


@pytest.mark.parametrize(
    ('seconds', 'control', 'verdict'),
    [
        (70.0, 'baseline_short', 'undecided'),
        (90.0, 'baseline_short', 'does not pay'),
        (98.0, 'baseline', 'does not pay'),
    ],
)
def test_the_control_is_the_slowest_baseline_that_took_no_more_time(seconds, control, verdict, tmp_path):
    accuracies = THREE | {'layer_freezing': [0.88, 0.881, 0.882]}
    result = freezeout(tmp_path, accuracies, SHORTER | {'layer_freezing': seconds}, 'layer_freezing')
    assert (result.control, result.verdict) == (control, verdict)


@pytest.mark.parametrize(
    ('accuracies', 'seconds', 'verdict'),
    [([0.92, 0.921, 0.922], 70.0, 'pays'), ([0.87, 0.871, 0.872], 70.0, 'does not pay')],
)
def test_the_cost_aware_arm_has_a_control_of_its_own(accuracies, seconds, verdict, tmp_path):
    accuracies = THREE | {'freezeout_cost_aware': accuracies, 'baseline_short_cost_aware': [0.89, 0.891, 0.892]}
    seconds = SHORTER | {'freezeout_cost_aware': seconds, 'baseline_short_cost_aware': 70.0}
    results = {result.arm: result for result in arm_results(load(folder(tmp_path, accuracies, seconds)))}
    result = results['freezeout_cost_aware']
    assert (result.control, result.verdict) == ('baseline_short_cost_aware', verdict)
    assert results['freezeout'].control == 'baseline_short'
    assert results['baseline_short_cost_aware'].control is None
    # Their lengths may differ from seed to seed.
    edit(tmp_path / 'baseline_short_cost_aware/seed1/record.json', 'config', 'max_duration', value='13ba')
    assert load(tmp_path).differences == ()


def test_arms_besides_freezeout_are_corrected_for_their_number(tmp_path):
    # Both p-values are just below 0.05; with two arms, that is too little for the one that was not singled out.
    close = [0.9028, 0.9043, 0.9058]
    accuracies = THREE | {'freezeout': close, 'freezeout_linear': close}
    results = {r.arm: r for r in arm_results(load(folder(tmp_path, accuracies, SHORTER)))}
    for arm, verdict in (('freezeout', 'pays'), ('freezeout_linear', 'undecided')):
        result = results[arm]
        assert result.difference is not None and result.difference.p is not None and result.p_holm is not None
        assert result.difference.p < 0.05 < 2 * result.difference.p == pytest.approx(result.p_holm)
        assert result.verdict == verdict


def test_the_best_arm_is_one_that_took_no_more_time(tmp_path):
    accuracies = THREE | {
        'freezeout_linear': [0.925, 0.926, 0.927],
        'layer_freezing': [0.929, 0.93, 0.931],
        'freezeout_cubic': [0.925, 0.926, 0.927],
    }
    seconds = SHORTER | {'layer_freezing': 90.0, 'freezeout_cubic': 79.0}
    best = best_in_the_same_time(arm_results(load(folder(tmp_path, accuracies, seconds))))
    assert best is not None and best.arm == 'freezeout_cubic'  # as accurate as freezeout_linear, and quicker


def test_no_arm_may_have_been_quick_enough(tmp_path):
    results = arm_results(load(folder(tmp_path, THREE, SHORTER | {'freezeout': 90.0})))
    assert best_in_the_same_time(results) is None


def test_manifests_may_have_further_fields(tmp_path):
    folder(tmp_path, {'baseline': [0.9]})
    write(tmp_path / 'comparison.json', manifest(['baseline'], [0], note='something'))
    assert load(tmp_path).arms == ('baseline',)
