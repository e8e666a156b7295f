"""JSON files as typed values: what is wrong with one is told by key."""

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from composer_freezeout.run.faults import Refused
from composer_freezeout.run.validation import faults_of

__all__ = ['read']

T = TypeVar('T', bound=BaseModel)


def read(path: Path, schema: type[T], remedy: str) -> T:
    """Reads a JSON file.

    Args:
        path (Path): The file.
        schema (type[T]): What it holds.
        remedy (str): What to do about a damaged one.

    Returns:
        T: Its content.

    Raises:
        FileNotFoundError: If there is none.
        Refused: If it cannot be read or holds something else, with a line for each key that is wrong.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Refused(f'{path} cannot be read: {error.strerror}; {remedy}') from error
    # Thousands of nested brackets end in the parser's own limit.
    except (ValueError, RecursionError) as error:
        raise Refused(f'{path} is damaged: {error}; {remedy}') from error
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        faults = faults_of(error, schema, content)
        raise Refused(f'{path}: {fault.path}: {fault.message}; {remedy}' for fault in faults) from error
