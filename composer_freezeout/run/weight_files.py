"""Files of weights and checkpoints, read without running what may be hidden in them."""

import datetime
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.torch_version import TorchVersion

from composer_freezeout.run.error_lines import disk_error
from composer_freezeout.run.faults import ConfigError, Fault
from composer_freezeout.run.memory import check_memory

__all__ = ['WEIGHT_FILES', 'read_pickle', 'read_safetensors']

WEIGHT_FILES = ('.pt', '.pth', '.bin', '.ckpt', '.safetensors')

# What Composer's checkpoints hold besides tensors and plain values: times, a version, and the state of NumPy's random
# numbers, whose rebuilding function has had two names. None of them can run anything.
_rebuild = np.empty(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    datetime.timedelta,
    TorchVersion,
    np.ndarray,
    np.dtype,
    type(np.dtype(np.uint32)),
    *((_rebuild, f'{core}.multiarray._reconstruct') for core in ('numpy._core', 'numpy.core')),
]
_EXPORT = "save the weights alone, torch.save(model.state_dict(), 'weights.pt'), and give that file"
_OBJECT = re.compile(r'GLOBAL (?P<name>[\w.]+)')


def read_pickle(file: Path, path: str) -> Any:
    """Reads what ``torch.save`` has written, without running code that a pickle may hold.

    Tensors are mapped from the file, where its format allows that, and take memory only once they are used.

    Args:
        file (Path): The file; it exists.
        path (str): Key path that names it, for errors.

    Returns:
        Any: Tensors, plain values, and what Composer's checkpoints hold besides.

    Raises:
        ConfigError: If it is damaged, holds other Python objects, or is larger than memory.
    """
    _check_file(file, path)
    mapped = zipfile.is_zipfile(file)
    if not mapped:
        check_memory(file.stat().st_size, path, f'the contents of {str(file)!r}', 'give a smaller file')
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
            warnings.simplefilter('ignore')  # of what it is refused for, too
            return torch.load(file, map_location='cpu', weights_only=True, mmap=mapped)
    except Exception as error:  # of a damaged pickle: any kind
        if isinstance(error, MemoryError) or disk_error(error) is not None:
            raise
        raise ConfigError([Fault(path, _refusal(file, error))]) from None


def read_safetensors(file: Path, path: str) -> dict[str, torch.Tensor]:
    """Reads a file in the format of safetensors, which holds tensors alone, and maps them from it.

    Args:
        file (Path): The file; it exists.
        path (str): Key path that names it, for errors.

    Returns:
        dict[str, Tensor]: By name.

    Raises:
        ConfigError: If it is damaged, or the package is not installed.
    """
    _check_file(file, path)
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        fault = f"{str(file)!r} needs the package safetensors: pip install 'composer-freezeout[safetensors]'"
        raise ConfigError([Fault(path, fault)]) from None
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        reason = ' '.join(str(error).split())[:150]
        raise ConfigError([Fault(path, f'{str(file)!r} is damaged ({reason}); give a whole one')]) from None


def _check_file(file: Path, path: str) -> None:
    # A pipe, for one, has no end.
    if not file.is_file():
        raise ConfigError([Fault(path, f'{str(file)!r} is not a file; give the path of one')])


def _refusal(file: Path, error: Exception) -> str:
    text = ' '.join(str(error).split())
    if found := _OBJECT.search(text):
        return (
            f'{str(file)!r} holds Python objects ({found["name"]}), which could run code: nothing is loaded; {_EXPORT}'
        )
    if 'TorchScript' in text:
        return f'{str(file)!r} is a TorchScript archive; {_EXPORT}'
    # torch's explanations are about its own options.
    reason = type(error).__name__ if 'weights_only' in text else f'{type(error).__name__}: {text[:150]}'.rstrip(': ')
    return f'{str(file)!r} is damaged or not a file of torch.save ({reason}); give a whole one'
