"""Fine-tuning: a head of any shape trains to the end, and the rates that the user gave to parts of a model keep."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from composer import Callback
from composer.core import State
from composer.loggers import Logger
from composer.optim import CosineAnnealingWithWarmupScheduler
from torch import nn
from torch.optim import Optimizer
from transformers import BertConfig, BertForSequenceClassification

from composer_freezeout import FreezeOut, apply_freezeout
from composer_freezeout.freezing.observing.partition import Partition, partition_model
from composer_freezeout.freezing.observing.rehearsal import rehearse
from composer_freezeout.method.schedule import freeze_times, lr_factor

from .networks import ResidualNet, chain
from .training import classifier, trainer


class Pretrained(nn.Module):
    """A body of two convolutions, and two heads of several layers, one of which begins with a norm."""

    def __init__(self) -> None:
        super().__init__()
        body = chain()
        self.body = nn.Sequential(*(body.get_submodule(name) for name in ('conv1', 'bn1', 'relu1', 'conv2', 'bn2')))
        self.classes = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 4))
        self.offsets = nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.body(images).mean((2, 3))
        return self.offsets(features) + self.classes(features)


HEADS = ['classes', 'offsets']


def pretrained() -> Pretrained:
    torch.manual_seed(0)
    return Pretrained()


def partition(model: nn.Module, **arguments: Any) -> Partition:
    inputs = torch.randn(2, 3, 8, 8)
    return partition_model(model, rehearse(model, lambda: model(inputs)), **arguments)


def names(found: Partition) -> list[str]:
    return [unit.name for unit in found.units]


# --- which units there are


def test_without_it_the_first_layers_of_a_head_freeze_before_the_end():
    found = partition(pretrained())
    assert found.heads == 1 and names(found)[2:] == ['offsets.1', 'offsets.3', 'classes.1', 'classes.4']


def test_all_layers_of_the_head_are_the_last_units():
    found = partition(pretrained(), head=HEADS)
    assert names(found) == ['body.0', 'body.3', 'offsets.1', 'offsets.3', 'classes.1', 'classes.4']
    assert found.heads == 4 and found.cuts == (0, 1, 2, 3, 4, 5, 6)


def test_norms_of_the_head_go_on_with_it():
    found = partition(pretrained(), head=HEADS)
    assert [unit.norms for unit in found.units[:2]] == [('body.1',), ('body.4',)]
    assert {norm for unit in found.units[2:] for norm in unit.norms} == {'classes.0', 'offsets.0'}
    assert 'classes.0.weight' in {name for unit in found.units[2:] for name in unit.parameters}


def test_a_head_within_a_block_leaves_the_block():
    found = partition(ResidualNet(), granularity='block', head=[r'blocks\.2\.conv2', 'head'])
    assert names(found) == ['stem', 'blocks.0', 'blocks.1', 'blocks.2', 'blocks.2.conv2', 'head'] and found.heads == 2


def test_with_layers_the_head_has_units_of_its_own():
    body = [r'body\.[01]', r'body\.[34]']
    for layers in (body, [*body, 'classes', 'offsets'], [*body, r'classes\.[01]', r'classes\.4|offsets']):
        found = partition(pretrained(), layers=layers, head=HEADS)
        assert names(found) == [*body, *HEADS] and found.heads == 2
        assert [unit.norms for unit in found.units[:2]] == [('body.1',), ('body.4',)]
    rest = partition(pretrained(), layers=[*body, 'classes', 'offsets'], head=[r'classes\.4', r'offsets\.3'])
    assert names(rest) == [*body, 'classes', 'offsets', r'classes\.4', r'offsets\.3'] and rest.heads == 2
    assert rest.units[2].parameters == ('classes.0.weight', 'classes.0.bias', 'classes.1.weight', 'classes.1.bias')


@pytest.mark.parametrize('wrapped', [False, True])
def test_the_name_of_a_wrapper_may_be_left_out(wrapped):
    model = nn.Sequential(pretrained()) if wrapped else pretrained()
    heads = {found.heads for head in (HEADS, ['.*classes', '.*offsets']) for found in [partition(model, head=head)]}
    assert heads == {4}
    if wrapped:
        assert partition(model, head=[r'0\.classes', 'offsets']).heads == 4


def test_what_the_first_batch_does_not_use_may_be_head_without_a_word():
    model = pretrained()
    model.spare = nn.Linear(4, 4)
    found = partition(model, head=[*HEADS, 'spare'])
    assert found.heads == 5 and found.describe_unseen() is None
    assert "'spare'" in str(partition(model, head=HEADS).describe_unseen())


def test_a_first_layer_that_trains_to_the_end_keeps_the_backward_pass():
    found = partition(pretrained(), head=[r'body\.0'])
    assert names(found)[-1] == 'body.0' and 'backward pass still runs' in str(found.describe_bad_cuts())


def test_the_pooler_and_the_classifier_of_bert_are_its_head():
    sizes: dict[str, Any] = {'hidden_size': 8, 'num_hidden_layers': 1, 'num_attention_heads': 2, 'intermediate_size': 8}
    bert: Any = BertForSequenceClassification(BertConfig(vocab_size=9, max_position_embeddings=8, **sizes))
    tokens = {'input_ids': torch.ones(2, 4, dtype=torch.long), 'attention_mask': torch.ones(2, 4)}
    model = nn.ModuleDict({'model': bert})  # as Composer's wrapper has it
    observed = rehearse(model, lambda: bert(**tokens).logits)
    found = partition_model(model, observed, head=['classifier', 'bert.pooler'])
    assert names(found)[-2:] == ['model.bert.pooler.dense', 'model.classifier']
    assert found.heads == 2 and partition_model(model, observed).heads == 1


@pytest.mark.parametrize(
    ('head', 'told'),
    [
        (['clases'], r"head: 'clases' matches no module with trainable parameters; the nearest names are .*classes'"),
        (['classes', 'body.7'], r"head: 'body.7' matches no module"),
        (['.*'], r"head: \['.\*'\] is all of the model that is trainable, so that nothing would freeze"),
        (['body', *HEADS], 'is all of the model that is trainable'),
    ],
)
def test_heads_that_will_not_do_are_told_before_anything_trains(head, told):
    model = pretrained()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ways: list[dict[str, Any]] = [{}, {'layers': ['.*']}, {'forward': lambda: model(torch.randn(2, 3, 8, 8))}]
    for arguments in ways:
        with pytest.raises(ValueError, match=told):
            apply_freezeout(model, optimizer, head=head, **arguments)
    for algorithm in (FreezeOut(head=head), FreezeOut(layers=['.*'], head=head)):
        with pytest.raises(ValueError, match=told):
            trainer(classifier(pretrained()), [algorithm])


# --- when they freeze, and their rates


class Steps(Callback):
    """The param group of each parameter in each step of the optimizer, by the parameter's name."""

    def __init__(self) -> None:
        self.groups: list[dict[str, Mapping[str, Any]]] = []
        self.progress: list[float] = []

    def after_load(self, state: State, logger: Logger) -> None:
        named = {id(p): name for name, p in state.model.named_parameters()}

        def note(optimizer: Optimizer, *_: object) -> None:
            kept = ('lr', 'weight_decay')
            groups = [(p, {key: g[key] for key in kept}) for g in optimizer.param_groups for p in g['params']]
            self.groups.append({named[id(p)]: group for p, group in groups})
            self.progress.append(state.timestamp.batch.value / 16)

        state.optimizers[0].register_step_post_hook(note)


def by_depth(model: nn.Module) -> list[dict[str, Any]]:
    """Groups as in fine-tuning: rates that fall towards the input, no decay of vectors."""
    rates = {'body.0': 1e-4, 'body.1': 1e-4, 'body.3': 3e-4, 'body.4': 3e-4, 'classes': 1e-3, 'offsets': 1e-3}
    return [
        {'params': [p], 'lr': rate, 'weight_decay': 0.01 if p.ndim > 1 else 0.0}
        for name, p in model.named_parameters()
        for part, rate in rates.items()
        if part in name
    ]


@pytest.mark.filterwarnings('ignore:.*:UserWarning')
@pytest.mark.parametrize('scale_lr', [True, False])
@pytest.mark.parametrize('scheduled', [True, False])
@pytest.mark.parametrize('t_warmup', [None, '1ba'])
def test_rates_of_the_users_groups_keep_their_ratios_at_every_step(scale_lr, scheduled, t_warmup):
    model, steps = classifier(pretrained()), Steps()
    groups = by_depth(model)
    names_of = [name for name, _ in model.named_parameters()]
    expected = dict(zip(names_of, copy.deepcopy([(g['lr'], g['weight_decay']) for g in groups]), strict=True))
    scheduler = CosineAnnealingWithWarmupScheduler(t_warmup='1ep') if scheduled else None
    algorithm = FreezeOut(0.6, scale_lr=scale_lr, t_warmup=t_warmup, head=HEADS)
    optimizer = torch.optim.AdamW(groups)
    trainer(model, [algorithm], optimizer, callbacks=[steps], schedulers=scheduler).fit()
    first, second, _ = freeze_times(3, 0.6)
    times = {'body.0': first, 'body.1': first, 'body.3': second, 'body.4': second}
    warmup = 0.0 if t_warmup is None else 1 / 16
    assert len(steps.groups) == 16
    for t, found in zip(steps.progress, steps.groups, strict=True):
        for name, group in found.items():
            lr, decay = expected[name]
            t_i = times.get('.'.join(name.split('.')[1:3]), 1.0)
            assert group['lr'] == lr * lr_factor(t, t_i, scale_lr, warmup), (name, t)
            assert group['weight_decay'] == decay
    assert {name for name in names_of if 'body' not in name} == steps.groups[-1].keys()


def test_the_others_freeze_as_if_one_layer_came_behind_them():
    model = pretrained()
    freezer = apply_freezeout(model, torch.optim.SGD(model.parameters(), lr=0.1), t_0=0.3, head=HEADS)
    freezer.batch_start(0.0)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert freezer.freeze_times == (*freeze_times(3, 0.3), 1.0, 1.0, 1.0)
    freezer.batch_start(0.99)
    assert freezer.units_frozen == 2 and model.classes[0].training and not model.body[1].training
    rates = freezer.learning_rates()
    assert {rate for name, rate in rates.items() if 'body' not in name} == {0.1 * lr_factor(0.99, 1.0)}


def test_a_norm_of_the_head_that_trains_late_is_still_the_heads():
    """Norms that begin to count in the middle of a training are placed anew, all of them."""
    model = pretrained()
    model.offsets[0].eval()
    freezer = apply_freezeout(model, torch.optim.SGD(model.parameters(), lr=0.1), t_0=0.3, head=HEADS)
    for progress in (0.0, 0.01, 0.5, 0.9):
        freezer.batch_start(progress)
        model(torch.randn(2, 3, 8, 8)).sum().backward()
        if progress == 0.0:
            model.offsets[0].train()
    assert freezer.units_frozen == 2 and model.offsets[0].training


# --- checkpoints


@pytest.fixture
def checkpoint(tmp_path) -> str:
    folder: dict[str, Any] = {'save_folder': str(tmp_path), 'save_interval': '6ba'}
    trainer(classifier(pretrained()), [FreezeOut(0.5, head=HEADS)], **folder).fit()
    return str(next(tmp_path.glob('ep*-ba6-rank0.pt')))


def test_a_run_with_a_head_resumes_with_the_same_bits(checkpoint):
    ends = []
    for start in (None, checkpoint):
        algorithm = FreezeOut(0.5, head=HEADS)
        run = trainer(classifier(pretrained()), [algorithm], load_path=start)
        run.fit()
        assert [row['frozen_at_batch'] for row in algorithm.unit_table()] == [2, 7, None, None, None, None]
        ends.append(run.state.model.state_dict())
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_another_head_is_refused(checkpoint):
    told = r"made with FreezeOut\(head=\['classes', 'offsets'\]\), not head="
    for head in (None, ['classes']):
        with pytest.raises(ValueError, match=told):
            trainer(classifier(pretrained()), [FreezeOut(0.5, head=head)], load_path=checkpoint)


def test_a_checkpoint_from_before_there_were_heads_had_none():
    model = pretrained()
    state = apply_freezeout(model, torch.optim.SGD(model.parameters(), lr=0.1)).state_dict()
    del state['settings']['head']
    apply_freezeout(model, torch.optim.SGD(model.parameters(), lr=0.1)).load_state_dict(state)
    loop = apply_freezeout(model, torch.optim.SGD(model.parameters(), lr=0.1), head=HEADS)
    with pytest.raises(ValueError, match=r'made with FreezeOut\(head=None\), not head='):
        loop.load_state_dict(state)


def test_a_copy_and_the_repr_have_the_head():
    algorithm = copy.deepcopy(FreezeOut(head=['fc']))
    assert algorithm.settings.head == ('fc',) and "head=['fc']" in repr(algorithm)
