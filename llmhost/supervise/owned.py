"""The processes of a home, found by what they were given: pid files may be stale, and sockets deleted."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

from llmhost.errors import SupervisorError
from llmhost.paths import Home, supervisord_script
from llmhost.supervise.guarding import processes, shm
from llmhost.supervise.guarding.spec import MARK

END_SECONDS = 20.0
"""Seconds for killed processes to go away."""
POLL_SECONDS = 0.05

SCRIPT = b"/".join(os.fsencode(part) for part in supervisord_script().parts[-2:])
"""``supervise/supervisord.py``"""


class Killed(NamedTuple):
    """Processes that were ended with their names, and the shared memory that they had mapped."""

    names: dict[int, str]
    memory: frozenset[shm.Segment]


def descendants(home: Home) -> frozenset[int]:
    """supervisord of this home and every process below it; empty when it does not run."""
    pid = supervisord_pid(home)
    return frozenset((pid, *processes.descendants(pid))) if pid is not None else frozenset()


def supervisord_pid(home: Home) -> int | None:
    """That of any installed llmhost; an editor or `tail` of its files has other words. None when it does not run."""
    ours = [b"-c", os.fsencode(home.supervisord_conf)]
    for pid in processes.pids():
        words = command_line(pid)[:-1]
        if words[-2:] == ours and any(map(_is_supervisord, words[1:-2])) and processes.running(pid):
            return pid
    return None


def _is_supervisord(word: bytes) -> bool:
    return word.endswith(b"/" + SCRIPT) or word == b"supervisor.supervisord"


def guards(home: Home) -> dict[int, str]:
    """The guards that run, with the names of their programs."""
    specs = os.fsencode(home.conf) + b"/guard/"
    found = {}
    for pid in processes.pids():
        words = command_line(pid)
        spec = next((word for word in words if word.startswith(specs)), None)
        if spec and _runs(words, b"/guard.py") and processes.running(pid):
            found[pid] = os.fsdecode(spec.removeprefix(specs).removesuffix(b".json"))
    return found


def is_of(home: Home, pid: int) -> bool:
    """An engine's process by its mark; guards, gateway and exporter by the file of this home that they were given."""
    return (_is_marked(home, pid) or _was_given(home, command_line(pid))) and processes.running(pid)


def _is_marked(home: Home, pid: int) -> bool:
    start = MARK.encode() + b"=" + os.fsencode(home.root) + b":"
    return any(v.startswith(start) for v in processes.read(f"/proc/{pid}/environ").split(b"\0"))


def _was_given(home: Home, words: list[bytes]) -> bool:
    """Somebody who only looks at such a file has other words."""
    conf = os.fsencode(home.conf)
    given = [word.removeprefix(conf) for word in words[1:] if word.startswith(conf + b"/")]
    guard = any(word.startswith((b"/guard/", b"/gateway/", b"/metrics.json")) for word in given)
    gateway = b"--config-path" in words and b"/gateway/envoy.yaml" in given
    exporter = _runs(words, b"/exporter.py") and b"/metrics.json" in given
    return gateway or exporter or (guard and _runs(words, b"/guard.py"))


def _runs(words: list[bytes], script: bytes) -> bool:
    return any(word.endswith(script) for word in words[:4])


def command_line(pid: int) -> list[bytes]:
    """The words of a process's command line, and one that is empty; none when it is gone."""
    return processes.read(f"/proc/{pid}/cmdline").split(b"\0")


def everything(home: Home) -> list[int]:
    """Every process of a home but supervisord and ourselves."""
    return [pid for pid in processes.pids() if pid != os.getpid() and is_of(home, pid)]


def sweep(home: Home) -> dict[int, str]:
    """Kill what an ended supervisord left: processes of engines, guards, the gateway; returns their names by pid.

    Only for a home whose supervisord does not run. Raises SupervisorError when one cannot be killed.
    """
    ours = {pid: f"the guard of {program} ({pid})" for pid, program in guards(home).items()}
    found = kill_all(lambda: everything(home), END_SECONDS)
    shm.remove(recorded_memory(home) | found.memory)
    for record in home.run.glob("*.shm.json"):
        with contextlib.suppress(OSError):  # what it names is gone, so it means nothing
            record.unlink()
    return found.names | {pid: name for pid, name in ours.items() if pid in found.names}


def kill_all(left: Callable[[], list[int]], seconds: float) -> Killed:
    """Kill until there is nobody left, resource trackers last: they remove the shared memory of the others.

    Raises SupervisorError when one does not end within so many seconds.
    """
    found: dict[int, str] = {}
    memory: set[shm.Segment] = set()
    begin = time.monotonic()
    while pids := left():
        waited = time.monotonic() - begin
        if waited > seconds:
            names = ", ".join(map(processes.describe, pids))
            raise SupervisorError(f"processes of stopped engines cannot be killed: {names}", "see `dmesg` and `ps`")
        memory |= shm.segments(set(pids) - set(found))
        found = {pid: processes.describe(pid) for pid in pids} | found
        for pid in shm.killable(pids, all_of_them=waited > shm.TRACKER_SECONDS):
            processes.kill(pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    return Killed(found, frozenset(memory))


def recorded_memory(home: Home) -> set[shm.Segment]:
    """Shared memory that engines of this home have, or had when all their processes were killed."""
    records = map(os.fsencode, home.run.glob("*.shm.json"))
    return {segment for record in records for segment in shm.read_record(record)}
