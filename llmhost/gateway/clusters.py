"""The engines behind the gateway: one cluster for each service, one member for each replica's unix socket.

Members are in a file of their own for each service (EDS): when they change, the others keep their connections and what
is known of their health, where a new cluster would have to ask all of them again, the busy ones too.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llmhost.gateway import by_key, elsewhere, foreign, peers, sticky
from llmhost.gateway.envoy import Data, extension, resource_file, resource_source, typed
from llmhost.gateway.limits import breaker
from llmhost.paths import Home
from llmhost.plan.types import GatewayPlan, Plan, ProgramPlan, ServicePlan

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
    # A guard that stops its engine waits for all connections to be gone; this one would never be idle.
    "reuse_connection": False,
}

OUTLIERS: Data = {
    # What /health does not show: a member that keeps answering 502, 503 or 504, or keeps breaking connections, is left
    # alone for a while. A 500 does not count: one client with one bad request must not take engines away from others.
    "interval": "1s",
    "base_ejection_time": "5s",
    "max_ejection_time": "60s",
    "max_ejection_percent": 50,  # of one member none, of two one
    "split_external_local_origin_errors": True,
    "consecutive_gateway_failure": 5,
    "enforcing_consecutive_gateway_failure": 100,
    "consecutive_local_origin_failure": 3,
    "enforcing_consecutive_5xx": 0,
    "enforcing_success_rate": 0,
    "enforcing_local_origin_success_rate": 0,
    "successful_active_health_check_uneject_host": False,
}

RETRY: Data = {
    # Only what no engine has worked on is sent again: what never reached one, and what one refused with 503 (vLLM's
    # answer when it is not ready, shutting down, or its queue is full).
    "retry_on": "connect-failure,refused-stream,reset-before-request,retriable-status-codes",
    "retriable_status_codes": [503],
    "num_retries": 3,
    "retry_host_predicate": [
        extension(
            "envoy.retry_host_predicates.previous_hosts",
            "extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
        )
    ],
    # Each attempt looks at two members by chance and takes the less busy one, which a dead one always is.
    "host_selection_retry_max_attempts": 50,
}

NO_LIMIT: Data = {"max_connections": 1_000_000, "max_pending_requests": 1_000_000, "max_requests": 1_000_000}
"""Envoy stops at 1,024 requests by default; vLLM queues by itself, so the limit is its to set."""

OUT_OF_BALANCING = "DRAINING"
"""A member in this state gets no new request; those that run go on."""


def members_file(service: str) -> str:
    """The file with the members of a service, without its suffix."""
    return f"eds-{service}"


METRICS_CLUSTER = "llmhost_metrics"
"""No service can be called so. It is one of `llmhost.metrics.page.OWN_CLUSTERS`."""


def clusters(plan: Plan) -> tuple[Data, ...]:
    """The resources of cds.json; they do not change with the number of replicas of one node."""
    of_services = (_cluster(plan, service) for service in plan.routed)
    return (*of_services, *_of_nodes(plan), _metrics_cluster(plan), *_of_keys(plan.gateway))


def _of_keys(gateway: GatewayPlan) -> tuple[Data, ...]:
    return by_key.clusters(gateway, NO_LIMIT)


def cluster_file(text: str, gateway: GatewayPlan) -> str:
    """The text of cds.json with the clusters of these keys."""
    return by_key.replace_clusters(text, _of_keys(gateway))


def members(plan: Plan) -> dict[str, Data]:
    """The one resource of each file of members, by service."""
    return {s.name: typed("config.endpoint.v3.ClusterLoadAssignment", **_assignment(s)) for s in plan.routed}


def static_clusters(plan: Plan) -> tuple[Data, ...]:
    """The clusters with their members in them, for a configuration that is only validated."""
    of_services = (_static(_cluster(plan, service), service) for service in plan.routed)
    return (*of_services, *_of_nodes(plan), _metrics_cluster(plan), *_of_keys(plan.gateway))


def route_action(service: ServicePlan) -> Data:
    """The fields of a route action that send a request to a service, to be tried again elsewhere where that is safe."""
    # No route timeout: an answer may take as long as it takes; the listener's idle timeout is the only limit.
    # A member on another host is called by its own name; engines here have none. Always, so that such a member can come
    # and go without new routes.
    cluster = peers.cluster_name(service.name) if peers.is_spread(service) else service.name
    action: Data = {"cluster": cluster, "timeout": "0s", "retry_policy": RETRY, "auto_host_rewrite": True}
    if service.sticky:
        action["hash_policy"] = sticky.hash_policy(service)
    return action


def take_out(text: str, out: Collection[str]) -> str:
    """The text of a file of members with exactly these (unix socket or ``address:port``) out of balancing.

    With nobody out it is the text that was rendered.
    """
    resources = json.loads(text)["resources"]
    for member in _members(resources):
        member.pop("health_status", None)
        if elsewhere.member_name(member) in out:
            member["health_status"] = OUT_OF_BALANCING
    return resource_file(resources)


def members_out(text: str) -> frozenset[str]:
    """The members in a file that are out of balancing."""
    there = _members(json.loads(text)["resources"])
    return frozenset(elsewhere.member_name(m) for m in there if m.get("health_status") == OUT_OF_BALANCING)


def merge_members(first: str, second: str, renewed: Collection[str] = ()) -> str:
    """The text of a file with the members of two, those of other hosts as they stand in the second.

    Of ours those that are in both stay as they are, but for ``renewed``: the name of the model that an engine knows is
    another one when it has been started anew.
    """
    resources, more = (json.loads(text)["resources"] for text in (first, second))
    old, new = ({elsewhere.member_name(member): member for member in _members(r)} for r in (resources, more))
    kept = {name: member for name, member in old.items() if _is_ours(member) and name not in renewed}
    known = {**old, **new, **kept}
    resources[0]["endpoints"] = [{"lb_endpoints": list(known.values())}]
    return resource_file(resources)


def merge_clusters(first: str, second: str, here: Mapping[str, Data] = {}) -> str:
    """The text of cds.json with the clusters of two, those of the second made fit for members of both.

    Clusters of nodes that only the first has get this node, too, by their names in ``here``: its engines may be ready
    before its routes lead to them alone, and the other nodes may have left by then.
    """
    old, new = ({c["name"]: c for c in json.loads(text)["resources"]} for text in (first, second))
    both = {name: elsewhere.united(old[name], cluster) if name in old else cluster for name, cluster in new.items()}
    ending = {n: c | elsewhere.with_members(c, [here[n]]) for n, c in old.items() if n in here and n not in new}
    return resource_file(list((old | ending | both).values()))


def _members(resources: Any) -> Iterable[Data]:
    return (member for endpoints in resources[0]["endpoints"] for member in endpoints["lb_endpoints"])


def _is_ours(member: Data) -> bool:
    """Not of `elsewhere`: those have the name of their host."""
    return bool(member["endpoint"].get("hostname", foreign.HOST) == foreign.HOST)


def _cluster(plan: Plan, service: ServicePlan) -> Data:
    service = peers.engines_only(service)
    return typed(
        "config.cluster.v3.Cluster",
        name=service.name,
        type="EDS",
        eds_cluster_config={"eds_config": resource_source(plan, members_file(service.name))},
        connect_timeout="5s",
        **sticky.balancing(service),
        **elsewhere.transport_sockets(service),
        circuit_breakers=_breakers(service),
        health_checks=[HEALTH_CHECK | _health_check(service)],
        # A member that is not in the file any more is gone, healthy or not.
        ignore_health_on_host_removal=True,
        outlier_detection=OUTLIERS,
        typed_extension_protocol_options=_protocol(service),
    )


def _of_nodes(plan: Plan) -> Iterator[Data]:
    """The clusters of services that other nodes run, too."""
    for service in (s for s in plan.routed if peers.is_spread(s)):
        fields = {**sticky.balancing(service), **peers.cluster_fields(plan, service), **peers.mark(plan)}
        limits = _breakers(service)
        yield typed("config.cluster.v3.Cluster", **fields, circuit_breakers=limits, outlier_detection=OUTLIERS)


def _breakers(service: ServicePlan) -> Data:
    return {"thresholds": [NO_LIMIT | {"max_retries": 1_000} | breaker(service.limits)]}


def _static(cluster: Data, service: ServicePlan) -> Data:
    plain = {key: value for key, value in cluster.items() if key not in ("eds_cluster_config", "type")}
    return plain | {"type": "STATIC", "load_assignment": _assignment(service)}


def _assignment(service: ServicePlan) -> Data:
    service = peers.engines_only(service)
    own = (_endpoint(replica) | foreign.naming(service) for replica in service.replicas)
    return {
        "cluster_name": service.name,
        "endpoints": [{"lb_endpoints": [*own, *map(elsewhere.member, service.endpoints)]}],
    }


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


def _health_check(service: ServicePlan) -> Data:
    if service.foreign is None:
        return {"http_health_check": {"path": elsewhere.health_path(service)}}
    return foreign.health_check(service.foreign)


def _endpoint(replica: ProgramPlan) -> Data:
    if replica.socket.startswith("/"):
        return {"endpoint": {"address": {"pipe": {"path": replica.socket}}}}
    return foreign.member(replica)


def _protocol(service: ServicePlan) -> Data:
    options = typed(
        "extensions.upstreams.http.v3.HttpProtocolOptions",
        common_http_protocol_options={"idle_timeout": UPSTREAM_IDLE},
        explicit_http_config={"http_protocol_options": {}},
        **elsewhere.filters(service),
        **foreign.filters(service),
    )
    return {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}
