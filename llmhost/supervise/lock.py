"""One command at a time changes a home."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from llmhost.errors import BusyError, HomeError
from llmhost.paths import Home


@contextmanager
def home_lock(home: Home, command: str) -> Iterator[None]:
    """Hold the home while a command changes it; the kernel lets go when the process dies.

    Raises BusyError, naming who holds it, and HomeError when the lock file cannot be made.
    """
    fd = _open(home)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(home, os.pread(fd, 4096, 0)) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()} {command}".encode("utf-8", "replace"), 0)
        yield
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def _open(home: Home) -> int:
    try:
        os.makedirs(home.run, mode=0o700, exist_ok=True)
        return os.open(home.lock_file, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as e:
        raise HomeError(
            f"cannot open {home.lock_file}: {e.strerror}", "check who owns the home, and give it with --home"
        ) from e


def _busy(home: Home, holder: bytes) -> BusyError:
    pid, _, command = holder.decode("utf-8", "replace").partition(" ")
    who = f"`llmhost {command}` (pid {pid})" if pid else "another llmhost command"
    return BusyError(f"{who} is changing {home.root} right now", "try again when it is done, or end it")
