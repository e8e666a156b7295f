"""Two processes on the CPU, started as users start them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from .training import OPTIMIZERS

SCRIPT = Path(__file__).with_name('two_ranks.py')
ROOT = SCRIPT.parent.parent


def launch(processes: int, folder: Path, *optimizer: str) -> list[dict[str, Any]]:
    folder.mkdir()
    launcher = Path(sys.executable).with_name('composer')
    subprocess.run(
        [launcher, '-n', str(processes), SCRIPT, str(folder), *optimizer],
        check=True,
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        timeout=240,
    )
    return [torch.load(folder / f'rank{rank}.pt') for rank in range(processes)]


@pytest.fixture(scope='module')
def two_ranks(tmp_path_factory):
    return launch(2, tmp_path_factory.mktemp('ddp') / 'two')


def test_frozen_gradients_are_not_communicated(two_ranks):
    for rank in two_ranks:
        assert len(rank['reduced']) == 16
        assert rank['reduced'] == rank['trainable']
        assert len(set(rank['reduced'])) == 4  # three freezes
        assert rank['find_unused_parameters'] is False


def test_microbatches_synchronise_once_a_step(two_ranks):
    for rank in two_ranks:
        assert rank['synchronised'] == [1] * 16


def test_ranks_agree_to_the_bit(two_ranks):
    first, second = two_ranks
    assert first['units'] == second['units']
    assert [row['frozen_at_batch'] for row in first['units']] == [2, 5, 10, None]
    for name, tensor in first['model'].items():
        assert torch.equal(tensor, second['model'][name]), name


def test_two_processes_equal_one(two_ranks, tmp_path):
    (single,) = launch(1, tmp_path / 'one')
    assert single['units'] == two_ranks[0]['units']
    for name, tensor in single['model'].items():
        # Gradients of the microbatches are added in another order: rounding, over 16 steps.
        torch.testing.assert_close(two_ranks[0]['model'][name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_frozen_statistics_agree_without_being_sent(two_ranks):
    """What is sent with every batch would have to be folded anew with every batch."""
    first, second = two_ranks
    # Units freeze in batches 2, 5 and 10: there all that are frozen are folded anew.
    expected = [0] * 2 + [1] * 3 + [3] * 5 + [6] * 6
    assert first['refolds'] == second['refolds'] == expected
    for name, tensor in first['batchnorm'].items():
        assert torch.equal(tensor, second['batchnorm'][name]), name


@pytest.mark.slow
@pytest.mark.parametrize('groups', ['one', 'two'])
@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_resume_with_every_optimizer(optimizer, groups, tmp_path):
    assert_resumed(launch(2, tmp_path / 'two', optimizer, groups))


def test_resumed_runs_end_with_the_same_bits(two_ranks):
    assert_resumed(two_ranks)


def assert_resumed(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert len(rank['resumed']) == 15
        for resumed in rank['resumed']:
            for name, tensor in rank['model'].items():
                assert torch.equal(resumed[name], tensor), name


def test_compiled_the_same_is_communicated_and_computed(two_ranks):
    for rank in two_ranks:
        assert rank['still_compiled']
        assert rank['compiled_reduced'] == rank['compiled_trainable'] == rank['trainable']
        for name, tensor in rank['model'].items():
            # Compiled operators and whole batches round differently from microbatches, over 16 steps.
            torch.testing.assert_close(rank['compiled'][name], tensor, rtol=1e-4, atol=1e-5, msg=name)
