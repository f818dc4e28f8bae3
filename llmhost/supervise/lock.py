"""One command at a time changes a home; the others wait for their turn."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from llmhost.errors import BusyError, HomeError
from llmhost.paths import Home
from llmhost.supervise import turns
from llmhost.supervise.units import find_unit, owner

WAIT_ENV = "LLMHOST_LOCK_TIMEOUT"
WAIT_SECONDS = 60.0
"""Seconds that a command waits for its turn unless the environment says otherwise."""

TRIAL = "trial."
"""Begins the names of files in run/ that belong to the command that holds the home (`llmhost.supervise.trial`)."""

on_wait: ContextVar[Callable[[str], None]] = ContextVar("on_wait", default=lambda _: None)
"""Told, in words, who is at work when a command has to wait for its turn."""


@contextmanager
def home_lock(home: Home, command: str, wait: float | None = None) -> Iterator[None]:
    """Hold the home while a command changes it; the kernel lets go when the process dies.

    Commands take turns in the order in which they come here, so that what was asked for last is what is there in the
    end. Raises BusyError, naming who holds the home, for one that waited for too long (`wait` or `WAIT_ENV`, in
    seconds), and HomeError when the lock file cannot be made or the home is run for another user.
    """
    require_account(home)
    fd = _open(home)
    try:
        with _turn(home, fd, _wait_seconds() if wait is None else wait):
            with contextlib.suppress(OSError):  # a full or read-only disk: then the others are not told by name
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()} {command}".encode("utf-8", "replace"), 0)
                for left in home.run.glob(f"{TRIAL}*.json"):  # whoever was killed over it; it may hold secrets
                    left.unlink(missing_ok=True)
            yield
            with contextlib.suppress(OSError):
                os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def at_work(home: Home) -> bool:
    """Whether a command is changing the home at this moment; nothing is changed by asking."""
    return turns.anybody(home.run / "turns")


@contextmanager
def _turn(home: Home, fd: int, seconds: float) -> Iterator[None]:
    with _in_line(home.run / "turns", seconds, lambda: on_wait.get()(f"waiting for {_who(fd)} to finish")) as turn:
        if not turn:
            raise BusyError(f"{_who(fd)} is changing {home.root} right now", "try again when it is done, or end it")
        yield


@contextmanager
def _in_line(directory: Path, seconds: float, on_wait: Callable[[], None]) -> Iterator[bool]:
    """Whether it is our turn; also where nothing can be written any more, so that `stop` and `down` work there."""
    with contextlib.ExitStack() as stack:
        try:
            number = stack.enter_context(turns.ticket(directory))
        except OSError as e:
            if e.errno not in turns.UNWRITABLE:
                raise
            yield stack.enter_context(turns.without_ticket(directory, seconds, on_wait))
        else:
            yield turns.await_turn(directory, number, seconds, on_wait)


def _wait_seconds() -> float:
    try:
        return max(0.0, float(os.environ.get(WAIT_ENV, "")))
    except ValueError:
        return WAIT_SECONDS


def require_account(home: Home) -> None:
    """Raise HomeError for one who is not whom a unit runs the home as: its services could not read what we write.

    For root, too, who would besides follow whatever links that account has made there.
    """
    unit = find_unit(home)
    if unit is None:
        return
    me = pwd.getpwuid(os.geteuid()).pw_name
    if me not in (unit.account, owner(home)):
        raise HomeError(
            f"{unit.name} runs {home.root} as {unit.account}, and you are {me}",
            f"use `sudo -u {unit.account} llmhost --home {home.root} …`, or systemctl start, stop, reload {unit.name}",
        )


def _open(home: Home) -> int:
    try:
        os.makedirs(home.run, mode=0o700, exist_ok=True)
        os.makedirs(home.run / "turns", mode=0o700, exist_ok=True)
        return os.open(home.lock_file, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as e:
        with contextlib.suppress(OSError):
            if e.errno in turns.UNWRITABLE:
                return os.open(home.lock_file, os.O_RDONLY)
        hint = "see `df -h` and `dmesg`" if e.errno in turns.UNWRITABLE else "check who owns the home, or give --home"
        raise HomeError(f"cannot open {home.lock_file}: {e.strerror}", hint) from e


def _who(fd: int) -> str:
    pid, _, command = os.pread(fd, 4096, 0).decode("utf-8", "replace").partition(" ")
    return f"`llmhost {command}` (pid {pid})" if pid else "another llmhost command"
