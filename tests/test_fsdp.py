"""FSDP on several processes: units, learning rates, resume, and what is communicated.

The second version on two processes on the CPU, the first on as many as there are GPUs.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from .comparing import assert_equal
from .test_algorithm import expected_lr
from .training import OPTIMIZERS

SCRIPT = Path(__file__).with_name('fsdp_ranks.py')
ROOT = SCRIPT.parent.parent
UNITS = ['stem', *(f'blocks.{block}.conv{conv}' for block in range(3) for conv in (1, 2)), 'head']


def launch(folder: Path, version: str, kind: str, *optimizer: str) -> list[dict[str, Any]]:
    processes = 2 if version == '2' else torch.cuda.device_count()
    subprocess.run(
        [Path(sys.executable).with_name('composer'), '-n', str(processes), SCRIPT, kind, str(folder), *optimizer],
        check=True,
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'FSDP_VERSION': version},
        timeout=280,
    )
    files = [folder / f'rank{rank}.pt' for rank in range(processes)]
    return [torch.load(file, weights_only=False, map_location='cpu') for file in files]


@pytest.fixture(
    scope='module',
    params=[
        pytest.param(('2', 'full'), marks=pytest.mark.slow),
        ('2', 'sharded'),
        pytest.param(('1', 'full'), marks=pytest.mark.gpu),
        pytest.param(('1', 'sharded'), marks=pytest.mark.gpu),
    ],
    ids='-'.join,
)
def ranks(request, tmp_path_factory) -> list[dict[str, Any]]:
    version, kind = request.param
    return launch(tmp_path_factory.mktemp(f'fsdp{version}-{kind}'), version, kind)


def test_units_and_learning_rates_are_those_of_one_process(ranks):
    for rank in ranks:
        assert [row['name'] for row in rank['units']] == [f'module.{name}' for name in UNITS]
        assert [row['frozen_at_batch'] for row in rank['units']] == [2, 3, 5, 6, 8, 11, 13, None]
        for batch, step in enumerate(rank['steps']):
            for i, unit in enumerate(UNITS):
                expected = expected_lr(batch / 16, i, 0.5, 'cubic', True, n=8)
                assert (step[f'module.{unit}.weight'] or 0.0) == pytest.approx(expected, rel=1e-12, abs=1e-16)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['full', 'sharded'])
@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_resume_with_every_optimizer(optimizer, kind, tmp_path, request):
    if (optimizer, kind) == ('sgd', 'full'):
        reason = (
            'torch cannot load a full checkpoint of an optimizer without state under FSDP2, without FreezeOut either'
        )
        request.applymarker(pytest.mark.xfail(strict=True, raises=subprocess.CalledProcessError, reason=reason))
    assert_resumed(launch(tmp_path, '2', kind, optimizer))


def test_resumed_runs_end_with_the_same_bits(ranks):
    assert_resumed(ranks)


def assert_resumed(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert len(rank['resumed']) == 15
        for resumed in rank['resumed']:
            assert_equal(resumed, rank['whole'])
        assert_equal(rank['whole'], ranks[0]['whole'])


def test_the_comparison_can_fail(ranks):
    changed = {**ranks[0]['whole'], 'groups': []}
    with pytest.raises(AssertionError):
        assert_equal(changed, ranks[0]['whole'])


def test_checkpoints_open_without_freezeout(ranks):
    for rank in ranks:
        assert rank['plain_groups'] == [8, 22]


def test_frozen_gradients_are_not_communicated(ranks):
    if len(ranks) == 1:
        pytest.skip('a single process communicates nothing')
    for rank in ranks:
        # Every tensor is padded to a multiple of the number of ranks.
        for reduced, trainable in zip(rank['reduced'], rank['trainable'], strict=True):
            assert trainable <= reduced <= trainable + 30
        assert len(set(rank['reduced'])) == 8
