"""The schema, and what a user is told about a file that does not fit it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from composer_freezeout.run.command import main
from composer_freezeout.run.config import load, parse
from composer_freezeout.run.error_lines import describe
from composer_freezeout.run.faults import ConfigError, Fault, suggest
from composer_freezeout.run.yaml_files import read_yaml

ROOT = Path(__file__).parent.parent

GOOD = """\
run_name: test
model:
  name: resnet8
  num_classes: 10
  in_channels: 1
train_data:
  name: digits
  batch_size: 64
optimizer:
  name: sgd
  lr: 5e-4
max_duration: 2ba
"""


@pytest.fixture
def file(tmp_path):
    def write(text: str = GOOD) -> Path:
        path = tmp_path / 'run.yaml'
        path.write_text(text, encoding='utf-8')
        return path

    return write


def test_defaults_are_filled_in(file):
    config = load(file(GOOD + 'eval_data: {name: digits, batch_size: 8}\n'))
    assert config.optimizer.arguments == {'lr': 5e-4}
    assert isinstance(config.optimizer.arguments['lr'], float)
    assert (config.eval_interval, config.precision, config.device, config.seed) == ('1ep', 'fp32', 'auto', 0)
    assert Path(config.output) == Path('runs/test')
    assert config.algorithms == [] and config.scheduler is None and config.checkpoint is None
    train, evaluation = config.train_data, config.eval_data
    assert evaluation is not None
    assert (train.split, train.shuffle, train.drop_last) == ('train', True, True)
    assert (evaluation.split, evaluation.shuffle, evaluation.drop_last) == ('test', False, False)


@pytest.mark.parametrize('name', ['cifar10', 'cifar100'])
def test_cifar_is_augmented_in_training_only_and_can_be_told_not_to(file, name):
    text = GOOD.replace('in_channels: 1', 'in_channels: 3').replace('num_classes: 10', f'num_classes: {name[5:]}')
    text = text.replace('digits', name) + f'eval_data: {{name: {name}, batch_size: 8}}\n'
    config = load(file(text))
    assert config.train_data.augment is not None and config.eval_data is not None
    assert config.train_data.augment.model_dump() == {'crop_padding': 4, 'flip': True}
    assert config.eval_data.augment is None
    assert load(file(text), ['train_data.augment=null']).train_data.augment is None


def test_digits_are_not_augmented_unless_asked(file):
    assert load(file()).train_data.augment is None
    augment = load(file(), ['train_data.augment.crop_padding=1']).train_data.augment
    assert augment is not None and augment.model_dump() == {'crop_padding': 1, 'flip': False}


def test_a_resolved_configuration_resolves_to_itself(file):
    config = load(file(), ['eval_data={name: digits, batch_size: 8}'])
    assert parse(config.model_dump(mode='json')) == config


def test_yaml_is_1_2(file):
    raw = read_yaml(file('a: 5e-4\nb: 12:30\nc: on\nd: 1e3\ne: 010\n'))
    assert raw == {'a': 5e-4, 'b': '12:30', 'c': 'on', 'd': 1000.0, 'e': 10}


def test_overrides_are_yaml_and_create_missing_sections(file):
    config = load(
        file(GOOD + 'algorithms:\n  - name: freezeout\n'),
        ['max_duration=3ep', 'optimizer.lr=1e-2', 'algorithms.0.t_0=0.5', 'checkpoint.keep=2'],
    )
    assert config.max_duration == '3ep'
    assert config.optimizer.arguments == {'lr': 0.01}
    assert config.algorithms[0].arguments == {'t_0': 0.5}
    assert config.checkpoint is not None and config.checkpoint.keep == 2


def test_all_faults_are_reported_at_once(file):
    with pytest.raises(ConfigError) as caught:
        load(file(GOOD + 'sede: 1\nprecision: fp8\n'), ['max_duration=0ep'])
    assert sorted(fault.path for fault in caught.value.faults) == ['max_duration', 'precision', 'sede']


# What is wrong with the file; the key that the message must name, and a part of what it must say.
BROKEN = {
    'unknown key': (GOOD + 'trian_data: 1\n', 'trian_data', "did you mean 'train_data'?"),
    'unknown nested key': (
        GOOD.replace('batch_size', 'batchsize'),
        'train_data.batchsize',
        "did you mean 'batch_size'?",
    ),
    'missing key': (GOOD.replace('max_duration: 2ba', ''), 'max_duration', 'is missing'),
    'missing section': (GOOD.replace('optimizer:\n  name: sgd\n  lr: 5e-4\n', ''), 'optimizer', 'is missing'),
    'missing name': (GOOD.replace('  name: digits\n', ''), 'train_data.name', 'is missing'),
    'string for integer': (GOOD.replace('64', '"64"'), 'train_data.batch_size', "'64' (string)"),
    'number for integer': (GOOD.replace('64', '6.5'), 'train_data.batch_size', '6.5 (number)'),
    'boolean for integer': (GOOD + 'seed: true\n', 'seed', 'True (boolean)'),
    'string for boolean': (GOOD + 'progress_bar: "yes"\n', 'progress_bar', "'yes' (string)"),
    'yes is no boolean': (GOOD + 'overwrite: yes\n', 'overwrite', "'yes' (string)"),
    'list for mapping': (
        GOOD.replace('optimizer:\n  name: sgd\n  lr: 5e-4', 'optimizer: [sgd]'),
        'optimizer',
        'mapping',
    ),
    'mapping for list': (GOOD + 'algorithms: {name: ema}\n', 'algorithms', 'list'),
    'string in list of mappings': (GOOD + 'algorithms: [ema]\n', 'algorithms.0', "'ema' (string)"),
    'zero batch size': (GOOD.replace('64', '0'), 'train_data.batch_size', 'greater than or equal to 1, got 0'),
    'negative seed': (GOOD + 'seed: -1\n', 'seed', '-1'),
    'NaN': (GOOD + 'checkpoint: {keep: .nan}\n', 'checkpoint.keep', 'nan'),
    'one class': (GOOD.replace('num_classes: 10', 'num_classes: 1'), 'model.num_classes', 'got 1'),
    'other number of classes': (
        GOOD.replace('num_classes: 10', 'num_classes: 7'),
        'model.num_classes',
        'has 10 classes',
    ),
    'other channels': (GOOD.replace('in_channels: 1', 'in_channels: 3'), 'model.in_channels', 'is 3'),
    'bare duration': (GOOD.replace('2ba', '20'), 'max_duration', "'20ep'"),
    'zero duration': (GOOD.replace('2ba', '0ep'), 'max_duration', "'0ep'"),
    'wall clock': (GOOD.replace('2ba', '10sec'), 'max_duration', "'10sec'"),
    'eval interval': (GOOD + 'eval_interval: often\n', 'eval_interval', "'often'"),
    'precision': (GOOD + 'precision: bf16\n', 'precision', "did you mean 'amp_bf16'?"),
    'device': (GOOD + 'device: cuda\n', 'device', "'cuda'"),
    'microbatch size': (GOOD + 'microbatch_size: half\n', 'microbatch_size', "'auto' or null, got 'half'"),
    'unknown data set': (GOOD.replace('digits', 'digit'), 'train_data.name', "did you mean 'digits'?"),
    'split': (GOOD.replace('64', '64\n  split: val'), 'train_data.split', "'val'"),
    'padding': (GOOD.replace('64', '64\n  augment: {crop_padding: -1}'), 'train_data.augment.crop_padding', '-1'),
    'augment': (GOOD.replace('64', '64\n  augment: {flop: true}'), 'train_data.augment.flop', "did you mean 'flip'?"),
    'run name': (GOOD.replace('run_name: test', 'run_name: a/b'), 'run_name', "'a/b'"),
    'overwrite and resume': (GOOD + 'overwrite: true\ncheckpoint: {resume: true}\n', 'overwrite', 'contradicts'),
    'unknown network': (GOOD.replace('resnet8', 'resnet9'), 'model.name', 'must be 6n+2'),
    'misspelt network': (GOOD.replace('resnet8', 'rsnet20'), 'model.name', "did you mean 'resnet20'?"),
    'unknown optimizer': (GOOD.replace('name: sgd', 'name: sdg'), 'optimizer.name', "did you mean 'sgd'?"),
    'unknown optimizer argument': (GOOD.replace('  lr:', '  lrr:'), 'optimizer.lrr', "did you mean 'lr'?"),
    'type of an argument': (GOOD.replace('5e-4', 'fast'), 'optimizer.lr', "'fast' (string)"),
    'argument refused': (GOOD + 'algorithms: [{name: freezeout, t_0: 1.4}]\n', 'algorithms.0.t_0', 'got 1.4'),
    'choice refused': (
        GOOD + 'algorithms: [{name: freezeout, how_scale: cube}]\n',
        'algorithms.0.how_scale',
        "'cubic'?",
    ),
    'unknown algorithm': (GOOD + 'algorithms: [{name: freezout}]\n', 'algorithms.0.name', "did you mean 'freezeout'?"),
    'missing argument': (
        GOOD + 'algorithms: [{name: gradient_clipping, clipping_type: norm}]\n',
        'algorithms.0.clipping_threshold',
        'missing',
    ),
    'unknown scheduler': (GOOD + 'scheduler: {name: cosine}\n', 'scheduler.name', "'cosine'"),
    'time string': (GOOD + 'scheduler: {name: cosine_annealing, t_max: soon}\n', 'scheduler.t_max', "'soon'"),
    'unknown callback': (GOOD + 'callbacks: [{name: lr_moniter}]\n', 'callbacks.0.name', "did you mean 'lr_monitor'?"),
    'argument of none': (GOOD + 'callbacks: [{name: lr_monitor, a: 1}]\n', 'callbacks.0.a', 'takes none'),
    'unknown logger': (GOOD + 'loggers: [{name: files}]\n', 'loggers.0.name', "'file"),
    'batch above samples': (GOOD.replace('64', '2000'), 'train_data.batch_size', '1437'),
    'load path': (GOOD + 'checkpoint: {load_path: nowhere.pt}\n', 'checkpoint.load_path', "'nowhere.pt'"),
}


@pytest.mark.parametrize('case', BROKEN, ids=lambda case: case.replace(' ', '-'))
def test_a_fault_is_one_line_without_traceback(file, tmp_path, capsys, case):
    text, key, part = BROKEN[case]
    path = file(text)
    assert main([str(path), f'output={tmp_path / "out"}']) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf'{re.escape(str(path))}: {re.escape(key)}: .+\n', error), error
    assert part in error
    assert 'Traceback' not in error


# Faults of the file as a whole, which have no key.
UNREADABLE = {
    'empty': ('', 'must be a mapping'),
    'list': ('- 1\n- 2\n', '(list)'),
    'syntax': ('a: [1, 2\nb: 3\n', 'line 2: not YAML'),
    'tab': ('a:\n\tb: 1\n', 'line 2: not YAML'),
    'duplicate key': (GOOD + 'run_name: again\n', 'line 13: duplicate key "run_name"'),
    'nested duplicate key': (GOOD.replace('  lr:', '  lr: 1\n  lr:'), 'duplicate key "lr"'),
    'python object': ('a: !!python/object/apply:os.getcwd []\n', 'line 1: not YAML'),
}


@pytest.mark.parametrize('case', UNREADABLE, ids=lambda case: case.replace(' ', '-'))
def test_an_unreadable_file_is_told_with_its_line(file, capsys, case):
    text, part = UNREADABLE[case]
    path = file(text)
    assert main([str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'{path}: ') and error.count('\n') == 1
    assert part in error
    assert 'Traceback' not in error


def test_missing_file_names_the_nearest(file, capsys):
    path = file()
    assert main([str(path.with_name('runs.yaml'))]) == 2
    assert f"did you mean '{path}'?" in capsys.readouterr().err


def test_not_utf_8(tmp_path, capsys):
    path = tmp_path / 'run.yaml'
    path.write_bytes(b'run_name: \xff\xfe\n')
    assert main([str(path)]) == 2
    assert 'utf-8' in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert 'cannot be read' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('override', 'expected'),
    [
        ('max_duration', "expected key=value, got 'max_duration'"),
        ('=3', "expected key=value, got '=3'"),
        ('optimizer..lr=3', 'expected key=value'),
        ('sede=3', "sede: unknown key 'sede'; did you mean 'seed'?"),
        ('optimizer.lrr=3', "optimizer.lrr: SGD has no argument 'lrr'; did you mean 'lr'?"),
        ('seed=abc', "seed: must be a valid integer, got 'abc' (string)"),
        ('seed.x=1', "seed.x: 'seed' is 3 (integer) and has no key 'x'"),
        ('algorithms.1.t_0=0.5', "'algorithms' is a list of 1: '1' is not an index from 0 to 0"),
        ('algorithms.0.t_0=2', 'algorithms.0.t_0: t_0 must be in (0, 1], got 2'),
        ('optimizer=[', 'optimizer: the value'),
    ],
)
def test_a_fault_of_an_override_is_said_to_come_from_the_command_line(file, tmp_path, capsys, override, expected):
    path = file(GOOD + 'seed: 3\nalgorithms: [{name: freezeout}]\n')
    assert main([str(path), override, f'output={tmp_path / "out"}']) == 2
    error = capsys.readouterr().err
    assert error.startswith('command line: ') and error.count('\n') == 1
    assert expected in error


def test_describe_names_the_source_of_the_value():
    fault = Fault('optimizer.lr', 'wrong')
    assert describe(fault, 'a.yaml') == 'a.yaml: optimizer.lr: wrong'
    assert describe(fault, 'a.yaml', ['optimizer={}']) == 'command line: optimizer.lr: wrong'
    assert describe(fault, 'a.yaml', ['optimizer.lrs=1']) == 'a.yaml: optimizer.lr: wrong'
    assert describe(Fault('', 'wrong'), 'a.yaml', ['seed=1']) == 'a.yaml: wrong'
    unknown = Fault('optimiser', "unknown key 'optimiser'")
    assert describe(unknown, 'a.yaml', ['optimiser.lr=1']).startswith('command line: optimiser: ')
    assert describe(unknown, 'a.yaml', ['optimizer.lr=1']).startswith('a.yaml: optimiser: ')


def test_suggest():
    assert suggest('sgdd', ['sgd', 'adam']) == "did you mean 'sgd'?"
    assert suggest('zzz', ['sgd', 'adam']) == 'valid: adam, sgd'
    assert suggest('zzz', []) == 'it takes none'


@pytest.mark.parametrize('path', sorted(ROOT.glob('yamls/**/*.yaml')), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_yaml_of_the_repository_is_valid(path):
    assert load(path).run_name


def test_the_schema_imports_without_torch():
    code = "import sys, composer_freezeout.run.config; print('torch' in sys.modules, 'composer' in sys.modules)"
    output = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert output.split() == ['False', 'False']
