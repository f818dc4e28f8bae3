"""One command at a time changes a home; the others wait for their turn."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

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
    _require_account(home)
    fd = _open(home)
    try:
        with _turn(home, fd, _wait_seconds() if wait is None else wait):
            os.ftruncate(fd, 0)
            with contextlib.suppress(OSError):  # a full disk: then the others are not told by name
                os.pwrite(fd, f"{os.getpid()} {command}".encode("utf-8", "replace"), 0)
            for left in home.run.glob(f"{TRIAL}*.json"):  # whoever was killed over it; it may hold secrets
                left.unlink(missing_ok=True)
            yield
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def at_work(home: Home) -> bool:
    """Whether a command is changing the home at this moment; nothing is changed by asking."""
    return turns.anybody(home.run / "turns")


@contextmanager
def _turn(home: Home, fd: int, seconds: float) -> Iterator[None]:
    directory = home.run / "turns"
    with turns.ticket(directory) as number:
        turn = turns.await_turn(directory, number, seconds, lambda: on_wait.get()(f"waiting for {_who(fd)} to finish"))
        if not turn:
            raise BusyError(f"{_who(fd)} is changing {home.root} right now", "try again when it is done, or end it")
        yield


def _wait_seconds() -> float:
    try:
        return max(0.0, float(os.environ.get(WAIT_ENV, "")))
    except ValueError:
        return WAIT_SECONDS


def _require_account(home: Home) -> None:
    """Files of another user's, root's too, could not be read by the services of a unit."""
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
        raise HomeError(
            f"cannot open {home.lock_file}: {e.strerror}", "check who owns the home, and give it with --home"
        ) from e


def _who(fd: int) -> str:
    pid, _, command = os.pread(fd, 4096, 0).decode("utf-8", "replace").partition(" ")
    return f"`llmhost {command}` (pid {pid})" if pid else "another llmhost command"
