"""The command and its commands: help, mistakes, and what they import."""

import re
import subprocess
import sys

import pytest

from composer_freezeout import __version__, cli


def ended(capsys, *arguments: str) -> tuple[object, str, str]:
    """Exit code and output of a command that the parser ends."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(list(arguments))
    return exit_.value.code, *capsys.readouterr()


def imported(*arguments: str) -> tuple[int, set[str]]:
    """Exit code of a command in a process of its own, and which of torch and Composer it has imported."""
    code = (
        'import sys\n'
        'from composer_freezeout.cli import main\n'
        'try: code = main(sys.argv[1:])\n'
        'except SystemExit as error: code = error.code\n'
        'print("imported", *({"torch", "composer"} & set(sys.modules)))\n'
        'sys.exit(code)'
    )
    done = subprocess.run([sys.executable, '-c', code, *arguments], capture_output=True, text=True, timeout=120)
    return done.returncode, set(done.stdout.splitlines()[-1].split()[1:])


def test_help_lists_the_commands(capsys):
    code, out, _ = ended(capsys, '--help')
    assert code == 0
    assert all(re.search(rf'^  {name} +\S', out, re.MULTILINE) for name in cli.COMMANDS)


def test_without_a_command_the_help_is_shown(capsys):
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert out == '' and 'composer-freezeout plan quickstart' in err


def test_the_nearest_command_is_suggested(capsys):
    code, _, err = ended(capsys, 'pln', 'quickstart')
    assert code == 2
    assert "'pln' is no command; did you mean 'plan'? commands: run, plan, compare, sweep, report, step-time" in err
    assert "'zzz' is no command; valid: compare, plan, " in ended(capsys, 'zzz')[2]


def test_the_version(capsys):
    assert ended(capsys, '--version')[:2] == (0, f'composer-freezeout {__version__}\n')


@pytest.mark.parametrize('command', cli.COMMANDS)
def test_each_command_goes_by_its_name(command, capsys):
    code, out, _ = ended(capsys, command, '--help')
    assert code == 0 and out.startswith(f'usage: composer-freezeout {command} ')


@pytest.mark.parametrize('command', cli.COMMANDS)
def test_help_comes_without_torch(command):
    assert imported(command, '--help') == (0, set())


@pytest.mark.parametrize(
    'arguments',
    [
        [],
        ['pln'],
        ['plan', 'nowhere'],
        ['plan', 'quickstart', 'modell=1'],
        ['plan', 'quickstart', '--out', '/dev/null/plan'],
        ['step-time', '--out', 'x', '--model', 'resnet8', '--stages', 'all'],
        ['step-time', '--plot-only', 'nowhere'],
        ['step-time', '--table', 'nowhere'],
        ['step-time', '--out', '/dev/null/x', '--model', 'resnet8'],
    ],
    ids=' '.join,
)
def test_mistakes_are_told_without_torch(arguments):
    assert imported(*arguments) == (2, set())
