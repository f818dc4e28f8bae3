"""The one seam to supervisord: its XML-RPC interface over its unix socket, typed, with our errors."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from llmhost.errors import SupervisorError
from llmhost.supervise.xml_rpc import Fault, ProtocolError, call

TIMEOUT = 60.0
"""Seconds for one call; supervisord answers all of ours at once, but it has one thread and disks can be slow."""
RUNNING_STATES = frozenset({"STARTING", "RUNNING", "BACKOFF"})
"""States that a stop ends, and in which a start is refused (supervisor.states)."""

# supervisor.xmlrpc.Faults
_SHUTDOWN_STATE, _BAD_NAME, _ALREADY_STARTED, _NOT_RUNNING, _ALREADY_ADDED, _CANT_REREAD = 6, 10, 60, 70, 90, 92


class ProgramInfo(NamedTuple):
    """A program as supervisord sees it; RUNNING says nothing about ready."""

    name: str
    state: str
    """STOPPED STARTING RUNNING BACKOFF STOPPING EXITED FATAL UNKNOWN."""
    pid: int | None
    started: int
    """Unix time of the last start, 0 when there was none."""
    exit_status: int
    spawn_error: str

    @property
    def running(self) -> bool:
        return self.state in RUNNING_STATES


class Changes(NamedTuple):
    """Groups whose configuration on disk differs from what supervisord runs."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


class Snapshot(NamedTuple):
    """supervisord and its programs at one moment."""

    pid: int
    state: str
    programs: tuple[ProgramInfo, ...]


class Supervisor:
    """A client of one supervisord. Every method raises SupervisorError when it cannot do what it says.

    One program is one group of the same name here.
    """

    def __init__(self, path: Path | str, timeout: float = TIMEOUT) -> None:
        self.path = str(path)
        self.timeout = timeout

    def alive(self) -> bool:
        """Whether somebody listens on the socket."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            return connection.connect_ex(self.path) == 0

    def pid(self) -> int:
        """Process id of supervisord."""
        return int(self._call("getPID"))

    def state(self) -> str:
        """RUNNING, RESTARTING, SHUTDOWN or FATAL."""
        try:
            return str(self._call("getState")["statename"])
        except _ShuttingDown:
            return "SHUTDOWN"

    def programs(self) -> list[ProgramInfo]:
        """All programs that supervisord has, sorted by name."""
        return [_program(info) for info in self._call("getAllProcessInfo")]

    def snapshot(self) -> Snapshot:
        """`pid`, `state` and `programs` in one request."""
        pid, state, programs = self._multicall("getPID", "getState", "getAllProcessInfo")
        return Snapshot(int(pid), str(state["statename"]), tuple(_program(info) for info in programs))

    def stop_seconds(self) -> dict[str, int]:
        """By program: after how many seconds supervisord kills it when it is told to stop."""
        return {str(info["name"]): int(info["stopwaitsecs"]) for info in self._call("getAllConfigInfo")}

    def start(self, name: str, wait: bool = False) -> bool:
        """Start a program; with `wait`, until its process is there (not until it is ready). False: it ran already."""
        return self._unless(_ALREADY_STARTED, "startProcess", name, wait)

    def stop(self, name: str, wait: bool = False) -> bool:
        """Stop a program; with `wait`, until it has stopped. False: it was not running."""
        return self._unless(_NOT_RUNNING, "stopProcess", name, wait)

    def reload(self) -> Changes:
        """Read the configuration again, without acting on it."""
        added, changed, removed = self._call("reloadConfig")[0]
        return Changes(tuple(added), tuple(changed), tuple(removed))

    def add(self, group: str) -> bool:
        """Take a group over from the configuration that was read last. False: it was there already."""
        return self._unless(_ALREADY_ADDED, "addProcessGroup", group)

    def remove(self, group: str) -> bool:
        """Forget a group whose programs have stopped. False: there was none."""
        return self._unless(_BAD_NAME, "removeProcessGroup", group)

    def shutdown(self) -> None:
        """Tell supervisord to stop everything, one program after the other, and to end."""
        try:
            self._call("shutdown")
        except _ShuttingDown:
            return

    def _unless(self, fault: int, method: str, *params: Any) -> bool:
        try:
            self._call(method, *params)
        except _Refused as e:
            if e.code == fault:
                return False
            raise
        return True

    def _call(self, method: str, *params: Any) -> Any:
        with _our_errors(self.path, method, *params):
            return call(self.path, f"supervisor.{method}", params, self.timeout)

    def _multicall(self, *methods: str) -> list[Any]:
        """The results of methods without parameters, in one request."""
        calls = [{"methodName": f"supervisor.{method}", "params": []} for method in methods]
        with _our_errors(self.path, methods[0]):
            results: list[Any] = call(self.path, "system.multicall", [calls], TIMEOUT)
            for result in results:
                if isinstance(result, dict) and "faultCode" in result:
                    raise Fault(int(result["faultCode"]), str(result["faultString"]))
            return results


class _Refused(SupervisorError):
    code = 0


class _ShuttingDown(_Refused):
    pass


@contextmanager
def _our_errors(path: str, method: str, *params: Any) -> Iterator[None]:
    try:
        yield
    except Fault as e:
        raise _refusal(e, method, *params) from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise SupervisorError("supervisord is not running", "start it with `llmhost up`") from None
    except (OSError, ProtocolError) as e:
        raise SupervisorError(
            f"supervisord does not answer on {path}: {str(e) or type(e).__name__}",
            "see logs/supervisord.log in the home; `llmhost down` ends everything even so",
        ) from None


def _refusal(fault: Fault, method: str, *params: Any) -> _Refused:
    name = str(params[0]) if params else ""
    error = _Refused(f"supervisord refuses {method} {name}".rstrip() + f": {fault}", "see `llmhost logs`")
    if fault.code == _SHUTDOWN_STATE:
        error = _ShuttingDown("supervisord is shutting down", "try again when `llmhost status` says stopped")
    elif fault.code == _CANT_REREAD:
        error = _Refused(f"supervisord cannot read its configuration: {fault}", "run `llmhost up` again")
    elif fault.code == _BAD_NAME:
        error = _Refused(f"supervisord knows no program {name}", "run `llmhost up` to bring it in")
    error.code = fault.code
    return error


def _program(info: dict[str, Any]) -> ProgramInfo:
    return ProgramInfo(
        name=str(info["name"]),
        state=str(info["statename"]),
        pid=int(info["pid"]) or None,
        started=int(info["start"]),
        exit_status=int(info["exitstatus"]),
        spawn_error=str(info["spawnerr"]),
    )
