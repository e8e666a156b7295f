"""What `model.freeze` chooses never trains, with every algorithm and without any."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Callback
from composer.core import State
from composer.loggers import Logger

from composer_freezeout.run.build import assemble
from composer_freezeout.run.command import main
from composer_freezeout.run.config import ModelConfig, load
from composer_freezeout.run.faults import ConfigError
from composer_freezeout.run.fused import FusedPart
from composer_freezeout.run.models import build_model

RUN = """\
run_name: static
model: {name: resnet8, num_classes: 10, in_channels: 1, freeze: [conv1, bn1, 'layer1.*']}
train_data: {name: digits, batch_size: 479}
eval_data: {name: digits, batch_size: 360}
optimizer: {name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 0.01}
max_duration: 2ep
progress_bar: false
"""
FROZEN = ('module.conv1', 'module.bn1', 'module.layer1')
FREEZEOUT = 'algorithms=[{name: freezeout, t_0: 0.4}]'


@pytest.fixture
def yaml(tmp_path) -> Path:
    path = tmp_path / 'static.yaml'
    path.write_text(RUN)
    return path


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / 'record.json').read_text())


class Watch(Callback):
    """Looks at what of the frozen part takes part in a step, and how."""

    def __init__(self) -> None:
        self.frozen: list[bool] = []
        self.trained: list[bool] = []
        self.modes: list[bool] = []

    def watch(self, network: Any) -> None:
        network.layer1.register_forward_hook(lambda module, _, output: self.frozen.append(output.requires_grad))
        network.layer2.register_forward_hook(lambda module, _, output: self.trained.append(output.requires_grad))

    def after_forward(self, state: State, logger: Logger) -> None:
        network: Any = state.model
        self.modes.append(network.module.bn1.training or network.module.layer1[0].bn2.training)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
    'algorithms',
    [
        '[]',
        '[{name: freezeout, t_0: 0.4}]',
        '[{name: freezeout, t_0: 0.4, batchnorm: update}]',
        '[{name: layer_freezing, freeze_start: 0.0}]',
        '[{name: ema, half_life: 2ba}]',
        '[{name: sam}]',
        '[{name: selective_backprop, start: 0.0, end: 0.9}]',
        '[{name: swa, swa_start: 0.3dur, swa_end: 0.7dur, update_interval: 1ba}]',
    ],
)
def test_what_is_frozen_never_changes_and_has_no_graph(algorithms, yaml, tmp_path):
    parts = assemble(load(yaml, [f'algorithms={algorithms}', f'output={tmp_path / "out"}']))
    model, watch = parts.keywords['model'], Watch()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parts.keywords['callbacks'].append(watch)
    run = parts.build()
    watch.watch(model.module)
    run.trainer.fit()
    run.trainer.close()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not [name for name in changed if name.startswith(FROZEN)]
    assert {'module.layer2.0.conv1.weight', 'module.layer2.0.bn1.running_mean', 'module.fc.weight'} <= changed
    assert watch.modes and not any(watch.modes)
    assert any(watch.trained) and not any(watch.frozen)


def test_freezeout_leaves_alone_what_is_frozen_already(yaml, tmp_path):
    assert main([str(yaml), FREEZEOUT, f'output={tmp_path / "out"}']) == 0
    content = record(tmp_path / 'out')
    names = [unit['name'] for unit in content['units']]
    assert names[0] == 'module.layer2.0.conv1' and not [name for name in names if name.startswith(FROZEN)]
    frozen = content['effective']['frozen']
    assert frozen['modules'] == [
        *('module.conv1', 'module.bn1', 'module.layer1.0.conv1', 'module.layer1.0.bn1', 'module.layer1.0.conv2'),
        'module.layer1.0.bn2',
    ]
    trained = content['effective']['parameters_total'] - frozen['parameters']
    assert sum(unit['parameters'] for unit in content['units']) == trained
    assert sum(group['parameters'] for group in content['effective']['optimizer']['groups']) == trained


def test_the_predicted_saving_counts_what_is_frozen(yaml, tmp_path):
    def saving(name: str, *overrides: str) -> float:
        assert main([str(yaml), f'output={tmp_path / name}', *overrides]) == 0
        return record(tmp_path / name)['predicted_saving']

    static, both = saving('static'), saving('both', FREEZEOUT)
    alone = saving('alone', FREEZEOUT, 'model.freeze=null')
    assert 0.2 < static < both and alone < both
    assert saving('none', 'model.freeze=null') == 0
    assert record(tmp_path / 'none')['effective']['frozen'] is None


@pytest.mark.parametrize('algorithms', ['algorithms=[]', FREEZEOUT])
def test_a_resumed_run_has_the_same_bits(algorithms, yaml, tmp_path):
    arguments = [str(yaml), algorithms, 'checkpoint={interval: 1ba, resume: true}']
    out = tmp_path / 'out'
    assert main([*arguments, f'output={out}']) == 0
    whole = record(out)
    (out / 'record.json').unlink()
    latest = out / 'checkpoints' / 'latest-rank0.pt'
    target = next((out / 'checkpoints').glob('*ba4-rank0.pt'))
    last = torch.load(latest, weights_only=False)['state']['model']
    latest.unlink()
    latest.symlink_to(target)
    assert main([*arguments, f'output={out}']) == 0
    again = record(out)
    assert again['resumed_at_batch'] == [4] and again['effective'] == whole['effective']
    assert again['final'] == whole['final'] and again['units'] == whole['units']
    resumed = torch.load(latest, weights_only=False)['state']['model']
    assert all(torch.equal(tensor, last[name]) for name, tensor in resumed.items())


def test_the_summary_tells_what_never_trained(yaml, tmp_path, capfd):
    assert main([str(yaml), FREEZEOUT, f'output={tmp_path / "out"}']) == 0
    number = record(tmp_path / 'out')['effective']['frozen']['parameters']
    assert f'never trained: {number:,} of ' in capfd.readouterr().out


def model(*patterns: str, name: str = 'resnet8') -> Any:
    return build_model(ModelConfig(name=name, num_classes=10, freeze=list(patterns)))


def frozen(network: torch.nn.Module) -> list[str]:
    return [name for name, parameter in network.named_parameters() if not parameter.requires_grad]


def test_names_may_have_composers_prefix_and_may_be_those_of_parameters():
    assert frozen(model(r'module\.conv1')) == frozen(model('conv1')) == ['module.conv1.weight']
    assert frozen(model(r'fc\.bias')) == ['module.fc.bias']


@pytest.mark.parametrize(
    ('patterns', 'told'),
    [
        (['layr1'], "model.freeze.0: 'layr1' matches no module with parameters; did you mean 'layer1'?"),
        (['conv1', 'layer9.*'], "model.freeze.1: 'layer9.*' matches no module with parameters; did you mean 'layer"),
        (['avgpool'], "model.freeze.0: 'avgpool' matches no module with parameters; "),
        (['('], "model.freeze.0: '(' is not a regular expression: "),
        (['.*'], 'model.freeze: leaves no parameter to train; choose less, at least not the head'),
    ],
)
def test_expressions_that_will_not_do_are_told(patterns, told):
    with pytest.raises(ConfigError) as raised:
        model(*patterns)
    assert str(raised.value).startswith(told) and '\n' not in str(raised.value)


def test_what_is_frozen_runs_as_inference_without_freezeout_too(yaml, tmp_path):
    ends, outputs = [], []
    for fused in (True, False):
        out = tmp_path / str(fused)
        overrides = ['checkpoint={interval: 1ep}', f'output={out}', 'algorithms=[]']
        parts = assemble(load(yaml, overrides))
        callbacks: list[Any] = parts.keywords['callbacks']
        (fusing,) = (callback for callback in callbacks if isinstance(callback, FusedPart))
        if not fused:
            callbacks.remove(fusing)
        run = parts.build()
        run.trainer.fit()
        model: Any = run.trainer.state.model
        if fused:
            names = ['conv1', 'layer1.0.conv1', 'layer1.0.conv2']
            assert list(fusing.prefix.folding.pairs) == [f'module.{name}' for name in names]
        assert 'forward' not in vars(model.module.conv1) and not model.module.bn1._forward_hooks
        outputs.append(model.eval()(run.recorder.example))
        run.trainer.close()
        ends.append(torch.load(out / 'checkpoints' / 'latest-rank0.pt', weights_only=False)['state']['model'])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-2, atol=1e-3)


def test_freezeout_fuses_what_is_frozen_itself(yaml, tmp_path):
    parts = assemble(load(yaml, [FREEZEOUT, f'output={tmp_path / "out"}']))
    assert not [callback for callback in parts.keywords['callbacks'] if isinstance(callback, FusedPart)]
    assert not assemble(load(yaml, ['model.freeze=null'])).keywords['callbacks']
    run = parts.build()
    run.trainer.fit()
    (algorithm,) = run.trainer.state.algorithms
    assert 'module.conv1' in algorithm.state_dict()['fused'][0]
    run.trainer.close()
