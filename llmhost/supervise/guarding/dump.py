"""What a hung engine was doing, into its log, before it is killed."""

from __future__ import annotations

import os
import time

from llmhost.supervise.guarding.children import Children
from llmhost.supervise.guarding.processes import descendants, describe, read, say
from llmhost.supervise.guarding.watch import VITAL

DUMP_SECONDS = 6.0
"""Seconds that all of it may take: a tenth of the default `hang_timeout`, which `watch.longest` leaves."""


def dump_stacks(children: Children, program: str, python: str) -> None:
    """State of each process of the engine, and the stacks of the important ones when py-spy is installed.

    `python` is the engine's interpreter: py-spy is looked for beside it, then on PATH.
    """
    deadline = time.monotonic() + DUMP_SECONDS
    found = [children.engine, *descendants(children.engine)]
    for pid in found:
        if time.monotonic() < deadline:  # supervisord reads slowly when the machine is busy
            say(f"{program}: {describe(pid)} {_condition(pid)}")
    spy = _find(python)
    if spy is None:
        say(f"{program}: no stack dump: py-spy is not installed in the engine or on PATH")
        return
    for pid in found:
        if (pid == children.engine or describe(pid).startswith(VITAL)) and time.monotonic() < deadline:
            say(f"{program}: stacks of {describe(pid)}")
            _spy(children, spy, pid, deadline)


def _find(python: str) -> str | None:
    """Where py-spy is, None when it is not."""
    directories = (os.path.dirname(python), *os.environ.get("PATH", os.defpath).split(":"))
    found = (os.path.join(directory, "py-spy") for directory in directories if directory)
    return next((path for path in found if os.access(path, os.X_OK)), None)


def _spy(children: Children, spy: str, pid: int, deadline: float) -> None:
    def run() -> None:
        os.dup2(2, 1)
        # Not stopping the process: it stands still anyway, and one that was stopped could not be stopped again.
        os.execv(spy, [spy, "dump", "--nonblocking", "--pid", str(pid)])

    children.finish(children.start_helper(run), deadline)


def _condition(pid: int) -> str:
    """``state S (sleeping), 53 threads, waits in futex_wait``."""
    lines = read(f"/proc/{pid}/status").decode("utf-8", "replace").splitlines()
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    waits = read(f"/proc/{pid}/wchan").decode("utf-8", "replace")
    where = f", waits in {waits}" if waits not in ("", "0") else ""
    return f"state {fields.get('State', '?').strip()}, {fields.get('Threads', '?').strip()} threads{where}"
