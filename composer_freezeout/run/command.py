"""``composer-freezeout run FILE [key=value …]``: one YAML file, one training run, one record."""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from composer_freezeout.results.files import RECORD
from composer_freezeout.run.config import load
from composer_freezeout.run.error_lines import lines_of
from composer_freezeout.run.families import find_config, names
from composer_freezeout.run.output import check_output
from composer_freezeout.run.plugins import add_import_option, load_plugins
from composer_freezeout.run.processes import rank
from composer_freezeout.run.summary import summary_lines
from composer_freezeout.run.threads import settle_threads

__all__ = ['main']

_EPILOG = """\
examples:
  composer-freezeout run quickstart
  composer-freezeout run quickstart/baseline max_duration=2ep optimizer.lr=0.1
  composer-freezeout run my.yaml algorithms.0.t_0=0.5
  composer-freezeout run my.yaml --import my_project.freezing

in several processes:
  composer -n 2 -m composer_freezeout.run my.yaml
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Trains what a YAML file describes and writes ``record.json`` to its output folder.

    Args:
        argv (Sequence[str], optional): The file and ``key=value`` overrides. Default: the command line's.

    Returns:
        int: 0, or 2 if the configuration, a file or the machine is at fault. What else goes wrong in training is
        raised.
    """
    arguments = _parser().parse_intermixed_args(argv)
    file: str | Path = arguments.file
    command = _command(sys.argv[1:] if argv is None else argv)
    settle_threads()
    try:
        load_plugins(arguments.imports)
        file = find_config(arguments.file)
        config = load(file, arguments.overrides)
        check_output(config)
        # Imported here: torch and Composer take seconds, and a typing error should be told at once.
        from composer_freezeout.run.training import train

        record = train(config, {'config_file': arguments.file, 'command': command})
    except Exception as error:
        lines = lines_of(error, file, arguments.overrides)
        if lines is None:
            raise
        return _refuse(lines)
    if record is not None:
        print(*summary_lines(record, Path(config.output) / RECORD), sep='\n')
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='composer-freezeout run',
        description='Train what a YAML file describes; write record.json and config.yaml to its output folder.',
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('file', help=f'a YAML file, or a family that comes with the package: {", ".join(names())}')
    parser.add_argument('overrides', nargs='*', metavar='key=value', help='values that replace those of the file')
    add_import_option(parser)
    return parser


def _command(arguments: Sequence[str]) -> str:
    """What to type to do the same again."""
    world_size = os.environ.get('WORLD_SIZE', '1')
    ranks = [] if world_size == '1' else ['-n', world_size]
    script = ['run'] if Path(sys.argv[0]).name == 'run' else ['-m', 'composer_freezeout.run']
    return shlex.join(['composer', *ranks, *script, *arguments])


def _refuse(lines: Sequence[str]) -> int:
    # The launcher ends all processes as soon as one of them exits, and takes over the first one's code. The others
    # stand back until the first has spoken; if it has nothing to say, the fault is theirs alone, and they speak.
    if rank() != 0:
        time.sleep(10)
    print(*lines, sep='\n', file=sys.stderr)
    return 2


if __name__ == '__main__':
    sys.exit(main())
