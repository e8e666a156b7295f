"""``composer-freezeout COMMAND``: one room of the package per command, imported when it is asked for."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from composer_freezeout import __version__
from composer_freezeout.run.faults import suggest
from composer_freezeout.run.threads import settle_threads

__all__ = ['COMMANDS', 'main']

COMMANDS = {
    'run': ('composer_freezeout.run.command', 'train what a YAML file describes'),
    'plan': ('composer_freezeout.planning.command', 'what freezes when in the run of a YAML file, and what that saves'),
    'compare': ('composer_freezeout.compare.command', 'train the arms of a family, and judge which of them pay'),
    'sweep': ('composer_freezeout.compare.sweep.command', 'search for settings of FreezeOut that pay'),
    'report': ('composer_freezeout.compare.report.command', 'write the report of a comparison anew from its records'),
    'step-time': ('composer_freezeout.step_time.command', 'what a step takes with k units frozen'),
}
_EPILOG = """\
composer-freezeout COMMAND --help tells more of each. To begin with, in an empty folder:
  composer-freezeout plan quickstart       what freezes when, and what that saves; trains nothing
  composer-freezeout compare quickstart    trains with and without FreezeOut, and writes a report
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv (Sequence[str], optional): Its name and arguments. Default: the process's.

    Returns:
        int: The command's exit code: 0, or 2 if the command line or a file is at fault; others stand with the command.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return 2
    if arguments.command not in COMMANDS:
        near = suggest(arguments.command, COMMANDS)
        known = f' commands: {", ".join(COMMANDS)}' if near.startswith('did you mean') else ''
        parser.error(f'{arguments.command!r} is no command; {near}{known}')
    # Before any of them imports torch.
    settle_threads()
    module, _ = COMMANDS[arguments.command]
    return import_module(module).main(arguments.arguments)


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    commands = ''.join(f'  {name:{width}}  {meaning}\n' for name, (_, meaning) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog='composer-freezeout',
        usage='composer-freezeout COMMAND …',
        description='FreezeOut for MosaicML Composer: every layer anneals to zero and leaves the backward pass.',
        epilog=f'commands:\n{commands}\n{_EPILOG}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=f'composer-freezeout {__version__}')
    parser.add_argument('command', nargs='?', help=argparse.SUPPRESS)
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


if __name__ == '__main__':
    sys.exit(main())
