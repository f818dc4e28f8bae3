"""How Envoy is started: its bootstrap file and its command line."""

from __future__ import annotations

import json
from pathlib import Path

from llmhost.files import RenderedFile
from llmhost.gateway.clusters import static_clusters
from llmhost.gateway.envoy import Data, extension, gateway_dir, resource_source
from llmhost.gateway.listeners import listeners
from llmhost.gateway.peers import HERE, NODES
from llmhost.gateway.routes import route_configurations
from llmhost.gateway.tls import static_filter_chain
from llmhost.paths import Home
from llmhost.plan.types import Plan
from llmhost.templates import template_environment

FOLDER = "conf/gateway"

WORKERS = 2
"""Threads that serve requests. One carries thousands of requests a second, far more than engines answer; the second is
there so that a body of many megabytes that is being read does not hold up every stream."""

RUNTIME: Data = {
    # Envoy refuses regular expressions above 100 instructions, for the sake of foreign ones; ours are lists of paths.
    "layers": [{"name": "llmhost", "static_layer": {"re2.max_program_size.error_level": 1_000_000}}]
}

MAX_CONNECTIONS = 10_000
"""Clients that may be connected at once, idle ones included; beyond that new connections are closed."""

HEAP: Data = {"max_heap_size_bytes": str(2 * 2**30)}
"""Memory at which the gateway defends itself; what it needs for thousands of streams is a tenth of that."""

DEFENCE: tuple[tuple[str, float], ...] = (
    ("envoy.overload_actions.shrink_heap", 0.8),
    ("envoy.overload_actions.disable_http_keepalive", 0.9),
    ("envoy.overload_actions.stop_accepting_requests", 0.95),
)
"""What it does when so much of `HEAP` is in use: requests that are under way are never given up."""

DRAIN_SECONDS = 3600
"""How long connections of a listener that has changed may go on: as long as a stream may be silent. They are asked to
close after their next answer at once, so that only long streams stay."""

RELEASE: Data = {"bytes_to_release": 256 * 1024 * 1024, "memory_release_interval": "1s"}
"""Reading a body of many megabytes takes many times its size for a moment; Envoy by itself would keep that memory."""

FLUSH_MILLISECONDS = 1000

LOG_FORMAT = "%Y-%m-%d %H:%M:%S.%e %l gateway: %v"
"""spdlog's: one line with its time for each message (line breaks are escaped)."""


def gateway_argv(plan: Plan) -> tuple[str, ...]:
    """The command line of the gateway."""
    return (
        plan.tools.envoy,
        "--config-path",
        f"{gateway_dir(plan)}/envoy.yaml",
        "--concurrency",
        str(WORKERS),
        # A new configuration comes through the watched files, so there is no second process to hand over to.
        "--disable-hot-restart",
        "--drain-time-s",
        str(DRAIN_SECONDS),
        "--drain-strategy",
        "immediate",
        # The access log: written at least this often, and at once when there is much of it.
        "--file-flush-interval-msec",
        str(FLUSH_MILLISECONDS),
        "--log-level",
        "warn",
        "--log-format",
        LOG_FORMAT,
        "--log-format-escaped",
    )


def render_bootstrap(plan: Plan) -> RenderedFile:
    """envoy.yaml: it changes with the home only, so the gateway is not restarted for anything else."""
    environment = template_environment()
    environment.filters["json"] = _json
    text = environment.get_template("envoy.yaml.j2").render(
        admin_socket=str(Home(Path(plan.home)).gateway_admin_socket),
        runtime=RUNTIME,
        overload=_overload(),
        release=RELEASE,
        lds=resource_source(plan, "lds"),
        cds=resource_source(plan, "cds"),
    )
    return RenderedFile(f"{FOLDER}/envoy.yaml", text)


def render_static(plan: Plan) -> str:
    """The whole configuration as one static bootstrap, for ``envoy --mode validate``.

    Envoy does not read the files that it watches when it validates; this way it sees every listener, route and cluster.
    """
    routes = {r["name"]: _plain(r) for r in route_configurations(plan)}
    static = [_with_files(plan, _with_routes(_plain(listener), routes)) for listener in listeners(plan)]
    resources = {"listeners": static, "clusters": [_plain(c) for c in static_clusters(plan)]}
    return _json({"layered_runtime": RUNTIME, "static_resources": resources}) + "\n"


def _plain(resource: Data) -> Data:
    """A copy of a resource as a field of a bootstrap, where its type is known by its place."""
    copy: Data = json.loads(_json(resource))
    del copy["@type"]
    return copy


def _with_routes(listener: Data, routes: dict[str, Data]) -> Data:
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager["route_config"] = routes[manager.pop("rds")["route_config_name"]]
    return listener


def _with_files(plan: Plan, listener: Data) -> Data:
    if plan.gateway.tls is not None and listener["name"] not in (NODES, HERE):
        listener["filter_chains"][0] |= static_filter_chain(plan.gateway.tls)
    return listener


def _overload() -> Data:
    monitor = extension(
        "envoy.resource_monitors.global_downstream_max_connections",
        "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
        max_active_downstream_connections=MAX_CONNECTIONS,
    )
    heap = extension(
        "envoy.resource_monitors.fixed_heap", "extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig", **HEAP
    )
    actions = [
        {"name": action, "triggers": [{"name": heap["name"], "threshold": {"value": share}}]}
        for action, share in DEFENCE
    ]
    return {"refresh_interval": "0.25s", "resource_monitors": [monitor, heap], "actions": actions}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
