"""`composer_freezeout.plan`: it says what FreezeOut then does, for any module, and leaves no trace."""

import contextlib
import copy
import json
import random
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

import composer_freezeout
from composer_freezeout import FreezeOut, apply_freezeout
from composer_freezeout.costs.bench import StepSeconds
from composer_freezeout.costs.predict import freezeout_saving
from composer_freezeout.costs.seconds import StepProfile
from composer_freezeout.method.finetuning import FINE_TUNING
from composer_freezeout.planning.plan import Plan

from .comparing import assert_equal
from .networks import ResidualNet, Transformer, chain
from .training import classifier, images, trainer
from .watched import MODELS, make, train

CROSS_ENTROPY = nn.CrossEntropyLoss()


BATCH: list[torch.Tensor] = next(iter(images()))


def batch() -> list[torch.Tensor]:
    return [tensor.clone() for tensor in BATCH]


def network(kind: Callable[[], nn.Module] = chain) -> nn.Module:
    torch.manual_seed(0)
    return kind()


def sgd(model: nn.Module, **arguments: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, **arguments)


def planned(model: nn.Module | None = None, duration: Any = '4ep', **arguments: Any) -> Plan:
    model = network() if model is None else model
    given = {'batch': batch(), 'loss_fn': CROSS_ENTROPY, **arguments}
    if 'optimizer' not in given:
        given['optimizer'] = sgd(model)
    return composer_freezeout.plan(model, duration=duration, **given)


def in_loop(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], torch.Tensor], batches: int, **settings: Any
) -> tuple[list[dict[str, Any]], list[int], dict[str, float]]:
    """What FreezeOut does in a loop: its units, the batches at which they froze, and the first learning rates."""
    freezer = apply_freezeout(model, optimizer, **settings)
    rates: dict[str, float] = {}
    for done in range(batches):
        freezer.batch_start(done / batches)
        optimizer.zero_grad()
        loss().backward()
        rates = rates or freezer.learning_rates()
        optimizer.step()
    return freezer.unit_table(), freezer.state_dict()['frozen_at'], rates


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """The head learns faster, and vectors don't decay."""
    named = list(model.named_parameters())
    head = [p for name, p in named if name.startswith('head')]
    vectors = [p for name, p in named if p.ndim == 1 and not name.startswith('head')]
    others = [p for name, p in named if p.ndim > 1 and not name.startswith('head')]
    return [{'params': others}, {'params': vectors, 'weight_decay': 0.0}, {'params': head, 'lr': 0.5}]


# --- it says what FreezeOut does


@pytest.mark.parametrize(
    'settings',
    [{'t_0': 0.3}, FINE_TUNING, {'t_0': 0.5, 'max_stages': 2}, {'granularity': 'block'}, {'layers': ['stem.*', '.*']}],
    ids=['cubic', 'fine-tuning', 'stages', 'blocks', 'layers'],
)
def test_a_loop_does_what_was_planned(settings):
    if 'layers' in settings:
        settings = {'layers': ['stem|stem_bn', r'blocks\..*', 'head']}
    model = network(ResidualNet)
    model.get_parameter('stem.weight').requires_grad_(False)
    optimizer = torch.optim.AdamW(groups(model), lr=0.01)
    inputs, targets = batch()
    plan = planned(model, 40, optimizer=optimizer, **settings)
    table, frozen_at, rates = in_loop(model, optimizer, lambda: CROSS_ENTROPY(model(inputs), targets), 40, **settings)
    assert [unit.name for unit in plan.units] == [row['name'] for row in table]
    assert [unit.parameters for unit in plan.units] == [row['parameters'] for row in table]
    assert [unit.t_i for unit in plan.units] == [row['t_i'] for row in table]
    assert [unit.freeze_batch for unit in plan.units if unit.freeze_batch is not None] == frozen_at
    assert plan.heads == len(table) - len(frozen_at) and len(frozen_at) >= 2
    assert [unit.learning_rates for unit in plan.units[-1:]] == [(0.5,)]
    assert {rate for unit in plan.units[:-1] for rate in unit.learning_rates} == {0.01}
    head = plan.units[-1].name
    assert rates[head] == 0.5 and plan.duration == '40ba'


@pytest.mark.parametrize('model', ['batchnorm', 'residual', 'transformer', 'tasks together'])
def test_a_trainer_does_what_was_planned(model):
    made, freezeout = make(model), FreezeOut(0.6)
    plan = composer_freezeout.plan(made, batch(), torch.optim.SGD(made.parameters(), lr=0.05), '16ba', t_0=0.6)
    train(made, [freezeout])
    table = freezeout.unit_table()
    assert [(unit.name, unit.t_i, unit.freeze_batch) for unit in plan.units] == [
        (row['name'], row['t_i'], row['frozen_at_batch']) for row in table
    ]


def test_the_saving_is_that_of_the_training():
    model = classifier()
    plan = composer_freezeout.plan(model, batch(), sgd(model), '4ep', batches_per_epoch=4, t_0=0.5, max_stages=2)
    assert (
        plan.saving
        == plan.predictions[1].saving
        == freezeout_saving(model, batch(), FreezeOut(0.5, max_stages=2).settings)
    )
    # A module with the same loss is no other model.
    assert planned(model.module, t_0=0.5, max_stages=2).saving == plan.saving > 0.1
    freezeout = FreezeOut(0.5, max_stages=2)
    trainer(model, [freezeout]).fit()
    frozen_at = [row['frozen_at_batch'] for row in freezeout.unit_table()]
    assert [unit.freeze_batch for unit in plan.units] == frozen_at
    assert [unit.freeze_epoch for unit in plan.units] == [None if at is None else at // 4 + 1 for at in frozen_at]
    assert sum(unit.step_share for unit in plan.units) == pytest.approx(1)


def test_a_model_of_transformers_with_its_own_loss():
    transformers = pytest.importorskip('transformers')
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    model = network(lambda: transformers.BertForSequenceClassification(config))
    tokens = torch.randint(50, (4, 7), generator=torch.Generator().manual_seed(0))
    inputs = transformers.BatchEncoding(
        {'input_ids': tokens, 'attention_mask': torch.ones_like(tokens), 'labels': torch.tensor([0, 1, 2, 0])}
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    plan = composer_freezeout.plan(model, inputs, optimizer, 20, granularity='block', **FINE_TUNING)
    table, frozen_at, _ = in_loop(
        model, optimizer, lambda: model(**inputs).loss, 20, granularity='block', **FINE_TUNING
    )
    assert [unit.name for unit in plan.units] == [row['name'] for row in table]
    assert [unit.freeze_batch for unit in plan.units if unit.freeze_batch is not None] == frozen_at
    assert 'bert.encoder.layer.1' in [unit.name for unit in plan.units] and plan.saving > 0.2
    assert (plan.batch_size, plan.image_shape) == (4, (7,))


def test_a_loss_of_any_kind_is_given_as_a_function():
    def next_token(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    model = network(Transformer)
    tokens = torch.randint(11, (4, 6))
    plan = planned(model, batch=tokens, forward=next_token, loss_fn=None)
    table, _, _ = in_loop(model, sgd(model), lambda: next_token(model, tokens), 4)
    assert [(unit.name, unit.t_i) for unit in plan.units] == [(row['name'], row['t_i']) for row in table]
    # FLOPs are per sample, whatever the batch.
    more = planned(network(Transformer), batch=torch.randint(11, (9, 6)), forward=next_token, loss_fn=None)
    assert more.to_dict() == {**plan.to_dict(), 'batch_size': 9}

    def masked(model: nn.Module, batch: Any) -> torch.Tensor:
        tokens, mask = batch
        return next_token(model, tokens) + (mask @ mask).sum()

    # A mask belongs to no sample and can't be divided; then the whole batch is counted.
    plan = planned(network(Transformer), batch=(tokens, torch.eye(5)), forward=masked, loss_fn=None)
    assert plan.units[1].forward_flops > 0


def test_outputs_stand_for_a_loss_that_nobody_gives():
    assert planned(loss_fn=None, batch=batch()).to_dict() == planned().to_dict()
    assert planned(loss_fn=None, batch=batch()[0]).units == planned().units
    weighted = nn.CrossEntropyLoss(weight=torch.arange(1.0, 5.0))
    assert planned(loss_fn=weighted).units == planned().units


def test_a_compiled_model_freezes_in_four_stages():
    def deep() -> nn.Module:
        return nn.Sequential(*(nn.Linear(12, 12) for _ in range(8)))

    compiled = network(deep)
    compiled.compile(backend='eager')
    plan = planned(network(deep), batch=torch.rand(4, 12), loss_fn=None)
    in_stages = planned(compiled, batch=torch.rand(4, 12), loss_fn=None)
    outside = planned(torch.compile(network(deep), backend='eager'), batch=torch.rand(4, 12), loss_fn=None)
    assert [unit.name for unit in outside.units] == [f'_orig_mod.{unit.name}' for unit in plan.units]
    assert outside.saving == in_stages.saving < plan.saving
    assert (plan.stages, in_stages.stages) == (7, 4)
    assert in_stages.units[0].freezes_at > in_stages.units[0].t_i == plan.units[0].t_i
    assert 'In 4 stages' in str(in_stages)


def test_a_table_of_units_that_are_not_known_yet_says_where_they_are_told(caplog):
    model = classifier()
    assert FreezeOut().unit_table() == apply_freezeout(model, sgd(model)).unit_table() == []
    assert len(caplog.messages) == 2
    assert all('not known before the first batch; composer_freezeout.plan(model, batch' in m for m in caplog.messages)


# --- when


@pytest.mark.parametrize(
    ('duration', 'per_epoch', 'batches', 'epochs'),
    [
        (40, None, [21, 27, 33, None], [None] * 4),
        ('40ba', 10, [21, 27, 33, None], [3, 3, 4, None]),
        ('4ep', 10, [21, 27, 33, None], [3, 3, 4, None]),
        ('4ep', None, [None] * 4, [3, 3, 4, None]),
        ('160sp', 10, [21, 27, 33, None], [3, 3, 4, None]),
        ('999tok', 10, [None] * 4, [None] * 4),
    ],
)
def test_batches_and_epochs_are_told_where_they_are_known(duration, per_epoch, batches, epochs):
    plan = planned(duration=duration, batches_per_epoch=per_epoch)
    assert [unit.freeze_batch for unit in plan.units] == batches
    assert [unit.freeze_epoch for unit in plan.units] == epochs
    head = str(plan).splitlines()[8].split()
    assert head[-1] == ('1.000' if batches == epochs else 'never')


def test_a_warm_up_and_a_longer_training_are_planned():
    plan = planned(duration='10ep', batches_per_epoch=10, t_warmup='1ep', const_time=True)
    stretch = 1 / (1 - plan.saving)
    assert plan.warmup == pytest.approx(0.1 / stretch)
    assert any('const_time' in note for note in plan.notes)
    assert plan.units[0].freeze_batch == int(0.512 * round(100 * stretch)) + 1


# --- it leaves no trace


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return copy.deepcopy(
        {
            'state': dict(model.state_dict()),
            'gradients': {name: p.grad for name, p in model.named_parameters()},
            'frozen': {name: p.requires_grad for name, p in model.named_parameters()},
            'modes': {name: module.training for name, module in model.named_modules()},
            'hooks': [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
            'attributes': [sorted(vars(module)) for module in model.modules()],
            'optimizer': optimizer.state_dict(),
            'groups': [{key: value for key, value in g.items() if key != 'params'} for g in optimizer.param_groups],
            'random': [torch.get_rng_state(), list(random.getstate()[1]), np.random.get_state()[1]],
            'grad': torch.is_grad_enabled(),
        }
    )


@pytest.mark.parametrize('profile', [False, 1])
@pytest.mark.parametrize('mode', ['train', 'eval', 'mixed'])
def test_everything_is_as_it_was(profile, mode):
    model = nn.Sequential(network(ResidualNet), nn.Dropout(0.5))
    optimizer = torch.optim.AdamW(groups(model[0]), lr=0.01)
    inputs, targets = batch()
    CROSS_ENTROPY(model(inputs), targets).backward()
    optimizer.step()
    model.train(mode != 'eval')
    if mode == 'mixed':
        model[0].blocks[1].eval()
        model[0].stem.requires_grad_(False)
    identities = [id(p) for group in optimizer.param_groups for p in group['params']]
    before, samples = everything(model, optimizer), [inputs.clone(), targets.clone()]
    with torch.set_grad_enabled(mode != 'eval'):
        planned(model, optimizer=optimizer, profile=profile, batch=(inputs, targets))
    assert_equal(everything(model, optimizer), before)
    assert_equal([inputs, targets], samples)
    assert identities == [id(p) for group in optimizer.param_groups for p in group['params']]


@pytest.mark.parametrize('name', MODELS)
def test_a_training_has_the_same_bits_with_a_plan_before(name):
    def trained(plans: bool) -> Any:
        model = make(name)
        if plans:
            held = [p for p in model.parameters() if p.requires_grad]
            # Whose gradient the model asks for itself, its FLOPs can't be counted.
            refused = pytest.raises(
                ValueError, match=r'FLOPs cannot be counted on a copy of Watched \(.*; the training'
            )
            with refused if name == 'forces' else contextlib.nullcontext():
                composer_freezeout.plan(model, batch(), torch.optim.SGD(held, lr=0.05), '16ba')
        return train(model, [FreezeOut(0.6)])

    assert_equal(vars(trained(True)), vars(trained(False)))


# --- what the optimizer holds


def test_what_the_optimizer_does_not_hold_is_told():
    model = network()
    optimizer = torch.optim.SGD([p for name, p in model.named_parameters() if 'conv1' not in name], lr=0.1)
    plan = planned(model, optimizer=optimizer)
    assert [unit.learning_rates for unit in plan.units] == [(0.1,)] * 4  # of bn1 it holds weights
    assert any("does not hold 'conv1.weight', 'conv1.bias': they never move" in note for note in plan.notes)
    optimizer = torch.optim.SGD([p for name, p in model.named_parameters() if '1' not in name], lr=0.1)
    plan = planned(model, optimizer=optimizer, profile=1)
    assert [unit.learning_rates for unit in plan.units] == [(), (0.1,), (0.1,), (0.1,)]
    assert ' none ' in str(plan).splitlines()[5]
    # A unit it is all the same, and what is frozen is none.
    assert len(planned(model, optimizer=optimizer).units) == 4
    model.get_submodule('conv1').requires_grad_(False)
    model.get_submodule('bn1').requires_grad_(False)
    plan = planned(model, optimizer=optimizer)
    assert [unit.name for unit in plan.units] == ['conv2', 'conv3', 'head'] and plan.notes == ()


def test_rates_are_those_that_freezeout_begins_with():
    model = network()
    optimizer = torch.optim.SGD(groups(model), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert scheduler and optimizer.param_groups[0]['lr'] == 0.05
    plan = planned(model, optimizer=optimizer)
    assert [unit.learning_rates for unit in plan.units] == [(0.1,), (0.1,), (0.1,), (0.5,)]
    # 1 / 0.8³ times, 1 / t_i times, and as it is.
    assert [line.split()[4] for line in str(plan).splitlines()[5:9]] == ['0.2', '0.15', '0.12', '0.5']
    apply_freezeout(model, optimizer, lambda: model(batch()[0]))
    assert [unit.learning_rates for unit in planned(model, optimizer=optimizer).units] == [(0.1,)] * 3 + [(0.5,)]


# --- how it looks


def test_it_prints_as_a_table(monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    plan = planned(duration='10ep', batches_per_epoch=10, **FINE_TUNING, target=0.2)
    lines = str(plan).splitlines()
    assert lines[0] == 'Sequential: cubic, t_0 0.3, unscaled' and all(len(line) <= 80 for line in lines)
    assert [line.split()[0] for line in lines[5:9]] == ['conv1', 'conv2', 'conv3', 'head']
    assert '\x1b' not in str(plan) and not any(line.endswith(' ') for line in lines)
    found = plan.prediction.t_0
    assert found is not None
    call = f"FreezeOut(t_0={round(found, 3)}, how_scale='cubic', scale_lr=False)"
    assert f'To save 20.0% (flops), in Python: {call}' in ' '.join(lines)
    assert repr(plan) == f'<Plan for Sequential: 4 units, cubic, t_0 0.3, unscaled, saves {plan.saving:.1%} (flops)>'
    assert json.loads(json.dumps(plan.to_dict()))['units'][0]['freeze_epoch'] == 1


def test_a_notebook_shows_what_is_printed_and_nothing_else():
    class Odd(nn.Module):
        pass

    odd = network()
    odd.add_module('<b>', nn.Linear(4, 4))
    plan = planned(nn.Sequential(odd), loss_fn=None)
    assert '<b>' in str(plan)
    html = plan._repr_html_()
    assert html.startswith('<pre>') and '<b>' not in html and '&lt;b&gt;' in html


def test_it_is_drawn(tmp_path):
    backend, plan = matplotlib.get_backend(), planned()
    for name in ('plan.png', 'plan.svg'):
        assert isinstance(plan.plot(tmp_path / name), Figure)
        assert (tmp_path / name).stat().st_size > 10_000
    figure = plan.plot()
    upper, lower = figure.axes[:2]
    assert len(upper.lines) == len(plan.units) and 'FLOPs saved' in lower.get_legend().texts[2].get_text()
    axes = Figure().subplots()
    assert plan.plot(axes) is axes.figure and len(axes.patches) == 3
    assert matplotlib.get_backend() == backend


# --- seconds


def test_steps_are_measured_if_asked(monkeypatch):
    seen: dict[str, Any] = {}

    def profile_steps(model, batch, units, make_optimizer, *, counts, repeats, device, **_) -> StepProfile:
        made = make_optimizer([{'params': [model.get_parameter(n) for n in unit.parameters]} for unit in units])
        seen.update(groups=made.param_groups, repeats=repeats, device=device)
        steps = {count: StepSeconds(1e-3, 4e-3 - 1e-3 * count, 0.0) for count in counts}
        return StepProfile(steps, (1e-3,) * len(units), 4, repeats, torch.device(device), 'fp32')

    monkeypatch.setattr('composer_freezeout.planning.make.profile_steps', profile_steps)
    model = network()
    plan = planned(model, profile=True, t_0=0.5)
    assert plan.relied_on == 'seconds' and seen['repeats'] == 5 and seen['device'] == 'cpu'
    assert [group['momentum'] for group in seen['groups']] == [0.9] * 4
    times = FreezeOut(0.5).freeze_times(4)
    assert plan.saving == pytest.approx(sum(1 - t for t in times) / 5)
    without_first = torch.optim.SGD([p for name, p in model.named_parameters() if '1' not in name], lr=0.1)
    assert planned(model, profile=2, optimizer=without_first).measured is not None
    assert seen['repeats'] == 2 and len(seen['groups']) == 3


# --- what is refused


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        ({'duration': '10sec'}, ValueError, r"duration must be a Composer time string .*'10ep', or .*'10sec'"),
        ({'duration': 0}, ValueError, 'duration must be .* got 0'),
        ({'duration': True}, ValueError, 'duration must be .* got True'),
        ({'duration': 1.5}, ValueError, r'duration must be .* got 1\.5'),
        ({'batches_per_epoch': 0}, ValueError, 'batches_per_epoch must be at least 1, got 0'),
        ({'batches_per_epoch': '3'}, TypeError, "batches_per_epoch must be a whole number of at least 1, got '3'"),
        ({'profile': 0}, ValueError, 'profile must be at least 1, got 0'),
        ({'target': 1.2}, ValueError, r'target must be a share in \(0, 1\), such as 0.15, got 1.2'),
        ({'target': 0.9}, ValueError, r'target 90.0% is out of reach: t_0 in \(0, 1\) saves .*; give less'),
        ({'t_0': 1.4}, ValueError, r't_0 must be in \(0, 1\], got 1.4'),
        ({'t_zero': 0.4}, TypeError, "FreezeOut has no argument 't_zero'; valid: .*t_0, "),
        ({'layers': ['none']}, ValueError, 'layers: no expression matches the trainable parameter'),
        ({'unit_costs': [1, 2]}, ValueError, 'unit_costs must hold one number per unit: the model has 4 units'),
        ({'optimizer': None}, TypeError, 'optimizer must be a torch.optim.Optimizer, got NoneType'),
        ({'optimizer': torch.optim.SGD([nn.Parameter(torch.ones(1))])}, ValueError, 'the optimizer holds none of'),
        ({'optimizer': torch.optim.LBFGS([nn.Parameter(torch.ones(1))])}, ValueError, 'LBFGS has one learning rate'),
        ({'target': '20%'}, TypeError, r"target must be a number in \(0, 1\), such as 0.15, got '20%'"),
        ({'batch': 3}, TypeError, 'batch must be tensors with the samples in front, .* got int; give an example'),
        ({'batch': SimpleNamespace(x=torch.ones(4, 3))}, TypeError, 'nesting of lists, tuples and mappings, got'),
        ({'batch': batch()[0]}, ValueError, r'with loss_fn, batch must be a pair \(inputs, targets\), got a Tensor'),
        ({'batch': batch() * 2}, ValueError, 'must be a pair .*, got a list of 4; give forward'),
        ({'batch': batch() * 2, 'loss_fn': None}, ValueError, 'must be inputs, or a pair .*; give forward'),
        ({'loss_fn': 3}, TypeError, 'loss_fn must be a function, got int'),
        ({'forward': len}, ValueError, 'forward already gives the loss; leave out loss_fn'),
        ({'forward': lambda model, batch: torch.ones(3), 'loss_fn': None}, ValueError, 'depends on a trainable par'),
        ({'batch': (torch.ones(4, 9, 8, 8), batch()[1])}, ValueError, r'cannot be run on batch \(Runtime.*; give'),
        ({'model': nn.Identity()}, ValueError, 'the model has no trainable parameter'),
        ({'model': classifier()}, ValueError, 'ComposerClassifier is a ComposerModel and has its own loss; leave out'),
        ({'model': torch.nn.DataParallel(nn.Linear(2, 2))}, TypeError, 'model must be a module'),
        ({'model': 'resnet'}, TypeError, 'model must be a module'),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_line(arguments, error, message, refusal):
    model = network()
    with refusal(message, error):
        planned(**{'model': model, 'optimizer': sgd(model), **arguments})


# --- the name


def test_it_can_be_called_whatever_was_imported_before():
    code = """
import pydoc, sys
import composer_freezeout
assert 'plan' in dir(composer_freezeout) and 'torch' not in sys.modules
import composer_freezeout.planning.command, composer_freezeout.planning.plan, composer_freezeout.cli
from composer_freezeout import plan
assert callable(composer_freezeout.plan) and plan is composer_freezeout.plan
assert 'plan(model' in pydoc.render_doc(composer_freezeout.plan, renderer=pydoc.plaintext)
assert 'plan' in pydoc.render_doc(composer_freezeout)
"""
    subprocess.run([sys.executable, '-c', code], check=True, timeout=200)
