"""Readers of command-line arguments."""

import argparse
import re
import shlex
from collections.abc import Sequence

__all__ = ['command_line', 'duration', 'scale_factor']


def duration(text: str) -> float:
    """Reads a length of time.

    Args:
        text (str): A number with ``s``, ``m`` or ``h``, such as ``30m``.

    Returns:
        float: Seconds, above 0.

    Raises:
        argparse.ArgumentTypeError: If it is something else.
    """
    match = re.fullmatch(r'(\d+(?:\.\d+)?)([smh])', text)
    seconds = float(match[1]) * {'s': 1, 'm': 60, 'h': 3600}[match[2]] if match else 0.0
    if not seconds:
        raise argparse.ArgumentTypeError(f"must be a time above 0 such as '90s', '30m' or '2h', got {text!r}")
    return seconds


def scale_factor(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f'must be a number in (0, 1], such as 0.1, got {text!r}')
    return value


def command_line(argv: Sequence[str]) -> str:
    """What to type to go on: the command without what would begin anew."""
    return shlex.join(['composer-freezeout', 'compare', *(argument for argument in argv if argument != '--overwrite')])
