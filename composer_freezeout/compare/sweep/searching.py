"""Who is trying which setting, when commands on several machines search together."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.trial import TrialState

__all__ = ['OWNER', 'abandoned', 'elsewhere', 'searching']

# What a trial names its command by.
OWNER = 'owner'


@contextlib.contextmanager
def searching(out: Path) -> Iterator[str]:
    """Marks this command as one that searches, for as long as it lives.

    Args:
        out (Path): Folder of the search.

    Yields:
        str: What its trials name it by.
    """
    path = out / f'.searching-{socket.gethostname()}-{os.getpid()}'
    with path.open('w') as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield path.name
        finally:
            path.unlink(missing_ok=True)


def _lives(out: Path, owner: str | None) -> bool:
    if owner is None:
        return False
    try:
        with (out / owner).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        # Locked; or on a network file system without locks, where it is not known.
        return True
    return False


def elsewhere(study: optuna.Study, out: Path) -> list[optuna.trial.FrozenTrial]:
    """The trials that a living command is at."""
    return [trial for trial in _running(study) if _lives(out, trial.user_attrs.get(OWNER))]


def abandoned(study: optuna.Study, out: Path) -> list[optuna.trial.FrozenTrial]:
    """The trials whose command has ended before they did."""
    return [trial for trial in _running(study) if not _lives(out, trial.user_attrs.get(OWNER))]


def _running(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(states=(TrialState.RUNNING,))
