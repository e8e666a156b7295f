"""The setting for fine-tuning by its name: the same from Python and from YAML, and what is given besides stands."""

from pathlib import Path
from typing import Any

import pytest
import torch

import composer_freezeout
from composer_freezeout import FreezeOut, apply_freezeout
from composer_freezeout.method.finetuning import FINE_TUNING
from composer_freezeout.method.settings import Settings
from composer_freezeout.planning.components import components_of
from composer_freezeout.run import registry
from composer_freezeout.run.config import RunConfig, load
from composer_freezeout.run.faults import ConfigError
from composer_freezeout.run.registry import bind

from .networks import chain

RUN = """\
run_name: fine
model: {name: resnet8, num_classes: 10, in_channels: 1}
train_data: {name: digits, batch_size: 479}
optimizer: {name: sgd, lr: 0.05}
algorithms: [{name: freezeout, preset: fine_tuning}]
max_duration: 1ep
"""


def settings_of_loop(**arguments) -> Settings:
    model = chain()
    loop = apply_freezeout(model, torch.optim.SGD(model.parameters(), lr=0.1), **arguments)
    return Settings(**{**loop.state_dict()['settings'], 'fuse_frozen': True})


def settings_of_algorithm(**arguments) -> Settings:
    return FreezeOut(**arguments).settings


@pytest.mark.parametrize('made_by', [settings_of_algorithm, settings_of_loop])
def test_a_preset_stands_for_its_settings_and_what_is_given_besides_stands(made_by):
    assert made_by(preset='fine_tuning') == Settings(**FINE_TUNING) != Settings()
    # Also where that is the default without a preset.
    assert made_by(preset='fine_tuning', t_0=0.8, head=['head']) == Settings(
        **{**FINE_TUNING, 't_0': 0.8}, head=['head']
    )
    assert made_by(preset=None) == made_by() == Settings()
    with pytest.raises(ValueError, match="preset must be one of fine_tuning, or None, got 'finetuning'"):
        made_by(preset='finetuning')


def test_what_is_given_by_position_stands():
    assert FreezeOut(0.8, preset='fine_tuning').settings == Settings(**{**FINE_TUNING, 't_0': 0.8})
    arguments: Any = {'t_0': 0.7}
    with pytest.raises(TypeError, match="multiple values for argument 't_0'"):
        FreezeOut(0.8, preset='fine_tuning', **arguments)


def test_what_a_checkpoint_and_a_record_hold_are_the_settings():
    text = repr(FreezeOut(preset='fine_tuning'))
    assert 'preset' not in text and all(f'{name}={value!r}' in text for name, value in FINE_TUNING.items())
    assert FreezeOut(preset='fine_tuning').state_dict() == FreezeOut(**FINE_TUNING).state_dict()


def read(tmp_path, *overrides: str) -> RunConfig:
    path = tmp_path / 'fine.yaml'
    path.write_text(RUN)
    return load(path, overrides)


def test_a_file_names_it(tmp_path):
    config = read(tmp_path)
    assert config.algorithms[0].arguments == FINE_TUNING
    resolved = bind(registry.ALGORITHMS, config.algorithms[0], 'algorithms.0').resolved
    assert FINE_TUNING.items() <= resolved.items()
    other = read(tmp_path, 'algorithms.0.t_0=0.5').algorithms[0].arguments
    assert other == {**FINE_TUNING, 't_0': 0.5}


def test_a_file_that_names_another_is_told(tmp_path):
    config = read(tmp_path, 'algorithms.0.preset=finetuning')
    with pytest.raises(ConfigError, match="algorithms.0.preset: must be .*'fine_tuning'.*, got 'finetuning'"):
        bind(registry.ALGORITHMS, config.algorithms[0], 'algorithms.0')


def test_the_planner_knows_it(tmp_path):
    assert components_of(read(tmp_path)).freezeout.settings == Settings(**FINE_TUNING)
    inputs, model = torch.randn(2, 3, 8, 8), chain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plan = composer_freezeout.plan(model, inputs, optimizer, '2ep', preset='fine_tuning', head=['conv3', 'head'])
    assert (plan.t_0, plan.scale_lr, plan.heads) == (FINE_TUNING['t_0'], FINE_TUNING['scale_lr'], 2)
    assert [unit.t_i for unit in plan.units] == list(FreezeOut(**FINE_TUNING).freeze_times(4, heads=2))


def test_the_documentation_says_what_it_stands_for():
    text = (Path(__file__).parents[1] / 'docs' / 'method.md').read_text()
    assert all(f'`{name}={value!r}`' in text for name, value in FINE_TUNING.items())
