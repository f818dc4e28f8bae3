"""Ray as what starts the workers of a model: the programs of a cluster of its own, its ports, its token. Pure.

Each replica has a cluster of its own. An open Ray executes what anybody sends it (CVE-2023-48022): token authentication
is on, the dashboard is not started, and what is for its own node listens on the loopback as far as Ray lets us say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePath

from llmhost.config_span import cluster_name
from llmhost.paths import Home
from llmhost.plan.groups import Groups, derived
from llmhost.plan.running import number_of, program_mark
from llmhost.plan.spans import CLUSTER
from llmhost.plan.types import ForeignPlan, ProgramPlan, ServicePlan

PORTS = {
    "port": 0,
    "node-manager-port": 1,
    "object-manager-port": 2,
    "dashboard-agent-grpc-port": 3,
    "dashboard-agent-listen-port": 4,
    "runtime-env-agent-port": 5,
    "metrics-export-port": 6,
}
"""Of a Ray node, beyond the first one of its cluster."""
HEAD_ONLY = ("port",)
FIRST_WORKER, LAST_WORKER = 12, 61
"""Ports of its worker processes."""

OBJECT_STORE = 256 * 2**20
"""Bytes of shared memory for objects: vLLM sends little through it (by default Ray takes 30 % of the memory)."""
START_SECONDS = 120.0


def token_environment(home: Home) -> dict[str, str]:
    """What makes Ray ask for a token, and know ours: for its nodes and whoever connects to them."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(home.ray_token_file), "RAY_USAGE_STATS_ENABLED": "0"}


def token(secret: str) -> str:
    """Of all clusters of these nodes."""
    return derived(secret, "ray")


def ray_program(python: str) -> str:
    """``ray``, beside the interpreter of the engine."""
    return str(PurePath(python).parent / "ray")


def cluster_address(host: str, first_port: int) -> str:
    """Where a cluster is reached."""
    return f"{host}:{first_port + CLUSTER}"


def head_command(python: str, home: Home, own: str, first_port: int, gpus: int) -> tuple[str, ...]:
    """The first node of a cluster, which ends with its guard; ``own`` is its address."""
    start = (ray_program(python), "start", "--head", "--block", "--include-dashboard", "false")
    return (*start, "--dashboard-host", "127.0.0.1", *_node(home, own, first_port, gpus, PORTS))


def worker_command(python: str, home: Home, own: str, head: str, first_port: int, gpus: int) -> tuple[str, ...]:
    """The same of another node; ``head`` is the address of the first one."""
    ports = {name: offset for name, offset in PORTS.items() if name not in HEAD_ONLY}
    start = (ray_program(python), "start", "--address", cluster_address(head, first_port), "--block")
    return (*start, *_node(home, own, first_port, gpus, ports))


def _node(home: Home, own: str, first_port: int, gpus: int, ports: Mapping[str, int]) -> tuple[str, ...]:
    base = first_port + CLUSTER
    numbers = (word for name, offset in ports.items() for word in (f"--{name}", str(base + offset)))
    # Workers of vLLM take a GPU each; the CPUs are for what Ray runs besides.
    return (
        "--node-ip-address", own, *numbers,
        "--min-worker-port", str(first_port + FIRST_WORKER), "--max-worker-port", str(first_port + LAST_WORKER),
        "--num-gpus", str(gpus), "--num-cpus", str(gpus + 1), "--object-store-memory", str(OBJECT_STORE),
        "--temp-dir", str(home.ray_directory(first_port)), "--disable-usage-stats",
    )  # fmt: skip


def with_cluster(service: ServicePlan, groups: Groups, python: str, home: Home) -> tuple[ServicePlan, ...]:
    """A model that Ray starts, and its Ray: the clusters of the replicas on this node, which must be there first."""
    name = cluster_name(service.name)
    helpers = tuple(_head_program(f"{name}-{number_of(p.name)}", p, groups, python, home) for p in service.replicas)
    cluster = ServicePlan(
        name=name,
        kind="none",
        kind_reason=f"the Ray of {service.name}",
        model="ray",
        model_path="",
        served_as=(),
        port=None,
        start_timeout=START_SECONDS,
        stop_timeout=service.stop_timeout,
        replicas=helpers,
        max_restarts=service.max_restarts,
        foreign=ForeignPlan(),
        part_of=service.name,
    )
    return cluster, replace(service, needs=(*service.needs, name))


def _head_program(name: str, served: ProgramPlan, groups: Groups, python: str, home: Home) -> ProgramPlan:
    first, own = groups.first_ports[served.name], groups.address(served.name)
    mark = {"LLMHOST_PROGRAM": program_mark(home.root, name)}
    return ProgramPlan(
        name=name,
        argv=head_command(python, home, own, first, len(served.gpus)),
        env={**served.env, **groups.interfaces, **mark},
        socket=cluster_address(own, first),
        gpus=(),
        cores=(),
        memory_bytes=OBJECT_STORE,
        kv_cache_bytes=0,
    )
