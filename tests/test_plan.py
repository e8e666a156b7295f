"""Plans, and the command that makes them."""

import io
import json
import math
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torchvision.io import write_png

from composer_freezeout import FreezeOut, cli
from composer_freezeout.costs.bench import StepSeconds
from composer_freezeout.costs.saving import predicted_saving
from composer_freezeout.costs.seconds import StepProfile
from composer_freezeout.method.allocation import measured_unit_costs
from composer_freezeout.method.finetuning import FINE_TUNING
from composer_freezeout.method.schedule import freeze_times
from composer_freezeout.planning.content import CostAware
from composer_freezeout.planning.cost_models import COST_MODELS
from composer_freezeout.planning.look import look_at
from composer_freezeout.planning.make import make_plan
from composer_freezeout.planning.measured import cost_aware
from composer_freezeout.planning.plan import Plan
from composer_freezeout.planning.plots import STYLES
from composer_freezeout.planning.terminal import print_plan
from composer_freezeout.run.command import main as run
from composer_freezeout.run.config import load, parse
from composer_freezeout.run.faults import ConfigError
from composer_freezeout.run.yaml_files import apply_overrides, read_yaml

from .limits import no_file_beyond

ROOT = Path(__file__).parent.parent
CIFAR, IMAGENET = (str(ROOT / 'yamls' / name) for name in ('resnet56_cifar10', 'resnet50_imagenet'))

# 3 batches an epoch, 8 units.
TINY = """\
run_name: tiny
model: {name: resnet8, num_classes: 10, in_channels: 1}
train_data: {name: digits, batch_size: 479}
optimizer: {name: sgd, lr: 5e-2, momentum: 0.9}
algorithms: [{name: freezeout, t_0: 0.5, how_scale: linear}]
max_duration: 5ep
seed: 3
progress_bar: false
"""
# The second unit costs most.
COSTS = 'algorithms.0.unit_costs=[1, 9, 3, 2, 2, 1, 1, 0]'


@pytest.fixture(scope='module')
def yaml(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('yaml') / 'tiny.yaml'
    path.write_text(TINY)
    return path


def planned(
    yaml: str | Path, *overrides: str, repeats: int | None = None, image_size: int | None = None, **arguments: Any
) -> Plan:
    measured = {'repeats': repeats} if repeats is not None else {}
    return make_plan(look_at(load(yaml, overrides), image_size, measure=repeats is not None), **measured, **arguments)


def by_model(plan: Plan) -> dict[str, Any]:
    return {prediction.model: prediction for prediction in plan.predictions}


# --- what freezes when


@pytest.mark.parametrize(
    'overrides',
    [
        [],
        ['algorithms.0.max_stages=3'],
        ['max_duration=7ba', 'train_subset_num_batches=2'],
        ['max_duration=3353sp'],
        ['algorithms.0.const_time=true'],
        [COSTS],
    ],
    ids=['epochs', 'stages', 'batches', 'samples', 'const_time', 'unit_costs'],
)
def test_units_freeze_in_the_epochs_of_a_real_run(yaml, overrides, tmp_path):
    plan = planned(yaml, *overrides)
    assert run([str(yaml), f'output={tmp_path}', *overrides]) == 0
    record = json.loads((tmp_path / 'record.json').read_text())
    per_epoch = record['effective']['batches_per_epoch']
    frozen_at = [unit['frozen_at_batch'] for unit in record['units']]
    epochs = [None if batch is None else batch // per_epoch + 1 for batch in frozen_at]
    assert sum(epoch is not None for epoch in epochs) >= 5
    assert [unit.freeze_epoch for unit in plan.units] == epochs
    assert [f'module.{unit.name}' for unit in plan.units] == [unit['name'] for unit in record['units']]
    assert [unit.t_i for unit in plan.units] == [unit['t_i'] for unit in record['units']]
    assert [unit.parameters for unit in plan.units] == [unit['parameters'] for unit in record['units']]
    if not any('const_time' in override for override in overrides):
        assert by_model(plan)['flops'].saving == pytest.approx(record['predicted_saving'], rel=1e-12)


def test_layers_that_the_weights_do_not_have_are_the_head_as_in_the_run(yaml, tmp_path):
    model = look_at(load(yaml), measure=False).model
    tensors = model.state_dict().items()
    lacks = {name: tensor for name, tensor in tensors if 'layer3' not in name and 'fc' not in name}
    torch.save(lacks, tmp_path / 'weights.pt')
    weights = f'model.weights={tmp_path}/weights.pt'
    plan = planned(yaml, weights)
    assert run([str(yaml), f'output={tmp_path / "out"}', weights]) == 0
    record = json.loads((tmp_path / 'out' / 'record.json').read_text())
    assert [unit.t_i for unit in plan.units] == [unit['t_i'] for unit in record['units']]
    assert [f'module.{unit.name}' for unit in plan.units] == [unit['name'] for unit in record['units']]
    assert plan.heads == [unit['t_i'] for unit in record['units']].count(1.0) > 1
    assert any('new layers, which FreezeOut trains to the end' in note for note in plan.notes)
    fine_tuning = make_plan(look_at(load(yaml, [weights, 'algorithms=[]']), measure=False, settings=FINE_TUNING))
    assert fine_tuning.heads == plan.heads
    elsewhere = planned(yaml, 'model.weights=elsewhere/none.pt')
    assert elsewhere.heads == 1 and any(
        "'elsewhere/none.pt' is not here, and not read" in note for note in elsewhere.notes
    )


def test_units_of_a_stage_freeze_together(yaml):
    plan = planned(yaml, 'algorithms.0.max_stages=3')
    times = freeze_times(8, 0.5, 'linear')
    assert plan.stages == 3
    assert [unit.t_i for unit in plan.units] == list(times)
    # 7 units freeze in 3 stages: 2, 5 and 7.
    assert [unit.freezes_at for unit in plan.units] == [times[1]] * 2 + [times[4]] * 3 + [times[6]] * 2 + [1.0]
    assert by_model(plan)['flops'].saving < by_model(planned(yaml))['flops'].saving


def test_shares_of_a_step_are_whole(yaml):
    plan = planned(yaml)
    assert sum(unit.step_share for unit in plan.units) == pytest.approx(1, rel=1e-12)
    # The stem, one channel in, on 8x8: and the head, 64 to 10.
    assert plan.units[0].forward_flops == 2 * 8 * 8 * 9 * 1 * 16
    assert plan.units[-1].forward_flops == 2 * 64 * 10
    assert plan.image_shape == (1, 8, 8)


def test_without_a_length_of_the_epoch_no_epochs_are_told(tmp_path):
    plan = planned(f'{CIFAR}/freezeout.yaml', 'model.name=resnet8', f'train_data.root={tmp_path}', 'max_duration=90ba',
                   'algorithms.0.t_warmup=5ba')  # fmt: skip
    assert {unit.freeze_epoch for unit in plan.units} == {None}
    assert plan.warmup == 5 / 90


# --- the inverse


def test_the_found_t_0_saves_the_target(yaml):
    plan = planned(yaml, target=0.2)
    found = by_model(plan)
    assert found['paper'].t_0 < found['flops'].t_0
    for model, prediction in found.items():
        again = by_model(planned(yaml, f'algorithms.0.t_0={prediction.t_0}'))[model]
        assert again.saving == pytest.approx(0.2, abs=1e-9)
        assert prediction.first_freeze == pytest.approx(prediction.t_0)  # linear


def test_a_target_out_of_reach_has_no_t_0(yaml):
    plan = planned(yaml, target=0.9)
    assert all(prediction.t_0 is None and prediction.largest < 0.9 for prediction in plan.predictions)


# --- seconds


def steps(counts: Iterable[int], num_units: int, saved: float = 1e-3, batch_size: int = 479) -> StepProfile:
    """Steps of 30 ms, less what each frozen unit saves."""
    taken = {count: StepSeconds(9e-3, 20e-3 - saved * count, 1e-3) for count in counts}
    return StepProfile(taken, (1e-3,) * num_units, batch_size, 2, torch.device('cpu'), 'fp32')


@pytest.fixture
def given_seconds(monkeypatch) -> None:
    """What a busy machine would measure tells nothing: its steps may take no less when units are frozen."""

    def profile(model, batch, units, make_optimizer, *, counts, **_) -> StepProfile:
        return steps(counts, len(units))

    monkeypatch.setattr('composer_freezeout.planning.make.profile_steps', profile)


def test_seconds_are_measured(yaml):
    plan = planned(yaml, repeats=2, target=0.1, budget_seconds=1e4)
    assert plan.relied_on == 'seconds' and plan.prediction.model == 'seconds'
    measured = plan.measured
    assert measured is not None and measured.load_seconds is not None and measured.wait_share is not None
    assert (measured.batch_size, measured.repeats, measured.points) == (479, 2, 8)
    costs = plan.prediction.step_costs
    assert costs[0] == measured.step_seconds
    assert plan.prediction.saving == predicted_saving(costs, freeze_times(8, 0.5, 'linear'))
    for unit in plan.units:
        assert unit.forward_seconds is not None and unit.forward_seconds > 0
    # What freezing takes off, unit by unit, adds up to what the backward pass and the optimizer take.
    saved = [unit.backward_seconds for unit in plan.units if unit.backward_seconds is not None]
    assert len(saved) == 8 and 0 < sum(saved) < measured.step_seconds


def test_what_the_measured_costs_would_save_is_told(yaml, given_seconds):
    plan = planned(yaml, repeats=2)
    found = plan.cost_aware
    assert found is not None and found.measured_at_each and found.cost_shift == 0.25
    assert len(found.unit_costs) == 8 and found.unit_costs[-1] == 0
    # Nothing is shifted as long as the file doesn't say so.
    assert plan.unit_costs is None and [unit.t_i for unit in plan.units] == list(freeze_times(8, 0.5, 'linear'))
    costs = plan.prediction.step_costs
    assert found.paper_saving == plan.prediction.saving
    assert found.saving == predicted_saving(costs, freeze_times(8, 0.5, 'linear', found.unit_costs))
    assert list(found.unit_costs) == measured_unit_costs([1e3 * cost for cost in costs])


def test_the_plan_is_that_of_the_shifted_times(yaml):
    plan, paper = planned(yaml, COSTS), planned(yaml)
    times = FreezeOut(0.5, 'linear', unit_costs=[1, 9, 3, 2, 2, 1, 1, 0]).freeze_times(8)
    assert [unit.t_i for unit in plan.units] == list(times) != [unit.t_i for unit in paper.units]
    for name, prediction in by_model(plan).items():
        assert prediction.saving == predicted_saving(prediction.step_costs, times)
        assert prediction.step_costs == by_model(paper)[name].step_costs
    # It is they, too, that t_0 is found with.
    target = by_model(planned(yaml, COSTS, target=0.2))['flops']
    again = by_model(planned(yaml, COSTS, f'algorithms.0.t_0={target.t_0}'))['flops']
    assert again.saving == pytest.approx(0.2, abs=1e-9)


def test_costs_are_measured_at_each_unit_if_asked(yaml):
    small = ['model.name=resnet14', 'train_data.batch_size=16', 'max_duration=5ba']
    usual, every = planned(yaml, *small, repeats=1), planned(yaml, *small, repeats=1, every_unit=True)
    assert usual.measured is not None and usual.measured.points == 10
    assert every.measured is not None and every.measured.points == len(every.units) == 14


def test_costs_tell_whether_they_were_measured_at_each_unit():
    def found(counts: list[int], saved: float = 1e-3) -> CostAware | None:
        return cost_aware(steps(counts, 4, saved), 479, FreezeOut(0.5).settings, [0, 1, 2, 3], heads=1)

    each, some = found([0, 1, 2, 3]), found([0, 1, 3])
    assert each is not None and each.measured_at_each and each.unit_costs == (1.0, 1.0, 1.0, 0.0)
    assert some is not None and not some.measured_at_each and some.unit_costs == each.unit_costs
    # Steps that take the same, or longer, with units frozen show no costs.
    assert found([0, 1, 2, 3], 0.0) is None and found([0, 1, 2, 3], -1e-3) is None


def test_seconds_of_another_machine_are_not_relied_on(tmp_path):
    overrides = ['model.name=resnet8', 'model.num_classes=10', 'train_data.image_size=16', 'train_data.batch_size=8']
    plan = planned(f'{IMAGENET}/freezeout.yaml', *overrides, f'train_data.root={tmp_path}', repeats=1)
    if torch.cuda.is_available():
        assert plan.relied_on == 'seconds'
    else:
        assert plan.relied_on == 'flops' and 'seconds' in by_model(plan)
        assert any('asks for amp_bf16 on a GPU, and there is none here' in note for note in plan.notes)
    assert plan.measured is not None and plan.measured.load_seconds is None


def test_a_large_batch_is_scaled_up(yaml):
    plan = planned(yaml, repeats=1, budget_seconds=1e-6)
    assert plan.measured is not None and plan.measured.batch_size == 2
    assert plan.measured.step_seconds == plan.prediction.step_costs[0]


# --- data that aren't there


def test_imagenet_is_planned_without_imagenet(tmp_path):
    plan = planned(f'{IMAGENET}/freezeout.yaml', 'model.name=resnet8', f'train_data.root={tmp_path}/none')
    assert plan.image_shape == (3, 224, 224)
    assert plan.warmup == 0.0889
    assert any('random images of 224x224' in note and 'not measured' in note for note in plan.notes)


def test_cifar_is_planned_without_cifar_and_not_downloaded(tmp_path):
    plan = planned(f'{CIFAR}/freezeout.yaml', 'model.name=resnet8', f'train_data.root={tmp_path}')
    assert plan.image_shape == (3, 32, 32)
    assert list(tmp_path.iterdir()) == []


def test_images_of_unknown_size(tmp_path):
    overrides = [
        'model.name=resnet8',
        f'train_data={{name: image_folder, root: {tmp_path}, cache: true, batch_size: 4}}',
    ]
    with pytest.raises(ConfigError, match='train_data.root: .*only they tell their size; give --image-size PIXELS'):
        planned(f'{CIFAR}/freezeout.yaml', *overrides)
    assert planned(f'{CIFAR}/freezeout.yaml', *overrides, image_size=20).image_shape == (3, 20, 20)


# --- where it doesn't pay


def test_a_run_that_waits_for_its_data_is_told(tmp_path):
    folder = tmp_path / 'train' / 'a'
    folder.mkdir(parents=True)
    for index in range(12):
        write_png(torch.randint(256, (3, 500, 500), dtype=torch.uint8), str(folder / f'{index}.png'))
    raw = read_yaml(f'{CIFAR}/freezeout.yaml')
    raw['train_data'] = {'name': 'image_folder', 'root': str(tmp_path), 'image_size': 8, 'batch_size': 4}
    raw['eval_data'] = None
    config = parse(apply_overrides(raw, ['model.name=resnet8', 'model.num_classes=2']))
    (tmp_path / 'train' / 'b').mkdir()
    (folder / '0.png').rename(tmp_path / 'train' / 'b' / '0.png')
    plan = make_plan(look_at(config), repeats=2)
    measured, saving = plan.measured, by_model(plan)['seconds'].saving
    assert measured is not None and measured.wait_share is not None and measured.load_seconds is not None
    # Without workers each step waits for the whole of it.
    assert measured.wait_share == pytest.approx(
        measured.load_seconds / (measured.load_seconds + measured.step_seconds), rel=1e-9
    )
    assert measured.saving_with_wait == pytest.approx(saving * (1 - measured.wait_share), rel=1e-9)
    told = [warning for warning in plan.warnings if warning.startswith('input-bound: ')]
    assert len(told) == (measured.wait_share > 0.1)


def test_a_unit_that_dominates_is_told(yaml):
    plan = planned(yaml, "algorithms.0.layers=['module.conv1|module.bn1', 'module.layer.*|module.fc']")
    assert plan.prediction.largest < 0.1
    (warning,) = plan.warnings
    assert warning.startswith('freezing can save at most ')
    assert 'of a step' in warning


def test_an_order_that_cannot_be_cut_is_told(yaml):
    plan = planned(yaml, "algorithms.0.layers=['module.layer.*|module.fc', 'module.conv1|module.bn1']")
    assert any('the backward pass still runs through frozen units' in warning for warning in plan.warnings)


def test_a_t_0_that_training_refuses_is_told(yaml):
    plan = planned(yaml, 'algorithms.0.t_warmup=3ep', target=0.3)
    refused = [warning for warning in plan.warnings if 'is refused in training' in warning]
    assert len(refused) == 2  # that of the file, and the one that was found
    assert planned(yaml, 'algorithms.0.t_warmup=1ep').warnings == ()


def test_a_t_0_that_nobody_tried_is_told(yaml):
    assert any('below what the paper tried' in w for w in planned(yaml, 'algorithms.0.t_0=0.2').warnings)


def test_without_freezeout_its_defaults_are_planned(yaml):
    plan = planned(yaml, 'algorithms=[{name: label_smoothing}]')
    assert (plan.algorithm, plan.t_0, plan.how_scale) == (None, 0.8, 'cubic')
    assert any('label_smoothing' in note for note in plan.notes)
    assert any('no freezeout among its algorithms' in note for note in plan.notes)


# --- the command


def command(capsys, *arguments: object) -> tuple[int, str, str]:
    code = cli.main(['plan', *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_leaves_a_plan_and_plots(yaml, tmp_path, capsys):
    folders = [tmp_path / name for name in ('first', 'second')]
    for folder in folders:
        code, out, err = command(capsys, yaml, '--no-profile', '--out', folder, '--target', 0.2, 'max_duration=50ep')
        assert (code, err) == (0, '')
    found = json.loads((folders[0] / 'plan.json').read_text())
    t_0 = next(p['t_0'] for p in found['predictions'] if p['model'] == 'flops')
    assert f'algorithms.0.t_0={t_0:.3f}' in out
    assert found['duration'] == '50ep' and found['measured'] is None and len(found['units']) == 8
    assert 'composer-freezeout compare' in out
    names = ['frozen.png', 'plan.json', 'schedules.png']
    assert sorted(path.name for path in folders[0].iterdir()) == names
    # Nothing in it depends on when or where it was made.
    assert all((folders[0] / name).read_bytes() == (folders[1] / name).read_bytes() for name in names)


def test_the_snippet_where_the_file_has_no_freezeout(yaml, tmp_path, capsys):
    arguments = ['--no-profile', '--target', '0.1', '--out', tmp_path, 'algorithms=[]']
    code, out, _ = command(capsys, yaml, *arguments)
    assert code == 0
    snippet = out[out.index('  algorithms:') : out.index('Written to')]
    without = TINY.replace('algorithms: [{name: freezeout, t_0: 0.5, how_scale: linear}]', '')
    (tmp_path / 'with.yaml').write_text(without + textwrap.dedent(snippet))
    plan = planned(tmp_path / 'with.yaml')
    assert plan.algorithm == 0
    assert by_model(plan)['flops'].saving == pytest.approx(0.1, abs=2e-3)


def test_rates_of_one_cosine_are_printed(yaml, tmp_path, capsys):
    arguments = ['--no-profile', '--out', tmp_path, 'algorithms.0.anneal=shared']
    code, out, _ = command(capsys, yaml, *arguments)
    assert code == 0 and 'tiny: linear, t_0 0.5, scaled, anneal shared' in out
    # Units travel as far as one that trains to the end.
    times = freeze_times(8, 0.5, 'linear')
    rates = [0.05 / (t_i + math.sin(math.pi * t_i) / math.pi) for t_i in times]
    lines = [line for line in out.splitlines() if any(f' {t_i:.3f} ' in line for t_i in times)]
    assert [f'{rate:.2g}' in line.split() for rate, line in zip(rates, lines, strict=True)] == [True] * 8


@pytest.mark.parametrize('entry', [[], ['algorithms=[]'], ['algorithms.0.scale_lr=false', 'algorithms.0.max_stages=3']])
def test_the_setting_for_fine_tuning_is_planned(entry, yaml, tmp_path, capsys):
    code, out, err = command(capsys, yaml, '--finetune', '--no-profile', '--out', tmp_path, *entry)
    assert (code, err) == (0, '')
    found, text = json.loads((tmp_path / 'plan.json').read_text()), ' '.join(out.split())
    assert {name: found[name] for name in FINE_TUNING} == FINE_TUNING
    times = FreezeOut(**FINE_TUNING).freeze_times(8)
    assert [unit['t_i'] for unit in found['units']] == list(times)
    assert f'FreezeOut({", ".join(f"{name}={value!r}" for name, value in FINE_TUNING.items())})' in text
    if entry == ['algorithms=[]']:
        (tmp_path / 'freezeout.yaml').write_text(
            textwrap.dedent(out[out.index('  algorithms:') : out.index('Written')])
        )
        (written,) = read_yaml(tmp_path / 'freezeout.yaml')['algorithms']
        assert written == {'name': 'freezeout', **FINE_TUNING} and 'left out' not in text
        return
    # What the file says of other keys stays, and what it says of these is told.
    assert found['stages'] == (3 if entry else 7)
    assert "settings of the file are left out of the plan: freezeout's t_0 0.5" in text
    (line,) = [line for line in out.splitlines() if line.startswith('  composer-freezeout run ')]
    again = planned(yaml, *entry, *line.split()[3:])
    assert json.loads(json.dumps(again.to_dict()))['units'] == found['units']


def test_what_is_printed_fits(yaml):
    plan = planned(yaml, target=0.1)
    large = {'parameters': 25_000_000, 'forward_flops': 9_999_000_000, 'forward_seconds': 90.0, 'backward_seconds': 9.0}
    plan = replace(plan, units=tuple(replace(unit, **large) for unit in plan.units))
    for width in (80, 120):
        console = Console(file=io.StringIO(), width=width)
        print_plan(plan, console, 'a.yaml')
        lines = console.file.getvalue().splitlines()
        # All but the command, which is one line to copy.
        assert all(len(line.rstrip()) <= width for line in lines if not line.startswith('  composer-freezeout run'))
        # A line for each unit, none of them folded.
        assert sum('layer' in line for line in lines) == sum('layer' in unit.name for unit in plan.units)


def test_the_written_costs_can_be_used(yaml, given_seconds, tmp_path, capsys):
    file = tmp_path / 'costs.yaml'
    arguments = ['--profile-steps', 2, '--unit-costs', file, '--out', tmp_path / 'out']
    code, out, err = command(capsys, yaml, *arguments)
    assert (code, err) == (0, '')
    found = json.loads((tmp_path / 'out' / 'plan.json').read_text())['cost_aware']
    costs = read_yaml(file)['unit_costs']
    assert costs == found['unit_costs']
    assert 'CPU' in file.read_text() and 'tiny' in file.read_text()
    text = ' '.join(out.split())
    assert f'it saves {found["saving"]:.1%} instead of {found["paper_saving"]:.1%}' in text
    assert file.read_text().splitlines()[-1] in text
    plan = planned(yaml, f'algorithms.0.{file.read_text().splitlines()[-1].replace(": ", "=", 1)}')
    assert plan.unit_costs == tuple(costs)
    # A file that is there may be something else.
    code, _, err = command(capsys, yaml, *arguments)
    assert code == 2 and err == f'command line: --unit-costs: {str(file)!r} exists; give a new file\n'


@pytest.mark.parametrize(
    ('arguments', 'lines'),
    [
        (['nowhere.yaml'], ['nowhere.yaml: no such file; give the path of a YAML file']),
        (['TINY', 'algorithms.0.t_0=1.5'], ['command line: algorithms.0.t_0: t_0 must be in (0, 1], got 1.5; ']),
        (['TINY', 'modell.name=x'], ["command line: modell: unknown key 'modell'; did you mean 'model'?"]),
        (
            ['TINY', 'algorithms.0.t_zero=0.5', 'optimizer.lrr=1'],
            [
                "command line: algorithms.0.t_zero: FreezeOut has no argument 't_zero'; valid: anneal, batchnorm, ",
                "command line: optimizer.lrr: SGD has no argument 'lrr'; did you mean 'lr'?",
            ],
        ),
        (['TINY', 'model.name=resnet9'], ['command line: model.name: depth must be 6n+2']),
        (['TINY', "algorithms.0.layers=['module.fc']"], ['command line: algorithms.0.layers: no expression matches ']),
        (['TINY', 'algorithms.0.head=[fcc]'], ["command line: algorithms.0.head: 'fcc' matches no module with "]),
        (['TINY', 'algorithms=[{name: freezeout}, {name: freezeout}]'], ['command line: algorithms.1: FreezeOut ']),
        (['TINY', 'model.name=vit_b_16', 'model.in_channels=3', 'train_data.channels=3'],
         ['TINY: model: cannot be run on images of 3x8x8: Wrong image height']),
        (['TINY', '--out', 'TINY'], ['command line: --out: ']),
        (['TINY', 'algorithms.0.unit_costs=[1, 2]'],
         ['command line: algorithms.0.unit_costs: unit_costs must hold one number per unit: the model has 8 units, ']),
        (['TINY', 'algorithms.0.unit_costs=[1, -2]'],
         ['command line: algorithms.0.unit_costs: unit_costs must be in [0, ∞), got -2']),
        (['TINY', 'algorithms.0.cost_shift=0.5'],
         ['command line: algorithms.0.cost_shift: cost_shift=0.5 shifts nothing without unit_costs; ']),
        (['TINY', 'optimizer.lr=-1'], ['TINY with optimizer.lr=-1: optimizer: Invalid learning rate: -1']),
        (['TINY', 'model.in_channels=3', 'train_data={name: image_folder, root: x, batch_size: 1, image_size: 999999}'],
         ['command line: train_data.image_size: 2 random images of 999999x999999 take 23,999.9 GB, and ']),
        (['TINY', 'model.in_channels=3', 'train_data={name: image_folder, root: no, cache: true, batch_size: 1}',
          '--image-size', '1000000'],
         ['command line: --image-size: 2 random images of 1000000x1000000 take 24,000.0 GB, and ']),
        (['TINY', '--out', '/proc/plan'], ['command line: --out: /proc cannot be written: ']),
        (['TINY', '--target', '0.9'], ['command line: --target: 90.0% is out of reach: t_0 in (0, 1) saves ']),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_a_line_each(arguments, lines, yaml, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = command(capsys, '--no-profile', *(yaml if word == 'TINY' else word for word in arguments))
    assert code == 2
    told = err.splitlines()
    assert len(told) == len(lines)
    assert all(line.startswith(start.replace('TINY', str(yaml))) for line, start in zip(told, lines, strict=True)), told


def test_a_step_beyond_memory_is_refused_before_it_is_made(yaml, tmp_path, monkeypatch, capsys):
    # More than the network and the images take, and less than their activations.
    monkeypatch.setattr('composer_freezeout.run.memory.available_bytes', lambda: 2_000_000)
    data = f'train_data={{name: image_folder, root: {tmp_path}, image_size: 64, batch_size: 1}}'
    code, out, err = command(capsys, yaml, '--no-profile', 'model.in_channels=3', data)
    assert (code, out) == (2, '')
    assert err.count('\n') == 1
    assert err.startswith('command line: train_data.image_size: the activations of 2 images of 64x64 take 0.0 GB')


def test_a_full_disk_loses_no_plan(yaml, tmp_path, capsys):
    (tmp_path / 'plan.json').write_text('the one before')
    with no_file_beyond(1000):
        code, _, err = command(capsys, yaml, '--no-profile', '--out', tmp_path)
    file = tmp_path / 'plan.json'
    assert (code, err) == (2, f'command line: --out: {file} cannot be written: File too large; choose another place\n')
    assert [path.read_text() for path in tmp_path.iterdir()] == ['the one before']


def test_each_cost_model_is_drawn():
    assert set(COST_MODELS) == set(STYLES)


def test_a_family_is_planned_by_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(capsys, 'quickstart', '--no-profile')
    assert (code, err) == (0, '')
    assert 'runs/plan/quickstart-freezeout: plan.json' in out
    assert 'composer-freezeout run quickstart' in out or 'To save' not in out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--target', '0'], r'--target: must be a share in \(0, 1\), such as 0.15, got .0.'),
        (['--target', '1'], r'got .1.'),
        (['--target', 'much'], r'got .much.'),
        (['--profile-steps', '0'], r'--profile-steps: must be a whole number of at least 1, got .0.'),
        (['--no-profile', '--profile-steps', '2'], r'not allowed with'),
        (['--image-size', '-3'], r'--image-size'),
        (['--no-profile', '--unit-costs', 'new.yaml'], r'--unit-costs: not allowed with argument --no-profile'),
    ],
)
def test_a_bad_command_line_is_refused(arguments, message, yaml, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(['plan', str(yaml), *arguments])
    assert exit_.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_typing_error_is_told_without_waiting_for_torch(yaml):
    code = (
        'import sys; from composer_freezeout.cli import main; '
        f'code = main(["plan", {str(yaml)!r}, "modell=1"]); sys.exit(9 if "torch" in sys.modules else code)'
    )
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, timeout=60).returncode == 2
