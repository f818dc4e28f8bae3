"""supervisord itself: started when needed, stopped with everything that it runs, and never twice for one home."""

from __future__ import annotations

import contextlib
import json
import signal
import stat
import sys
import time
from collections.abc import Callable

from llmhost import run
from llmhost.errors import HomeError, SupervisorError
from llmhost.gateway_address import GATEWAY_PROGRAM
from llmhost.paths import Home, supervisord_script
from llmhost.supervise import lifecycle, owned, systemd
from llmhost.supervise.guarding import processes
from llmhost.supervise.rpc import TIMEOUT, Supervisor
from llmhost.supervise.units import Unit, managed

START_SECONDS = 30.0
"""Seconds for supervisord to answer after it was started."""
END_SECONDS = 20.0
"""Seconds for supervisord to end once nothing of it runs any more, or for guards to follow a killed one."""
SHUTDOWN_SECONDS = 300.0
"""Seconds for a shutdown that somebody else asked for: supervisord then stops one program after the other."""
ANSWER_SECONDS = 20.0
"""Seconds after which a supervisord that says nothing is taken for one that hangs."""
GUARD_SECONDS = 60.0
"""Seconds that a guard may take beyond ``stop_timeout`` to kill and sweep, and for supervisord to see to it."""
FOLLOW_SECONDS = 3.0
"""Seconds for gateway and exporter to follow a supervisord that was killed."""
POLL_SECONDS = 0.05
STOP_EXTRA = 2 * lifecycle.STOP_MARGIN + 3 * END_SECONDS
"""Seconds that a shutdown may take beyond the longest stop of an engine and the gateway's."""
UNIT_POLL_SECONDS = 0.2
JOB_SECONDS = 5.0
"""Seconds for systemd to begin with what it was asked for."""
UNIT_SECONDS = 420.0
"""Seconds for a unit to start supervisord: it may wait for GPUs first (`llmhost.boot.phases`)."""

WITHHELD = {"LLMHOST_API_KEY": ""}
"""What the operator's shell has for `llmhost check` is nothing for engines, which would inherit it."""

Progress = Callable[[tuple[str, ...]], None]
"""Told the names of the programs that are still there, whenever they change."""
Note = Callable[[str], None]
"""Told in words what had to be done beyond the order of things."""


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
    owned.sweep(home)


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
    pid = owned.supervisord_pid(home)
    if pid is not None:
        raise SupervisorError(
            f"supervisord (pid {pid}) of this home runs, but does not answer on {home.supervisor_socket}",
            f"end it with `kill {pid}` and try again",
        )


def _launch(home: Home) -> None:
    command = [sys.executable, "-P", str(supervisord_script()), "-c", str(home.supervisord_conf)]
    before = _log_size(home)
    done = run.capture(command, env=WITHHELD, cwd=home.root, timeout=START_SECONDS, check=False)
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


def wake(home: Home, note: Note) -> None:
    """Let processes of this home that were stopped by SIGSTOP go on: they can end in order then."""
    supervisord = owned.supervisord_pid(home)
    for pid in (*owned.everything(home), *([supervisord] if supervisord else ())):
        if processes.state(pid) == "T":
            note(f"{processes.describe(pid)} was stopped (SIGSTOP), and is told to go on")
            processes.kill(pid, signal.SIGCONT)


def shutdown(home: Home, on_progress: Progress = lambda _: None, note: Note = lambda _: None) -> bool:
    """Stop all engines at the same time, then the gateway and supervisord; False when nothing was running.

    Returns when all of it is gone, whatever happened before: guards are told by ourselves when supervisord is ending
    already or does not answer, and what does not end is killed, which ``note`` is told. Raises SupervisorError when a
    process cannot be killed.
    """
    found = is_running(home)
    state = _state(home) if found else None
    if state == "RUNNING":
        supervisor = Supervisor(home.supervisor_socket)
        try:
            lifecycle.stop(home, [p.name for p in supervisor.programs()], on_progress)
            supervisor.shutdown()
        except SupervisorError as e:
            note(e.message)
    found = bool(owned.guards(home)) or found
    _end_guards(home, on_progress)
    pid = owned.supervisord_pid(home)
    if pid is not None and state != "RUNNING":  # it may hear a signal, with its socket deleted, say
        processes.kill(pid, signal.SIGTERM)
    found = _await_end(home, END_SECONDS, note) or found
    deadline = time.monotonic() + FOLLOW_SECONDS
    while owned.everything(home) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    left = owned.sweep(home)
    if left:
        note(f"had to end {', '.join(left.values())}")
    _remove_sockets(home)
    return found or bool(left)


def _state(home: Home) -> str | None:
    """What supervisord says of itself; None when it says nothing."""
    try:
        return Supervisor(home.supervisor_socket, ANSWER_SECONDS).state()
    except SupervisorError:
        return None


def _end_guards(home: Home, on_progress: Progress) -> None:
    """Tell guards to stop, all at the same time; supervisord tells one after the other, or nobody any more."""
    told: dict[int, str] = {}
    deadline = time.monotonic() + _longest_stop(home)
    while (left := owned.guards(home)) and time.monotonic() < deadline:
        if left.keys() != told.keys():
            on_progress(tuple(sorted(left.values())))
        for pid in left.keys() - told.keys():
            processes.kill(pid, signal.SIGTERM)
        told = left
        time.sleep(POLL_SECONDS)


def _longest_stop(home: Home) -> float:
    """Seconds until the slowest guard has ended its engine."""
    seconds = [0.0]
    for spec in home.conf.glob("guard/*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            seconds.append(float(json.loads(spec.read_bytes())["stop_timeout"]))
    return max(seconds) + GUARD_SECONDS


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
    if not is_running(home) and not owned.descendants(home):
        return 0.0
    try:
        seconds = Supervisor(home.supervisor_socket, ANSWER_SECONDS).stop_seconds()
    except SupervisorError:  # it is ending, or hangs
        return _longest_stop(home) + TIMEOUT + ANSWER_SECONDS + STOP_EXTRA
    gateway = seconds.pop(GATEWAY_PROGRAM, 0)
    return max(seconds.values(), default=0) + gateway + STOP_EXTRA


def _await_end(home: Home, seconds: float, note: Note = lambda _: None) -> bool:
    """Wait for supervisord to end, kill it after `seconds`; True when there was one."""
    pid = owned.supervisord_pid(home)
    if pid is not None and not _gone(pid, seconds):
        note(f"supervisord (pid {pid}) does not end by itself, and is killed")
        processes.kill(pid, signal.SIGKILL)
        if not _gone(pid, END_SECONDS):
            raise SupervisorError(f"supervisord (pid {pid}) does not end, not even killed", "see `dmesg` and `ps`")
    return pid is not None


def _gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while processes.running(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _await_guards(home: Home) -> None:
    """Guards whose supervisord was killed are just ending their engines, and would take new ones for theirs."""
    deadline = time.monotonic() + END_SECONDS
    while owned.guards(home):
        if time.monotonic() > deadline:
            raise SupervisorError("guards of a killed supervisord do not end", "run `llmhost down`, which kills them")
        time.sleep(POLL_SECONDS)


def _remove_sockets(home: Home) -> None:
    """Those of killed processes outlive them; on a disk that is read-only they stay, and mean nothing."""
    with contextlib.suppress(OSError):
        for path in home.run.iterdir():
            if path.is_socket():
                path.unlink(missing_ok=True)
        home.supervisord_pid_file.unlink(missing_ok=True)
