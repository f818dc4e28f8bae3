"""The state of a program: supervisord says whether it runs, its guard what it does."""

import json
import os
import socket
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from llmhost.gateway_address import GATEWAY_PROGRAM
from llmhost.paths import Home
from llmhost.supervise.guarding import processes
from llmhost.supervise.rpc import ProgramInfo

State = Literal["stopped", "queued", "loading", "ready", "draining", "unhealthy", "backoff", "failed"]

_GUARD_STATES = frozenset({"queued", "loading", "ready", "unhealthy", "backoff"})
_EXIT_FAILED = 78
"""The guard's exit status for "do not try again"."""


class ProgramState(NamedTuple):
    """One program at one moment; pids are None when there is no such process."""

    name: str
    state: State
    pid: int | None = None
    engine_pid: int | None = None
    restarts: int = 0
    error: str | None = None
    retry_at: float | None = None
    """Unix time of the next try in state backoff."""


def read_states(home: Home, programs: Iterable[ProgramInfo], names: Iterable[str]) -> dict[str, ProgramState]:
    """The states of these programs by name; what supervisord does not know is stopped."""
    known = {p.name: p for p in programs}
    return {name: _read(home, name, known.get(name)) for name in names}


def _read(home: Home, name: str, info: ProgramInfo | None) -> ProgramState:
    if info is None or info.state in ("STOPPED", "STOPPING"):
        return ProgramState(name, "stopped", info.pid if info else None)
    if name == GATEWAY_PROGRAM:
        return _gateway(home, info)
    return _engine(info, _guard_says(home, name))


def _engine(info: ProgramInfo, guard: dict[str, Any]) -> ProgramState:
    """A state file of a guard that does not run any more is believed only about how it ended."""
    restarts = int(guard.get("restarts") or 0)
    if info.state in ("RUNNING", "STARTING"):
        if guard.get("guard_pid") != info.pid or guard.get("state") not in _GUARD_STATES:
            return ProgramState(info.name, "queued", info.pid)  # the guard has not said anything yet
        engine, error, retry_at = guard.get("engine_pid"), guard.get("error"), guard.get("retry_at")
        return _watched(ProgramState(info.name, guard["state"], info.pid, engine, restarts, error, retry_at))
    error = guard.get("error") or None
    if info.state == "EXITED" and info.exit_status == 0:
        return ProgramState(info.name, "stopped", error=error)
    if info.state == "BACKOFF" or (info.state == "EXITED" and info.exit_status != _EXIT_FAILED):
        return ProgramState(info.name, "backoff", restarts=restarts, error=error or info.spawn_error or None)
    told = error if guard.get("state") == "failed" else None
    return ProgramState(info.name, "failed", restarts=restarts, error=told or info.spawn_error or None)


def _watched(said: ProgramState) -> ProgramState:
    """What a guard said last, unless the engine has ended and it cannot say so: it is stopped, or the disk is."""
    ended = said.state == "ready" and said.engine_pid and not processes.running(said.engine_pid)
    words = [said.error] if said.error else []
    if ended:
        words.append("the engine has ended")
    if said.pid is not None and processes.state(said.pid) == "T":
        words.append(f"its guard ({said.pid}) is stopped by a signal, so nobody watches it: `kill -CONT {said.pid}`")
    return said._replace(state="unhealthy" if ended else said.state, error="; ".join(words) or None)


class StopReport(NamedTuple):
    """What the last stop of a program took."""

    name: str
    killed: tuple[str, ...]
    """Processes that did not end by themselves."""
    trouble: str | None
    """What could not be undone: a process that does not die, GPU memory that does not come back."""


def stop_reports(home: Home, since: float) -> list[StopReport]:
    """Of programs that were stopped since then (unix time), those that left something to tell."""
    found = []
    for path in sorted(home.run.glob("*.state.json")):
        name = path.name.removesuffix(".state.json")
        said = _guard_says(home, name)
        if said.get("state") == "stopped" and float(said.get("since") or 0) >= since:
            found.append(StopReport(name, tuple(map(str, said.get("killed") or ())), said.get("trouble")))
    return [report for report in found if report.killed or report.trouble]


def _guard_says(home: Home, name: str) -> dict[str, Any]:
    try:
        with open(home.state_file(name), "rb") as file:
            said = json.load(file)
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _gateway(home: Home, info: ProgramInfo) -> ProgramState:
    if info.state in ("RUNNING", "STARTING", "BACKOFF"):
        pid = _only_child(info.pid or 0) or info.pid
        live = info.state == "RUNNING" and _ask(home, "/ready").split()[1:2] == [b"200"]  # 503 while it starts
        if not live or _listens(home):
            state: State = "ready" if live else "loading"
            return ProgramState(GATEWAY_PROGRAM, state, pid, error=info.spawn_error or None)
        refused = _refused(home)
        return ProgramState(GATEWAY_PROGRAM, "failed" if refused else "loading", pid, error=refused)
    return ProgramState(GATEWAY_PROGRAM, "failed", error=info.spawn_error or f"exited with status {info.exit_status}")


def _only_child(pid: int) -> int | None:
    """Envoy itself, below what keeps it; None where the kernel does not tell (CONFIG_PROC_CHILDREN)."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
            return int(file.read().split()[0])
    except (OSError, IndexError):
        return None


def _listens(home: Home) -> bool:
    """Whether Envoy has bound every listener that it was given: it calls itself ready without them, too."""
    try:
        with open(home.gateway_conf / "lds.json", "rb") as file:
            wanted = {resource["name"].encode() for resource in json.load(file)["resources"]}
    except (OSError, ValueError, KeyError, TypeError):
        return True  # nobody knows of any
    return wanted <= {line.partition(b"::")[0] for line in _ask(home, "/listeners").splitlines()}


def _refused(home: Home) -> str | None:
    """Why a listener could not be bound, in Envoy's words; None when it has not tried yet."""
    from llmhost.probe.gateway import read_gateway  # noqa: PLC0415 (only when something is wrong)

    return "; ".join(read_gateway(home.gateway_admin_socket).errors) or None


def _ask(home: Home, target: str) -> bytes:
    """The answer of Envoy's admin interface, head and body; b"" when there is none."""
    request = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    answer = b""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(2)
        try:
            connection.connect(os.fspath(home.gateway_admin_socket))
            connection.sendall(request)
            while part := connection.recv(65536):
                answer += part
        except OSError:
            return b""
    return answer
