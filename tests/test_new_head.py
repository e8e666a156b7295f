"""Layers that the weights of a run don't have are FreezeOut's head, unless the file says otherwise."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from composer_freezeout.results.record import Weights
from composer_freezeout.run.build import assemble
from composer_freezeout.run.command import main
from composer_freezeout.run.config import load
from composer_freezeout.run.new_head import new_head

RUN = """\
run_name: fine
model: {name: resnet8, num_classes: 10, in_channels: 1, weights: a.pt}
train_data: {name: digits, batch_size: 479}
optimizer: {name: sgd, lr: 0.05}
algorithms: [{name: freezeout, preset: fine_tuning}]
max_duration: 2ep
progress_bar: false
"""
# What the last stage of the network learns, and its last layer, are new.
NEW = ('layer3.0.conv2', 'layer3.0.bn2', 'fc')


@pytest.fixture
def yaml(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'fine.yaml').write_text(RUN)
    network = assemble(load(tmp_path / 'fine.yaml', ['model.weights=null'])).keywords['model'].module
    torch.save({key: tensor for key, tensor in network.state_dict().items() if not key.startswith(NEW)}, 'a.pt')
    return tmp_path / 'fine.yaml'


def head(yaml: Path, *overrides: str) -> Any:
    (algorithm,) = assemble(load(yaml, overrides)).keywords['algorithms']
    return algorithm.settings.head


def test_new_layers_are_the_head(yaml):
    assert head(yaml) == (r'layer3\.0\.conv2', r'layer3\.0\.bn2', 'fc')
    assert head(yaml, 'model.weights=null') is None


def test_what_the_file_says_stands(yaml):
    assert head(yaml, 'algorithms.0.head=[fc]') == ('fc',)
    assert head(yaml, 'algorithms.0.head=null') is None
    assert head(yaml, "algorithms.0.layers=['module.*']") is None


def test_they_train_to_the_end_and_the_run_says_so(yaml, capfd):
    assert main([str(yaml), 'output=out']) == 0
    assert r"new layers, which FreezeOut trains to the end as head=['layer3\\.0\\.conv2', " in capfd.readouterr().out
    record = json.loads(Path('out/record.json').read_text())
    units = {unit['name']: unit['t_i'] for unit in record['units']}
    assert [name for name, t_i in units.items() if t_i == 1] == ['module.layer3.0.conv2', 'module.fc']
    assert list(units)[-3:] == ['module.layer3.0.conv1', 'module.layer3.0.conv2', 'module.fc']
    (algorithm,) = record['effective']['algorithms']
    keywords = {k.arg: ast.literal_eval(k.value) for k in ast.parse(algorithm, mode='eval').body.keywords}
    assert keywords['head'] == [r'layer3\.0\.conv2', r'layer3\.0\.bn2', 'fc']
    # The configuration is what the file says, by which runs are compared.
    assert record['config']['algorithms'][0]['head'] is None


def test_a_run_goes_on_with_its_head_without_the_file(yaml):
    arguments = [str(yaml), 'checkpoint={interval: 1ep, resume: true}', 'output=out']
    assert main(arguments) == 0
    latest, whole = Path('out/checkpoints/latest-rank0.pt'), Path('out/record.json').read_text()
    Path('out/record.json').unlink()
    latest.unlink()
    latest.symlink_to(next(latest.parent.absolute().glob('ep1-*')))
    Path('a.pt').unlink()
    assert main(arguments) == 0
    before, now = json.loads(whole), json.loads(Path('out/record.json').read_text())
    assert now['resumed_at_batch'] and now['units'] == before['units'] and now['weights'] == before['weights']


@pytest.mark.parametrize(
    ('override', 'told'),
    [
        ('algorithms.0.head=[fcc]', "algorithms.0.head: 'fcc' matches no module with trainable parameters; "),
        ('algorithms.0.head=[".*"]', "algorithms.0.head: ['.*'] is all of the model that is trainable"),
        ('algorithms.0.layers=[fc]', 'algorithms.0.layers: no expression matches the trainable parameter '),
    ],
)
def test_what_does_not_fit_the_model_is_told_with_its_key(override, told, yaml, capfd):
    assert main([str(yaml), 'output=out', override]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f'command line: {told}') and not Path('out/record.json').exists()


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.token = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Parameter(torch.zeros(2))
        self.decoder = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)))


@pytest.mark.parametrize(
    ('new', 'expected'),
    [
        ([], None),
        (['decoder.0.weight', 'decoder.0.bias', 'decoder.2.0', 'decoder.2.1'], ['decoder']),
        (['decoder.2.0.weight', 'decoder.2.0.bias', 'decoder.2.1.bias'], [r'decoder\.2\.0', r'decoder\.2\.1']),
        (['token'], None),  # no module holds it alone
        (['token', 'body', 'decoder'], None),
        (['body.1.running_mean'], None),  # of no parameter
    ],
)
def test_new_layers_go_by_the_outermost_module_that_is_new(new, expected, yaml):
    model = Network()
    names = [name for name in model.state_dict() if name.startswith(tuple(new))] if new else []
    weights = Weights(source='a', loaded=1, new=[*names, *(name for name in new if 'running' in name)], left_out=[])
    assert new_head(load(yaml), model, weights) == expected
