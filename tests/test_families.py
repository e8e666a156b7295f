"""The families of YAML files that are compared with each other: one folder each, one file for each arm."""

from pathlib import Path

import pytest
import torch
from composer.core import Time, TimeUnit

from composer_freezeout.compare.arms.known import COST_AWARE, FREEZING, SHARED
from composer_freezeout.method.schedule import freeze_times
from composer_freezeout.run import registry
from composer_freezeout.run.build import assemble
from composer_freezeout.run.config import load
from composer_freezeout.run.families import find_config, find_family, names
from composer_freezeout.run.faults import ConfigError, Refused
from composer_freezeout.run.yaml_files import read_yaml

YAMLS = Path(__file__).parent.parent / 'yamls'
QUICKSTART = 'quickstart'
FOLDERS = sorted(folder for folder in YAMLS.iterdir() if folder.is_dir())
# Families that fine-tune have a file for what comes before.
FINE_TUNING = [folder.name for folder in FOLDERS if (folder / 'pretrain.yaml').is_file()]
FAMILIES = [folder.name for folder in FOLDERS if folder.name not in FINE_TUNING]
FULL = [family for family in FAMILIES if family != QUICKSTART]

# how_scale, t_0, scale_lr, const_time
FREEZEOUT = {
    'freezeout': ('cubic', 0.8, True, False),
    'freezeout_unscaled': ('cubic', 0.8, False, False),
    'freezeout_squared': ('squared', 0.7, True, False),
    'freezeout_squared_unscaled': ('squared', 0.7, False, False),
    'freezeout_linear': ('linear', 0.5, True, False),
    'freezeout_linear_unscaled': ('linear', 0.5, False, False),
    'freezeout_const_time': ('cubic', 0.8, True, True),
}
ARMS = ['baseline', 'layer_freezing', *FREEZEOUT, SHARED]
# Families of which the costs of the units have been measured, and how many units there are.
UNITS = {'resnet8_cifar10_jpeg': 8}
FILES = [(family, file.stem) for family in FAMILIES for file in sorted((YAMLS / family).glob('*.yaml'))]


def file_of(family: str, arm: str) -> Path:
    return YAMLS / family / f'{arm}.yaml'


def test_the_families_are_found():
    assert {QUICKSTART, 'resnet8_cifar10_jpeg', 'resnet56_cifar10', 'resnet50_imagenet'} <= set(FAMILIES)


@pytest.mark.parametrize('family', FULL)
def test_a_family_has_a_file_for_each_arm(family):
    others = [COST_AWARE] if family in UNITS else []
    assert sorted(arm for folder, arm in FILES if folder == family) == sorted([*ARMS, *others])


def test_the_quickstart_has_three_arms():
    assert [arm for family, arm in FILES if family == QUICKSTART] == ['baseline', 'freezeout', 'layer_freezing']


@pytest.mark.parametrize(('family', 'arm'), FILES)
def test_a_file_is_a_valid_run_named_after_its_place(family, arm):
    config = load(file_of(family, arm))
    assert config.run_name == f'{family.replace("_", "-")}-{arm}'
    assert config.output == f'runs/{family}/{arm}'
    assert all(registry.bind(registry.ALGORITHMS, entry, 'algorithms') for entry in config.algorithms)
    registry.bind(registry.OPTIMIZERS, config.optimizer, 'optimizer', positional=1)
    if config.scheduler is not None:
        registry.bind(registry.SCHEDULERS, config.scheduler, 'scheduler')


@pytest.mark.parametrize(('family', 'arm'), FILES)
def test_arms_differ_in_name_method_and_schedule_only(family, arm):
    def shared(name: str) -> dict:
        raw = read_yaml(file_of(family, name))
        del raw['run_name'], raw['output'], raw['algorithms']
        raw.pop('scheduler', None)
        return raw

    assert shared(arm) == shared('baseline')


@pytest.mark.parametrize(('family', 'arm'), FILES)
def test_an_arm_has_the_settings_that_its_name_says(family, arm):
    raw, baseline = read_yaml(file_of(family, arm)), read_yaml(file_of(family, 'baseline'))
    common = baseline['algorithms']
    assert raw['algorithms'][: len(common)] == common
    freezing = raw['algorithms'][len(common) :]
    if arm == COST_AWARE:
        (entry,) = raw['algorithms']
        assert len(entry.pop('unit_costs')) == UNITS[family]
        assert [entry] == read_yaml(file_of(family, 'freezeout'))['algorithms']
        return
    if arm == SHARED:
        assert freezing[0].pop('anneal') == 'shared'
        assert raw['algorithms'] == read_yaml(file_of(family, 'freezeout'))['algorithms']
        return
    if arm not in FREEZEOUT:
        assert raw['scheduler'] == baseline['scheduler']
        defaults = {'name': 'layer_freezing', 'freeze_start': 0.5, 'freeze_level': 1.0}
        assert freezing == ([defaults] if arm == 'layer_freezing' else [])
        return
    assert 'scheduler' not in raw
    how_scale, t_0, scale_lr, const_time = FREEZEOUT[arm]
    expected = {'name': 'freezeout', 't_0': t_0, 'how_scale': how_scale, 'scale_lr': scale_lr}
    if const_time:
        expected['const_time'] = True
    if 't_warmup' in baseline['scheduler']:
        expected['t_warmup'] = baseline['scheduler']['t_warmup']
    assert freezing == [expected]


@pytest.mark.parametrize('family', FINE_TUNING)
def test_arms_that_fine_tune_differ_in_name_method_and_schedule_only(family):
    def shared(file: Path) -> dict:
        raw = read_yaml(file)
        assert raw.pop('run_name') == f'{family.replace("_", "-")}-{file.stem}'
        assert raw.pop('output') == f'runs/{family}/{file.stem}'
        raw.pop('scheduler', None)
        raw['algorithms'] = [entry for entry in raw['algorithms'] if entry['name'] not in FREEZING]
        raw['model'].pop('freeze', None)
        return raw

    files = sorted(set((YAMLS / family).glob('*.yaml')) - {file_of(family, 'pretrain')})
    assert {'baseline', 'freezeout', 'layer_freezing'} <= {file.stem for file in files}
    assert all(shared(file) == shared(file_of(family, 'baseline')) for file in files)


@pytest.mark.parametrize('family', FINE_TUNING)
def test_arms_begin_with_what_the_pretraining_leaves_and_train_on_other_classes(family):
    before, config = load(file_of(family, 'pretrain')), load(file_of(family, 'baseline'))
    assert config.model.weights == f'{before.checkpoint_folder}/latest-rank0.pt'
    assert before.model.name == config.model.name and before.train_data.name == config.train_data.name
    chosen = [set(c.train_data.subset.indices) for c in (before, config)]
    assert not set.intersection(*chosen) and len(set.union(*chosen)) == before.train_data.num_classes_known
    for own in (before, config):
        assert own.train_data.subset.classes == own.eval_data.subset.classes


def test_the_first_unit_freezes_about_halfway_whatever_the_schedule():
    firsts = [freeze_times(50, t_0, how_scale)[0] for how_scale, t_0, _, _ in FREEZEOUT.values()]
    assert firsts == pytest.approx([0.5] * len(firsts), abs=0.02)


@pytest.mark.parametrize('family', FULL)
def test_a_warmup_is_a_share_of_the_run(family):
    scheduler = read_yaml(file_of(family, 'baseline'))['scheduler']
    t_warmup = scheduler.get('t_warmup')
    assert scheduler['name'] == ('cosine_annealing_with_warmup' if t_warmup else 'cosine_annealing')
    if t_warmup:
        time = Time.from_timestring(t_warmup)
        assert time.unit == TimeUnit.DURATION and 0 < time.value < 0.1


def test_the_quickstart_file_is_its_freezeout_arm():
    assert (YAMLS / 'quickstart.yaml').read_text() == file_of(QUICKSTART, 'freezeout').read_text()


@pytest.mark.parametrize(('family', 'arm'), [*((f, 'freezeout') for f in FULL), *((f, COST_AWARE) for f in UNITS)])
def test_a_family_trains(family, arm, tmp_path):
    file = file_of(family, arm)
    data = f'{{name: synthetic, num_classes: {load(file).model.num_classes}, num_samples: 4, batch_size: 2}}'
    # A warm-up starts from a learning rate of 0: the second batch is the first that can change anything.
    small = [
        'train_subset_num_batches=null',
        'max_duration=2ba',
        'precision=fp32',
        'device=cpu',
        'progress_bar=false',
        f'output={tmp_path}',
    ]
    trainer = assemble(load(file, [f'train_data={data}', 'eval_data=null', *small])).build().trainer
    before = {name: parameter.clone() for name, parameter in trainer.state.model.named_parameters()}
    trainer.fit()
    trainer.close()
    after = dict(trainer.state.model.named_parameters())
    assert all(parameter.isfinite().all() for parameter in after.values())
    assert any(not torch.equal(before[name], parameter) for name, parameter in after.items())


# --- families by name


def test_the_families_are_named():
    assert names() == sorted([*FAMILIES, *FINE_TUNING])


@pytest.mark.parametrize(
    ('name', 'file'),
    [
        ('quickstart', 'freezeout'),
        ('quickstart.yaml', 'freezeout'),
        ('quickstart/baseline', 'baseline'),
        ('quickstart/layer_freezing.yaml', 'layer_freezing'),
    ],
)
def test_a_name_stands_for_a_configuration_of_the_package(name, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == file_of('quickstart', file)


def test_a_file_or_folder_of_the_same_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('quickstart').mkdir()
    # Such as a folder of results.
    assert find_family('quickstart') == YAMLS / 'quickstart'
    assert find_config('quickstart') == file_of('quickstart', 'freezeout')
    Path('quickstart', 'baseline.yaml').touch()
    assert find_family('quickstart') == Path('quickstart')
    assert find_config('quickstart/baseline.yaml') == Path('quickstart/baseline.yaml')


def test_in_a_checkout_files_are_named_from_there(monkeypatch):
    monkeypatch.chdir(YAMLS.parent)
    assert find_family('quickstart') == Path('yamls/quickstart')
    assert find_config('quickstart/baseline') == Path('yamls/quickstart/baseline.yaml')


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path, monkeypatch, refusal):
    monkeypatch.chdir(tmp_path)
    with refusal("no such file, and no family of that name; did you mean 'quickstart'. families: densenet"):
        find_config('quikstart')
    with refusal('quikstart: no such folder, and no family of that name', Refused):
        find_family('quikstart')
    with refusal("the family 'quickstart' has no basline; did you mean 'baseline'.", ConfigError):
        find_config('quickstart/basline')
    assert find_config('my/own.yaml') == Path('my/own.yaml')
