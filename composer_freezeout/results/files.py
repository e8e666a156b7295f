"""The files that commands leave behind: their names, and JSON that is there as a whole or not at all."""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = [
    'CONFIG',
    'MANIFEST',
    'RECORD',
    'json_safe',
    'make_folder',
    'try_folder',
    'write_bytes',
    'write_json',
    'write_text',
]

# Of a run: what it measured, and its configuration with every default filled in.
RECORD, CONFIG = 'record.json', 'config.yaml'
# Of a comparison: what was run.
MANIFEST = 'comparison.json'


def json_safe(value: Any) -> Any:
    """Replaces what JSON cannot hold: NaN and infinities by null, tuples by lists.

    Args:
        value (Any): Mappings, sequences and scalars.

    Returns:
        Any: A copy.
    """
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file in one step: whoever reads it finds the old or the new one.

    Args:
        path (Path): The file; its folder exists.
        content (Mapping[str, Any]): What it is to hold; NaN and infinities become null.

    Raises:
        OSError: If it cannot be written; names the file.
    """
    write_text(path, json.dumps(json_safe(content), indent=1, allow_nan=False) + '\n')


def write_text(path: Path, text: str) -> None:
    """Writes a text file in one step, in UTF-8.

    Args:
        path (Path): The file; its folder exists.
        text (str): What it is to hold.

    Raises:
        OSError: If it cannot be written; names the file, and leaves the old one.
    """
    write_bytes(path, text.encode('utf-8'))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file in one step.

    Args:
        path (Path): The file; its folder exists.
        content (bytes): What it is to hold.

    Raises:
        OSError: If it cannot be written; names the file, and leaves the old one.
    """
    # By process: two that write the same file do not write into each other's.
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        # Of a full disk the error names no file.
        raise OSError(error.errno, error.strerror, str(path)) from error


def make_folder(folder: Path) -> None:
    """Makes a folder and the folders above it, and tries whether files can be written there.

    To be called before hours of work whose results go there.

    Args:
        folder (Path): The folder; it may be there.

    Raises:
        OSError: If it cannot be made or written to; names it, or the folder above it that is at fault.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try_folder(folder)


def try_folder(folder: Path) -> None:
    """Tries whether files can be written to a folder, or a folder be made where none is. Leaves nothing.

    Args:
        folder (Path): The folder.

    Raises:
        OSError: If not; names it, or the part of the path that is there.
    """
    there = next(part for part in (folder, *folder.absolute().parents) if part.exists())
    trial = there / f'.trial.{os.getpid()}'
    try:
        trial.write_bytes(b'trial')
        trial.unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            trial.unlink()
        raise OSError(error.errno, error.strerror, str(there)) from error
