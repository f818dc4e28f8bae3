"""How much: requests per minute, requests at once and the size of a body, for a key and for a service.

Envoy counts, in token buckets that fill all the time: a limit of 60 lets 60 through at once, and then one each second.
Buckets live in the configuration of the routes, so a change of routes or keys fills them anew. Requests at once are
counted by the circuit breaker of a cluster: that of the service, and for a key `llmhost.gateway.by_key`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmhost.gateway.access import KEY
from llmhost.gateway.envoy import METADATA, Data, extension, typed
from llmhost.plan.types import GatewayPlan, KeyPlan, Limits, ServicePlan

KEY_LIMIT = "llmhost.key_limit"
SERVICE_LIMIT = "llmhost.service_limit"
"""Names of the filters."""

TYPE = "extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
ALWAYS = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
MINUTE = "60s"
SAID = {"x_ratelimit_option": "DRAFT_VERSION_03"}
"""For the bucket of a key: say in each answer what is left in it."""

SERVICE = "service"
"""Metadata of a route: the service that it leads to."""
LIMITED = "limited"
"""Metadata of a route: who has a limit of requests at once on it, in words."""
WAIT = "wait"
"""Metadata of a route: seconds until a service with a limit takes one more."""

WITHOUT_LIMIT = {"max_tokens": 4_000_000_000, "tokens_per_fill": 4_000_000_000, "fill_interval": MINUTE}
"""For keys and services that have none: Envoy wants a bucket for what no descriptor matches."""


def key_filter() -> Data:
    """Before the body of a request is read."""
    return extension(KEY_LIMIT, TYPE, stat_prefix="key_limit") | {"disabled": True}


def service_filter() -> Data:
    """After the body was read, which names the service. It is never switched off for a service: Envoy decides that by
    the first route that it finds, which may be another; without a bucket it does nothing."""
    return extension(SERVICE_LIMIT, TYPE, stat_prefix="service_limit")


def host_configuration(gateway: GatewayPlan, services: Sequence[ServicePlan]) -> Data:
    """What the virtual host says to both filters: a bucket for each key and each service that has a limit.

    Said by the virtual host there is one bucket, however many routes lead to a service.
    """
    return _of_keys(gateway.keys) | _of_services(services)


def _of_keys(keys: Sequence[KeyPlan]) -> Data:
    # One bucket for each name: a key that was rotated and its predecessor share it.
    limits = {key.name: key.limits.requests_per_minute for key in keys if key.limits.requests_per_minute}
    where = {"metadata_key": {"key": METADATA, "path": [{"key": KEY}]}, "source": "DYNAMIC"}
    return {KEY_LIMIT: _limit("key_limit", KEY, limits, where, SAID)} if limits else {}


def _of_services(services: Sequence[ServicePlan]) -> Data:
    limits = {s.name: s.limits.requests_per_minute for s in services if s.limits.requests_per_minute}
    where = {"metadata_key": {"key": METADATA, "path": [{"key": SERVICE}]}, "source": "ROUTE_ENTRY"}
    wait = {"header": {"key": "retry-after", "value": f"%METADATA(ROUTE:{METADATA}:{WAIT})%"}}
    found = _limit("service_limit", SERVICE, limits, where, {}, response_headers_to_add=[wait])
    return {SERVICE_LIMIT: found} if limits else {}


def route_metadata(service: ServicePlan) -> dict[str, str]:
    """What the route to a service says of it and its limits; times in whole seconds."""
    about = {SERVICE: service.name, LIMITED: f"The service '{service.name}'"}
    often = service.limits.requests_per_minute
    return about | ({WAIT: str(-(-60 // often))} if often else {})


def sizes(gateway: GatewayPlan) -> dict[int, list[str]]:
    """The names of keys by the largest body that they may send, in bytes, where that is less than anybody may."""
    found: dict[int, list[str]] = {}
    for name, size in {key.name: key.limits.max_body_bytes for key in gateway.keys}.items():
        if size is not None and size < gateway.max_body_bytes:
            found.setdefault(size, []).append(name)
    return found


def too_long(maximum: int) -> Data:
    """Headers that match a body of more than ``maximum`` bytes, announced or counted by the buffer."""
    return {"headers": [{"name": "content-length", "range_match": {"start": str(maximum + 1), "end": str(2**53)}}]}


def of_unknown_length() -> Data:
    """Headers that match a body whose length is not known: the buffer before it should have found it out."""
    return {"headers": [{"name": "content-length", "present_match": False}]}


def unlimited() -> Data:
    """Configuration of a route whose requests are not counted."""
    return {name: typed("config.route.v3.FilterConfig", disabled=True) for name in (KEY_LIMIT, SERVICE_LIMIT)}


def breaker(limits: Limits) -> Data:
    """Fields of a cluster's circuit breaker: requests at once, those that wait for an answer included."""
    return {"max_requests": limits.concurrent_requests} if limits.concurrent_requests else {}


def _bucket(per_minute: int) -> Data:
    return {"max_tokens": per_minute, "tokens_per_fill": per_minute, "fill_interval": MINUTE}


def _limit(prefix: str, name: str, limits: Mapping[str, int | None], where: Data, said: Data, **more: object) -> Data:
    """A bucket for each value of the metadata ``where``; in all of the others is room without end."""
    descriptors = [
        {"entries": [{"key": name, "value": value}], "token_bucket": _bucket(limit or 0)}
        for value, limit in limits.items()
    ]
    action = {"metadata": {"descriptor_key": name, **where}}
    return typed(
        TYPE, stat_prefix=prefix, token_bucket=WITHOUT_LIMIT, filter_enabled=ALWAYS, filter_enforced=ALWAYS,
        descriptors=descriptors, rate_limits=[{"actions": [action], **said}],
        always_consume_default_token_bucket=False, **more,
    )  # fmt: skip


def response_filters() -> list[Data]:
    """Say in the words that OpenAI's clients know what Envoy's rate limit says in its own."""
    said = {
        "x-ratelimit-limit-requests": "%RESP(x-ratelimit-limit)%",
        "x-ratelimit-remaining-requests": "%RESP(x-ratelimit-remaining)%",
        "x-ratelimit-reset-requests": "%RESP(x-ratelimit-reset)%",
    }
    matched = {
        "single_predicate": {
            "input": extension("status", "type.matcher.v3.HttpResponseStatusCodeMatchInput"),
            "value_match": {"exact": "429"},
        }
    }
    go_on = {"action": extension("skip", "extensions.filters.common.matcher.action.v3.SkipFilter")}
    only_429 = {"matcher_list": {"matchers": [{"predicate": {"not_matcher": matched}, "on_match": go_on}]}}
    retry = extension(
        "llmhost.retry_after",
        "extensions.common.matching.v3.ExtensionWithMatcher",
        extension_config=_on_response("inner", {"retry-after": "%RESP(x-ratelimit-reset)%"}),
        xds_matcher=only_429,
    )
    return [_on_response("llmhost.ratelimit_headers", said), retry]


def _on_response(name: str, headers: dict[str, str]) -> Data:
    mutations: Sequence[Data] = [
        {"append": {"header": {"key": key, "value": value}, "append_action": "ADD_IF_ABSENT"}}
        for key, value in headers.items()
    ]
    return extension(
        name,
        "extensions.filters.http.header_mutation.v3.HeaderMutation",
        mutations={"response_mutations": list(mutations)},
    )
