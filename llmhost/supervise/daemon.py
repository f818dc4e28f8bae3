"""supervisord itself: started when needed, stopped with everything that it runs, and never twice for one home."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import time
from collections.abc import Callable

from llmhost import run
from llmhost.errors import HomeError, SupervisorError
from llmhost.paths import Home
from llmhost.supervise import lifecycle
from llmhost.supervise.guarding import processes
from llmhost.supervise.guarding.spec import MARK
from llmhost.supervise.rpc import Supervisor

START_SECONDS = 30.0
"""Seconds for supervisord to answer after it was started."""
END_SECONDS = 20.0
"""Seconds for supervisord to end once nothing of it runs any more, or for guards to follow a killed one."""
SHUTDOWN_SECONDS = 300.0
"""Seconds for a shutdown that somebody else asked for: supervisord then stops one program after the other."""
POLL_SECONDS = 0.05

Progress = Callable[[tuple[str, ...]], None]
"""Told the names of the programs that are still there, whenever they change."""


def is_running(home: Home) -> bool:
    """Whether somebody listens on the home's supervisor socket."""
    return Supervisor(home.supervisor_socket).alive()


def ensure_running(home: Home) -> bool:
    """Start supervisord from ``home.supervisord_conf`` unless it runs; True when it was started.

    It leaves the terminal and outlives us. Raises SupervisorError with its own words when it does not come up, and
    HomeError when the run directory is not ours alone.
    """
    _secure(home)
    if is_running(home):
        if Supervisor(home.supervisor_socket).state() == "RUNNING":
            return False
        _await_end(home, SHUTDOWN_SECONDS)
    _refuse_second(home)
    _await_guards(home)
    sweep(home)
    _launch(home)
    return True


def _secure(home: Home) -> None:
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
    command = [sys.executable, "-P", "-m", "supervisor.supervisord", "-c", str(home.supervisord_conf)]
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
    """Stop every program at the same time, then supervisord; False when nothing was running.

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
    found: set[int] = set()
    deadline = time.monotonic() + END_SECONDS
    while left := _marked(home):
        if time.monotonic() > deadline:
            pids = ", ".join(map(str, left))
            raise SupervisorError(f"processes of stopped engines cannot be killed: {pids}", "see `dmesg` and `ps`")
        found.update(left)
        for pid in left:
            processes.kill(pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    return tuple(sorted(found))


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
    ours = _words(home)
    for pid in processes.pids():
        if _command_line(pid)[-len(ours) - 1 : -1] == ours and _alive(pid):
            return pid
    return None


def _words(home: Home) -> list[bytes]:
    """How the command line of our supervisord ends; an editor or `tail` of its files has other words."""
    return [b"-m", b"supervisor.supervisord", b"-c", os.fsencode(home.supervisord_conf)]


def _is_guard(pid: int, specs: bytes) -> bool:
    words = _command_line(pid)
    return any(w.endswith(b"/guard.py") for w in words) and any(w.startswith(specs) for w in words) and _alive(pid)


def _command_line(pid: int) -> list[bytes]:
    return processes.read(f"/proc/{pid}/cmdline").split(b"\0")


def _alive(pid: int) -> bool:
    """Not gone and not a zombie."""
    stat_line = processes.read(f"/proc/{pid}/stat")
    return bool(stat_line) and stat_line.rpartition(b")")[2].split()[0] not in (b"Z", b"X")
