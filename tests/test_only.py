"""One run by itself, several such commands in one folder: claims, and a manifest that all write to."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from composer_freezeout.cli import main
from composer_freezeout.compare.judging.manifest import new_manifest
from composer_freezeout.compare.training.folder import claimed, claimed_run
from composer_freezeout.results.files import MANIFEST, write_json
from composer_freezeout.run.faults import Refused

QUICKSTART = Path(__file__).parent.parent / 'yamls' / 'quickstart'
SMALL = ['model.name=resnet8', 'train_data.image_size=8', 'eval_data.image_size=8', 'max_duration=2ep']


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(['compare', str(QUICKSTART), *map(str, arguments), *SMALL]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize('arguments', [['--only', 'baseline'], ['--seed', '17']])
def test_the_arm_and_the_seed_go_together(arguments, tmp_path, capsys):
    assert '--only ARM and --seed S go together' in refused(capsys, '--out', tmp_path / 'out', *arguments)
    assert not (tmp_path / 'out').exists()


def test_an_arm_that_is_none(tmp_path, capsys):
    line = refused(capsys, '--out', tmp_path / 'out', '--only', 'freezout', '--seed', 17)
    assert line.startswith("--only: no arm 'freezout' here; choose from baseline, ")


def test_a_length_that_is_not_known_yet(tmp_path, capsys):
    line = refused(capsys, '--out', tmp_path, '--only', 'baseline_short', '--seed', 17)
    assert (
        line == '--only: the length of baseline_short is that of baseline and freezeout; train these with seed 17 first'
    )


def test_a_run_that_another_command_trains_is_left_alone(tmp_path, capsys):
    run = tmp_path / 'baseline' / 'seed17'
    write_json(tmp_path / MANIFEST, new_manifest(QUICKSTART, ['baseline'], [17], 1.0, SMALL, 'command').model_dump())
    with claimed(tmp_path, shared=True), claimed_run(run):
        (run / 'checkpoint').write_text('do not lose')
        line = refused(capsys, '--out', tmp_path, '--only', 'baseline', '--seed', 17, '--overwrite')
        assert f'{run}: another command is training this run' in line
        # A command that trains all would train this one, too.
        assert 'another command is training in' in refused(capsys, '--out', tmp_path)
        assert (run / 'checkpoint').read_text() == 'do not lose'


def test_a_folder_is_shared_or_claimed(tmp_path, refusal):
    message = 'another command is training in'
    first, second, third = claimed(tmp_path, shared=True), claimed(tmp_path, shared=True), claimed(tmp_path)
    with first, second, refusal(message, Refused), third:
        pass
    with claimed(tmp_path), refusal(message, Refused), claimed(tmp_path, shared=True):
        pass


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_commands_at_once_and_a_report(tmp_path, capsys):
    out = tmp_path / 'out'
    code = 'import sys; from composer_freezeout.cli import main; sys.exit(main(sys.argv[1:]))'
    commands = [
        [
            sys.executable,
            '-c',
            code,
            'compare',
            str(QUICKSTART),
            '--out',
            str(out),
            '--only',
            arm,
            '--seed',
            '17',
            *SMALL,
        ]
        for arm in ('baseline', 'freezeout')
    ]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands
    ]
    for process in processes:
        text, errors = process.communicate()
        assert process.returncode == 0, errors
        assert f'When all runs are there: composer-freezeout report {out}' in text
    manifest = json.loads((out / 'comparison.json').read_text())
    assert manifest['arms'] == ['baseline', 'freezeout'] and manifest['seeds'] == [17]
    assert {path.name for path in out.iterdir() if path.is_dir()} == {'baseline', 'freezeout'}
    assert main(['report', str(out)]) == 0
    assert (out / 'report.html').exists()
    written = (out / 'baseline' / 'seed17' / 'record.json').stat().st_mtime_ns
    capsys.readouterr()
    assert main(commands[0][3:]) == 0
    assert 'baseline seed 17 is finished already.' in capsys.readouterr().out
    assert (out / 'baseline' / 'seed17' / 'record.json').stat().st_mtime_ns == written
