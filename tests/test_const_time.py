"""A training that is lengthened by what freezing saves."""

import json

import pytest
import torch
from composer import Trainer

from composer_freezeout import FreezeOut
from composer_freezeout.costs.predict import freezeout_saving
from composer_freezeout.run.predicted import predict_saving

from .training import classifier, images, trainer

BATCHES = 16  # of tests/training.py: 4 epochs of 4


def lengthened(**arguments) -> tuple[int, float]:
    """Length of the training, by the prediction for the same model."""
    model = classifier()
    saving = freezeout_saving(model, next(iter(images())), FreezeOut(**arguments).settings)
    return round(BATCHES / (1 - saving)), saving


@pytest.mark.parametrize('duration', ['4ep', '16ba', '64sp'])
def test_the_training_is_as_much_longer_as_freezing_saves(duration):
    batches, saving = lengthened(t_0=0.3)
    assert saving > 0.2
    freezeout = FreezeOut(0.3, const_time=True)
    run = trainer(classifier(), [freezeout], max_duration=duration)
    run.fit()
    # Samples come in whole batches of 4.
    assert run.state.timestamp.batch in ((batches,) if duration != '64sp' else (batches, batches + 1))
    # The schedule is that of the longer training.
    for row in freezeout.unit_table()[:-1]:
        assert row['frozen_at_batch'] == pytest.approx(row['t_i'] * batches, abs=1)
    assert predict_saving(classifier(), next(iter(images())), [freezeout], 4) == 0


def test_without_it_nothing_is_lengthened():
    run = trainer(classifier(), [FreezeOut(0.3)])
    run.fit()
    assert run.state.timestamp.batch == BATCHES


def test_stages_save_less_and_lengthen_less():
    run = trainer(classifier(), [FreezeOut(0.3, max_stages=1, const_time=True)])
    run.fit()
    assert run.state.timestamp.batch == lengthened(t_0=0.3, max_stages=1)[0] < lengthened(t_0=0.3)[0]


def test_units_that_cost_more_save_more_and_lengthen_more():
    settings = {'t_0': 0.3, 'unit_costs': [5, 5, 1, 0]}
    run = trainer(classifier(), [FreezeOut(**settings, const_time=True)])
    run.fit()
    assert run.state.timestamp.batch == lengthened(**settings)[0] > lengthened(t_0=0.3)[0]


def test_a_warmup_in_epochs_keeps_its_length():
    freezeout = FreezeOut(0.5, 'linear', t_warmup='1ep', const_time=True)
    run = trainer(classifier(), [freezeout])
    rates = []
    run.state.optimizers[0].register_step_post_hook(lambda o, *_: rates.append(o.param_groups[0]['lr']))
    run.fit()
    assert len(rates) > BATCHES
    assert rates.index(max(rates)) == 4


# Composer's word on a checkpoint made between the last batch of an epoch and its end.
AT_THE_END_OF_AN_EPOCH = pytest.mark.filterwarnings(
    'ignore:No batches were trained:UserWarning', 'ignore:The ..compute.. method:UserWarning'
)


@AT_THE_END_OF_AN_EPOCH
@pytest.mark.parametrize('loader_at_fit', [False, True])
def test_resume_at_every_batch_is_exact(loader_at_fit, tmp_path):
    def run(**arguments) -> Trainer:
        data = {'train_dataloader': None} if loader_at_fit else {}
        return trainer(classifier(), [FreezeOut(0.3, const_time=True)], **data, **arguments)

    def fit(run: Trainer) -> None:
        run.fit(train_dataloader=images()) if loader_at_fit else run.fit()

    whole = run(save_folder=str(tmp_path), save_interval='1ba', save_num_checkpoints_to_keep=-1)
    fit(whole)
    checkpoints = sorted(tmp_path.glob('ep*-rank0.pt'), key=lambda path: int(path.name.split('-')[1][2:]))
    assert len(checkpoints) == int(whole.state.timestamp.batch) > BATCHES
    # With the loader given to `fit`, Composer compares with the duration before anyone can lengthen it.
    for checkpoint in checkpoints[: BATCHES - 1 if loader_at_fit else -1]:
        resumed = run(load_path=str(checkpoint))
        fit(resumed)
        assert resumed.state.timestamp.batch == whole.state.timestamp.batch
        for (name, ours), theirs in zip(
            resumed.state.model.state_dict().items(), whole.state.model.state_dict().values(), strict=True
        ):
            assert torch.equal(ours, theirs), (checkpoint.name, name)


@AT_THE_END_OF_AN_EPOCH
def test_a_resumed_training_with_another_duration_is_lengthened_too(tmp_path):
    trainer(classifier(), [FreezeOut(0.3, const_time=True)], save_folder=str(tmp_path), save_interval='4ba').fit()
    checkpoint = next(tmp_path.glob('ep*-ba8-rank0.pt'))
    longer = trainer(classifier(), [FreezeOut(0.3, const_time=True)], load_path=str(checkpoint), max_duration='6ep')
    longer.fit()
    assert longer.state.timestamp.batch == round(24 / (1 - lengthened(t_0=0.3)[1]))


def test_a_fit_that_goes_on_is_refused_and_one_that_starts_anew_is_not_lengthened_twice():
    run = trainer(classifier(), [FreezeOut(0.3, const_time=True)])
    run.fit()
    batches = run.state.timestamp.batch
    with pytest.raises(ValueError, match=r'const_time lengthens a training at its first batch.*use const_time=False'):
        run.fit(duration='1ep')
    run = trainer(classifier(), [FreezeOut(0.3, const_time=True)])
    run.fit()
    run.fit(reset_time=True)
    assert run.state.timestamp.batch == batches


def test_a_checkpoint_without_it_is_refused(tmp_path):
    trainer(classifier(), [FreezeOut(0.3)], save_folder=str(tmp_path), save_interval='1ep').fit()
    checkpoint = next(tmp_path.glob('ep1-*-rank0.pt'))
    with pytest.raises(ValueError, match=r'made with FreezeOut\(const_time=False\), not const_time=True'):
        trainer(classifier(), [FreezeOut(0.3, const_time=True)], load_path=str(checkpoint))


def test_the_progress_bar_counts_batches(capfd):
    run = trainer(classifier(), [FreezeOut(0.3, const_time=True)], progress_bar=True)
    run.fit()
    run.close()
    total = int(run.state.timestamp.batch)
    assert f'{total}/{total}' in capfd.readouterr().err


@pytest.mark.slow
def test_a_compiled_model(tmp_path):
    freezeout = FreezeOut(0.3, const_time=True)
    run = trainer(classifier(), [freezeout], compile_config={})
    run.fit()
    assert run.state.timestamp.batch == lengthened(t_0=0.3, max_stages=4)[0]
    assert json.dumps(freezeout.unit_table())


@pytest.mark.parametrize('value', [1, 'yes', None])
def test_other_values_are_refused(value):
    with pytest.raises(TypeError, match=f'const_time must be True or False, got {value!r}'):
        FreezeOut(const_time=value)
