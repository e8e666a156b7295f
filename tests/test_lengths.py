"""Baselines of other lengths: which are trained, and that they can be compared with the others."""

import argparse
import json
from pathlib import Path

import pytest

from composer_freezeout.compare import command
from composer_freezeout.compare.arms.curve import bracketing, curve_lengths, length_arm, lengths_for
from composer_freezeout.compare.arms.family import read_arms
from composer_freezeout.compare.arms.known import baseline_of_length, in_order, is_baseline, length_of
from composer_freezeout.compare.judging.comparison import load
from composer_freezeout.compare.judging.verdict import arm_results

from .records import edit, folder

QUICKSTART = Path(__file__).parent.parent / 'yamls' / 'quickstart'
SMALL = ['model.name=resnet8', 'train_data.image_size=8', 'eval_data.image_size=8', 'max_duration=2ep']


@pytest.mark.parametrize(
    ('costs', 'least', 'greatest'),
    [([0.8, 0.86], 0.72, 0.93), ([0.8, 1.0], 0.72, 1.1), ([0.5], 0.45, 0.86), ([1.2], 0.9, 1.32)],
)
def test_four_lengths_bracket_what_arms_are_predicted_to_take(costs, least, greatest):
    lengths = bracketing(costs)
    assert len(lengths) == 4 and lengths == sorted(lengths) and 1.0 not in lengths
    assert (lengths[0], lengths[-1]) == (pytest.approx(least), pytest.approx(greatest))
    # The whole baseline is the end of the curve where no length is beyond it.
    assert lengths[0] < min(costs) and max(costs) < max(*lengths, 1.0)


def test_without_arms_that_freeze_there_is_nothing_to_bracket():
    assert bracketing([]) == []


def test_names_of_lengths():
    assert [baseline_of_length(length) for length in (0.5, 0.725, 1.1)] == [
        'baseline_0.5',
        'baseline_0.725',
        'baseline_1.1',
    ]
    assert length_of('baseline_0.725') == 0.725
    assert [length_of(name) for name in ('baseline', 'baseline_short', 'baseline_0.0', 'freezeout_0.5')] == [None] * 4
    assert is_baseline('baseline_0.5') and is_baseline('baseline_short') and not is_baseline('freezeout')
    assert in_order(['freezeout', 'baseline_0.5', 'baseline_1.1', 'baseline_short', 'baseline']) == [
        'baseline',
        'baseline_1.1',
        'baseline_0.5',
        'baseline_short',
        'freezeout',
    ]


def test_lengths_of_a_command_line():
    assert curve_lengths('0.6,0.8') == (0.6, 0.8) and curve_lengths('none') == () and curve_lengths('auto') == 'auto'
    for text in ('', '0', '1', '0.6,', '2', 'nan', 'short', '-0.5', '9' * 500):
        with pytest.raises(argparse.ArgumentTypeError, match="must be 'auto', 'none' or shares"):
            curve_lengths(text)


def test_by_default_lengths_fit_all_arms_and_a_choice_of_arms_is_taken_at_its_word():
    arms, data = read_arms(QUICKSTART, ['baseline', 'layer_freezing', 'freezeout'], SMALL, 1.0)
    lengths = lengths_for(None, True, arms, data)
    assert len(lengths) == 4 and 0.5 < min(lengths) < 0.8
    assert lengths_for('auto', False, arms, data) == lengths
    assert lengths_for(None, False, arms, data) == [] and lengths_for((0.5,), True, arms, data) == [0.5]


def test_an_arm_that_cannot_be_predicted_is_left_out():
    arms, data = read_arms(QUICKSTART, ['baseline', 'freezeout'], [*SMALL, 'algorithms=[]'], 1.0)
    assert lengths_for('auto', True, arms, data) == []


def test_a_length_has_the_whole_schedule_in_fewer_batches():
    (baseline,), data = read_arms(QUICKSTART, ['baseline'], SMALL, 1.0)
    arm = length_arm(baseline, 0.5, data)
    assert (arm.name, arm.config.max_duration, arm.config.run_name) == (
        'baseline_0.5',
        '22ba',
        'quickstart-baseline_0.5',
    )


def test_lengths_may_differ_in_their_duration_and_in_nothing_else(tmp_path):
    folder(tmp_path, {'baseline': [0.9, 0.9], 'baseline_0.5': [0.8, 0.8], 'freezeout': [0.85, 0.85]})
    for seed in (0, 1):
        edit(tmp_path / f'baseline_0.5/seed{seed}/record.json', 'config', 'max_duration', value='10ba')
    assert load(tmp_path).differences == ()
    edit(tmp_path / 'baseline_0.5/seed1/record.json', 'config', 'max_duration', value='11ba')
    (difference,) = load(tmp_path, allow_mixed=True).differences
    assert 'config.max_duration is "11ba" in baseline_0.5/seed1/record.json' in difference


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_comparison_with_lengths(tmp_path, capsys):
    arguments = [str(QUICKSTART), '--out', str(tmp_path / 'out'), '--arms', 'baseline,freezeout']
    arguments += ['--lengths', '0.5,0.8']
    assert command.main([*arguments, *SMALL]) == 0
    manifest = json.loads((tmp_path / 'out' / 'comparison.json').read_text())
    assert manifest['arms'] == ['baseline', 'baseline_0.8', 'baseline_0.5', 'freezeout']
    results = {result.arm: result for result in arm_results(load(tmp_path / 'out'))}
    assert [results[arm].flops for arm in ('baseline', 'baseline_0.5')] == [1.0, 0.5]
    # So that a job array can train it on its own.
    assert command.main([*arguments[:3], '--only', 'baseline_0.6', '--seed', '17', *SMALL]) == 0
    assert results['baseline_0.5'].accuracy is not None
    by_flops = results['freezeout'].by_flops
    assert by_flops is not None and by_flops.difference is not None and 0.5 < by_flops.cost < 1
    assert 'gain at' in capsys.readouterr().out
    assert command.main([*arguments, *SMALL]) == 0
    assert '4 of 4 runs are finished already.' in capsys.readouterr().out
