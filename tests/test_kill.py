"""Killed at any moment and started again, a run ends as if nothing had happened."""

import multiprocessing
import random
import warnings
from pathlib import Path

import pytest
import torch

from .comparing import assert_equal

KILLS = 20


def train(folder: str, end: str) -> None:
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    from composer_freezeout import FreezeOut
    from tests.training import classifier, images, trainer

    model = classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    run = trainer(
        model,
        [FreezeOut(0.5)],
        optimizer,
        train_dataloader=images(samples=160),
        eval_dataloader=images(),
        max_duration='24ep',
        save_folder=folder,
        save_interval='1ba',
        save_num_checkpoints_to_keep=2,
        save_overwrite=True,
        autoresume=True,
        run_name='killed',
    )
    if run.state.timestamp < run.state.max_duration:  # killed after its last checkpoint, it has nothing left to do
        run.fit()
    torch.save(
        {'model': model.state_dict(), 'optimizer': optimizer.state_dict(), 'batch': run.state.timestamp.batch.value},
        end,
    )


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path):
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['torch', 'composer', 'composer_freezeout.algorithm.freezeout', 'tests.training'])

    def start(folder: str, end: str) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=train, args=(str(tmp_path / folder), str(tmp_path / end)))
        process.start()
        return process

    start('whole', 'whole.pt').join()
    moments = random.Random(5)
    killed = 0
    for _ in range(KILLS):
        process = start('killed', 'killed.pt')
        process.join(moments.uniform(0.6, 2.2))
        if process.is_alive():
            process.kill()
            killed += 1
        process.join()
        assert process.exitcode in (0, -9)
        for checkpoint in (tmp_path / 'killed').glob('latest*'):
            torch.load(checkpoint, weights_only=False)
    last = start('killed', 'killed.pt')
    last.join()
    assert last.exitcode == 0
    assert killed >= KILLS // 2
    for checkpoint in (tmp_path / 'killed').iterdir():
        torch.load(checkpoint, weights_only=False)
    assert_equal(torch.load(tmp_path / 'killed.pt'), torch.load(tmp_path / 'whole.pt'))
