"""The sweep over FreezeOut's settings: what is decided by pure functions, and one small sweep."""

import argparse
import json
import shutil
from pathlib import Path
from statistics import fmean

import optuna
import pytest

from composer_freezeout.compare import command_line
from composer_freezeout.compare.arms.family import read_arms
from composer_freezeout.compare.judging.curve import Gain
from composer_freezeout.compare.judging.score import Score
from composer_freezeout.compare.judging.verdict import with_holm
from composer_freezeout.compare.sweep import command, report, results, search, settings
from composer_freezeout.compare.sweep.verdict import verdict
from composer_freezeout.compare.training.executor import Local
from composer_freezeout.compare.training.places import Place
from composer_freezeout.results.record import Metric, Record
from composer_freezeout.results.stats import Difference, jackknife
from composer_freezeout.run.faults import Refused

from .records import record as a_record

ROOT = Path(__file__).parent.parent

QUICKSTART = ROOT / 'yamls' / 'quickstart'
LENGTHS = settings.FROM_SCRATCH.lengths
SMALL = ['model.name=resnet8', 'train_data.image_size=8', 'eval_data.image_size=8', 'max_duration=2ep']


def setting(**changes: object) -> dict[str, object]:
    return {**settings.DEFAULT, **changes}


# ---------------------------------------------------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------------------------------------------------


def test_every_setting_that_can_be_drawn_is_one_of_freezeout(tmp_path):
    (baseline, freezeout), data = read_arms(QUICKSTART, ['baseline', 'freezeout'], SMALL, 1.0)
    explored = search.Sweep(tmp_path, baseline, freezeout, data, search.Console(), Local([Place()]))
    assert explored.default == settings.DEFAULT
    study = optuna.create_study(directions=['maximize', 'maximize'], sampler=optuna.samplers.RandomSampler(seed=0))
    names, anneals = set(), set()
    for _ in range(20):
        drawn = settings.suggest(study.ask())
        arm = explored.setting_arm(drawn)
        (entry,) = arm.resolved['algorithms']
        assert drawn.items() <= entry.items()
        names.add(arm.name)
        anneals.add(drawn['anneal'])
    assert len(names) > 15 and anneals == {None, 'shared'}


def test_names_tell_settings_apart():
    assert settings.name_of(setting()) == settings.name_of(dict(reversed(setting().items())))
    assert settings.name_of(setting()).startswith('cubic-0.8-')
    names = {settings.name_of(setting(granularity=g, scale_lr=s)) for g in ('module', 'block') for s in (True, False)}
    assert len(names) == 4
    assert settings.name_of(setting(anneal='shared')) != settings.name_of(setting())


def test_the_default_keeps_what_the_family_says():
    assert settings.default_setting({}) == settings.DEFAULT
    own = settings.default_setting({'t_0': 0.5, 't_warmup': '0.05dur', 'layers': ['a'], 'granularity': None})
    assert own == setting(t_0=0.5, t_warmup='0.05dur')


def test_shortened_baselines(tmp_path):
    (baseline, freezeout), data = read_arms(QUICKSTART, ['baseline', 'freezeout'], SMALL, 1.0)
    explored = search.Sweep(tmp_path, baseline, freezeout, data, search.Console(), Local([Place()]))
    durations = {percent: explored.baseline_arm(percent).config.max_duration for percent in (100, 90, 60)}
    assert durations == {100: '44ba', 90: '40ba', 60: '26ba'}


def test_the_front_and_the_default_are_judged():
    trials = [
        (setting(t_0=0.3), (0.80, 0.5)),
        (setting(t_0=0.4), (0.79, 0.4)),  # beaten
        (setting(t_0=0.5), (0.90, 0.3)),
        (setting(t_0=0.6), (0.91, 0.2)),
        (setting(t_0=0.8), (0.92, 0.1)),
        (setting(t_0=0.8), (0.92, 0.1)),  # drawn twice
    ]
    values = [found['t_0'] for found in settings.chosen(trials, 9, settings.DEFAULT)]
    assert values == [0.8, 0.6, 0.5, 0.3]
    assert [found['t_0'] for found in settings.chosen(trials, 2, settings.DEFAULT)] == [0.8, 0.3]
    assert settings.chosen([], 4, settings.DEFAULT) == [settings.DEFAULT]


def test_settings_from_before_there_was_an_argument_are_the_same():
    earlier = {key: value for key, value in setting(t_0=0.3).items() if key != 'anneal'}
    assert settings.name_of(earlier) == settings.name_of(setting(t_0=0.3)) == 'cubic-0.3-ed3475'
    default = {key: value for key, value in settings.DEFAULT.items() if key != 'anneal'}
    found = settings.chosen([(default, (0.9, 0.1)), (earlier, (0.8, 0.5))], 9, settings.DEFAULT)
    assert found == [settings.DEFAULT, earlier]


# ---------------------------------------------------------------------------------------------------------------------
# Judging
# ---------------------------------------------------------------------------------------------------------------------


def gains(**differences: list[float]) -> dict[str, Gain]:
    found = {
        name: Gain(1.0, len(values), jackknife(fmean(values), [sum(values) - v for v in values]))
        if len(values) > 1
        else Gain(1.0, 1, Difference(values[0]))
        for name, values in differences.items()
    }
    return with_holm(found)


@pytest.mark.parametrize(
    ('found', 'start', 'part'),
    [
        (gains(a=[0.02, 0.022]), "Above the baselines' curve: 1 of 1 settings (a)", 'a, is +2.10 points'),
        (gains(a=[-0.02, -0.022]), "No setting is shown to lie above the baselines' curve", '1 of 1 lie below it'),
        (gains(a=[-0.03, 0.04]), "No setting is shown to lie above the baselines' curve", '0 of 1 lie below it'),
        (gains(a=[0.02]), 'Whether a setting lies above', 'cannot be told without spread'),
        ({'a': Gain(1.0, 2, outside='below', end=2.0)}, 'No setting can be judged', 'in the range'),
        ({}, 'No setting can be judged', 'in the range'),
    ],
)
def test_verdict(found, start, part):
    text = verdict(found)
    assert text.startswith(start) and part in text


def test_the_verdict_is_corrected_for_the_number_of_settings():
    alone = gains(a=[0.010, 0.0111])
    assert 0.02 < (alone['a'].p_holm or 0) < 0.05
    assert verdict(alone).startswith('Above')
    many = gains(a=[0.010, 0.0111], **{f'b{number}': [-0.01, 0.01] for number in range(3)})
    assert verdict(many).startswith('No setting is shown to lie above')


def record(seconds: float, accuracy: float, saving: float) -> Record:
    return Record.model_validate(a_record('freezeout', 0, accuracy, seconds) | {'predicted_saving': saving})


def test_results_and_table():
    name = settings.name_of(settings.DEFAULT)
    records: dict = {
        results.baseline_name(percent): {seed: record(percent, 0.9 + percent / 1000, 0.0) for seed in (5, 6)}
        for percent in LENGTHS
    }
    records |= {name: {5: record(85, 0.99, 0.2), 6: record(75, 0.985, 0.2)}, 'failed': {}}
    del records['baseline-70'][6]
    rows, clock = results.results([settings.DEFAULT], records)
    assert clock.kind == 'wall-clock'
    assert [row.name for row in rows] == [*map(results.baseline_name, LENGTHS), name]
    found = rows[-1].gain
    # The other seed has no whole curve.
    assert found is not None and found.difference is not None
    assert found.seeds == 1 and found.difference.value == pytest.approx(0.005)
    text = report.table(rows)
    assert f'| {name} | t_0=0.8, how_scale="cubic", scale_lr=true, ' in text
    assert '| 2 | 98.75 ± 0.35 | 80.0 ± 7.1 | 20.0 | +0.50 | – |' in text
    json.dumps([row.as_json() for row in rows], allow_nan=False)


def test_the_table_says_on_which_side_of_the_curve_a_setting_lies():
    name = settings.name_of(settings.DEFAULT)
    records = {results.baseline_name(p): {s: record(p, p / 1000, 0.0) for s in (5, 6)} for p in LENGTHS}
    records[name] = {seed: record(20, 0.5, 0.8) for seed in (5, 6)}
    rows, clock = results.results([settings.DEFAULT], records)
    assert '| 20.0 ± 0.0 | 80.0 | below the curve’s start | – |' in report.table(rows, clock)


def test_what_is_explored_depends_on_what_training_starts_from():
    assert settings.space_of(settings.DEFAULT, fine_tunes=False) == settings.FROM_SCRATCH
    assert settings.space_of(settings.DEFAULT, fine_tunes=True) == settings.FINE_TUNING
    # A model of one's own may load its weights itself.
    assert settings.space_of(setting(t_0=0.3), fine_tunes=False) == settings.FINE_TUNING
    study = optuna.create_study(directions=['maximize', 'maximize'], sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [settings.suggest(study.ask(), least_t_0=0.05)['t_0'] for _ in range(40)]
    assert 0.05 <= min(drawn) < 0.3


def test_less_of_a_metric_may_be_better():
    score = Score(Metric(name='Loss', higher_is_better=False))
    name = settings.name_of(settings.DEFAULT)

    def one(seconds: float, loss: float) -> Record:
        return record(seconds, 0.0, 0.2).model_copy(update={'final': {'Loss': loss}, 'metric': score.metric})

    records = {results.baseline_name(p): {s: one(p, 3 - p / 100 + s / 1000) for s in (5, 6)} for p in LENGTHS}
    records[name] = {5: one(80, 2.0), 6: one(80, 2.011)}
    rows, _ = results.results([settings.DEFAULT], records, score)
    found = rows[-1].gain
    assert rows[-1].scores == [2.0, 2.011] and found is not None and found.difference is not None
    # The baseline in the same time has 2.205 and 2.206.
    assert found.difference.value == pytest.approx(0.2)
    text = report.table(rows, score=score)
    assert '| Loss (lower is better) |' in text and '| gain at equal cost, Loss, how much lower |' in text
    assert '| 2 | 2.0055 ± 0.0078 | 80.0 ± 0.0 | 20.0 | +0.2000 (' in text
    assert 'is 0.2000 better than it in Loss' in verdict({name: found}, score=score)


@pytest.mark.parametrize(('openmp', 'kind'), [({'wait_policy': 'passive', 'spin_count': None}, 'CPU'), (None, 'none')])
def test_on_a_busy_machine_settings_are_judged_by_cpu_seconds_or_not_at_all(openmp, kind):
    def one(percent: float, accuracy: float, wall: float) -> Record:
        content = a_record('freezeout', 0, accuracy, wall, 1.9 * percent)
        return Record.model_validate(content | {'openmp': openmp, 'segments': []})

    name = settings.name_of(settings.DEFAULT)
    records = {results.baseline_name(p): {s: one(p, 0.9 + p / 1000, p) for s in (5, 6)} for p in LENGTHS}
    # Other processes made it take more than twice as long.
    records[name] = {5: one(85, 0.99, 200), 6: one(75, 0.985, 190)}
    rows, clock = results.results([settings.DEFAULT], records)
    assert clock.kind == kind
    found = rows[-1].gain
    assert found is not None and found.difference is not None
    if kind == 'CPU':
        assert rows[-1].seconds == [1.9 * 85, 1.9 * 75]
        assert found.difference.value == pytest.approx(0.0075)
        assert '| CPU seconds |' in report.table(rows, clock)
    else:
        # All of them have the batches of the whole baseline, and save as much.
        assert found.cost == pytest.approx(1.0)
    assert verdict({name: found}, clock).endswith(clock.note)


# ---------------------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('text', 'seconds'), [('90s', 90), ('30m', 1800), ('1.5h', 5400)])
def test_durations(text, seconds):
    assert command_line.duration(text) == seconds


@pytest.mark.parametrize('text', ['', '30', '0m', '-1h', 'm', '1d'])
def test_other_durations_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match='must be a time above 0'):
        command_line.duration(text)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--trials', '0'], "must be a whole number of at least 1, got '0'"),
        (['--judge-seeds', '1'], "must be a whole number of at least 2, got '1'"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        command.main([str(QUICKSTART), '--out', str(tmp_path / 'out'), *arguments])
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


def test_faults_are_told_before_anything_is_trained(tmp_path, capsys):
    assert command.main([str(QUICKSTART), '--out', str(tmp_path / 'out'), 'optimizer.lr=fast']) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'command line: optimizer.lr' in line
    assert not (tmp_path / 'out').exists()


def test_a_folder_of_another_sweep_is_left_alone(tmp_path, refusal):
    out = tmp_path / 'out'
    out.mkdir()
    for _ in range(2):
        command.check_folder(out, overwrite=False)
        command.prepare_folder(out, {'judging_seeds': [3, 4]})
    with refusal(r'judging_seeds\.1 is 4 in this sweep and would be 5 now', Refused):
        command.prepare_folder(out, {'judging_seeds': [3, 5]})
    command.check_folder(out, overwrite=True)
    command.prepare_folder(out, {'judging_seeds': [3, 5]})
    (tmp_path / 'thesis.txt').write_text('do not lose')
    for overwrite in (False, True):
        with refusal('is not empty and holds no sweep', Refused):
            command.check_folder(tmp_path, overwrite=overwrite)
    assert (tmp_path / 'thesis.txt').exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_sweep(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(settings, 'FROM_SCRATCH', settings.Space(0.5, (100, 50)))
    out = tmp_path / 'out'
    arguments = [str(QUICKSTART), '--out', str(out), '--choose-seeds', '1', '--judge-seeds', '2', '--keep', '1', *SMALL]
    assert command.main([*arguments, '--trials', '2']) == 0
    result = json.loads((out / 'sweep.json').read_text())
    assert result['choosing_seeds'] == [17] and result['judging_seeds'] == [18, 19]
    assert result['trials'][0]['setting'] == settings.DEFAULT
    for row in result['judged']:
        assert row['seeds'] == [18, 19]
    assert result['verdict'] in (out / 'sweep.md').read_text()
    assert result['verdict'] in capsys.readouterr().out
    assert (out / 'accuracy_time.svg').read_text().startswith('<?xml')

    files = {file: file.stat().st_mtime_ns for file in out.glob('*/seed*/record.json')}
    text = (out / 'sweep.md').read_bytes(), (out / 'accuracy_time.svg').read_bytes()
    assert command.main([*arguments, '--trials', '2']) == 0
    assert {file: file.stat().st_mtime_ns for file in out.glob('*/seed*/record.json')} == files
    assert ((out / 'sweep.md').read_bytes(), (out / 'accuracy_time.svg').read_bytes()) == text

    # A judging run is done again if its record is gone, and it alone.
    lost = out / 'baseline-50' / 'seed19'
    shutil.rmtree(lost)
    assert command.main([*arguments, '--trials', '2']) == 0
    changed = [file for file, when in files.items() if file.stat().st_mtime_ns != when]
    assert changed == [lost / 'record.json']
