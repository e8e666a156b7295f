"""Processes that are started here, and end when this one is told to."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

__all__ = ['Stopped', 'execute', 'rank', 'stoppable']

_SECONDS_TO_STOP = 20
# How often it is looked whether a process is to be stopped.
_SECONDS_BETWEEN_LOOKS = 0.1
# Ends all processes of a group as soon as nobody holds the other end of its standard input any more.
_TIED = ('sh', '-c', 'exec 3<&0 </dev/null; (cat <&3 >/dev/null; kill -KILL 0) & exec 3<&-; exec "$@"', 'sh')


def rank() -> int:
    """Which of the processes that a launcher has started this one is.

    Returns:
        int: In ``[0, number of processes)``; 0 without a launcher.
    """
    return int(os.environ.get('RANK', '0'))


class Stopped(BaseException):
    """Somebody ended this process.

    Args:
        signal_number (int): By which signal.
    """

    def __init__(self, signal_number: int):
        self.signal_number = signal_number
        super().__init__(signal_number)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Raises :class:`Stopped` on Ctrl-C, on SIGTERM, and when the terminal goes away."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    before = {number: signal.signal(number, stop) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def execute(
    command: Sequence[str],
    log: Path | None = None,
    handles: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
    stop: threading.Event | None = None,
    tied: bool = False,
) -> int:
    """Runs a command to its end, in a session of its own that ends with this process's call.

    Args:
        command (Sequence[str]): The command.
        log (Path, optional): Where its output goes; its folder exists. Default: where this process's goes.
        handles (Sequence[int]): Open files that it inherits, with the locks on them.
        environment (Mapping[str, str], optional): Variables that it has besides this process's.
        stop (threading.Event, optional): Ends it when it is set: signals reach the first thread only.
        tied (bool): Whether it ends even if this process is killed.

    Returns:
        int: Its exit code, negative if a signal ended it.
    """
    with contextlib.nullcontext() if log is None else log.open('wb') as file:
        error = None if file is None else subprocess.STDOUT
        process = subprocess.Popen(
            [*(_TIED if tied else ()), *command],
            stdin=subprocess.PIPE if tied else subprocess.DEVNULL,
            stdout=file,
            stderr=error,
            pass_fds=handles,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        try:
            if stop is None:
                return process.wait()
            while not stop.is_set():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(_SECONDS_BETWEEN_LOOKS)
            return -signal.SIGTERM
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    # The launcher's children belong to its group, and are ended with it.
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_SECONDS_TO_STOP)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()
