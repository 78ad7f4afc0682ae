"""Processes and the directories they write into: one at a time, and none left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

try:
    import fcntl
except ImportError:  # not on this system: nobody is kept out
    fcntl = None  # type: ignore[assignment]

_running: set[subprocess.Popen[bytes]] = set()


@contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """Keep other processes from writing into a directory as well.

    The ranks of one `torchrun` count as one writer. Ends with the process, however that ends. Where
    a file system has no locks, nobody is kept out.

    Raises:
        ValueError: if another process writes there.
    """
    if fcntl is None or os.environ.get("RANK", "0") != "0":
        yield
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another process is writing into {directory}: wait for it, stop it, or name "
                "another directory with hydra.run.dir=PATH"
            ) from error
        except OSError:
            pass
        yield
    finally:
        os.close(handle)


def call(command: Sequence[str], *, env: Mapping[str, str], output: IO[str] | None = None) -> int:
    """Run a command to its end, or until it has stopped as `ending_all` asks; gives its exit code.

    Args:
        command: program and arguments.
        env: its environment.
        output: where it writes what it says; None for where this process does.
    """
    said = None if output is None else subprocess.STDOUT
    with subprocess.Popen(command, env=dict(env), stdout=output, stderr=said) as process:
        _running.add(process)
        try:
            return process.wait()
        except KeyboardInterrupt:
            # It was asked to stop as well, and saves what it has.
            process.wait()
            raise
        finally:
            _running.discard(process)


@contextmanager
def ending_all() -> Iterator[None]:
    """Pass SIGTERM on to what `call` runs in any thread, and become a `KeyboardInterrupt` here.

    Ctrl-C reaches all processes of a terminal by itself. Outside the main thread, which alone
    receives signals, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in list(_running):
            process.terminate()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
