"""What `llmhost status` shows: the plan in force, supervisord's view, the guards' words and what /proc counts.

Named tuples rather than dataclasses here and in what is imported: those take longer to define than to use.
"""

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from llmhost.errors import SupervisorError
from llmhost.gateway_address import GATEWAY_PROGRAM, METRICS_PROGRAM, local_url
from llmhost.paths import Home
from llmhost.supervise.guarding.processes import pids, read, state
from llmhost.supervise.rpc import Snapshot, Supervisor
from llmhost.supervise.states import ProgramState, State, read_states
from llmhost.supervise.units import Unit, find_unit

_SEVERITY: tuple[State, ...] = ("failed", "unhealthy", "backoff", "loading", "queued", "draining", "stopped", "ready")
"""A service is in the worst state of its replicas."""
LOW_DISK = 512 * 2**20
"""Bytes; each program keeps up to 80 MB of logs."""
_SHOWN = ("name", "kind", "model", "served_as", "replicas", "endpoints")
"""What is needed of a service in the plan."""


class SupervisorStatus(NamedTuple):
    """``state`` is running, stopping or stopped."""

    state: str
    pid: int | None


class GatewayStatus(NamedTuple):
    """``state`` is ready, loading, stopped or failed (a port could not be bound)."""

    state: State
    url: str | None
    pid: int | None
    error: str | None = None
    """Why it is not ready, in Envoy's words."""


class ReplicaStatus(NamedTuple):
    """One engine with its guard: ``pid`` is the guard's, ``rss_bytes`` counts the whole tree below it.

    ``state`` is ``draining`` for one that is ready and gets no new requests, because a command takes it out of
    balancing; ``error`` tells when that command does not run any more.
    ``uptime_s`` is the engine's; ``retry_at``, unix time, is when an engine in state backoff is started again.
    """

    name: str
    state: State
    pid: int | None
    engine_pid: int | None
    uptime_s: float | None
    restarts: int
    rss_bytes: int | None
    gpus: tuple[int, ...]
    error: str | None
    retry_at: float | None

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**self._asdict(), "gpus": list(self.gpus)}


class EndpointStatus(NamedTuple):
    """A server on another host, as the gateway sees it: ready, unhealthy, or stopped when no gateway is looking."""

    url: str
    state: State


class NodeStatus(NamedTuple):
    """Another node that runs replicas of a service, as this node's gateway sees it: ready when one of them is."""

    node: str
    replicas: tuple[str, ...]
    state: State


class ServiceStatus(NamedTuple):
    """One service; ``state`` is the worst of its replicas, endpoints and other nodes."""

    name: str
    kind: str
    model: str
    served_as: tuple[str, ...]
    state: State
    replicas: tuple[ReplicaStatus, ...]
    endpoints: tuple[EndpointStatus, ...] = ()
    nodes: tuple[NodeStatus, ...] = ()


class DiskStatus(NamedTuple):
    """The disk that the home's logs and state are on; ``low`` when a few hours of logs might fill it."""

    free_bytes: int
    low: bool
    read_only: bool
    """The kernel makes it so after errors."""


class Status(NamedTuple):
    """A home at one moment."""

    supervisor: SupervisorStatus
    gateway: GatewayStatus
    services: tuple[ServiceStatus, ...]
    disk: DiskStatus | None = None
    """None when there is no home yet."""
    unit: Unit | None = None
    """The systemd unit that starts the home; None when it is started by hand."""
    beside: tuple[ReplicaStatus, ...] = ()
    """Engines that run and are not of the plan in force: a command is bringing it about, or did not end."""

    @property
    def ready(self) -> bool:
        """Everything of the plan is ready, and there is something."""
        states = (self.gateway.state, *(s.state for s in self.services))
        return bool(self.services) and all(state == "ready" for state in states)

    def to_dict(self) -> dict[str, Any]:
        """The contract of ``llmhost status --json``."""
        services = []
        for service in self.services:
            replicas = [replica.to_dict() for replica in service.replicas]
            endpoints = [endpoint._asdict() for endpoint in service.endpoints]
            nodes = [{**node._asdict(), "replicas": list(node.replicas)} for node in service.nodes]
            lists = {"served_as": list(service.served_as), "replicas": replicas, "endpoints": endpoints, "nodes": nodes}
            shown = {**service._asdict(), **lists}
            services.append(shown if nodes else {key: value for key, value in shown.items() if key != "nodes"})
        return {
            "supervisor": self.supervisor._asdict(),
            "gateway": self.gateway._asdict(),
            "disk": self.disk._asdict() if self.disk else None,
            "boot": self.unit.to_dict() if self.unit else None,
            "services": services,
            "beside": [replica.to_dict() for replica in self.beside],
        }


def read_status(home: Home) -> Status:
    """Never raises for what is stopped or missing: then states say so. SupervisorError when supervisord hangs."""
    url, planned = _plan(home)
    seen = _snapshot(home)
    names = [GATEWAY_PROGRAM, *(replica["name"] for service in planned for replica in service["replicas"])]
    beside = sorted(p.name for p in seen.programs if p.running and p.name not in (METRICS_PROGRAM, *names))
    states = read_states(home, seen.programs, [*names, *beside])
    trees = _Processes() if any(s.pid for s in states.values()) else None
    gateway = states[GATEWAY_PROGRAM]
    served = _served(home) if any(service["endpoints"] or service["nodes"] for service in planned) else None
    return Status(
        SupervisorStatus(seen.state, seen.pid or None),
        GatewayStatus(gateway.state, url, gateway.pid, gateway.error),
        tuple(_service(service, states, trees, served, _out(home, service["name"])) for service in planned),
        _disk(home),
        find_unit(home),
        _beside(home, [states[name] for name in beside], trees),
    )


def _beside(home: Home, there: list[ProgramState], trees: "_Processes | None") -> tuple[ReplicaStatus, ...]:
    if not there:
        return ()
    from llmhost.supervise.lock import at_work  # noqa: PLC0415 (only while something changes)

    left = None if at_work(home) else "not in force: the command that started it was cut off; `llmhost up` goes on"
    return tuple(_replica(s._replace(error=s.error or left), (), trees) for s in there)


def _disk(home: Home) -> DiskStatus | None:
    try:
        found = os.statvfs(home.logs)
    except OSError:
        return None
    no_more_files = found.f_files > 0 and found.f_favail == 0
    free = 0 if no_more_files else found.f_bavail * found.f_frsize
    return DiskStatus(free, free < LOW_DISK, bool(found.f_flag & os.ST_RDONLY))


def _plan(home: Home) -> tuple[str | None, list[dict[str, Any]]]:
    """Of the plan in force: the URL of the gateway, and the services. Nothing before the first `up`.

    As plain JSON: the classes of a plan would be a tenth of the whole time.
    """
    try:
        plan = json.loads(home.plan_file.read_bytes())
        services = [{key: service[key] for key in _SHOWN} for service in plan["services"]]
        members = {node["name"]: f"{node['address']}:{node['port']}" for node in plan.get("nodes", ())}
        for shown, service in zip(services, plan["services"], strict=True):
            shown["nodes"] = [{**e, "member": members[e["node"]]} for e in service.get("elsewhere", ())]
        gateway = plan["gateway"]
        return local_url(gateway["host"], gateway["port"], "https" if gateway["tls"] else "http"), services
    except (OSError, ValueError, KeyError, TypeError):
        return None, []


def _snapshot(home: Home) -> Snapshot:
    """`stopped` without supervisord; while it shuts down it tells no more than that."""
    if not os.path.exists(home.supervisor_socket):
        return Snapshot(0, "stopped", ())
    require_awake(home)
    supervisor = Supervisor(home.supervisor_socket)
    try:
        seen = supervisor.snapshot()
    except SupervisorError:
        if not supervisor.alive():
            return Snapshot(0, "stopped", ())
        if supervisor.state() == "RUNNING":
            raise
        return Snapshot(0, "stopping", ())
    return Snapshot(seen.pid, "running" if seen.state == "RUNNING" else "stopping", seen.programs)


def require_awake(home: Home) -> None:
    """Raise SupervisorError for a supervisord that SIGSTOP has stopped: it would not answer however long we wait."""
    try:
        pid = int(read(os.fspath(home.supervisord_pid_file)))
    except ValueError:
        return
    if state(pid) == "T":
        raise SupervisorError(
            f"supervisord (pid {pid}) is stopped by a signal, so nobody knows what runs",
            f"`kill -CONT {pid}` lets it go on; `llmhost down` does that, and ends everything",
        )


def _served(home: Home) -> Mapping[str, frozenset[str]] | None:
    """The members that get requests, by cluster; None when no gateway tells."""
    from llmhost.probe.gateway import read_gateway  # noqa: PLC0415 (most homes have no endpoints)

    seen = read_gateway(home.gateway_admin_socket)
    return seen.healthy if seen.live else None


def _out(home: Home, service: str) -> "_Out | None":
    """The members of a service that get no new requests, whatever their state."""
    try:
        with open(home.gateway_conf / f"eds-{service}.json", "rb") as file:
            text = file.read()
    except OSError:
        return None
    if b'"DRAINING"' not in text:
        return None
    from llmhost.gateway.clusters import members_out  # noqa: PLC0415 (only while a command takes something out)
    from llmhost.supervise.lock import at_work  # noqa: PLC0415

    lost = f"gets no requests: the command that let it finish was killed; `llmhost start {service}` brings it back"
    return _Out(members_out(text.decode("utf-8", "replace")), None if at_work(home) else lost)


class _Out(NamedTuple):
    members: frozenset[str]
    error: str | None


def _service(
    service: dict[str, Any],
    states: dict[str, ProgramState],
    trees: "_Processes | None",
    served: Mapping[str, frozenset[str]] | None,
    out: _Out | None,
) -> ServiceStatus:
    programs = service["replicas"]
    told = (_drained(states[p["name"]], out if out and p["socket"] in out.members else None) for p in programs)
    replicas = tuple(_replica(state, tuple(p["gpus"]), trees) for state, p in zip(told, programs, strict=True))
    seen = None if served is None else _members(served, service["name"])
    endpoints = tuple(EndpointStatus(e["url"], _endpoint(e, seen)) for e in service["endpoints"])
    nodes = tuple(NodeStatus(n["node"], tuple(n["replicas"]), _member(n["member"], seen)) for n in service["nodes"])
    there = {r.state for r in replicas} | {e.state for e in endpoints} | {n.state for n in nodes}
    worst: State = next((state for state in _SEVERITY if state in there), "stopped")
    served_as = tuple(service["served_as"])
    return ServiceStatus(
        service["name"], service["kind"], service["model"], served_as, worst, replicas, endpoints, nodes
    )


def _members(served: Mapping[str, frozenset[str]], service: str) -> frozenset[str]:
    """Of both clusters of a service, `llmhost.gateway.peers.cluster_name` is the second."""
    return served.get(service, frozenset()) | served.get(f"{service}@nodes", frozenset())


def _drained(state: ProgramState, out: _Out | None) -> ProgramState:
    return state._replace(state="draining", error=out.error) if out and state.state == "ready" else state


def _endpoint(endpoint: dict[str, Any], served: frozenset[str] | None) -> State:
    """Of an endpoint of the plan, which the gateway calls by its ``address:port`` (`EndpointPlan.member`)."""
    return _member(f"{endpoint['address']}:{endpoint['url'].rpartition(':')[2]}", served)


def _member(member: str, served: frozenset[str] | None) -> State:
    if served is None:
        return "stopped"
    return "ready" if member in served else "unhealthy"


def _replica(state: ProgramState, gpus: tuple[int, ...], trees: "_Processes | None") -> ReplicaStatus:
    uptime = rss = None
    if state.pid and trees is not None:
        uptime = trees.uptime(state.engine_pid) if state.engine_pid else None
        rss = trees.rss(state.pid)
    return ReplicaStatus(
        state.name, state.state, state.pid, state.engine_pid, uptime, state.restarts, rss, gpus, state.error,
        state.retry_at,
    )  # fmt: skip


class _Processes:
    """All processes, read once."""

    def __init__(self) -> None:
        self._children: dict[int, list[int]] = {}
        self._fields: dict[int, tuple[int, int]] = {}
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._tick = os.sysconf("SC_CLK_TCK")
        self._uptime = float((read("/proc/uptime").split() or [b"0"])[0])
        for pid in pids():
            fields = read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
            if len(fields) > 21:  # proc_pid_stat(5), counted from field 3: 4 ppid, 22 starttime, 24 rss
                self._children.setdefault(int(fields[1]), []).append(pid)
                self._fields[pid] = int(fields[19]), int(fields[21])

    def uptime(self, pid: int) -> float | None:
        """Seconds since the process started; clock changes do not matter."""
        if pid not in self._fields:
            return None
        return round(max(0.0, self._uptime - self._fields[pid][0] / self._tick), 1)

    def rss(self, pid: int) -> int | None:
        """Resident bytes of a process and all below it; what they share is counted for each."""
        return sum(self._fields[p][1] for p in self._tree(pid)) * self._page if pid in self._fields else None

    def _tree(self, pid: int) -> Iterable[int]:
        tree = [pid]
        for member in tree:  # grows while it is walked
            tree += self._children.get(member, ())
        return tree
