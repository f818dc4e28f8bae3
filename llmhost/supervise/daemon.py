"""supervisord itself: started when needed, stopped with everything that it runs, and never twice for one home."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from llmhost import run
from llmhost.errors import HomeError, SupervisorError
from llmhost.gateway_address import GATEWAY_PROGRAM
from llmhost.paths import Home, supervisord_script
from llmhost.supervise import lifecycle, systemd
from llmhost.supervise.guarding import processes, shm
from llmhost.supervise.guarding.spec import MARK
from llmhost.supervise.rpc import Supervisor
from llmhost.supervise.units import Unit, managed

START_SECONDS = 30.0
"""Seconds for supervisord to answer after it was started."""
END_SECONDS = 20.0
"""Seconds for supervisord to end once nothing of it runs any more, or for guards to follow a killed one."""
SHUTDOWN_SECONDS = 300.0
"""Seconds for a shutdown that somebody else asked for: supervisord then stops one program after the other."""
POLL_SECONDS = 0.05
STOP_EXTRA = 2 * lifecycle.STOP_MARGIN + 3 * END_SECONDS
"""Seconds that a shutdown may take beyond the longest stop of an engine and the gateway's."""
UNIT_POLL_SECONDS = 0.2
JOB_SECONDS = 5.0
"""Seconds for systemd to begin with what it was asked for."""
UNIT_SECONDS = 420.0
"""Seconds for a unit to start supervisord: it may wait for GPUs first (`llmhost.boot.phases`)."""

SCRIPT = b"/".join(os.fsencode(part) for part in supervisord_script().parts[-2:])
"""``supervise/supervisord.py``"""

Progress = Callable[[tuple[str, ...]], None]
"""Told the names of the programs that are still there, whenever they change."""


def is_running(home: Home) -> bool:
    """Whether somebody listens on the home's supervisor socket."""
    return Supervisor(home.supervisor_socket).alive()


def serves(home: Home) -> bool:
    """Whether supervisord runs, and is not just ending."""
    return is_running(home) and Supervisor(home.supervisor_socket).state() == "RUNNING"


def ensure_running(home: Home) -> bool:
    """Start supervisord from ``home.supervisord_conf`` unless it runs; True when it was started.

    It leaves the terminal and outlives us; where a systemd unit runs this home, systemd is asked to start it. Raises
    SupervisorError with its own words when it does not come up, and HomeError when the run directory is not ours alone.
    """
    secure(home)
    if is_running(home):
        if Supervisor(home.supervisor_socket).state() == "RUNNING":
            return False
        _await_end(home, SHUTDOWN_SECONDS)
    unit = managed(home)
    if unit is not None:
        _start_unit(home, unit)
        return True
    clear(home)
    _launch(home)
    return True


def clear(home: Home) -> None:
    """Make sure that supervisord may start: no other one runs, and nothing of a former one is left.

    Raises SupervisorError when a process of a former life does not end.
    """
    _refuse_second(home)
    _await_guards(home)
    sweep(home)


def _start_unit(home: Home, unit: Unit) -> None:
    # Not waited for: the unit's last step wants the lock of the home, which our caller holds.
    systemd.systemctl(unit, "start", "--no-block", unit.name)
    begin = time.monotonic()
    while not is_running(home):
        waited = time.monotonic() - begin
        idle = waited > JOB_SECONDS and systemd.active_state(unit) in ("failed", "inactive")
        if idle or waited > UNIT_SECONDS:
            raise SupervisorError(f"{unit.name} did not start supervisord", f"see `{systemd.journal(unit)}`")
        time.sleep(UNIT_POLL_SECONDS)


def await_answer(home: Home) -> None:
    """Wait for a supervisord that is being started; raises SupervisorError when it does not answer."""
    deadline = time.monotonic() + START_SECONDS
    while not is_running(home):
        if time.monotonic() > deadline:
            raise SupervisorError("supervisord does not answer", f"see {home.log_file('supervisord')}")
        time.sleep(POLL_SECONDS)


def secure(home: Home) -> None:
    """Sockets in there control everything, so nobody else may enter."""
    for directory in (home.run, home.logs):
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if stat.S_IMODE(directory.stat().st_mode) & 0o077:
                directory.chmod(0o700)
        except OSError as e:
            raise HomeError(
                f"cannot make {directory} private: {e.strerror}", "check who owns the home, and give it with --home"
            ) from e


def _refuse_second(home: Home) -> None:
    """A supervisord whose socket file was deleted still runs its programs; a second one would run them twice."""
    pid = _supervisord_pid(home)
    if pid is not None:
        raise SupervisorError(
            f"supervisord (pid {pid}) of this home runs, but does not answer on {home.supervisor_socket}",
            f"end it with `kill {pid}` and try again",
        )


def _launch(home: Home) -> None:
    command = [sys.executable, "-P", str(supervisord_script()), "-c", str(home.supervisord_conf)]
    before = _log_size(home)
    done = run.capture(command, cwd=home.root, timeout=START_SECONDS, check=False)
    deadline = time.monotonic() + (START_SECONDS if done.returncode == 0 else 0)
    while time.monotonic() < deadline:
        if is_running(home):
            return
        time.sleep(POLL_SECONDS)
    said = _complaint(done.stderr + done.stdout) or _complaint(_log_since(home, before)) or "it said nothing"
    raise SupervisorError(f"supervisord did not start: {said}", f"see {home.log_file('supervisord')}")


def _complaint(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("For help")]
    errors = [line for line in lines if ("Error" in line or "CRIT" in line) and "running as root" not in line]
    return (errors or lines or [""])[-1]


def _log_size(home: Home) -> int:
    try:
        return home.log_file("supervisord").stat().st_size
    except OSError:
        return 0


def _log_since(home: Home, position: int) -> str:
    try:
        with home.log_file("supervisord").open("rb") as file:
            file.seek(position)
            return file.read(65536).decode("utf-8", "replace")
    except OSError:
        return ""


def shutdown(home: Home, on_progress: Progress = lambda _: None) -> bool:
    """Stop all engines at the same time, then the gateway and supervisord; False when nothing was running.

    Returns when all of it is gone, leftovers of killed guards included. A supervisord that does not end is killed,
    and its guards end their engines. Raises SupervisorError when a process cannot be ended.
    """
    found = is_running(home)
    if found:
        supervisor = Supervisor(home.supervisor_socket)
        if supervisor.state() == "RUNNING":
            names = [p.name for p in supervisor.programs()]
            lifecycle.stop(home, names, on_progress)
            supervisor.shutdown()
    found = _await_end(home, END_SECONDS) or found
    found = bool(sweep(home)) or found
    _remove_sockets(home)
    return found


def settle_unit(home: Home) -> None:
    """After a `shutdown`: wait until systemd knows of it, and keep it from a next try that it was waiting for.

    Not with the lock of the home held: the unit's last step wants it.
    """
    unit = managed(home)
    deadline = time.monotonic() + END_SECONDS
    while unit is not None and time.monotonic() < deadline:
        state = systemd.active_state(unit)
        if state == "activating":
            systemd.systemctl(unit, "stop", unit.name, timeout=SHUTDOWN_SECONDS)
        elif state != "deactivating":
            return
        time.sleep(UNIT_POLL_SECONDS)


def stop_limit(home: Home) -> float:
    """Seconds after which `shutdown` has ended everything or given up; 0 when nothing runs."""
    if not is_running(home):
        return 0.0
    seconds = Supervisor(home.supervisor_socket).stop_seconds()
    gateway = seconds.pop(GATEWAY_PROGRAM, 0)
    return max(seconds.values(), default=0) + gateway + STOP_EXTRA


def _await_end(home: Home, seconds: float) -> bool:
    """Wait for supervisord and its guards to end, kill it after `seconds`; True when there was one."""
    pid = _supervisord_pid(home)
    if pid is not None and not _gone(pid, seconds):
        processes.kill(pid, signal.SIGKILL)
        if not _gone(pid, END_SECONDS):
            raise SupervisorError(f"supervisord (pid {pid}) does not end, not even killed", "see `dmesg` and `ps`")
    _await_guards(home)
    return pid is not None


def _gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while _alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _await_guards(home: Home) -> None:
    """Guards whose supervisord was killed are just ending their engines, and would take new ones for theirs."""
    specs = os.fsencode(home.conf) + b"/guard/"
    deadline = time.monotonic() + END_SECONDS
    while any(_is_guard(pid, specs) for pid in processes.pids()):
        if time.monotonic() > deadline:
            raise SupervisorError("guards of a killed supervisord do not end", f"see `ps`: they name {home.conf}/guard")
        time.sleep(POLL_SECONDS)


def sweep(home: Home) -> tuple[int, ...]:
    """Kill processes of engines whose guards are dead, found by their mark; returns their pids.

    Only for a home whose supervisord does not run. Raises SupervisorError when one cannot be killed.
    """
    found = kill_all(lambda: _marked(home), END_SECONDS)
    memory = recorded_memory(home) | found.memory
    shm.remove(memory)
    for record in home.run.glob("*.shm.json"):
        record.unlink(missing_ok=True)
    return tuple(sorted(found.pids))


class Killed(NamedTuple):
    """Processes that were ended, and the shared memory that they had mapped."""

    pids: frozenset[int]
    memory: frozenset[shm.Segment]


def kill_all(left: Callable[[], list[int]], seconds: float) -> Killed:
    """Kill until there is nobody left, resource trackers last: they remove the shared memory of the others.

    Raises SupervisorError when one does not end within so many seconds.
    """
    found: set[int] = set()
    memory: set[shm.Segment] = set()
    begin = time.monotonic()
    while pids := left():
        waited = time.monotonic() - begin
        if waited > seconds:
            names = ", ".join(map(processes.describe, pids))
            raise SupervisorError(f"processes of stopped engines cannot be killed: {names}", "see `dmesg` and `ps`")
        memory |= shm.segments(set(pids) - found)
        found.update(pids)
        for pid in shm.killable(pids, all_of_them=waited > shm.TRACKER_SECONDS):
            processes.kill(pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    return Killed(frozenset(found), frozenset(memory))


def recorded_memory(home: Home) -> set[shm.Segment]:
    """Shared memory that engines of this home have, or had when all their processes were killed."""
    records = map(os.fsencode, home.run.glob("*.shm.json"))
    return {segment for record in records for segment in shm.read_record(record)}


def _marked(home: Home) -> list[int]:
    start = MARK.encode() + b"=" + os.fsencode(home.root) + b":"
    ours = os.getpid()
    return [
        pid
        for pid in processes.pids()
        if pid != ours and any(v.startswith(start) for v in processes.read(f"/proc/{pid}/environ").split(b"\0"))
    ]


def _remove_sockets(home: Home) -> None:
    """Those of killed processes outlive them."""
    with contextlib.suppress(OSError):
        for path in home.run.iterdir():
            if path.is_socket():
                path.unlink(missing_ok=True)
    home.supervisord_pid_file.unlink(missing_ok=True)


def descendants(home: Home) -> frozenset[int]:
    """supervisord of this home and every process below it; empty when it does not run."""
    pid = _supervisord_pid(home)
    return frozenset((pid, *processes.descendants(pid))) if pid is not None else frozenset()


def _supervisord_pid(home: Home) -> int | None:
    """Found by its command line: a pid file may be stale, or gone while supervisord still runs."""
    ours = [b"-c", os.fsencode(home.supervisord_conf)]
    for pid in processes.pids():
        words = _command_line(pid)[:-1]
        if words[-2:] == ours and any(map(_is_supervisord, words[1:-2])) and _alive(pid):
            return pid
    return None


def _is_supervisord(word: bytes) -> bool:
    """That of any installed llmhost; an editor or `tail` of its files has other words."""
    return word.endswith(b"/" + SCRIPT) or word == b"supervisor.supervisord"


def _is_guard(pid: int, specs: bytes) -> bool:
    words = _command_line(pid)
    return any(w.endswith(b"/guard.py") for w in words) and any(w.startswith(specs) for w in words) and _alive(pid)


def _command_line(pid: int) -> list[bytes]:
    return processes.read(f"/proc/{pid}/cmdline").split(b"\0")


def _alive(pid: int) -> bool:
    """Not gone and not a zombie."""
    stat_line = processes.read(f"/proc/{pid}/stat")
    return bool(stat_line) and stat_line.rpartition(b")")[2].split()[0] not in (b"Z", b"X")
