"""Readers of command-line arguments, for all commands."""

import argparse

__all__ = ['count']


def count(text: str, least: int = 1) -> int:
    """Reads a whole number.

    Args:
        text (str): The number.
        least (int): The least that is allowed.

    Returns:
        int: In ``[least, ∞)``.

    Raises:
        argparse.ArgumentTypeError: If it is something else.
    """
    # What int() takes besides digits, such as '1_000' and ' 5', is rather a typing error.
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f'must be a whole number of at least {least}, got {text!r}')
    return int(text)
