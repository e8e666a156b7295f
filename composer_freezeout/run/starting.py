"""Where training starts from: nowhere, a checkpoint of the run itself, or one of another run."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from composer.core import State

from composer_freezeout.run.config import RunConfig
from composer_freezeout.run.error_lines import disk_error
from composer_freezeout.run.faults import ConfigError, Fault
from composer_freezeout.run.weight_files import read_pickle

__all__ = ['check_left', 'check_start', 'checkpoint_fault', 'continued']

KEY = 'checkpoint.load_path'

# Units of a duration: what a checkpoint counts in them, and how that is called.
_COUNTED = {
    'ep': ('epoch', 'epochs'),
    'ba': ('batch', 'batches'),
    'sp': ('sample', 'samples'),
    'tok': ('token', 'tokens'),
}


def continued(config: RunConfig) -> str | None:
    """The checkpoint of another run whose training goes on in this one.

    Args:
        config (RunConfig): The configuration. Its own checkpoints come first.

    Returns:
        str, optional: Its path, as the file gives it; None if the run starts anew, or resumes what it has begun itself.
    """
    if config.checkpoint is None or config.resumes_itself:
        return None
    return config.checkpoint.load_path


def check_start(config: RunConfig) -> None:
    """Makes sure that a checkpoint of another run can be gone on from, before anything is written.

    Args:
        config (RunConfig): A checked configuration.

    Raises:
        ConfigError: If there is no such file, it is no checkpoint, or it leaves nothing to train.
    """
    path = continued(config)
    file = None if path is None else _local(path)
    if path is None or file is None:
        return
    if not file.exists():
        raise ConfigError([Fault(KEY, f'no such file: {path!r}')])
    content = {} if file.suffix == '.safetensors' else read_pickle(file, KEY)
    state = content.get('state') if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping):
        raise ConfigError([Fault(KEY, f"{path!r} is no checkpoint of a run: it has no 'state'; {_from_weights(path)}")])
    # With const_time training is longer than the configuration says: `check_left` knows how much.
    if not any(algorithm.arguments.get('const_time') for algorithm in config.algorithms):
        _check_done(config, path, _timestamp(state))


def check_left(config: RunConfig, state: State, path: str | None) -> None:
    """Makes sure that there is something to train, once the checkpoint is loaded.

    Args:
        config (RunConfig): The configuration.
        state (State): The trainer's state.
        path (str, optional): What :func:`continued` has told before the run began.

    Raises:
        ConfigError: If nothing is left, unless the run has trained all of it itself, and lacks only its record.
    """
    assert state.max_duration is not None
    value, unit = state.max_duration.value, state.max_duration.unit.value
    counted, name = _COUNTED[unit]
    done = getattr(state.timestamp, counted).value
    length = state.dataloader_len
    if unit == 'ep' and length is not None and state.timestamp.batch_in_epoch >= length:
        done += 1  # it is counted after its last batch, and after the checkpoint of that
    if path is not None and done >= value:
        raise ConfigError([_nothing_left(config, path, done, name)])
    # Samples and tokens are counted by whole batches, which go beyond.
    if config.resumes_itself and done > value and unit in ('ep', 'ba'):
        fault = f'{config.max_duration!r} is less than the {done} {name} that {config.output!r} has been trained for'
        raise ConfigError([Fault('max_duration', f'{fault}; give at least as much, or choose another output')])


def checkpoint_fault(config: RunConfig, error: Exception) -> Fault | None:
    """What is wrong with the checkpoint that training was to start from.

    Args:
        config (RunConfig): The configuration.
        error (Exception): What loading it has raised.

    Returns:
        Fault, optional: None if there is no checkpoint, or its disk is full.
    """
    checkpoint = config.checkpoint
    if checkpoint is None or disk_error(error) is not None:
        return None
    reason = f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
    if config.resumes_itself:
        folder = str(config.checkpoint_folder)
        remedy = f'train what it was made of, copy an earlier one over it, or remove {folder!r} to begin anew'
        return Fault('checkpoint.resume', f'{str(config.latest_checkpoint)!r} cannot be loaded ({reason}); {remedy}')
    if checkpoint.load_path is None:
        return None
    remedy = f'give a whole checkpoint of this model and optimizer; {_from_weights(checkpoint.load_path)}'
    return Fault(KEY, f'{checkpoint.load_path!r} cannot be loaded ({reason}); {remedy}')


def _local(path: str) -> Path | None:
    """The file that Composer will read; None if it is to be fetched or unpacked first."""
    if '://' in path or re.search(r'\.(tar(\.\w+)?|tgz|symlink)$', path):
        return None
    try:
        return Path(path.format(rank=0, local_rank=0, node_rank=0))
    except (KeyError, IndexError, ValueError):
        raise ConfigError(
            [Fault(KEY, f'{path!r} may hold no other braces than {{rank}}; give the path of a file')]
        ) from None


def _timestamp(state: Mapping[str, Any]) -> Mapping[str, Any]:
    saved = state.get('timestamp')
    inner = saved.get('Timestamp', saved) if isinstance(saved, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def _check_done(config: RunConfig, path: str, timestamp: Mapping[str, Any]) -> None:
    match = re.fullmatch(r'(\d+)(\D+)', config.max_duration)
    assert match is not None, 'checked with the configuration'
    counted, name = _COUNTED[match[2]]
    done = timestamp.get(counted)
    if isinstance(done, int) and done >= int(match[1]):
        raise ConfigError([_nothing_left(config, path, done, name)])


def _nothing_left(config: RunConfig, path: str, done: int, name: str) -> Fault:
    trained = f'{path!r} has been trained for {done} {name} already, and max_duration is {config.max_duration}'
    remedy = f'give a longer max_duration to go on with its schedule; {_from_weights(path)}'
    return Fault(KEY, f'{trained}, so that nothing is left to train; {remedy}')


def _from_weights(path: str) -> str:
    return f'to start a new run from weights, write model.weights={path} and leave out {KEY}'
