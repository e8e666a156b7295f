"""The folder of the results: made, kept to one command or shared by several with a run each, and what it holds."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from composer_freezeout.compare.judging.manifest import Manifest, merged
from composer_freezeout.compare.judging.reading import read
from composer_freezeout.results.files import MANIFEST, make_folder
from composer_freezeout.run.families import PRETRAIN
from composer_freezeout.run.faults import Refused

__all__ = ['check_folder', 'claimed', 'claimed_run', 'clear_folder', 'held', 'prepare_folder', 'writing']

_HELD: list[int] = []
# Whoever writes what several commands write to holds a lock on this file.
_LOCK = '.lock'


@contextlib.contextmanager
def claimed(out: Path, shared: bool = False) -> Iterator[None]:
    """Has a folder for this command alone, so that no other one removes what is being trained.

    The folder is made if it isn't there, and removed if nothing comes of the command.

    Args:
        out (Path): The folder.
        shared (bool): Has it for this command and others that share it.

    Raises:
        Refused: If it cannot be made or written to, or if another command is using it.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        try:
            out.mkdir(parents=True, exist_ok=True)
            handle = os.open(out, os.O_RDONLY)
        except (FileExistsError, NotADirectoryError) as error:
            raise Refused(f'--out: {error.filename or out} is a file; give a folder') from error
        except OSError as error:
            raise Refused(_unfit(out, error)) from error
        try:
            line = f'--out: another command is training in {out}; wait until it has ended, or choose another folder'
            _lock(handle, line, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            _HELD.append(handle)
            try:
                make_folder(out)
            except OSError as error:
                raise Refused(_unfit(out, error)) from error
            yield
        finally:
            os.close(handle)
            _HELD[:] = [other for other in _HELD if other != handle]
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def held() -> tuple[int, ...]:
    """Handles of the folders that are claimed.

    A run that inherits them keeps its folder claimed for as long as it lives, even if this process is killed.
    """
    return tuple(_HELD)


def clear_folder(folder: Path) -> None:
    """Removes what is in a folder, as far as it can be, but not the folder itself, which may be locked."""
    for content in folder.iterdir():
        if content.is_dir() and not content.is_symlink():
            shutil.rmtree(content, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                content.unlink()


def _unfit(out: Path, error: OSError) -> str:
    return f'--out: {out} cannot be written to ({error.filename or out}: {error.strerror}); choose another folder'


def _lock(handle: int, taken: str, kind: int = fcntl.LOCK_EX) -> None:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Refused(taken) from error
    except OSError:
        # Some network file systems have no locks.
        pass


@contextlib.contextmanager
def claimed_run(folder: Path) -> Iterator[None]:
    """Has the folder of a run for this command alone, in one that is shared.

    Args:
        folder (Path): Of the run. It is made if it isn't there.

    Raises:
        Refused: If another command is training it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, f'{folder}: another command is training this run; leave it to that, or wait until it has ended')
        _HELD.append(handle)
        yield
    finally:
        os.close(handle)
        _HELD[:] = [other for other in _HELD if other != handle]


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Keeps other commands from reading and writing what they share, for a moment: they wait.

    Args:
        out (Path): A folder that is shared.
    """
    with (out / _LOCK).open('w') as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_folder(out: Path) -> None:
    """Makes sure that a folder is empty or that of a comparison.

    Args:
        out (Path): The folder. Nothing in it is changed.

    Raises:
        Refused: If it holds something else.
    """
    # Commands that share it try whether they can write there, and lock. Pretraining comes before the comparison.
    others = (path for path in out.iterdir() if not path.name.startswith('.') and path.name != PRETRAIN)
    if any(others) and not (out / MANIFEST).exists():
        raise Refused(f'--out: {out} is not empty and holds no {MANIFEST}; choose another folder, or use --overwrite')


def prepare_folder(out: Path, manifest: Manifest, overwrite: bool) -> Manifest:
    """Finds out what the folder of a comparison holds.

    Args:
        out (Path): The folder. Nothing in it is changed.
        manifest (Manifest): That of this command.
        overwrite (bool): Whether to begin anew.

    Returns:
        Manifest: The manifest to go on with.

    Raises:
        Refused: If the folder holds something else, or another comparison.
    """
    if overwrite:
        return manifest
    path = out / MANIFEST
    try:
        earlier = read(path, Manifest, 'choose another --out, or use --overwrite')
    except FileNotFoundError:
        check_folder(out)
        return manifest
    return merged(earlier, manifest, path)
