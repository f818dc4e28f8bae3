"""Members of a service on other hosts: their addresses, what opens them, and how they are told apart from ours."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import quote

from llmhost.gateway.envoy import METADATA, Data, extension, typed, upstream_codec
from llmhost.plan.types import EndpointPlan, ServicePlan

MATCH = "envoy.transport_socket_match"
"""Metadata of a member that names its transport socket."""
PROTOCOL = "typed_extension_protocol_options"
"""The field of a cluster that has its filters."""
MUTATION = "envoy.filters.http.header_mutation"
"""The filter that keeps the key of a client from other hosts."""


def member(endpoint: EndpointPlan) -> Data:
    """One member; its key is in its metadata, where only the filter below looks."""
    address = {"socket_address": {"address": endpoint.address, "port_value": endpoint.port}}
    metadata = {METADATA: {"authorization": f"Bearer {endpoint.key}"}} if endpoint.key else {}
    if endpoint.tls:
        metadata[MATCH] = {"server": endpoint.url}
    place = {"address": address, "hostname": _authority(endpoint), "health_check_config": {"hostname": endpoint.host}}
    return {"endpoint": place, **({"metadata": {"filter_metadata": metadata}} if metadata else {})}


def _authority(endpoint: EndpointPlan) -> str:
    return endpoint.url.partition("://")[2]


def health_path(service: ServicePlan) -> str:
    """Another llmhost answers for the model, an engine for itself: it does not look at the query."""
    return health_of(service.served_as[0]) if service.endpoints else "/health"


def health_of(model: str) -> str:
    """What a gateway is asked for the health of a model."""
    return f"/health?model={quote(model, safe='')}"


def transport_sockets(service: ServicePlan) -> Data:
    """A field of the cluster: TLS for the members that want it."""
    matches = tls_sockets(service)
    return {"transport_socket_matches": matches} if matches else {}


def tls_sockets(service: ServicePlan) -> list[Data]:
    """A transport socket for each endpoint that wants TLS."""
    return [_tls(endpoint) for endpoint in service.endpoints if endpoint.tls]


def united(old: Data, new: Data) -> Data:
    """The cluster for a service while members of two plans are in it, or may come: what any of them needs.

    A member on another host must not be asked through a cluster that would hand it the key of a client.
    """
    cluster = dict(new) | _united_filters(old, new)
    if not _hides_keys(new) and _hides_keys(old):
        cluster |= {"health_checks": old["health_checks"]}
    elif not (_hides_keys(new) or "load_assignment" in new) and old.get("health_checks") != new.get("health_checks"):
        # Members of different engines, each with a path of its own: what they have in common is that they listen.
        check = {name: value for name, value in new["health_checks"][0].items() if name != "http_health_check"}
        cluster |= {"health_checks": [check | {"tcp_health_check": {}}]}
    matches = {m["name"]: m for side in (old, new) for m in side.get("transport_socket_matches", ())}
    sockets = {"transport_socket_matches": list(matches.values())} if matches else {}
    return cluster | sockets | _united_members(old, new)


def _united_members(old: Data, new: Data) -> Data:
    """The field of a cluster that has its members in it, as those of nodes have."""
    if not all("load_assignment" in side for side in (old, new)):
        return {}
    return with_members(old, new["load_assignment"]["endpoints"][0]["lb_endpoints"])


def with_members(cluster: Data, added: Iterable[Data]) -> Data:
    """The field of a cluster that has its members in it, with more, who take the places of those of the same names."""
    assigned = cluster["load_assignment"]
    every = {member_name(m): m for m in (*assigned["endpoints"][0]["lb_endpoints"], *added)}
    return {"load_assignment": assigned | {"endpoints": [{"lb_endpoints": list(every.values())}]}}


def member_name(member: Data) -> str:
    """The path of its unix socket, ``address:port``, or the name of a listener of this gateway."""
    address = member["endpoint"]["address"]
    if "pipe" in address:
        return str(address["pipe"]["path"])
    if "envoy_internal_address" in address:
        return str(address["envoy_internal_address"]["server_listener_name"])
    place = address["socket_address"]
    return f"{place['address']}:{place['port_value']}"


def _united_filters(old: Data, new: Data) -> Data:
    """The options of the new cluster with the filters of both; what these do to a request its member says."""
    filters = {f["name"]: f for side in (old, new) for f in _options(side).get("http_filters", ())}
    if not filters:
        return {}
    codec = upstream_codec()
    ordered = [*(f for name, f in filters.items() if name != codec["name"]), codec]
    options = {name: value | {"http_filters": ordered} for name, value in new[PROTOCOL].items()}
    return {PROTOCOL: options}


def _hides_keys(cluster: Data) -> bool:
    return any(f["name"] == MUTATION for f in _options(cluster).get("http_filters", ()))


def _options(cluster: Data) -> Data:
    (options,) = cluster.get(PROTOCOL, {"": {}}).values()
    return dict(options)


def _tls(endpoint: EndpointPlan) -> Data:
    address = _is_address(endpoint.host)
    name = {"san_type": "IP_ADDRESS" if address else "DNS", "matcher": {"exact": endpoint.host}}
    context = typed(
        "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        **({} if address else {"sni": endpoint.host}),
        common_tls_context={
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
            "validation_context": {
                "trusted_ca": {"filename": endpoint.ca_file},
                "match_typed_subject_alt_names": [name],
            },
        },
    )
    socket = {"name": "envoy.transport_sockets.tls", "typed_config": context}
    return {"name": endpoint.url, "match": {"server": endpoint.url}, "transport_socket": socket}


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def filters(service: ServicePlan) -> Data:
    """Options of the cluster's protocol: the key of a client stays here, and each member gets the key that it wants."""
    if not service.endpoints:
        return {}
    gone = ("authorization", "x-api-key", "x-envoy-original-host", "x-envoy-external-address")
    own = {"key": "authorization", "value": f"%UPSTREAM_METADATA({METADATA}:authorization)%"}
    mutations: list[Data] = [{"remove": name} for name in gone]
    mutations.append({"append": {"header": own, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}})
    rewrite = extension(
        MUTATION,
        "extensions.filters.http.header_mutation.v3.HeaderMutation",
        mutations={"request_mutations": mutations},
    )
    return {"http_filters": [rewrite, upstream_codec()]}
