"""Models and data sets of users' own: registered, imported, chosen and checked; and runs that have no accuracy."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DistributedSampler
from torchmetrics import MeanSquaredError

import composer_freezeout
from composer_freezeout import cli, register_data, register_model
from composer_freezeout.compare.arms.dry_run import look_at_data, resolve
from composer_freezeout.compare.judging.comparison import load as load_comparison
from composer_freezeout.compare.judging.verdict import arm_results
from composer_freezeout.compare.report.page import render
from composer_freezeout.compare.sweep import command as sweep
from composer_freezeout.compare.sweep import settings
from composer_freezeout.compare.training.job import Job
from composer_freezeout.costs.batches import first_samples, samples_of
from composer_freezeout.results.record import Metric
from composer_freezeout.run import plugins
from composer_freezeout.run.config import load
from composer_freezeout.run.data import build_data
from composer_freezeout.run.faults import ConfigError
from composer_freezeout.run.metrics import judged_by
from composer_freezeout.run.models import build_model
from composer_freezeout.run.plugins import load_plugins
from composer_freezeout.run.registered import DATA_SETS, MODELS

from .in_process import InProcess
from .records import folder

MODULE = """\
from pathlib import Path

import torch
from composer.models import ComposerModel
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics import MeanSquaredError

from composer_freezeout import register_data, register_model

SEEN = []


class Regression(ComposerModel):
    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = nn.Linear(width, width)
        self.layers = nn.Sequential(nn.Linear(6, width), nn.ReLU(), hidden, nn.ReLU(), nn.Linear(width, 1))
        self.error = MeanSquaredError()

    def forward(self, batch):
        return self.layers(batch['x']).squeeze(1)

    def loss(self, outputs, batch):
        return (outputs - batch['y']).square().mean()

    def eval_forward(self, batch, outputs=None):
        return self(batch) if outputs is None else outputs

    def get_metrics(self, is_train=False):
        return {} if is_train else {'MeanSquaredError': self.error}

    def update_metric(self, batch, outputs, metric):
        metric.update(outputs, batch['y'])


@register_model
def my_regression(width: int = 8, depth: int | None = None) -> Regression:
    if width < 1:
        raise ValueError(f'width must be at least 1, got {width}')
    return Regression(width)


@register_model('my_plain')
def plain(in_channels: int, num_classes: int, bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, num_classes, bias=bias))


@register_model
def headless(size: int = 3) -> nn.Module:
    return nn.Linear(size, size)


@register_model
def no_model() -> str:
    return 'a name'


class Points:
    def __init__(self, count):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(count, 6, generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index]

    def collate_fn(self, rows):
        x = torch.stack(rows)
        return {'x': x, 'y': x.sum(1)}


@register_data
def my_points(count: int = 32, file: Path | None = None, *, role: str, seed: int, batch_size: int):
    SEEN.append((role, seed, batch_size))
    if file is not None:
        file.read_text()
    return Points(count)


@register_data
def own_loader(batch: int = 4, shuffle: bool = False):
    points = Points(12)
    return DataLoader(points, batch_size=batch, shuffle=shuffle, collate_fn=points.collate_fn)


class Endless(IterableDataset):
    def __iter__(self):
        return iter([torch.ones(6)] * 8)

    collate_fn = Points.collate_fn


@register_data
def stream():
    return Endless()


@register_data
def nothing():
    return 3
"""
FILE = """\
run_name: own
model: {name: my_regression}
train_data: {name: my_points, batch_size: 8}
eval_data: {name: my_points, batch_size: 8, count: 16}
optimizer: {name: sgd, lr: 0.1}
algorithms:
  - {name: freezeout, t_0: 0.3}
max_duration: 2ep
progress_bar: false
"""


@pytest.fixture
def project(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder with a module, a YAML file and nothing registered or imported."""
    (tmp_path / 'my_project.py').write_text(MODULE, encoding='utf-8')
    (tmp_path / 'own.yaml').write_text(FILE, encoding='utf-8')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    monkeypatch.setattr(plugins, '_PLUGINS', {})
    monkeypatch.setattr(plugins, '_NAMED', [])
    registered = [(table, dict(table)) for table in (MODELS, DATA_SETS)]
    modules = set(sys.modules)
    for table, _ in registered:
        table.clear()
    yield tmp_path
    for table, before in registered:
        table.clear()
        table.update(before)
    for name in set(sys.modules) - modules:
        # What the test has imported besides may be needed by others.
        if str(getattr(sys.modules[name], '__file__', None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def imported(project) -> Path:
    load_plugins(['my_project'])
    return project


@pytest.fixture
def refused(project, capsys) -> Callable[..., str]:
    """Runs a command that is refused, and returns what it says."""

    def run(*arguments: str, command: str = 'run', lines: int = 1) -> str:
        code = cli.main([command, 'own.yaml', *arguments])
        out, err = capsys.readouterr()
        assert (code, out) == (2, '')
        assert len(err.splitlines()) == lines, err
        return err

    return run


def config(*overrides: str) -> Any:
    return load('own.yaml', overrides)


def data(*overrides: str, role: str = 'train_data') -> Any:
    found = config(*overrides)
    return build_data(getattr(found, role), role, num_classes=found.model.num_classes, seed=found.seed)


# --- registering


def test_decorators_leave_functions_as_they_are(project):
    def function() -> None:
        pass

    assert register_model(function) is function
    assert register_data('by_name')(function) is function
    assert (MODELS['function'].make, DATA_SETS['by_name'].make) == (function, function)


def test_registering_needs_no_torch():
    code = 'import sys; from composer_freezeout import register_data, register_model; sys.exit("torch" in sys.modules)'
    subprocess.run([sys.executable, '-c', code], check=True, timeout=60)
    assert {'register_data', 'register_model'} <= set(composer_freezeout.__all__)


def test_a_name_is_registered_once_but_may_be_defined_anew(project, refusal):
    def one() -> None:
        pass

    def other() -> None:
        pass

    register_model('mine')(one)
    register_model('mine')(one)
    with refusal(r"'mine' is registered by both .*\.one and .*\.other; register one"):
        register_model('mine')(other)


@pytest.mark.parametrize('register', [register_model, register_data])
def test_an_argument_cannot_be_called_as_a_key(register, project, refusal):
    with refusal("has an argument 'name', which is a key of its own"):

        @register
        def mine(name: str) -> None:
            pass


# --- importing


def test_a_run_of_ones_own(project, capfd):
    assert cli.main(['run', 'own.yaml', '--import', 'my_project', 'model.width=5']) == 0
    out = capfd.readouterr().out
    record = json.loads((project / 'runs/own/record.json').read_text())
    assert f'MeanSquaredError {record["final"]["MeanSquaredError"]:.4f}' in out
    assert record['metric'] == {'name': 'MeanSquaredError', 'higher_is_better': False}
    assert record['config']['model'] == {
        'name': 'my_regression',
        'width': 5,
        'depth': None,
        'weights': None,
        'freeze': None,
    }
    assert record['config']['train_data']['count'] == 32 and record['config']['eval_data']['count'] == 16
    assert record['effective']['train_samples'] == 32 and record['effective']['global_batch_size'] == 8
    assert [unit['frozen'] for unit in record['units']] == [True, True, False]
    assert 0 < record['predicted_saving'] < 1
    assert '--import my_project' in record['command']
    (plugin,) = record['plugins']
    assert (plugin['module'], plugin['distribution'], len(plugin['sha256'])) == ('my_project', None, 64)
    # The configuration that it leaves is one.
    again = ['run', 'runs/own/config.yaml', '--import', 'my_project', 'output=again']
    assert cli.main(again) == 0
    assert json.loads((project / 'again/record.json').read_text())['final'] == record['final']


def test_a_file_names_no_code(refused):
    digits = ('train_data={name: digits, batch_size: 8}', 'eval_data=null')
    assert "model.name: unknown name 'my_regression'" in refused(*digits, 'model.num_classes=10', 'model.in_channels=1')
    assert "train_data.name: unknown name 'my_points'; valid: cifar10" in refused('eval_data=null')


@pytest.mark.parametrize('command', ['run', 'plan', 'compare', 'sweep'])
def test_a_module_that_is_not_there(command, refused):
    message = refused('--import', 'your_project', command=command)
    assert message.startswith('command line: --import: your_project cannot be imported (ModuleNotFoundError: ')
    assert 'in the current folder: my_project.freezing for my_project/freezing.py' in message


def test_a_module_is_no_file(refused):
    assert 'not a file: --import my_project.freezing' in refused('--import', './my_project/freezing.py')


def test_what_is_wrong_in_a_module_is_told_with_its_place(refused, project):
    (project / 'broken.py').write_text('import torch\nimport no_such_library\n')
    message = refused('--import=broken')
    assert "No module named 'no_such_library'" in message and f'in line 2 of {project}/broken.py' in message


@pytest.mark.parametrize(
    ('code', 'message'),
    [
        ('register_model("resnet20")(lambda: None)', "taken: the model 'resnet20' has the name of one that comes with"),
        ('register_model("vit_b_16")(lambda: None)', "taken: the model 'vit_b_16' has the name of one that comes with"),
        ('register_data("digits")(lambda: None)', "taken: the data set 'digits' has the name of one that comes with"),
        ('register_model("my_plain")(lambda: None)', 'is registered by both my_project.plain and taken.<lambda>'),
    ],
)
def test_names_are_not_taken_twice(code, message, refused, project):
    (project / 'taken.py').write_text(f'from composer_freezeout import *\n{code}\n')
    assert message in refused('--import', 'my_project', '--import', 'taken')


@pytest.fixture
def installed(project, monkeypatch) -> Path:
    """The module as that of an installed package."""
    site = project / 'site'
    info = site / 'my_package-1.2.dist-info'
    info.mkdir(parents=True)
    (project / 'my_project.py').rename(site / 'my_project.py')
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: my-package\nVersion: 1.2\n')
    (info / 'entry_points.txt').write_text(f'[{plugins.GROUP}]\nmine = my_project\n')
    monkeypatch.syspath_prepend(site)
    return site


def test_installed_packages_name_their_plugins_themselves(installed):
    load_plugins([])
    assert 'my_regression' in MODELS
    (plugin,) = plugins.plugins()
    assert (plugin.module, plugin.distribution) == ('my_project', 'my-package 1.2')


def test_a_package_that_is_broken_is_named(installed, refused):
    (installed / 'my_project.py').write_text('raise RuntimeError("no")\n')
    message = refused()
    assert message.startswith('the installed package my-package 1.2: its plugin my_project cannot be imported (Runtime')
    assert 'uninstall it' in message


def test_runs_that_are_started_import_the_same(imported):
    job = Job('baseline', 0, Path('own.yaml'), ('seed=1',), Path('out'), {})
    # Wherever they are started.
    there = pickle.loads(pickle.dumps(job))
    load_plugins([])
    assert there.arguments(Path('f.yaml'), Path('o'))[:7] == [
        *('-m', 'composer', '-m', 'composer_freezeout.run'),
        *('f.yaml', '--import=my_project', 'seed=1'),
    ]


@pytest.mark.slow
def test_in_two_processes_each_has_its_part(project):
    command = [Path(sys.executable).with_name('composer'), '-n', '2', '-m', 'composer_freezeout.run', 'own.yaml']
    subprocess.run([*command, '--import', 'my_project'], check=True, cwd=project, timeout=280)
    record = json.loads((project / 'runs/own/record.json').read_text())
    assert (record['effective']['world_size'], record['effective']['batches_per_epoch']) == (2, 4)


# --- models


def test_arguments_are_checked_before_anything_is_built(imported, refusal):
    with refusal("model.widht: my_regression has no argument 'widht'; did you mean 'width'?", ConfigError):
        build_model(config('model.widht=3').model)
    with refusal('model.width: must be a valid integer, got', ConfigError):
        build_model(config('model.width=three').model)
    with refusal('model.width: width must be at least 1, got 0', ConfigError):
        build_model(config('model.width=0').model)


def test_a_plain_module_is_a_classifier(imported, refusal):
    own = ('train_data={name: digits, batch_size: 8}', 'eval_data=null')
    found = config('model={name: my_plain, num_classes: 10, in_channels: 1}', *own)
    model: Any = build_model(found.model)
    assert model.module[1].out_features == 10 and 'MulticlassAccuracy' in model.get_metrics()
    # A function that takes no number of classes leaves it to the loss.
    assert build_model(config('model={name: headless, num_classes: 3}').model).num_classes == 3
    with refusal('model.num_classes: is missing: headless returned a plain module', ConfigError):
        build_model(config('model={name: headless}').model)
    with refusal('model.num_classes: my_regression has no argument of this name', ConfigError):
        build_model(config('model.num_classes=3').model)
    with refusal('model.num_classes: is missing, and has no default', ConfigError):
        config('model.name=resnet8')


def test_what_is_no_model_is_told(imported, refusal):
    with refusal('model.name: no_model returned str; let it return a torch.nn.Module', ConfigError):
        build_model(config('model.name=no_model').model)


def test_a_part_of_it_may_be_frozen(imported):
    model = build_model(config(r'model.freeze=[layers\.0]').model)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ['layers.0.weight', 'layers.0.bias']


def test_mistakes_in_its_code_are_not_faults_of_the_file(imported):
    MODELS['my_regression'].make.__globals__['Regression'] = None
    with pytest.raises(TypeError, match='not callable'):
        build_model(config().model)


# --- data sets


def test_the_run_tells_what_data_are_for(imported):
    data('seed=7')
    data('seed=7', role='eval_data')
    assert sys.modules['my_project'].SEEN == [('train', 7, 8), ('eval', 7, 8)]


def test_a_data_set_is_dealt_out_to_processes_by_its_own_collate_function(imported):
    train, evaluation = data(), data('eval_data.count=12', role='eval_data')
    assert isinstance(train.dataloader.sampler, DistributedSampler)
    assert (train.dataloader.sampler.shuffle, evaluation.dataloader.sampler.shuffle) == (True, False)
    assert {key: tuple(value.shape) for key, value in next(iter(train.dataloader)).items()} == {'x': (8, 6), 'y': (8,)}
    assert [len(batch['x']) for batch in evaluation.dataloader] == [8, 4]


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        (['train_data.cuont=3'], "train_data.cuont: my_points has no argument 'cuont'; did you mean 'count'?"),
        (['train_data.role=eval'], "train_data.role: my_points has no argument 'role'"),
        (['train_data.count=4'], 'train_data.batch_size: 8 is more than the 4 samples there are'),
        (['train_data.file=nowhere.txt'], r'train_data: .*No such file or directory: .nowhere.txt.'),
        (['train_data.name=nothing'], 'train_data.name: nothing returned int; let it return a Dataset'),
        (['train_data.name=own_loader'], 'train_data.batch_size: asks for batches of 8 .* has batches of 4; let'),
        (
            ['train_data={name: own_loader, batch_size: 4, drop_last: true}'],
            "train_data.drop_last: own_loader makes its own loader, and has no argument 'drop_last'; add it",
        ),
    ],
)
def test_data_that_will_not_do(overrides, message, imported, refusal):
    with refusal(message, ConfigError):
        data(*overrides)


def test_a_loader_is_used_as_it_is(imported):
    spec = data('train_data={name: own_loader, batch_size: 4, shuffle: false}')
    assert len(spec.dataloader) == 3 and spec.num_samples == 12


def test_a_data_set_without_a_length(imported, refusal):
    stream = 'train_data={name: stream, batch_size: 4}'
    assert [len(batch['x']) for batch in data(stream).dataloader] == [4, 4]
    with refusal('train_data: has no length', ConfigError):
        look_at_data(config(stream))
    assert look_at_data(config(stream, 'train_subset_num_batches=2')).batches_per_epoch == 2


# --- before training


def test_a_comparison_looks_at_batches_of_any_kind(imported):
    seen = look_at_data(config())
    assert seen.batches_per_epoch == 4
    assert {key: tuple(value.shape) for key, value in seen.batch.items()} == {'x': (2, 6), 'y': (2,)}
    assert resolve(config())['train_data']['count'] == 32


def test_a_plan_of_ones_own(project, capsys):
    assert cli.main(['plan', 'own.yaml', '--import', 'my_project', '--no-profile', '--out', 'plan']) == 0
    assert 'samples of 6' in capsys.readouterr().out
    plan = json.loads((project / 'plan/plan.json').read_text())
    assert [unit['name'] for unit in plan['units']] == ['layers.0', 'layers.2', 'layers.4']


def test_the_first_samples_of_any_batch():
    tokens = torch.arange(12).view(4, 3)
    batch = {'ids': tokens, 'more': [(tokens, None)], 'scale': torch.tensor(2.0), 'name': 'text'}
    first = first_samples(batch, 2)
    assert first['ids'].tolist() == tokens[:2].tolist() and first['more'][0][0].shape == (2, 3)
    assert (first['more'][0][1], first['scale'].item(), first['name']) == (None, 2.0, 'text')
    assert samples_of(batch) == 4


def as_family(project: Path, file: str = FILE) -> None:
    """Writes a baseline and FreezeOut into the folder."""
    for arm in ('baseline', 'freezeout'):
        text = file if arm == 'freezeout' else file.replace('- {name: freezeout, t_0: 0.3}', '[]')
        (project / f'{arm}.yaml').write_text(text.replace('own', arm))


def test_a_sweep_by_a_metric_of_ones_own(project, monkeypatch, capsys):
    as_family(project)
    monkeypatch.setattr(settings, 'FINE_TUNING', settings.Space(0.05, (100, 50)))
    monkeypatch.setattr(sweep, 'executor', lambda *_: InProcess())
    arguments = ['--out', 'out', '--trials', '2', '--choose-seeds', '1', '--judge-seeds', '2', '--keep', '1']
    assert cli.main(['sweep', '.', '--import', 'my_project', *arguments]) == 0, capsys.readouterr().err
    found = json.loads((project / 'out' / 'sweep.json').read_text())
    assert found['trials'][0]['setting']['t_0'] == 0.3
    rows = {row['name']: row for row in found['judged']}
    assert {'baseline-100', 'baseline-50'} < set(rows)
    for name, row in rows.items():
        records = [json.loads((project / f'out/{name}/seed{seed}/record.json').read_text()) for seed in row['seeds']]
        assert row['scores'] == [record['final']['MeanSquaredError'] for record in records]
    assert '| MeanSquaredError (lower is better) |' in (project / 'out' / 'sweep.md').read_text()


def test_a_sweep_has_something_to_judge_by(project, capsys):
    as_family(project)
    module = project / 'my_project.py'
    module.write_text(MODULE.replace("{'MeanSquaredError': self.error}", '{}'), encoding='utf-8')
    assert cli.main(['sweep', '.', '--import', 'my_project', '--out', 'sweep']) == 2
    message = 'model.name: settings are judged by a metric of which more or less is better, and those of my_regression'
    assert f'{message} are: none' in capsys.readouterr().err


# --- runs without an accuracy


def test_the_metric_that_runs_are_judged_by():
    class Unknown:
        higher_is_better = None

    metrics = {'Unknown': Unknown(), 'MeanSquaredError': MeanSquaredError()}
    assert judged_by(metrics, metrics) == Metric(name='MeanSquaredError', higher_is_better=False)
    assert judged_by(metrics, ['Unknown']) is None and judged_by(metrics, []) is None
    assert judged_by(metrics, [*metrics, 'MulticlassAccuracy']) is None


def by_loss(out: Path, losses: dict[str, list[float]], higher_is_better: bool = False) -> Path:
    """A comparison in whose records a metric stands in the place of the accuracy."""
    seconds = {'baseline_short': 80.0, 'freezeout': 85.0}
    for path in folder(out, losses, seconds).glob('*/*/record.json'):
        text = path.read_text().replace('MulticlassAccuracy', 'Loss')
        content = json.loads(text) | {'metric': {'name': 'Loss', 'higher_is_better': higher_is_better}}
        path.write_text(json.dumps(content))
    return out


LOSSES = {'baseline': [2.0, 2.01, 2.02], 'baseline_short': [2.2, 2.21, 2.22], 'freezeout': [1.9, 1.905, 1.92]}


@pytest.mark.parametrize('higher_is_better', [False, True])
def test_less_of_a_loss_is_better(higher_is_better, tmp_path):
    comparison = load_comparison(by_loss(tmp_path, LOSSES, higher_is_better))
    result = next(result for result in arm_results(comparison) if result.arm == 'freezeout')
    assert result.gain is not None and result.gain.difference is not None and result.accuracy is not None
    assert result.accuracy.mean == pytest.approx(1.908, abs=1e-3)
    # The curve falls, or as longer training does no harm, has the same value everywhere.
    value = 0.24 if not higher_is_better else -0.2
    assert result.gain.difference.value == pytest.approx(value, abs=0.02)
    assert result.verdict == ('does not pay' if higher_is_better else 'pays')


def test_a_report_says_which_way_is_better(tmp_path):
    comparison = load_comparison(by_loss(tmp_path, LOSSES))
    # The picture's file is called as ever.
    text = render(comparison)['report.md'].replace('accuracy_time.svg', '').replace('have no accuracy', '')
    assert 'Loss (lower is better)' in text and 'gain at equal time, Loss, how much lower' in text
    assert (
        'at equal training time its Loss is 0.2' in text and 'below the baseline’s (95 % interval of the gain' in text
    )
    assert 'are compared by Loss, of which less is better' in text
    assert 'ccurac' not in text and ', points' not in text
    summary = render(comparison)['summary.csv']
    assert 'Loss_mean' in summary.splitlines()[0] and '1.908' in summary


def test_runs_with_other_metrics_are_not_compared(tmp_path, refusal):
    by_loss(tmp_path, LOSSES)
    path = tmp_path / 'freezeout/seed0/record.json'
    path.write_text(path.read_text().replace('"Loss"', '"Other"'))
    with pytest.raises(ValueError, match='metric is "Other" in freezeout/seed0/record.json, but "Loss" in baseline'):
        load_comparison(tmp_path)
