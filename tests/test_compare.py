"""The comparison, as `make quickstart` runs it, on the smallest network."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMALL = [
    'model.name=resnet8', 'train_data.image_size=8', 'eval_data.image_size=8', 'max_duration=2ep', 'progress_bar=false',
]  # fmt: skip


def compare(family: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / 'benchmarks' / 'compare.py'), str(family), '--out', str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240)


@pytest.fixture(scope='module')
def comparison(tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp('comparison')
    done = compare(ROOT / 'yamls' / 'quickstart', out, *SMALL)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_every_arm_has_a_record_and_a_row(comparison):
    out, text = comparison
    for arm in ('baseline', 'layer_freezing', 'freezeout', 'baseline_short'):
        record = json.loads((out / arm / 'record.json').read_text())
        assert record['training_seconds'] > 0
        assert any(f'│ {arm} ' in line and f'{record["training_seconds"]:.1f}' in line for line in text.splitlines())
    assert str(out / 'learning_rates.png') in text
    assert (out / 'learning_rates.png').read_bytes().startswith(b'\x89PNG')


def test_the_control_has_the_time_that_freezeout_took(comparison):
    out, _ = comparison
    records = {
        arm: json.loads((out / arm / 'record.json').read_text()) for arm in ('baseline', 'freezeout', 'baseline_short')
    }
    batches = {arm: record['effective']['total_batches'] for arm, record in records.items()}
    share = records['freezeout']['training_seconds'] / records['baseline']['training_seconds']
    assert batches['baseline'] == batches['freezeout'] == 44
    assert batches['baseline_short'] == max(1, round(44 * share))
    # Its cosine is compressed, not cut off.
    assert records['baseline_short']['config']['max_duration'] == f'{batches["baseline_short"]}ba'


def test_predictions_are_in_the_records(comparison):
    out, _ = comparison
    saving = {
        arm: json.loads((out / arm / 'record.json').read_text())['predicted_saving']
        for arm in ('baseline', 'freezeout')
    }
    assert saving['baseline'] == 0
    assert 0.1 < saving['freezeout'] < 0.3


def test_finished_runs_are_not_overwritten_unless_told(comparison):
    out, _ = comparison
    before = (out / 'baseline' / 'record.json').read_text()
    done = compare(ROOT / 'yamls' / 'quickstart', out, *SMALL)
    assert done.returncode == 2
    assert 'already holds the record' in done.stderr
    assert (out / 'baseline' / 'record.json').read_text() == before


@pytest.mark.parametrize(
    ('missing', 'override', 'message'),
    [
        ('freezeout.yaml', None, 'has no freezeout.yaml'),
        ('baseline.yaml', None, 'has no baseline.yaml'),
        (None, 'optimiser.lr=1', "unknown key 'optimiser'; did you mean 'optimizer'?"),
    ],
)
def test_faults_are_told_before_anything_is_trained(missing, override, message, tmp_path):
    family = tmp_path / 'family'
    shutil.copytree(ROOT / 'yamls' / 'quickstart', family)
    if missing:
        (family / missing).unlink()
    done = compare(family, tmp_path / 'out', *([override] if override else []))
    assert done.returncode == 2
    assert message in done.stderr
    assert 'Traceback' not in done.stderr
    assert not (tmp_path / 'out').exists()
