"""Weights from elsewhere: which go where, what starts anew, and which files are refused."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from composer_freezeout.run.command import main
from composer_freezeout.run.config import ModelConfig, load
from composer_freezeout.run.faults import ConfigError
from composer_freezeout.run.models import build_model
from composer_freezeout.run.weights import load_weights, weights_line

RUN = """\
run_name: fine
model: {name: resnet8, num_classes: 10, in_channels: 1}
train_data: {name: digits, batch_size: 479}
eval_data: {name: digits, batch_size: 360}
optimizer: {name: sgd, lr: 0.05}
max_duration: 1ep
progress_bar: false
"""

ZEROS = torch.zeros(16, 3, 3, 3)


@pytest.fixture
def yaml(tmp_path) -> Path:
    path = tmp_path / 'fine.yaml'
    path.write_text(RUN)
    return path


def model(num_classes: int = 10, name: str = 'resnet8', **arguments: Any) -> Any:
    return build_model(ModelConfig(name=name, num_classes=num_classes, **arguments))


def state(num_classes: int = 10) -> dict[str, Tensor]:
    torch.manual_seed(7)
    return model(num_classes).module.state_dict()


def loaded_into(target: Any, path: object) -> Any:
    return load_weights(target, 'resnet8', str(path), 'model.weights')


def refusal(target: Any, path: object) -> str:
    with pytest.raises(ConfigError) as raised:
        loaded_into(target, path)
    (fault,) = raised.value.faults
    assert fault.path == 'model.weights' and '\n' not in fault.message
    return fault.message


def renamed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in tensors.items()}


SAVED: dict[str, Callable[[dict[str, Tensor], Path], object]] = {
    'plain.pt': torch.save,
    'legacy.pth': lambda tensors, path: torch.save(tensors, path, _use_new_zipfile_serialization=False),
    'safe.safetensors': save_file,
    'parallel.pt': lambda tensors, path: torch.save(renamed(tensors, 'module.'), path),
    'lightning.ckpt': lambda tensors, path: torch.save({'state_dict': renamed(tensors, 'model.'), 'epoch': 3}, path),
    'compiled.pt': lambda tensors, path: torch.save(renamed(tensors, '_orig_mod.module.'), path),
    'compiled_inside.pt': lambda tensors, path: torch.save(renamed(tensors, 'module.model._orig_mod.'), path),
}


@pytest.mark.parametrize('file', SAVED)
def test_weights_of_every_kind_of_file_are_loaded(file, tmp_path):
    given, target = state(), model()
    SAVED[file](given, tmp_path / file)
    report = loaded_into(target, tmp_path / file)
    assert report.loaded == len(given) and report.new == [] and report.left_out == []
    assert all(torch.equal(tensor, given[name]) for name, tensor in target.module.state_dict().items())


def test_names_of_wrappers_that_are_the_models_own_are_kept(tmp_path):
    inner = torch.nn.ModuleDict({'model': torch.nn.Linear(2, 3), 'head': torch.nn.Linear(3, 2)})
    torch.save({f'module.{key}': tensor + 1 for key, tensor in inner.state_dict().items()}, tmp_path / 'a.pt')
    before = {key: tensor.clone() for key, tensor in inner.state_dict().items()}
    assert loaded_into(inner, tmp_path / 'a.pt').loaded == 4
    assert all(torch.equal(tensor, before[key] + 1) for key, tensor in inner.state_dict().items())


@pytest.mark.parametrize('classes', [3, 20])
def test_a_head_of_another_size_starts_anew(classes, tmp_path):
    torch.save({**state(classes), 'extra': torch.zeros(1)}, tmp_path / 'a.pt')
    target = model()
    head = [tensor.clone() for tensor in target.module.fc.parameters()]
    report = loaded_into(target, tmp_path / 'a.pt')
    assert report.new == ['module.fc.weight', 'module.fc.bias']
    assert report.left_out == ['fc.weight', 'fc.bias', 'extra']
    assert all(map(torch.equal, head, target.module.fc.parameters()))
    assert torch.equal(target.module.conv1.weight, state(classes)['conv1.weight'])
    line = weights_line(report)
    assert f'{report.loaded} tensors loaded, 2 new (module.fc.weight, module.fc.bias), 3 left out (fc.weight' in line


def test_a_bias_does_not_stay_when_its_layer_starts_anew(tmp_path):
    tensors = state() | {'fc.weight': torch.zeros(10, 128)}
    torch.save(tensors, tmp_path / 'a.pt')
    assert loaded_into(model(), tmp_path / 'a.pt').new == ['module.fc.weight', 'module.fc.bias']


def test_other_shapes_elsewhere_are_named_and_nothing_is_loaded(tmp_path):
    torch.save(state(), tmp_path / 'a.pt')
    target = model(in_channels=1)
    before = target.module.fc.weight.clone()
    told = refusal(target, tmp_path / 'a.pt')
    assert 'is of another model: module.conv1.weight (16, 3, 3, 3) instead of (16, 1, 3, 3); only the last' in told
    assert torch.equal(target.module.fc.weight, before)


def test_nothing_that_fits_shows_the_nearest_names(tmp_path):
    torch.save({f'net.{key}_': tensor for key, tensor in state().items()}, tmp_path / 'a.pt')
    told = refusal(model(), tmp_path / 'a.pt')
    assert 'none of the 44 tensors in' in told and "'net.conv1.weight_' is nearest to 'module.conv1.weight'" in told
    torch.save({'q': torch.zeros(1)}, tmp_path / 'a.pt')
    assert "its names are 'q', …" in refusal(model(), tmp_path / 'a.pt')


@pytest.mark.parametrize(
    'odd',
    [torch.zeros(16, 3, 3, 3).to_sparse(), torch.zeros(16, 3, 3, 3, device='meta'), torch.zeros(16, 3, 3, 3) * 1j],
)
def test_tensors_that_no_layer_has_fit_nowhere(odd, tmp_path):
    torch.save({'conv1.weight': odd}, tmp_path / 'a.pt')
    assert 'is of another model: module.conv1.weight' in refusal(model(), tmp_path / 'a.pt')


# --- files


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path.with_suffix('.harm'),)


DAMAGED: list[tuple[str, Callable[[Path], object], str]] = [
    ('a.pt', lambda path: torch.save({'conv1.weight': Harmful(path)}, path), 'holds Python objects ('),
    ('a.pt', lambda path: torch.save(torchvision.models.squeezenet1_1(), path), 'save the weights alone, torch.save('),
    ('a.pt', lambda path: torch.jit.save(torch.jit.script(torch.nn.ReLU()), str(path)), 'is a TorchScript archive'),
    ('a.pt', lambda path: path.write_bytes(b'garbage'), 'is damaged or not a file of torch.save'),
    ('a.pt', lambda path: torch.save([1], path), 'holds no weights; give a file of torch.save'),
    ('a.pt', lambda path: torch.save({'state': {'model': {}}}, path), 'holds no weights'),
    ('a.safetensors', lambda path: path.write_bytes(b'garbage and more'), 'is damaged ('),
    ('a.safetensors', lambda path: path.write_bytes((2**60).to_bytes(8, 'little') + b'{}'), 'is damaged ('),
    ('a.pt', lambda path: path.mkdir(), 'is not a file; give the path of one'),
    ('a.safetensors', lambda path: path.mkdir(), 'is not a file; give the path of one'),
    ('a.pt', lambda path: None, 'no such file: '),
]


@pytest.mark.parametrize(('name', 'make', 'told'), DAMAGED)
def test_a_file_that_will_not_do_is_told_in_a_line_and_runs_nothing(name, make, told, tmp_path):
    make(tmp_path / name)
    assert told in refusal(model(), tmp_path / name)
    assert not (tmp_path / 'a.harm').exists()


def test_every_cut_of_a_file_is_told_in_a_line(tmp_path):
    target = model()
    for name in ('plain.pt', 'legacy.pth', 'safe.safetensors'):
        SAVED[name]({'conv1.weight': state()['conv1.weight']}, tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        for length in range(0, len(whole), max(1, len(whole) // 20)):
            (tmp_path / name).write_bytes(whole[:length])
            told = refusal(target, tmp_path / name)
            # What is cut within a name asks for an object of another one.
            assert 'is damaged' in told or 'nothing is loaded' in told


def test_a_file_that_is_larger_than_memory_is_not_read(tmp_path):
    with (tmp_path / 'a.pt').open('wb') as file:
        file.truncate(2**43)  # which takes no space on the disk
    assert 'of memory are free; give a smaller file' in refusal(model(), tmp_path / 'a.pt')


# --- torchvision's


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Where torch looks for weights that it has downloaded."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    folder = tmp_path / 'hub' / 'checkpoints'
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize('name', ['DEFAULT', 'IMAGENET1K_V1'])
def test_torchvisions_weights_by_name(name, cache):
    weights = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    given = torchvision.models.squeezenet1_1().state_dict()
    torch.save(given, cache / weights.url.rpartition('/')[2])
    target = model(name='squeezenet1_1')
    report = load_weights(target, 'squeezenet1_1', name, 'model.weights')
    assert report.source == name and report.new == ['module.classifier.1.weight', 'module.classifier.1.bias']
    assert torch.equal(target.module.features[0].weight, given['features.0.weight'])


def test_names_that_torchvision_has_not(cache):
    def told(name: str, source: str) -> str:
        with pytest.raises(ConfigError) as raised:
            load_weights(torch.nn.Linear(2, 2), name, source, 'model.weights')
        return raised.value.faults[0].message

    assert "did you mean 'IMAGENET1K_V2'?" in told('resnet50', 'IMAGENET_V2')
    assert (
        told('resnet8', 'DEFAULT') == "no such file: 'DEFAULT'; torchvision, whose weights have names, has no resnet8"
    )


def test_weights_that_cannot_be_downloaded_are_told_where_to_put(cache, monkeypatch):
    monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')
    with pytest.raises(
        ConfigError, match='DEFAULT cannot be downloaded from https://.*; put that file into '
    ) as raised:
        load_weights(model(name='squeezenet1_1'), 'squeezenet1_1', 'DEFAULT', 'model.weights')
    assert str(cache) in str(raised.value)


# --- in a run


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / 'record.json').read_text())


def test_a_run_fine_tunes_the_weights_of_another_runs_checkpoint(yaml, tmp_path, capfd):
    assert main([str(yaml), f'output={tmp_path / "first"}', 'checkpoint={interval: 1ep}', 'max_duration=8ep']) == 0
    (path,) = (tmp_path / 'first' / 'checkpoints').glob('ep8*.pt')
    capfd.readouterr()
    # Nothing is trained: what is evaluated are the weights of the first run.
    assert main([str(yaml), f'output={tmp_path / "second"}', f'model.weights={path}', 'optimizer.lr=0']) == 0
    first, second = record(tmp_path / 'first'), record(tmp_path / 'second')
    assert second['weights'] == {'source': str(path), 'loaded': 44, 'new': [], 'left_out': []}
    assert second['final']['MulticlassAccuracy'] > 0.15 and second['started_from'] is None
    assert math.isclose(second['final']['CrossEntropy'], first['final']['CrossEntropy'], rel_tol=0.5)
    assert second['effective']['total_batches'] == 3 and second['resumed_at_batch'] == []
    assert f'weights of {path}: 44 tensors loaded' in capfd.readouterr().out


def test_a_resumed_run_still_knows_its_weights_without_their_file(yaml, tmp_path):
    torch.save(model(in_channels=1).state_dict(), tmp_path / 'a.pt')
    out = tmp_path / 'out'
    arguments = [str(yaml), f'output={out}', f'model.weights={tmp_path / "a.pt"}']
    arguments.append('checkpoint={interval: 1ba, resume: true}')
    assert main(arguments) == 0
    whole = record(out)
    (out / 'record.json').unlink()
    (tmp_path / 'a.pt').unlink()
    latest = out / 'checkpoints' / 'latest-rank0.pt'
    target = next((out / 'checkpoints').glob('*ba2-rank0.pt'))
    latest.unlink()
    latest.symlink_to(target)
    assert main(arguments) == 0
    again = record(out)
    assert again['weights'] == whole['weights'] and again['final'] == whole['final']
    assert again['resumed_at_batch'] == [2]


def test_two_origins_contradict_each_other(yaml):
    with pytest.raises(ConfigError, match='model.weights: contradicts checkpoint.load_path'):
        load(yaml, ['model.weights=a.pt', 'checkpoint.load_path=b.pt'])


def test_what_is_wrong_with_weights_is_one_line(yaml, tmp_path, capsys):
    assert main([str(yaml), f'output={tmp_path / "out"}', 'model.weights=nowhere.pt']) == 2
    assert capsys.readouterr().err == "command line: model.weights: no such file: 'nowhere.pt'\n"
    assert not (tmp_path / 'out').exists()
