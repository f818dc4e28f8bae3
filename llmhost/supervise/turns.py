"""Whose turn it is: commands on one home go one after the other, in the order in which they came.

A ticket is a file in run/turns whose name is a number, locked by its owner, so that the kernel takes it back when the
owner is killed. A command has its turn when no ticket with a smaller number is held any more.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_SECONDS = 0.05
UNWRITABLE = frozenset({errno.EROFS, errno.ENOSPC, errno.EDQUOT})
"""What a disk says that is full, or that the kernel let nobody write to any more after an error."""


@contextmanager
def ticket(directory: Path) -> Iterator[int]:
    """Draw the next number, and hold it; raises OSError when the directory cannot be written."""
    with _locked_directory(directory):
        number = max(_numbers(directory), default=0) + 1
        path = directory / str(number)
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield number
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(fd)


def await_turn(directory: Path, number: int, seconds: float, on_wait: Callable[[], None]) -> bool:
    """Wait until nobody holds a smaller number; False after `seconds`. `on_wait` is called once, if it has to wait."""
    return _await(lambda: not _held_before(directory, number), seconds, on_wait)


@contextmanager
def without_ticket(directory: Path, seconds: float, on_wait: Callable[[], None]) -> Iterator[bool]:
    """The turn of one that can write no ticket (`UNWRITABLE`), after all others; False when it does not come in time.

    Meanwhile nobody can draw a number.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield _await(lambda: _lock_when_over(directory, fd), seconds, on_wait)
    finally:
        os.close(fd)


def _await(come: Callable[[], bool], seconds: float, on_wait: Callable[[], None]) -> bool:
    deadline = time.monotonic() + seconds
    told = False
    while not come():
        if time.monotonic() >= deadline:
            return False
        if not told:
            on_wait()
            told = True
        time.sleep(POLL_SECONDS)
    return True


def _lock_when_over(directory: Path, fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    if not anybody(directory):
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def anybody(directory: Path) -> bool:
    """Whether anybody holds a ticket."""
    try:
        return any(_is_locked(directory / str(number)) for number in _numbers(directory))
    except OSError:
        return False


def _is_locked(path: Path) -> bool:
    """Shares the lock of a dead owner for a moment; who finds it held then looks again soon."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(fd)


def _held_before(directory: Path, number: int) -> bool:
    return any(_held(directory / str(n)) for n in _numbers(directory) if n < number)


def _held(path: Path) -> bool:
    """Whether a ticket has an owner; that of a killed one is thrown away."""
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        path.unlink(missing_ok=True)
        return False
    finally:
        os.close(fd)


def _numbers(directory: Path) -> list[int]:
    return [int(name) for name in os.listdir(directory) if name.isdigit()]


@contextmanager
def _locked_directory(directory: Path) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)
