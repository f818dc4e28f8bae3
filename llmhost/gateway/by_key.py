"""How many requests a key may have with engines at once: counted on a way of its own, which only such keys take.

Envoy counts requests at once in one place, the circuit breaker of a cluster. So a key with such a limit has a cluster,
whose one member is a listener inside this Envoy, which sends on to the service. Nothing outside can reach that
listener, so it believes the header that says which service is meant. Streams count until their last byte.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from llmhost.gateway.access import KEY_NAME, TO, WAY
from llmhost.gateway.envoy import METADATA, Data, resource_file, typed
from llmhost.gateway.limits import LIMITED, SERVICE, breaker
from llmhost.plan.types import GatewayPlan, KeyPlan

LISTENER = "keys"
"""The listener inside, and its routes."""

CLUSTER = "key/"
"""Before the name of a key: its cluster. No service can be called so."""

STATISTICS = "llmhost_keys"
"""All of these clusters count under this name; `llmhost.metrics.page` leaves it out, services and keys are counted."""

IDLE = "60s"
"""Connections inside; the listener keeps them for longer, so a request never meets one that is being closed."""

BEYOND = ("cluster", "retry_policy", "hash_policy", "auto_host_rewrite")
"""Fields of a route's action that are for whoever chooses the engine."""


def clusters(gateway: GatewayPlan, without_limit: Data) -> tuple[Data, ...]:
    """One for each name: a key that was rotated and its predecessor are counted together."""
    limited = {key.name: key for key in gateway.keys if key.limits.concurrent_requests}
    return tuple(_cluster(key, without_limit) for key in limited.values())


def _cluster(key: KeyPlan, without_limit: Data) -> Data:
    address = {"envoy_internal_address": {"server_listener_name": LISTENER}}
    options = typed(
        "extensions.upstreams.http.v3.HttpProtocolOptions",
        common_http_protocol_options={"idle_timeout": IDLE},
        explicit_http_config={"http_protocol_options": {}},
    )
    return typed(
        "config.cluster.v3.Cluster",
        name=f"{CLUSTER}{key.name}",
        alt_stat_name=STATISTICS,
        type="STATIC",
        load_assignment={
            "cluster_name": f"{CLUSTER}{key.name}",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
        circuit_breakers={"thresholds": [without_limit | breaker(key.limits)]},
        typed_extension_protocol_options={"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
    )


def replace_clusters(text: str, made: Sequence[Data]) -> str:
    """The text of cds.json with these clusters of keys in the place of those that are there."""
    others = [c for c in json.loads(text)["resources"] if not c["name"].startswith(CLUSTER)]
    return resource_file([*others, *made])


def names(gateway: GatewayPlan) -> frozenset[str]:
    """The keys that have a way of their own."""
    return frozenset(key.name for key in gateway.keys if key.limits.concurrent_requests)


def way() -> Data:
    """Mutation of a request, once it is known whose it is: the cluster of its key."""
    header = {"key": WAY, "value": f"{CLUSTER}{KEY_NAME}"}
    return {"append": {"header": header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}


def through_key(route: Data) -> Data:
    """A route to a service by way of the cluster of the key that asks; others stay as they are."""
    about: dict[str, str] = route.get("metadata", {}).get("filter_metadata", {}).get(METADATA, {})
    if "route" not in route or LIMITED not in about:
        return route
    action = {name: value for name, value in route["route"].items() if name not in BEYOND}
    header = {"header": {"key": TO, "value": about[SERVICE]}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
    return route | {
        "route": action | {"cluster_header": WAY},
        "request_headers_to_add": [header],
        "metadata": {"filter_metadata": {METADATA: about | {LIMITED: "The API key"}}},
    }


def to_service(service: str) -> Data:
    """Matches what comes through the cluster of a key for this service."""
    return {"prefix": "/", "headers": [{"name": TO, "string_match": {"exact": service}}]}


def to_leaving_service() -> Data:
    """The last route: what was on its way while its service left the routes; its cluster is there a while longer."""
    return {"match": {"prefix": "/"}, "route": {"cluster_header": TO, "timeout": "0s", "auto_host_rewrite": True}}
