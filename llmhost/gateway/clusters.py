"""The engines behind the gateway: one cluster for each service, one endpoint for each replica's unix socket."""

from __future__ import annotations

from pathlib import Path

from llmhost.gateway.envoy import Data, typed
from llmhost.gateway.limits import breaker
from llmhost.paths import Home
from llmhost.plan.types import Plan, ProgramPlan, ServicePlan

UPSTREAM_IDLE = "3s"
"""vLLM closes a connection that was idle for 5 s (VLLM_HTTP_TIMEOUT_KEEP_ALIVE); we must be the first to let go,
or a request meets a connection that is just being closed."""

HEALTH_CHECK: Data = {
    # A busy engine answers /health late and is alive, so only many seconds without an answer count. One that is gone
    # is known at once: the connection is refused; one that has failed says 503, which counts without a threshold.
    "timeout": "10s",
    "interval": "1s",
    "no_traffic_interval": "1s",
    "unhealthy_threshold": 2,
    "healthy_threshold": 1,
    # A guard that stops its engine waits for all connections to be gone; this one would never be idle.
    "reuse_connection": False,
    "http_health_check": {"path": "/health"},
}

NO_LIMIT: Data = {"max_connections": 1_000_000, "max_pending_requests": 1_000_000, "max_requests": 1_000_000}
"""Envoy stops at 1,024 requests by default; vLLM queues by itself, so the limit is its to set."""


METRICS_CLUSTER = "llmhost_metrics"
"""No service can be called so. `llmhost.metrics.page.OWN_CLUSTER` is the same."""


def clusters(plan: Plan) -> tuple[Data, ...]:
    """The resources of cds.json."""
    return (*(_cluster(service) for service in plan.services), _metrics_cluster(plan))


def _cluster(service: ServicePlan) -> Data:
    members = [_endpoint(replica) for replica in service.replicas]
    return typed(
        "config.cluster.v3.Cluster",
        name=service.name,
        type="STATIC",
        connect_timeout="5s",
        lb_policy="LEAST_REQUEST",
        # No panic: with no healthy engine the answer is 503 at once, not a try at a dead one.
        common_lb_config={"healthy_panic_threshold": {"value": 0}},
        circuit_breakers={"thresholds": [NO_LIMIT | {"max_retries": 1_000} | breaker(service.limits)]},
        health_checks=[HEALTH_CHECK],
        typed_extension_protocol_options=_protocol(),
        load_assignment={"cluster_name": service.name, "endpoints": [{"lb_endpoints": members}]},
    )


def _metrics_cluster(plan: Plan) -> Data:
    """The exporter; without health checks, it is asked a few times a minute."""
    address = {"pipe": {"path": str(Home(Path(plan.home)).metrics_socket)}}
    return typed(
        "config.cluster.v3.Cluster",
        name=METRICS_CLUSTER,
        type="STATIC",
        connect_timeout="1s",
        load_assignment={
            "cluster_name": METRICS_CLUSTER,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    )


def _endpoint(replica: ProgramPlan) -> Data:
    return {"endpoint": {"address": {"pipe": {"path": replica.socket}}}}


def _protocol() -> Data:
    options = typed(
        "extensions.upstreams.http.v3.HttpProtocolOptions",
        common_http_protocol_options={"idle_timeout": UPSTREAM_IDLE},
        explicit_http_config={"http_protocol_options": {}},
    )
    return {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}
