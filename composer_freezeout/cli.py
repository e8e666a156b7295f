"""``composer-freezeout COMMAND``: one room of the package per command, imported when it is asked for."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from composer_freezeout.run.threads import settle_threads

__all__ = ['COMMANDS', 'main']

COMMANDS = {
    'run': ('composer_freezeout.run.command', 'train what a YAML file describes'),
    'plan': ('composer_freezeout.plan.command', 'what freezes when in the run of a YAML file, and what that saves'),
    'compare': ('composer_freezeout.compare.command', 'train the arms of a family, and judge which of them pay'),
    'sweep': ('composer_freezeout.compare.sweep.command', 'search for settings of FreezeOut that pay'),
    'report': ('composer_freezeout.compare.report.command', 'write the report of a comparison anew from its records'),
    'step-time': ('composer_freezeout.step_time.command', 'what a step takes with k units frozen'),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv (Sequence[str], optional): Its name and arguments. Default: the process's.

    Returns:
        int: The command's exit code: 0, or 2 if the command line or a file is at fault; others stand with the command.
    """
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog='composer-freezeout',
        description='FreezeOut for MosaicML Composer: every layer anneals to zero and leaves the backward pass.',
        epilog='commands:\n'
        + ''.join(f'  {name:{width}}  {meaning}\n' for name, (_, meaning) in COMMANDS.items())
        + '\ncomposer-freezeout COMMAND --help tells more.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('command', choices=list(COMMANDS), help='see below', metavar='command')
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help='its own')
    arguments = parser.parse_args(argv)
    # Before any of them imports torch.
    settle_threads()
    module, _ = COMMANDS[arguments.command]
    return import_module(module).main(arguments.arguments)


if __name__ == '__main__':
    sys.exit(main())
