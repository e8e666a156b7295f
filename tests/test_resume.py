"""A run that is interrupted and resumed ends with the same bits as one that is not."""

import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Callback, Event, Trainer
from composer.callbacks import LoadCheckpoint
from composer.core import State
from composer.loggers import Logger
from composer.optim import CosineAnnealingScheduler

from composer_freezeout import FreezeOut

from .training import OPTIMIZERS, StepTrace, classifier, images, make_optimizer, trainer


def run(optimizer: str, grouped: bool, freezeout: FreezeOut | None = None, **arguments: Any) -> Trainer:
    model = classifier()
    return trainer(
        model,
        arguments.pop('algorithms', [freezeout or FreezeOut(0.5)]),
        make_optimizer(optimizer, model, grouped),
        eval_dataloader=images(),
        eval_interval='3ba',
        **arguments,
    )


def assert_same_end(resumed: Trainer, reference: Trainer) -> None:
    assert resumed.state.timestamp.batch == reference.state.timestamp.batch
    ours, theirs = resumed.state.model.state_dict(), reference.state.model.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    a, b = resumed.state.optimizers[0], reference.state.optimizers[0]
    hyperparameters = [[{k: v for k, v in g.items() if k != 'params'} for g in o.param_groups] for o in (a, b)]
    assert hyperparameters[0] == hyperparameters[1]
    for p, q in zip(*(itertools.chain(*(g['params'] for g in o.param_groups)) for o in (a, b)), strict=True):
        assert list(a.state[p]) == list(b.state[q])
        assert all(
            torch.equal(torch.as_tensor(x), torch.as_tensor(y))
            for x, y in zip(a.state[p].values(), b.state[q].values(), strict=True)
        )
    assert len(a.state) == len(b.state)
    for name, metric in reference.state.train_metrics.items():
        assert torch.equal(resumed.state.train_metrics[name].compute(), metric.compute())


# Composer's word on a checkpoint made between the last batch of an epoch and its end.
@pytest.mark.filterwarnings('ignore:No batches were trained:UserWarning', 'ignore:The ..compute.. method:UserWarning')
@pytest.mark.parametrize('grouped', [False, True], ids=['one-group', 'two-groups'])
@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_resume_at_every_batch_is_exact(optimizer, grouped, tmp_path):
    whole = run(optimizer, grouped, save_folder=str(tmp_path), save_interval='1ba', save_num_checkpoints_to_keep=-1)
    whole.fit()
    checkpoints = sorted(tmp_path.glob('ep*-rank0.pt'), key=lambda path: int(path.name.split('-')[1][2:]))
    assert len(checkpoints) == 16
    for checkpoint in checkpoints[:-1]:
        freezeout = FreezeOut(0.5)
        resumed = run(optimizer, grouped, freezeout, load_path=str(checkpoint))
        resumed.fit()
        assert_same_end(resumed, whole)
        assert [row['frozen_at_batch'] for row in freezeout.unit_table()] == [2, 5, 10, None]


@pytest.mark.parametrize(('evaluation', 'exact'), [(None, True), (images(), False)])
def test_a_shuffled_loader_resumes_as_well_as_without_freezeout(evaluation, exact, tmp_path):
    """Evaluations move the random state that a plain shuffle depends on: Composer's own limit."""

    def is_exact(algorithms: Callable[[], list[FreezeOut]], folder: Path) -> list[bool]:
        def shuffled(**arguments: Any) -> Trainer:
            data = {'train_dataloader': images(shuffle=True), 'eval_dataloader': evaluation}
            return trainer(classifier(), algorithms(), **data, **arguments)

        whole = shuffled(save_folder=str(folder), save_interval='1ba', save_num_checkpoints_to_keep=-1)
        whole.fit()
        ends = []
        for batch in (6, 7, 11):
            (checkpoint,) = folder.glob(f'ep*-ba{batch}-rank0.pt')
            resumed = shuffled(load_path=str(checkpoint))
            resumed.fit()
            tensors = zip(whole.state.model.parameters(), resumed.state.model.parameters(), strict=True)
            ends.append(all(torch.equal(a, b) for a, b in tensors))
        return ends

    assert is_exact(lambda: [FreezeOut(0.5)], tmp_path / 'freezeout') == [exact] * 3
    assert is_exact(lambda: [], tmp_path / 'control') == [exact] * 3


def test_another_run_does_not_end_the_same():
    """The comparison above can fail."""
    a, b = run('sgd', False), run('sgd', False, FreezeOut(0.6))
    a.fit()
    b.fit()
    with pytest.raises(AssertionError):
        assert_same_end(a, b)


def test_autoresume_after_three_interruptions(tmp_path):
    whole = run('sgd-momentum', False)
    whole.fit()
    arguments = {
        'save_folder': str(tmp_path), 'save_interval': '1ba', 'autoresume': True, 'run_name': 'interrupted',
    }  # fmt: skip

    class Interrupted(Exception):
        pass

    for stop_at in (3, 7, 11, None):
        resumed = run('sgd-momentum', False, **arguments)
        if stop_at is not None:

            def stop(*_: object, at: int = stop_at, of: Trainer = resumed) -> None:
                if of.state.timestamp.batch == at:
                    raise Interrupted

            resumed.state.model.register_forward_pre_hook(stop)
            with pytest.raises(Interrupted):
                resumed.fit()
        else:
            resumed.fit()
    assert_same_end(resumed, whole)


def test_with_a_scheduler_the_checkpoint_stays_loadable(tmp_path):
    arguments = {'schedulers': CosineAnnealingScheduler()}
    whole = run(
        'sgd-momentum',
        True,
        save_folder=str(tmp_path),
        save_interval='5ba',
        save_num_checkpoints_to_keep=-1,
        **arguments,
    )
    whole.fit()
    for checkpoint in sorted(tmp_path.glob('ep*-rank0.pt')):
        if 'ba16' not in checkpoint.name:
            resumed = run('sgd-momentum', True, load_path=str(checkpoint), **arguments)
            resumed.fit()
            assert_same_end(resumed, whole)


@pytest.mark.filterwarnings('ignore:.*is not in the state_dict:UserWarning')
def test_load_checkpoint_callback(tmp_path):
    whole = run('sgd-momentum', True, save_folder=str(tmp_path), save_interval='7ba', save_num_checkpoints_to_keep=-1)
    whole.fit()
    (checkpoint,) = tmp_path.glob('ep*-ba7-rank0.pt')
    for event in (Event.BEFORE_LOAD, Event.AFTER_LOAD):
        callback = LoadCheckpoint(str(checkpoint), event=event)
        resumed = run('sgd-momentum', True, callbacks=[callback])
        resumed.fit()
        assert_same_end(resumed, whole)


@pytest.mark.parametrize('grouped', [False, True], ids=['one-group', 'two-groups'])
@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_checkpoints_open_without_freezeout(optimizer, grouped, tmp_path):
    run(optimizer, grouped, save_folder=str(tmp_path), save_interval='1ba', save_num_checkpoints_to_keep=-1).fit()
    for batch in (1, 3, 7, 11, 13):  # with 0 to 3 units frozen, removed or only frozen
        (checkpoint,) = tmp_path.glob(f'ep*-ba{batch}-rank0.pt')
        plain = run(optimizer, grouped, algorithms=[], load_path=str(checkpoint))
        plain.fit()
        groups = plain.state.optimizers[0].param_groups
        assert [len(group['params']) for group in groups] == ([4, 10] if grouped else [14])
        assert not any(key.startswith('freezeout') for group in groups for key in group)
        assert {group['lr'] for group in groups} == {0.01 if 'adam' in optimizer else 0.1}


def test_new_settings_can_be_adopted(tmp_path):
    run('adamw', True, save_folder=str(tmp_path), save_interval='7ba', save_num_checkpoints_to_keep=-1).fit()
    (checkpoint,) = tmp_path.glob('ep*-ba7-rank0.pt')
    freezeout = FreezeOut(0.7, 'linear', granularity='block')
    run('adamw', True, freezeout, load_path=str(checkpoint), load_ignore_keys=['state/algorithms']).fit()
    # Two units were frozen by then; with the new times they train on until 0.7 and 0.8 of 16 batches.
    assert [row['frozen_at_batch'] for row in freezeout.unit_table()] == [12, 13, 15, None]


@pytest.mark.filterwarnings('ignore:.*is not in the state_dict:UserWarning')
def test_a_longer_duration_thaws_what_is_no_longer_due(tmp_path, caplog):
    run('sgd-momentum', False, save_folder=str(tmp_path), save_interval='7ba', save_num_checkpoints_to_keep=-1).fit()
    (checkpoint,) = tmp_path.glob('ep*-ba7-rank0.pt')
    freezeout, trace = FreezeOut(0.5), StepTrace()
    longer = run('sgd-momentum', False, freezeout, load_path=str(checkpoint), max_duration='14ep', callbacks=[trace])
    with caplog.at_level(logging.INFO, 'composer_freezeout'):
        longer.fit()
    # 7 of 56 batches are done: exactly at the first unit's time, before the second's, 0.296…
    assert 'thawed module.conv2 at progress 0.1250' in caplog.text
    assert trace.steps[0]['module.conv2.weight'] > 0
    assert [row['frozen_at_batch'] for row in freezeout.unit_table()] == [2, 17, 33, None]


def test_saving_changes_nothing(tmp_path):
    quiet, saving = run('adamw', True), run('adamw', True, save_folder=str(tmp_path), save_interval='1ba')
    quiet.fit()
    saving.fit()
    assert_same_end(saving, quiet)
    assert [group['freezeout_unit'] for group in saving.state.optimizers[0].param_groups] == ['module.head'] * 2


def test_an_optimizer_asked_for_its_state_steps_with_its_own_rates():
    class Curious(Callback):
        def before_backward(self, state: State, logger: Logger) -> None:
            state.optimizers[0].state_dict()

    asked, quiet = run('sgd-momentum', True, callbacks=[Curious()]), run('sgd-momentum', True)
    asked.fit()
    quiet.fit()
    assert_same_end(asked, quiet)


def test_a_scheduler_that_comes_when_a_group_is_gone(tmp_path):
    model = classifier()
    head = list(model.module.head.parameters())
    rest = [p for name, p in model.named_parameters() if 'head' not in name]
    optimizer = torch.optim.SGD([{'params': head}, {'params': rest, 'weight_decay': 0.1}], lr=0.1, momentum=0.9)
    again = trainer(model, [FreezeOut(0.3)], optimizer)
    again.fit()
    assert len(optimizer.param_groups) == 1
    again.fit(duration='12ep', schedulers=CosineAnnealingScheduler())  # thaws, and the other group is back
    again.save_checkpoint(str(tmp_path / 'checkpoint.pt'))
    (saved,) = torch.load(tmp_path / 'checkpoint.pt', weights_only=False)['state']['optimizers'].values()
    assert [len(group['params']) for group in saved['param_groups']] == [2, 12]
    assert len(optimizer.param_groups) == 1


def test_second_fit_after_a_finished_one():
    freezeout = FreezeOut(0.5)
    again = run('sgd-momentum', False, freezeout)
    again.fit()
    with pytest.raises(ValueError, match='No training would occur'):
        again.fit()
    again.fit(reset_time=True, duration='4ep')  # a new schedule on the trained weights: everything thaws
    assert [row['frozen_at_batch'] for row in freezeout.unit_table()] == [2, 5, 10, None]


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    first = run('sgd-momentum', False, save_folder=str(tmp_path), save_interval='6ba')
    first.fit()
    return str(next(tmp_path.glob('ep*-ba6-rank0.pt')))


@pytest.mark.parametrize(
    ('freezeout', 'message'),
    [
        (FreezeOut(0.6), r'made with FreezeOut\(t_0=0.5\), not t_0=0.6'),
        (FreezeOut(0.5, 'linear'), "how_scale='cubic'"),
        (FreezeOut(0.5, granularity='block'), "granularity='module'"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(freezeout, message, checkpoint):
    with pytest.raises(ValueError, match=message):
        run('sgd-momentum', False, freezeout, load_path=checkpoint)


def test_costs_of_units_are_among_the_settings(tmp_path):
    costs = [1, 3, 0.5, 0]
    run('adamw', True, FreezeOut(0.5, unit_costs=costs), save_folder=str(tmp_path), save_interval='5ba').fit()
    checkpoint = str(next(tmp_path.glob('ep*-ba5-rank0.pt')))
    whole, again = (FreezeOut(0.5, unit_costs=tuple(costs)) for _ in range(2))
    run('adamw', True, whole).fit()
    run('adamw', True, again, load_path=checkpoint).fit()
    assert again.unit_table() == whole.unit_table()
    # Of 16 batches; the second unit freezes with the first one.
    assert [row['frozen_at_batch'] for row in whole.unit_table()] == [3, 3, 12, None]
    for other in (FreezeOut(0.5), FreezeOut(0.5, unit_costs=[1, 3, 0.6, 0])):
        with pytest.raises(ValueError, match=r'made with FreezeOut\(unit_costs=\[1, 3, 0.5, 0\]\), not unit_costs='):
            run('adamw', True, other, load_path=checkpoint)
    with pytest.raises(ValueError, match=r'made with FreezeOut\(cost_shift=0.25\), not cost_shift=0.5'):
        run('adamw', True, FreezeOut(0.5, unit_costs=costs, cost_shift=0.5), load_path=checkpoint)


def test_weights_only_starts_unfrozen(checkpoint):
    freezeout = FreezeOut(0.5)
    fresh = run('sgd-momentum', False, freezeout, load_path=checkpoint, load_weights_only=True)
    assert all(p.requires_grad for p in fresh.state.model.parameters())
    fresh.fit()
    assert [row['frozen_at_batch'] for row in freezeout.unit_table()] == [2, 5, 10, None]


def test_a_checkpoint_made_without_freezeout_opens(tmp_path):
    plain = trainer(classifier(), [], max_duration='2ep', save_folder=str(tmp_path))
    plain.fit()
    freezeout = FreezeOut(0.5)
    with pytest.warns(UserWarning, match='FreezeOut is not in the state_dict'):
        resumed = trainer(classifier(), [freezeout], load_path=str(tmp_path / 'latest-rank0.pt'))
    resumed.fit()
    # Two units are due at once at batch 8, which shows the units and stands still in both; momentum has come along.
    assert [row['frozen_at_batch'] for row in freezeout.unit_table()] == [9, 9, 10, None]
    assert len(resumed.state.optimizers[0].state) == 2
