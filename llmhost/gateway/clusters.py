"""The engines behind the gateway: one cluster for each service, one endpoint for each replica's unix socket."""

from __future__ import annotations

from llmhost.gateway.envoy import Data, typed
from llmhost.plan.types import Plan, ProgramPlan, ServicePlan

UPSTREAM_IDLE = "3s"
"""vLLM closes a connection that was idle for 5 s (VLLM_HTTP_TIMEOUT_KEEP_ALIVE); we must be the first to let go,
or a request meets a connection that is just being closed."""

HEALTH_CHECK: Data = {
    # A busy engine answers /health late and is alive, so only many seconds without an answer count. One that is gone
    # is known at once: the connection is refused; one that has failed says 503, which counts without a threshold.
    "timeout": "10s",
    "interval": "1s",
    "no_traffic_healthy_interval": "1s",
    # A new engine is found soon: whoever waits for it waits for this. Asking a socket that is not there costs nothing.
    "no_traffic_interval": "0.25s",
    "unhealthy_interval": "0.25s",
    "unhealthy_threshold": 2,
    "healthy_threshold": 1,
    "http_health_check": {"path": "/health"},
}

NO_LIMIT: Data = {"max_connections": 1_000_000, "max_pending_requests": 1_000_000, "max_requests": 1_000_000}
"""Envoy stops at 1,024 requests by default; vLLM queues by itself, so the limit is its to set."""


def clusters(plan: Plan) -> tuple[Data, ...]:
    """The resources of cds.json."""
    return tuple(_cluster(service) for service in plan.services)


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
        circuit_breakers={"thresholds": [NO_LIMIT | {"max_retries": 1_000}]},
        health_checks=[HEALTH_CHECK],
        typed_extension_protocol_options=_protocol(),
        load_assignment={"cluster_name": service.name, "endpoints": [{"lb_endpoints": members}]},
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
