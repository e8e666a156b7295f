"""Comparisons that fine-tune: what comes before them, and the rivals that are frozen from the start."""

import contextlib
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from composer_freezeout import FreezeOut
from composer_freezeout.compare import command as compare
from composer_freezeout.compare.arms.curve import lengths_for
from composer_freezeout.compare.arms.dry_run import look_at_data
from composer_freezeout.compare.arms.family import choose_arms, family_arms, read_arms
from composer_freezeout.compare.arms.known import in_order, share_of, sources_of
from composer_freezeout.compare.arms.static import covering
from composer_freezeout.compare.judging.comparison import load as load_comparison
from composer_freezeout.compare.judging.course import frozen_share
from composer_freezeout.compare.judging.verdict import arm_results
from composer_freezeout.compare.report.page import render
from composer_freezeout.compare.report.sentences import conclusion
from composer_freezeout.compare.training.pretraining import pretraining, split_overrides
from composer_freezeout.costs.flops import step_flops_by_units_frozen
from composer_freezeout.costs.predict import partition_for
from composer_freezeout.method.settings import Settings
from composer_freezeout.results.stats import paired
from composer_freezeout.run.config import load, parse
from composer_freezeout.run.faults import Refused
from composer_freezeout.run.models import build_model
from composer_freezeout.run.predicted import predict_saving

from . import records
from .in_process import InProcess

QUICKSTART = Path(__file__).parent.parent / 'yamls' / 'quickstart'
SMALL = [f'{role}_data.{key}' for role in ('train', 'eval') for key in ('image_size=8', 'subset.classes=[7-9]')]


def fine_tuning(folder: Path) -> Path:
    """The quickstart as fine-tuning on three digits, after pretraining on the other seven."""
    shutil.copytree(QUICKSTART, folder)
    for file in folder.glob('*.yaml'):
        text = file.read_text().replace('resnet20', 'resnet8').replace('num_classes: 10', 'num_classes: 3')
        file.write_text(text)
    text = (folder / 'baseline.yaml').read_text()
    text = text.replace('num_classes: 3', 'num_classes: 7').replace('-baseline', '-pretrain')
    checkpoint = 'checkpoint: {interval: 1ep}\n'
    (folder / 'pretrain.yaml').write_text(f'{text}{checkpoint}')
    return folder


PRETRAIN = [
    f'pretrain.{key}'
    for key in (
        'train_data.subset.classes=[0-6]',
        'eval_data.subset.classes=[0-6]',
        'train_data.image_size=8',
        'eval_data.image_size=8',
        'max_duration=2ep',
    )
]


@pytest.fixture(scope='module')
def family(tmp_path_factory) -> Path:
    return fine_tuning(tmp_path_factory.mktemp('families') / 'family')


@pytest.fixture(scope='module')
def comparison(family, tmp_path_factory) -> Iterator[SimpleNamespace]:
    out = tmp_path_factory.mktemp('comparison') / 'out'
    command = [str(family), '--out', str(out), '--arms', 'baseline,static', '--lengths', 'none', *SMALL, *PRETRAIN]
    command.append('max_duration=2ep')
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(shown):
        patch.setattr(compare, 'executor', lambda *_: InProcess())
        assert compare.main(command) == 0
    yield SimpleNamespace(out=out, command=command, text=shown.getvalue())


def record(out: Path, arm: str) -> dict:
    return json.loads((out / arm / 'record.json').read_text())


# ---------------------------------------------------------------------------------------------------------------------
# Pretraining
# ---------------------------------------------------------------------------------------------------------------------


def test_all_arms_begin_with_the_weights_that_are_trained_first(comparison):
    before = record(comparison.out, 'pretrain')
    assert before['config']['model']['num_classes'] == 7 and before['weights'] is None
    for arm in ('baseline', 'static'):
        weights = record(comparison.out, f'{arm}/seed17')['weights']
        assert weights['source'] == str(comparison.out / 'pretrain' / 'checkpoints' / 'latest-rank0.pt')
        # The head has another size.
        assert all('fc' in name for name in weights['new']) and len(weights['new']) == 2
    assert comparison.text.index('pretrain seed 17') < comparison.text.index('baseline seed 17')


def test_the_pretraining_is_done_once(comparison, capsys):
    before = (comparison.out / 'pretrain' / 'record.json').read_bytes()
    assert compare.main(comparison.command) == 0
    shown = capsys.readouterr().out
    assert '2 of 2 runs are finished already' in shown and 'pretrain seed' not in shown
    assert (comparison.out / 'pretrain' / 'record.json').read_bytes() == before


def test_weights_on_the_command_line_replace_the_pretraining(family, tmp_path):
    assert pretraining(family, tmp_path, ['model.weights=mine.pt']) is None
    found = pretraining(family, tmp_path, [*SMALL, *PRETRAIN])
    assert found is not None and found.overrides == (
        f'model.weights="{tmp_path}/pretrain/checkpoints/latest-rank0.pt"',
    )


def test_what_is_laid_over_the_arms_is_not_laid_over_the_pretraining():
    given = ['max_duration=2ep', 'train_data.root=here', 'pretrain.seed=3', 'device=cpu']
    assert split_overrides(given) == (
        ['max_duration=2ep', 'train_data.root=here', 'device=cpu'],
        ['train_data.root=here', 'device=cpu', 'seed=3'],
    )


def test_keys_of_a_pretraining_that_there_is_none_of(tmp_path):
    with pytest.raises(Refused, match='has no pretrain.yaml, whose keys these are; remove them'):
        pretraining(QUICKSTART, tmp_path, ['pretrain.seed=3'])


def test_a_pretraining_needs_a_checkpoint(family, tmp_path):
    with pytest.raises(Refused, match='checkpoint: is missing: the arms begin with its weights'):
        pretraining(family, tmp_path, [*PRETRAIN, 'pretrain.checkpoint=null'])


def test_what_is_wrong_with_an_arm_is_told_before_the_weights_are_trained(family, tmp_path, capsys):
    out = tmp_path / 'out'
    assert compare.main([str(family), '--out', str(out), *SMALL, *PRETRAIN, 'optimizer.lr=-1']) == 2
    assert 'optimizer.lr' in capsys.readouterr().err
    assert not out.exists()


# ---------------------------------------------------------------------------------------------------------------------
# Frozen from the start
# ---------------------------------------------------------------------------------------------------------------------


def test_a_static_arm_is_frozen_where_it_saves_as_much_as_freezeout(comparison):
    static = record(comparison.out, 'static/seed17')
    assert static['config']['algorithms'] == [] and static['config']['scheduler']['name'] == 'cosine_annealing'
    assert static['effective']['frozen']['parameters'] > 0
    whole = {**static['config'], 'model': {**static['config']['model'], 'freeze': None, 'weights': None}}
    config = parse(whole)
    model, batch = build_model(config.model), look_at_data(config).batch
    target = predict_saving(model, batch, [FreezeOut()], 2)
    costs = step_flops_by_units_frozen(model, batch, partition_for(model, batch, Settings()).units)
    savings = [1 - cost / costs[0] for cost in costs[1:]]
    assert target is not None
    assert abs(static['predicted_saving'] - target) == pytest.approx(min(abs(saving - target) for saving in savings))


def test_a_static_arm_is_judged_like_one_that_freezes(comparison):
    results = {result.arm: result for result in arm_results(load_comparison(comparison.out))}
    assert results['static'].freezes and results['static'].verdict is not None
    assert not results['baseline'].freezes
    assert results['static'].flops == pytest.approx(1 - record(comparison.out, 'static/seed17')['predicted_saving'])


FROZEN = 'model.freeze=["conv1", "bn1"]'


def test_what_arms_are_to_save_counts_from_what_the_baseline_freezes(family):
    names = ['baseline', 'layer_freezing_matched', 'static', 'freezeout']
    found, data = read_arms(family, names, [*SMALL, 'max_duration=20ep', FROZEN], 1.0)
    arms = {arm.name: arm for arm in found}
    target = predict_saving(build_model(arms['freezeout'].config.model), data.batch, [FreezeOut()], 20)
    assert target is not None
    for name in ('layer_freezing_matched', 'static'):
        assert arms[name].note.endswith(f', as freezeout does ({target:.1%})')
    # Shortest is what takes a tenth less than the arm that costs least.
    assert lengths_for('auto', False, [arms['baseline'], arms['freezeout']], data)[0] == round(0.9 * (1 - target), 2)


def test_what_arms_save_counts_from_what_the_baseline_freezes(tmp_path):
    folder = records.folder(
        tmp_path, {'baseline': [0.9] * 3, 'freezeout': [0.9] * 3}, {'baseline': 9.0, 'freezeout': 8.0}
    )
    for path in folder.rglob('baseline/seed*/record.json'):
        records.edit(path, 'predicted_saving', value=0.1)
    _, freezeout = arm_results(load_comparison(folder))
    assert freezeout.predicted_saving == pytest.approx(1 / 9) and freezeout.flops == pytest.approx(8 / 9)
    assert '11.1' in render(load_comparison(folder))['report.md']


def test_freezeout_is_compared_with_the_static_arm_seed_by_seed(tmp_path):
    arms = {'baseline': [0.9, 0.91, 0.92], 'static': [0.90, 0.91, 0.93], 'freezeout': [0.88, 0.90, 0.91]}
    compared = load_comparison(records.folder(tmp_path, arms, {'baseline': 100.0, 'static': 60.0, 'freezeout': 60.0}))
    results = {result.arm: result for result in arm_results(compared)}
    assert results['freezeout'].versus_static == paired(arms['freezeout'], arms['static'])
    assert results['static'].versus_static is None and results['baseline'].versus_static is None
    (line,) = [line for line in conclusion(compared) if 'that of static' in line]
    assert line.startswith('The accuracy of freezeout is 1.67 points below that of static') and '(95 % interval' in line
    text = render(compared)['report.md']
    assert '## Differences from the static arm' in text and 'Seed by seed' in text


def test_the_report_says_what_the_runs_began_with(comparison):
    text = (comparison.out / 'report.md').read_text()
    weights = f'Weights of {comparison.out}/pretrain/checkpoints/latest-rank0.pt: '
    assert weights in text and 'new: module.fc.weight, module.fc.bias.' in text
    assert re.search(r'static: frozen from the start: conv1, .* parameters\)', text)
    (absent,) = [line for line in text.splitlines() if 'Arms of a full comparison that are not part' in line]
    assert absent.endswith(': baseline_short, layer_freezing, layer_freezing_matched, head_only, freezeout.')
    static = load_comparison(comparison.out).of('static')[0].record
    share = static.effective.frozen.parameters / static.effective.parameters_total
    assert frozen_share([static]) == pytest.approx(share)


def test_static_arms_are_of_families_that_begin_with_weights(family):
    assert {'static', 'head_only'} <= set(family_arms(family))
    assert not {'static', 'head_only'} & set(family_arms(QUICKSTART))


def test_a_share_is_read_from_the_name():
    assert share_of('static_0.25') == 0.25
    assert [share_of(name) for name in ('static', 'static_1.5', 'static_0.0', 'baseline_0.25')] == [None] * 4
    assert sources_of('static_0.25') == ('baseline',) and sources_of('static') == ('baseline', 'freezeout')
    assert in_order(['head_only', 'static_0.4', 'static', 'static_0.25']) == [
        'static',
        'static_0.25',
        'static_0.4',
        'head_only',
    ]


def test_arms_of_a_share_and_of_the_head_alone(family):
    names = choose_arms(family_arms(family), 'baseline,static_0.3,head_only')
    arms, _ = read_arms(family, names, [*SMALL, 'model.weights=null'], 1.0)
    by_name = {arm.name: arm for arm in arms}
    assert by_name['static_0.3'].config.run_name == 'quickstart-static_0.3'
    assert 'nearest to 30.0%' in by_name['static_0.3'].note
    frozen = by_name['head_only'].config.model.freeze
    model = build_model(by_name['head_only'].config.model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {'module.fc.weight', 'module.fc.bias'} and frozen is not None


def test_modules_are_named_as_a_whole():
    model = build_model(load(QUICKSTART / 'baseline.yaml').model)
    first = {name for name, _ in model.named_parameters() if 'layer2' not in name and 'layer3' not in name}
    first -= {'module.fc.weight', 'module.fc.bias'}
    assert covering(model, first) == ['conv1', 'bn1', 'layer1']
    assert covering(model, {'module.fc.bias'}) == ['fc.bias']
    assert covering(model, set()) == []
