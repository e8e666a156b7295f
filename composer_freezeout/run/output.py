"""The folder that a run writes to."""

import os
import shutil
from pathlib import Path

from composer_freezeout.results.files import CONFIG, RECORD, make_folder
from composer_freezeout.run.config import RunConfig
from composer_freezeout.run.error_lines import disk_error
from composer_freezeout.run.faults import ConfigError, Fault

__all__ = ['check_output', 'prepare_output']


def check_output(config: RunConfig) -> None:
    """Makes sure that the run may write to its folder, before anything that takes time.

    Args:
        config (RunConfig): A checked configuration.

    Raises:
        ConfigError: If the folder is none, cannot be written to, or holds a run that is neither replaced nor continued.
    """
    folder = Path(config.output)
    try:
        _check_place(folder, config.output)
        if config.overwrite:
            _check_kept(config)
        else:
            _check_content(folder, config)
    except OSError as error:
        raise ConfigError([Fault('output', f'{config.output!r} cannot be read: {error.strerror}')]) from error


def prepare_output(config: RunConfig, *, clear: bool) -> None:
    """Makes the folder, and tries whether files can be written there.

    Args:
        config (RunConfig): A checked configuration.
        clear (bool): Whether an earlier run is removed where it is to be replaced; for one process of several.

    Raises:
        ConfigError: If it cannot be made or written to.
    """
    folder = Path(config.output)
    try:
        make_folder(folder)
        if config.overwrite and clear:
            for file in (folder / RECORD, folder / CONFIG):
                file.unlink(missing_ok=True)
            for subfolder in (config.checkpoint_folder, folder / 'tensorboard'):
                shutil.rmtree(subfolder, ignore_errors=True)
    except OSError as error:
        remedy = 'choose another folder' if disk_error(error) is None else 'free some space there'
        fault = f'{config.output!r} cannot be written to: {error.strerror}; {remedy}'
        raise ConfigError([Fault('output', fault)]) from error


def _check_place(folder: Path, output: str) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError([Fault('output', f'{output!r} is a file; give a folder')])
    # What of the path is there already: the rest is made below it.
    there = next(part for part in (folder.absolute(), *folder.absolute().parents) if part.exists())
    if not there.is_dir():
        raise ConfigError([Fault('output', f'{output!r} cannot be created: {str(there)!r} is a file')])
    if not os.access(there, os.W_OK | os.X_OK):
        fault = f'{output!r} cannot be written to: {str(there)!r} is read-only for this user; choose another folder'
        raise ConfigError([Fault('output', fault)])


def _check_kept(config: RunConfig) -> None:
    given = {
        'checkpoint.load_path': config.checkpoint.load_path if config.checkpoint is not None else None,
        'model.weights': config.model.weights,
    }
    for key, path in given.items():
        if path is not None and Path(path).resolve().is_relative_to(config.checkpoint_folder.resolve()):
            raise ConfigError([Fault(key, f'{path!r} would be removed by overwrite: true; choose another output')])


def _check_content(folder: Path, config: RunConfig) -> None:
    remedy = 'set overwrite=true to replace it, or choose another output'
    if (folder / RECORD).exists():
        raise ConfigError([Fault('output', f'{config.output!r} already holds the record of a finished run; {remedy}')])
    checkpoints = config.checkpoint_folder
    if not config.resume and checkpoints.is_dir() and any(checkpoints.iterdir()):
        fault = f'{config.output!r} holds checkpoints of an unfinished run; set checkpoint.resume=true to continue it'
        raise ConfigError([Fault('output', f'{fault}, {remedy}')])
