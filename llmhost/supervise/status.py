"""What `llmhost status` shows: the plan in force, supervisord's view, the guards' words and what /proc counts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from llmhost.errors import SupervisorError
from llmhost.paths import Home
from llmhost.plan.types import GATEWAY_PROGRAM, EndpointPlan, Plan, ServicePlan
from llmhost.supervise.guarding.processes import pids, read
from llmhost.supervise.rpc import Snapshot, Supervisor
from llmhost.supervise.states import ProgramState, State, read_states

_SEVERITY: tuple[State, ...] = ("failed", "unhealthy", "backoff", "loading", "queued", "stopped", "ready")
"""A service is in the worst state of its replicas."""


@dataclass(frozen=True)
class SupervisorStatus:
    """``state`` is running, stopping or stopped."""

    state: str
    pid: int | None


@dataclass(frozen=True)
class GatewayStatus:
    """``state`` is ready, loading, stopped or failed."""

    state: State
    url: str | None
    pid: int | None


@dataclass(frozen=True)
class ReplicaStatus:
    """One engine with its guard: ``pid`` is the guard's, ``rss_bytes`` counts the whole tree below it."""

    name: str
    state: State
    pid: int | None
    engine_pid: int | None
    uptime_s: float | None
    restarts: int
    rss_bytes: int | None
    gpus: tuple[int, ...]
    error: str | None


@dataclass(frozen=True)
class EndpointStatus:
    """A server on another host, as the gateway sees it: ready, unhealthy, or stopped when no gateway is looking."""

    url: str
    state: State


@dataclass(frozen=True)
class ServiceStatus:
    """One service; ``state`` is the worst of its replicas and endpoints."""

    name: str
    kind: str
    model: str
    served_as: tuple[str, ...]
    state: State
    replicas: tuple[ReplicaStatus, ...]
    endpoints: tuple[EndpointStatus, ...] = ()


@dataclass(frozen=True)
class Status:
    """A home at one moment."""

    supervisor: SupervisorStatus
    gateway: GatewayStatus
    services: tuple[ServiceStatus, ...]

    @property
    def ready(self) -> bool:
        """Everything of the plan is ready, and there is something."""
        states = (self.gateway.state, *(s.state for s in self.services))
        return bool(self.services) and all(state == "ready" for state in states)

    def to_dict(self) -> dict[str, Any]:
        """The contract of ``llmhost status --json``."""
        return asdict(self)


def read_status(home: Home) -> Status:
    """Never raises for what is stopped or missing: then states say so. SupervisorError when supervisord hangs."""
    plan = read_plan(home)
    seen = _snapshot(home)
    names = [GATEWAY_PROGRAM, *(p.name for p in plan.programs)] if plan else [GATEWAY_PROGRAM]
    states = read_states(home, seen.programs, names)
    trees = _Processes() if any(s.pid for s in states.values()) else None
    gateway = states[GATEWAY_PROGRAM]
    served = _served(home) if plan and any(s.endpoints for s in plan.services) else None
    return Status(
        SupervisorStatus(seen.state, seen.pid or None),
        GatewayStatus(gateway.state, plan.gateway.url if plan else None, gateway.pid),
        tuple(_service(s, states, trees, served) for s in (plan.services if plan else ())),
    )


def read_plan(home: Home) -> Plan | None:
    """The plan in force; None before the first `up`, or when the file is not (any more) of this version."""
    try:
        return Plan.from_dict(json.loads(home.plan_file.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _snapshot(home: Home) -> Snapshot:
    """`stopped` without supervisord; while it shuts down it tells no more than that."""
    if not os.path.exists(home.supervisor_socket):
        return Snapshot(0, "stopped", ())
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


def _served(home: Home) -> frozenset[str] | None:
    """The members that get requests; None when no gateway tells."""
    from llmhost.probe.gateway import read_gateway  # noqa: PLC0415 (most homes have no endpoints)

    seen = read_gateway(home.gateway_admin_socket)
    return frozenset[str]().union(*seen.healthy.values()) if seen.live else None


def _service(
    service: ServicePlan, states: dict[str, ProgramState], trees: _Processes | None, served: frozenset[str] | None
) -> ServiceStatus:
    replicas = tuple(_replica(states[p.name], p.gpus, trees) for p in service.replicas)
    endpoints = tuple(EndpointStatus(e.url, _endpoint(e, served)) for e in service.endpoints)
    there = {r.state for r in replicas} | {e.state for e in endpoints}
    worst: State = next((state for state in _SEVERITY if state in there), "stopped")
    return ServiceStatus(service.name, service.kind, service.model, service.served_as, worst, replicas, endpoints)


def _endpoint(endpoint: EndpointPlan, served: frozenset[str] | None) -> State:
    if served is None:
        return "stopped"
    return "ready" if endpoint.member in served else "unhealthy"


def _replica(state: ProgramState, gpus: tuple[int, ...], trees: _Processes | None) -> ReplicaStatus:
    uptime = rss = None
    if state.pid and trees is not None:
        uptime, rss = trees.uptime(state.pid), trees.rss(state.pid)
    return ReplicaStatus(
        state.name, state.state, state.pid, state.engine_pid, uptime, state.restarts, rss, gpus, state.error
    )


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
