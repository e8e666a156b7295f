"""What Composer's own tests ask of each of its algorithms, asked of FreezeOut: train twice, resume, load.

Composer marks LayerFreezing as expected to fail the first two.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Trainer

import composer_freezeout
from composer_freezeout import FreezeOut

from .comparing import assert_equal
from .training import classifier, images

# Composer's word on a scheduler of torch's that starts before the first step, and on metrics that are resumed.
pytestmark = pytest.mark.filterwarnings(
    'ignore:Detected call of `lr_scheduler.step:UserWarning', 'ignore:The ..compute.. method:UserWarning'
)


def trainer(model: Any, folder: Path | None = None, **arguments: Any) -> Trainer:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    saving = (
        {} if folder is None else {'save_folder': str(folder), 'save_filename': 'ep{epoch}', 'save_interval': '1ep'}
    )
    return Trainer(
        model=model,
        train_dataloader=images(shuffle=True),
        optimizers=optimizer,
        schedulers=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5),
        max_duration='4ep',
        train_subset_num_batches=2,
        algorithms=FreezeOut(0.5),
        device='cpu',
        seed=1,
        progress_bar=False,
        **saving,
        **arguments,
    )


def test_trains_and_trains_again():
    run = trainer(classifier())
    run.fit()
    run.fit(duration='1ep')
    assert run.state.timestamp.epoch == 5


def without_clocks(checkpoint: Path) -> dict[str, Any]:
    saved = torch.load(checkpoint, weights_only=False)
    timestamp = saved['state']['timestamp']['Timestamp']
    for clock in [name for name in timestamp if name.endswith('_wct')]:
        del timestamp[clock]
    del saved['state']['run_name']
    del saved['state']['callbacks']['CheckpointSaver']['all_saved_checkpoints_to_timestamp']
    return {'rng': saved['rng'], 'state': saved['state']}


@pytest.mark.parametrize('epoch', [1, 2, 3])
def test_resumed_the_last_checkpoints_are_equal(epoch, tmp_path):
    model = classifier()
    same = copy.deepcopy(model)
    trainer(model, tmp_path / 'whole').fit()
    trainer(same, tmp_path / 'resumed', load_path=str(tmp_path / 'whole' / f'ep{epoch}')).fit()
    # Random states, weights, optimizer, schedulers, metrics, FreezeOut's own.
    assert_equal(without_clocks(tmp_path / 'whole' / 'ep4'), without_clocks(tmp_path / 'resumed' / 'ep4'))
    with pytest.raises(AssertionError):
        assert_equal(
            without_clocks(tmp_path / 'whole' / f'ep{epoch}')['state']['model'],
            without_clocks(tmp_path / 'whole' / 'ep4')['state']['model'],
        )


def test_not_required_on_load():
    assert not FreezeOut.required_on_load()
    assert not FreezeOut().find_unused_parameters
    assert repr(eval(f'composer_freezeout.{FreezeOut()!r}', {'composer_freezeout': composer_freezeout})) == repr(
        FreezeOut()
    )
