"""Processes as /proc shows them."""

from __future__ import annotations

import contextlib
import os
import select


def descendants(root: int) -> list[int]:
    """All processes below `root`, zombies included."""
    children: dict[int, list[int]] = {}
    for pid in pids():
        stat = read(f"/proc/{pid}/stat")
        if stat:  # "pid (any name) state ppid …"
            children.setdefault(int(stat.rpartition(b")")[2].split()[1]), []).append(pid)
    found = list(children.get(root, ()))
    for pid in found:  # grows while it is walked
        found += children.get(pid, ())
    return found


def marked(variable: bytes) -> list[int]:
    """The other processes that were started with this ``NAME=value`` in their environment, as far as we may look."""
    return [pid for pid in pids() if pid != os.getpid() and variable in read(f"/proc/{pid}/environ").split(b"\0")]


def pids() -> list[int]:
    """Every process."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def read(path: str) -> bytes:
    """A file's content, b'' when it cannot be read (the process is gone, or somebody else's)."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def kill(pid: int, number: int) -> None:
    """Send a signal; a process that is gone or has become somebody else's is left alone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def say(text: str) -> None:
    """One line to the program's log. Never blocks and never fails: supervisord may be gone."""
    line = f"[guard] {text}".replace("\n", " ").encode("utf-8", "replace")[: select.PIPE_BUF - 1] + b"\n"
    with contextlib.suppress(OSError):
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        if any(event & select.POLLOUT for _, event in poll.poll(1000)):
            os.write(2, line)
