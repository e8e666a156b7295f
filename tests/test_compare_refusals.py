"""What compare, sweep and report cannot do: told in a line, with exit code 2, and nothing lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from composer_freezeout.cli import main
from composer_freezeout.compare.arms.family import read_arms
from composer_freezeout.compare.judging.comparison import load
from composer_freezeout.compare.report.page import write_report
from composer_freezeout.compare.sweep.command import identity, prepare_folder
from composer_freezeout.compare.training.folder import claimed
from composer_freezeout.run.families import find_family
from composer_freezeout.run.faults import Refused

from .records import folder

COMMAND = 'import sys; from composer_freezeout.cli import main; sys.exit(main(sys.argv[1:]))'
SMALL = ['model.name=resnet8', 'train_data.image_size=8', 'eval_data.image_size=8', 'max_duration=2ep']


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a command is refused with."""
    assert main([str(argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def in_a_process(code: str, *arguments: object) -> tuple[int, str]:
    command = [sys.executable, '-c', code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    return done.returncode, done.stderr


def content(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob('*')) if path.is_file()}


# --- folders


@pytest.mark.parametrize('command', ['compare', 'sweep'])
def test_a_folder_that_cannot_be_made_is_told_before_torch_is_imported(command, tmp_path):
    (tmp_path / 'file').touch()
    code = (
        'import sys; from composer_freezeout.cli import main\n'
        'code = main(sys.argv[1:])\n'
        'assert "torch" not in sys.modules\n'
        'sys.exit(code)\n'
    )
    for out, message in [
        (tmp_path / 'file', 'is a file; give a folder'),
        (tmp_path / 'file' / 'out', 'is a file; give a folder'),
        # Not even root can make folders there.
        (Path('/proc/out/of/reach'), '/proc/out/of/reach cannot be written to'),
    ]:
        returned, errors = in_a_process(code, command, 'quickstart', '--out', out)
        assert returned == 2
        (line,) = errors.splitlines()
        assert line.startswith('--out: ') and message in line


@pytest.mark.parametrize('command', ['compare', 'sweep'])
def test_two_commands_at_once_are_refused_and_remove_nothing(command, tmp_path, capsys):
    folder(tmp_path, {'baseline': [0.9]})
    before = content(tmp_path)
    with claimed(tmp_path):
        line = refused(capsys, command, 'quickstart', '--out', tmp_path, '--overwrite')
    assert f'another command is training in {tmp_path}; wait until it has ended' in line
    assert content(tmp_path) == before
    with claimed(tmp_path):  # and free again
        pass


def test_a_run_that_outlives_its_command_keeps_the_folder(tmp_path, refusal):
    out, pid = tmp_path / 'out', tmp_path / 'pid'
    code = f"""
from pathlib import Path
from composer_freezeout.compare.training.folder import claimed, held
from composer_freezeout.run.processes import execute
out = Path({str(out)!r})
with claimed(out):
    execute(['sh', '-c', 'echo $$ > {pid}.part; mv {pid}.part {pid}; exec sleep 100'], out / 'log', held())
"""
    command = subprocess.Popen([sys.executable, '-c', code])
    while not pid.exists():
        assert command.poll() is None
        time.sleep(0.05)
    command.kill()
    command.wait()
    try:
        with refusal('another command is training in', Refused), claimed(out):
            pass
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


def test_a_refused_command_leaves_no_folder_behind(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no arm 'freezout' in this family" in refused(capsys, 'compare', 'quickstart', '--arms', 'baseline,freezout')
    assert list(tmp_path.iterdir()) == []


# --- disks


# Files grow no larger than this, as on a full disk. Torch itself writes one when it is imported.
FULL = """
import resource, sys, warnings
warnings.simplefilter('ignore')
import composer
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
"""


def test_a_full_disk_in_a_comparison(tmp_path):
    arguments = ['compare', 'quickstart', '--out', tmp_path / 'out', '--arms', 'baseline', *SMALL]
    code, errors = in_a_process(FULL + COMMAND, *arguments)
    assert code == 2, errors
    (line,) = errors.splitlines()
    assert line.startswith(f'{tmp_path / "out" / "comparison.json"}: File too large; free some space')
    assert 'to go on: composer-freezeout compare quickstart' in line


def test_a_full_disk_leaves_the_earlier_report(tmp_path):
    folder(tmp_path, {'baseline': [0.9], 'freezeout': [0.8]})
    write_report(load(tmp_path), tmp_path)
    (tmp_path / 'report.md').write_text('an earlier one')
    before = content(tmp_path)
    code, errors = in_a_process(FULL + COMMAND, 'report', tmp_path)
    assert code == 2, errors
    (line,) = errors.splitlines()
    assert line.startswith(f'{tmp_path / "report.md"}: File too large; free some space')
    assert content(tmp_path) == before


# --- files that are damaged


@pytest.mark.parametrize('text', ['{"format": 1', '[]', '{}', '[' * 100_000, '\\0'])
def test_a_damaged_manifest(text, tmp_path, capsys):
    folder(tmp_path, {'baseline': [0.9]})
    path = tmp_path / 'comparison.json'
    path.write_text(text)
    for command in (['compare', 'quickstart', '--out', tmp_path, '--arms', 'baseline', *SMALL], ['report', tmp_path]):
        assert main([str(argument) for argument in command]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines and all(line.startswith(str(path)) for line in lines)
    assert path.read_text() == text


# --- command lines


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['compare', 'quickstart', '--seeds', '10001'], "must be at most 10000, got '10001'"),
        (['compare', 'quickstart', '--seeds', '9' * 5000], "must be at most 10000, got '99999999999999999999…'"),
        (['sweep', 'quickstart', '--judge-seeds', '1000000000'], 'must be at most 10000'),
        (['sweep', 'quickstart', '--trials', '1' * 19], 'must be at most 10000'),
    ],
)
def test_absurd_numbers(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(('command', 'option'), [('compare', '--seeds'), ('sweep', '--judge-seeds')])
def test_seeds_beyond_the_last_one(command, option, tmp_path, capsys):
    line = refused(capsys, command, 'quickstart', '--out', tmp_path, option, 2, f'seed={2**32 - 1}', *SMALL)
    assert line.startswith(f'{option}: the last seed would be 429496729') and 'the largest is 4294967295' in line


@pytest.mark.parametrize('command', ['compare', 'sweep'])
def test_a_family_that_is_none(command, tmp_path, capsys):
    line = refused(capsys, command, 'quickstar', '--out', tmp_path / 'out')
    assert line.startswith('quickstar: ') and "did you mean 'quickstart'?" in line
    assert not (tmp_path / 'out').exists()


def test_a_sweep_without_accuracies(tmp_path, capsys):
    line = refused(capsys, 'sweep', 'quickstart', '--out', tmp_path / 'out', 'eval_data=null', *SMALL[:2])
    assert 'baseline.yaml: eval_data: is null, but settings are judged by evaluations' in line


def test_a_sweep_without_optuna():
    code, errors = in_a_process(f'import sys; sys.modules["optuna"] = None; {COMMAND}', 'sweep', 'quickstart')
    assert code == 2
    (line,) = errors.splitlines()
    assert "pip install 'composer-freezeout[bench]'" in line


def test_a_damaged_journal_of_a_sweep(tmp_path, capsys):
    arguments = ['sweep', 'quickstart', '--out', tmp_path, '--trials', 1, *SMALL]
    (baseline, freezeout), _ = read_arms(find_family('quickstart'), ['baseline', 'freezeout'], SMALL, 1.0)
    prepare_folder(tmp_path, identity(baseline, freezeout, [17, 18], [19, 20, 21, 22, 23]))
    (tmp_path / 'study.log').write_text('{"op_code"\n{}\n')
    assert f'{tmp_path / "study.log"} is damaged' in refused(capsys, *arguments)
