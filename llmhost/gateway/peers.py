"""Gateways of several nodes as one: each serves every service, from its own engines and through the others' gateways.

A service that other nodes run, too, has two clusters. One of its own name has this node's engines only. The other,
``<service>@nodes``, which requests of clients go to, has one member for each node: this gateway's own listener `HERE`
and, over TLS, the listener `NODES` of the others. Behind both listeners are the same routes, and these know nothing but
the clusters of engines: a request that came from a gateway is served here or nowhere, so there is no loop and no second
hop. Who may use `NODES` is decided by its certificate, before anything of a request is read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llmhost.gateway import elsewhere, sticky
from llmhost.gateway.access import TO
from llmhost.gateway.envoy import METADATA, Data, extension, resource_file, typed, upstream_codec
from llmhost.paths import Home
from llmhost.plan.types import NodePlan, Plan, ServicePlan

NODES, HERE = "nodes", "here"
"""The listeners for other nodes and for this gateway itself; `NODES` is also their route configuration. A service's own
port has a name with a prefix, so neither can be one."""

MOST_CHECKS = 500
"""Health checks in a second that one gateway makes of others; with more members each is asked less often."""

CHECK: Data = {
    # A gateway answers for its engines from what it knows of them, so a late answer means that the node is in trouble:
    # cut off, it is out after two of these.
    "timeout": "2s",
    "no_traffic_interval": "0.5s",
    "unhealthy_interval": "0.5s",
    "unhealthy_threshold": 2,
    "healthy_threshold": 1,
}
SLOW_CHECK_SECONDS = "10s"
"""With servers of other hosts beside the nodes, which may be engines that answer late."""

IDLE = "60s"
"""After which a connection between gateways is closed by who asks; the other side waits much longer."""


SILENT_SECONDS = 10
"""After which a connection to a node that answers nothing any more, not even with an empty packet, is given up. The
kernel would try for a quarter of an hour, and whoever waits for an answer behind a cut cable would wait as long."""

KEEPALIVE: Data = {"keepalive_time": 4, "keepalive_interval": 2, "keepalive_probes": 3}
"""The same for connections on which nothing is under way from here, as while an answer is waited for."""

SO_KEEPALIVE, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_USER_TIMEOUT = (1, 9), (6, 4), (6, 5), (6, 6), (6, 18)
"""Level and name of options of a socket (socket(7), tcp(7))."""


def cluster_name(service: str) -> str:
    """The cluster with all nodes that run a service; no service can be called so."""
    return f"{service}@nodes"


def is_spread(service: ServicePlan) -> bool:
    """Whether other nodes run replicas of it."""
    return bool(service.elsewhere)


def engines_only(service: ServicePlan) -> ServicePlan:
    """A service as its own cluster has it: servers of other hosts are asked by the gateway that a client asks."""
    return replace(service, endpoints=()) if is_spread(service) else service


def listens(plan: Plan) -> bool:
    """Whether there are other nodes at all."""
    return bool(plan.peers)


def cluster_fields(plan: Plan, service: ServicePlan) -> Data:
    """Fields of the cluster with all nodes that run a service, but for those that every cluster has."""
    name = cluster_name(service.name)
    check = CHECK | {"interval": f"{_interval(plan):g}s", "http_health_check": {"path": health_path(service)}}
    if service.endpoints:
        check |= {"timeout": SLOW_CHECK_SECONDS}
    assigned = {"cluster_name": name, "endpoints": [{"lb_endpoints": _members(plan, service)}]}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": assigned,
        "transport_socket_matches": [*_sockets(plan, service), *elsewhere.tls_sockets(service)],
        "health_checks": [check],
        "upstream_connection_options": {"tcp_keepalive": KEEPALIVE},
        "upstream_bind_config": {"socket_options": [_option(TCP_USER_TIMEOUT, SILENT_SECONDS * 1000)]},
        "typed_extension_protocol_options": _protocol(service),
    }


def _interval(plan: Plan) -> float:
    """Seconds between two checks of a member."""
    members = sum(len(s.elsewhere) for s in plan.routed)
    return max(1.0, round(members / MOST_CHECKS, 1))


def health_path(service: ServicePlan) -> str:
    """What a gateway is asked for the health of a service; an endpoint beside the nodes knows it by what it serves."""
    if service.endpoints:
        return f"{elsewhere.health_of(service.served_as[0])}&{_asked_for(service)}"
    return f"/health?{_asked_for(service)}"


def _asked_for(service: ServicePlan) -> str:
    """How a question for the health of a service ends. By its own name: those that it serves may change, and two
    services may have the same while one follows the other."""
    return f"service={service.name}"


def _members(plan: Plan, service: ServicePlan) -> list[Data]:
    """Each node as often as it has replicas."""
    nodes = {node.name: node for node in plan.nodes}
    found = [_peer(nodes[e.node], service, len(e.replicas)) for e in service.elsewhere]
    own = [_own(plan, service)] if service.replicas else []
    return [*own, *found, *map(elsewhere.member, service.endpoints)]


def own_members(plan: Plan) -> dict[str, Data]:
    """This node as a member of the clusters of nodes, by their names, whether the plan has these or not."""
    return {cluster_name(s.name): _own(plan, s) for s in plan.routed if s.replicas and listens(plan)}


def _own(plan: Plan, service: ServicePlan) -> Data:
    address = {"pipe": {"path": str(Home(Path(plan.home)).gateway_peer_socket)}}
    return _member(plan.node, address, service, len(service.replicas))


def _peer(node: NodePlan, service: ServicePlan, replicas: int) -> Data:
    address = {"socket_address": {"address": node.address, "port_value": node.port}}
    member = _member(node.name, address, service, replicas)
    member["metadata"]["filter_metadata"][elsewhere.MATCH] = {"node": node.name}
    return member


def _member(node: str, address: Data, service: ServicePlan, replicas: int) -> Data:
    # Requests that belong together go to one node, whichever gateway was asked: all of them have it by its name.
    metadata = {METADATA: {"service": service.name}, "envoy.lb": {"hash_key": node}}
    return {
        "endpoint": {"address": address},
        "load_balancing_weight": replicas,
        "metadata": {"filter_metadata": metadata},
    }


def _sockets(plan: Plan, service: ServicePlan) -> list[Data]:
    """TLS to each node: the certificate that it shows must be its own, and not only one of a node."""
    return [
        {
            "name": f"node {e.node}",
            "match": {"node": e.node},
            "transport_socket": _tls("Upstream", sni=e.node, common_tls_context=_context(plan, [e.node])),
        }
        for e in service.elsewhere
    ]


def _protocol(service: ServicePlan) -> Data:
    """Whoever gets a request from us is told the service; endpoints, which are no nodes of ours, are not."""
    told = {"key": TO, "value": f"%UPSTREAM_METADATA({METADATA}:service)%"}
    mutations: list[Data] = [
        {"remove": TO},
        {"append": {"header": told, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}},
    ]
    tell = extension(
        "llmhost.service",
        "extensions.filters.http.header_mutation.v3.HeaderMutation",
        mutations={"request_mutations": mutations},
    )
    others = [f for f in elsewhere.filters(service).get("http_filters", ()) if f["name"] == elsewhere.MUTATION]
    options = typed(
        "extensions.upstreams.http.v3.HttpProtocolOptions",
        common_http_protocol_options={"idle_timeout": IDLE},
        explicit_http_config={"http_protocol_options": {}},
        http_filters=[*others, tell, upstream_codec()],
    )
    return {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}


def _context(plan: Plan, names: Sequence[str]) -> Data:
    """This node's certificate, and whose certificates are accepted."""
    folder = Home(Path(plan.home)).node_tls
    sans = [{"san_type": "DNS", "matcher": {"exact": name}} for name in names]
    own = {
        "certificate_chain": {"filename": str(folder / f"{plan.node}.pem")},
        "private_key": {"filename": str(folder / f"{plan.node}.key")},
    }
    return {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [own],
        "validation_context": {
            "trusted_ca": {"filename": str(folder / "ca.pem")},
            "match_typed_subject_alt_names": sans,
        },
    }


def _tls(side: str, **fields: object) -> Data:
    context = typed(f"extensions.transport_sockets.tls.v3.{side}TlsContext", **fields)
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


def filter_chain(plan: Plan) -> Data:
    """Fields of the filter chain of `NODES`: only the other nodes of llmhost.yaml get in."""
    context = _context(plan, [node.name for node in plan.peers])
    socket = _tls("Downstream", common_tls_context=context, require_client_certificate=True)
    return {"transport_socket": socket, "transport_socket_connect_timeout": "15s"}


def _option(which: tuple[int, int], value: int) -> Data:
    level, name = which
    return {"level": level, "name": name, "int_value": value, "state": "STATE_PREBIND"}


def socket_options() -> list[Data]:
    """Of `NODES`; what it accepts inherits them."""
    values = {
        SO_KEEPALIVE: 1,
        TCP_KEEPIDLE: KEEPALIVE["keepalive_time"],
        TCP_KEEPINTVL: KEEPALIVE["keepalive_interval"],
        TCP_KEEPCNT: KEEPALIVE["keepalive_probes"],
        TCP_USER_TIMEOUT: SILENT_SECONDS * 1000,
    }
    return [_option(which, value) for which, value in values.items()]


def mark(plan: Plan) -> Data:
    """Field of a listener or a cluster that changes with the certificates, so that Envoy reads them again."""
    return {"metadata": {"filter_metadata": {METADATA: {"certificates": plan.here.mark if plan.here else ""}}}}


def health_filters(plan: Plan) -> list[Data]:
    """They answer for each service from what the gateway knows of its engines here; no engine is asked."""
    return [
        extension(
            "envoy.filters.http.health_check",
            "extensions.filters.http.health_check.v3.HealthCheck",
            pass_through_mode=False,
            # A request of a client may end so, too; it says for which service it is.
            headers=[
                {"name": ":path", "string_match": {"suffix": _asked_for(service)}},
                {"name": TO, "present_match": False},
            ],
            cluster_min_healthy_percentages={service.name: {"value": 1}},
        )
        for service in plan.routed if service.replicas
    ]  # fmt: skip


def with_coming(first: str, second: str) -> str:
    """The text of lds.json, or of the routes of `NODES`: the first, in which other nodes find what the second adds."""
    old, new = (json.loads(text)["resources"] for text in (first, second))
    coming = {r["name"]: r for r in new if r["name"] in (NODES, HERE)}
    return resource_file([_with_coming(r, coming[r["name"]]) if r["name"] in coming else r for r in old])


def _with_coming(old: Data, new: Data) -> Data:
    if "virtual_hosts" in old:
        (host,), (other,) = old["virtual_hosts"], new["virtual_hosts"]
        there = [route["match"] for route in host["routes"]]
        more = [route for route in other["routes"] if route["match"] not in there]
        return old | {"virtual_hosts": [host | {"routes": more + host["routes"]}]}
    (chain,) = old["filter_chains"]
    (network,) = chain["filters"]
    filters = network["typed_config"]["http_filters"]
    more = [f for f in new["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"] if f not in filters]
    manager = network["typed_config"] | {"http_filters": more + filters}
    return old | {"filter_chains": [chain | {"filters": [network | {"typed_config": manager}]}]}


def local_action(service: ServicePlan, retry: Data) -> Data:
    """The fields of a route action that send a request to an engine of this node."""
    action: Data = {"cluster": service.name, "timeout": "0s", "retry_policy": retry, "auto_host_rewrite": True}
    if service.sticky:
        action["hash_policy"] = sticky.hash_policy(service)
    return action
