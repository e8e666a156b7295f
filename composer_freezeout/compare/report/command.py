"""Writes the report of a comparison anew from its records, or checks that it is up to date.

``composer-freezeout report benchmarks/results/<folder>``
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from composer_freezeout.compare.command_line import exit_code, same_command
from composer_freezeout.compare.judging.comparison import load
from composer_freezeout.compare.report.page import outdated, write_report
from composer_freezeout.compare.report.sentences import conclusion

__all__ = ['main']


def main(argv: Sequence[str] | None = None) -> int:
    """Writes or checks, and prints what the numbers come to.

    Args:
        argv (Sequence[str], optional): Command line. Default: the process's.

    Returns:
        int: 0; 1 if a file is not up to date; 2 if the comparison cannot be read or its report not be written.
    """
    parser = argparse.ArgumentParser(
        prog='composer-freezeout report', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', type=Path, help='output folder of a comparison')
    parser.add_argument('--allow-mixed', action='store_true', help='take runs of other versions, hardware or settings')
    parser.add_argument('--check', action='store_true', help='write nothing; name the files that would change')
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_args(argv)
    return exit_code(lambda: _report(arguments), same_command('report', argv))


def _report(arguments: argparse.Namespace) -> int:
    comparison = load(arguments.folder, arguments.allow_mixed)
    if arguments.check:
        changes = outdated(comparison, arguments.folder)
        for path in changes:
            print(f'{path} is not up to date; run composer-freezeout report {arguments.folder}')
        return 1 if changes else 0
    paths = write_report(comparison, arguments.folder)
    print(*conclusion(comparison), *paths, sep='\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
