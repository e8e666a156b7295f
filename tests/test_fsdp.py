"""FSDP2 on two processes on the CPU: units, learning rates, resume, and what is communicated."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from .comparing import assert_equal
from .test_algorithm import expected_lr

SCRIPT = Path(__file__).with_name('fsdp_ranks.py')
ROOT = SCRIPT.parent.parent
UNITS = ['stem', *(f'blocks.{block}.conv{conv}' for block in range(3) for conv in (1, 2)), 'head']


@pytest.fixture(scope='module', params=['full', 'sharded'])
def ranks(request, tmp_path_factory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp(request.param)
    subprocess.run(
        [Path(sys.executable).with_name('composer'), '-n', '2', SCRIPT, request.param, str(folder)],
        check=True,
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        timeout=280,
    )
    return [torch.load(folder / f'rank{rank}.pt', weights_only=False) for rank in range(2)]


def test_units_and_learning_rates_are_those_of_one_process(ranks):
    for rank in ranks:
        assert [row['name'] for row in rank['units']] == [f'module.{name}' for name in UNITS]
        assert [row['frozen_at_batch'] for row in rank['units']] == [2, 3, 5, 6, 8, 11, 13, None]
        for batch, step in enumerate(rank['steps']):
            for i, unit in enumerate(UNITS):
                expected = expected_lr(batch / 16, i, 0.5, 'cubic', True, n=8)
                assert (step[f'module.{unit}.weight'] or 0.0) == pytest.approx(expected, rel=1e-12, abs=1e-16)


def test_resumed_runs_end_with_the_same_bits(ranks):
    for rank in ranks:
        assert len(rank['resumed']) == 4
        for resumed in rank['resumed']:
            assert_equal(resumed, rank['whole'])
    assert_equal(ranks[0]['whole'], ranks[1]['whole'])


def test_the_comparison_can_fail(ranks):
    changed = {**ranks[0]['whole'], 'groups': []}
    with pytest.raises(AssertionError):
        assert_equal(changed, ranks[0]['whole'])


def test_checkpoints_open_without_freezeout(ranks):
    for rank in ranks:
        assert rank['plain_groups'] == [30]


def test_frozen_gradients_are_not_communicated(ranks):
    for rank in ranks:
        # Every tensor is padded to a multiple of the number of ranks.
        for reduced, trainable in zip(rank['reduced'], rank['trainable'], strict=True):
            assert trainable <= reduced <= trainable + 30
        assert len(set(rank['reduced'])) == 8
