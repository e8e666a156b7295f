"""What to write to train as planned: settings of FreezeOut in YAML, on the command line, and in Python."""

import json
from collections.abc import Mapping
from typing import Any

__all__ = ['as_lines', 'as_python']


def as_lines(settings: Mapping[str, Any], file: str, algorithm: int | None) -> list[str]:
    """Settings for the run of a YAML file.

    Args:
        settings (Mapping[str, Any]): Arguments of FreezeOut.
        file (str): The file.
        algorithm (int, optional): Index of FreezeOut in its ``algorithms``; None if it isn't there.

    Returns:
        list[str]: The command with the settings; where the file has no FreezeOut, lines for the file.
    """
    values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()}
    if algorithm is None:
        return ['algorithms:', '  - name: freezeout', *(f'    {name}: {value}' for name, value in values.items())]
    overrides = [f'algorithms.{algorithm}.{name}={value}' for name, value in values.items()]
    return [' '.join(['composer-freezeout run', file, *overrides])]


def as_python(settings: Mapping[str, Any]) -> str:
    """Settings as arguments in Python.

    Args:
        settings (Mapping[str, Any]): Arguments of FreezeOut.

    Returns:
        str: The call.
    """
    return f'FreezeOut({", ".join(f"{name}={value!r}" for name, value in settings.items())})'
