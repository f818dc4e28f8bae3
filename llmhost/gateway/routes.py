"""Which request goes where: one route configuration for the gateway's port, one for each service's own port, and one
for what comes through the cluster of a key (`llmhost.gateway.by_key`).

The first route that matches wins, so the order below is the behaviour: our own paths; a model of a service that answers
the path; a body that is not JSON; a model that cannot answer the path; a model that does not exist; no model at all;
a wrong method; a path that is not on the list.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from urllib.parse import quote

from llmhost.gateway import access, answers, by_key, foreign, limits, peers, statistics, sticky
from llmhost.gateway.clusters import METRICS_CLUSTER, RETRY, route_action
from llmhost.gateway.endpoints import ENDPOINTS, Endpoint, EndpointGroup, groups
from llmhost.gateway.envoy import (
    METADATA,
    MODEL,
    Data,
    literal,
    match,
    metadata_is,
    metadata_present,
    paths_regex,
    typed,
)
from llmhost.gateway.openapi import openapi_document
from llmhost.gateway_address import METRICS_PROGRAM
from llmhost.plan.types import GatewayPlan, KeyPlan, Plan, ServicePlan

MAIN = "gateway"
READ = ("GET", "HEAD")
POSTED = [e for e in ENDPOINTS if e.method == "POST" and "{id}" not in e.path]
"""What has a body that names a model."""


def own_port_name(service: ServicePlan) -> str:
    """Name of the listener and route configuration of a service's own port."""
    return f"port-{service.name}"


def routes_file(name: str) -> str:
    """The file of a route configuration, without its suffix; Envoy wants each in a file of its own."""
    return "rds" if name == MAIN else f"rds-{name}"


def route_configurations(plan: Plan) -> tuple[Data, ...]:
    """One for the gateway's port, one for each service's own port, one for other nodes, one inside."""
    own = (_configuration(plan, own_port_name(s), (s,), ready_of=s) for s in plan.routed if s.port)
    return (_configuration(plan, MAIN, plan.routed), *own, *_of_nodes(plan), _inside(plan))


def _inside(plan: Plan) -> Data:
    """What comes through the cluster of a key; everything about it but the engine has been decided."""
    routes = [_forward(by_key.to_service(s.name), s) for s in plan.routed]
    host = {
        "name": by_key.LISTENER,
        "domains": ["*"],
        "routes": [*routes, by_key.to_leaving_service()],
        "request_headers_to_remove": [access.TO],
    }
    return typed("config.route.v3.RouteConfiguration", name=by_key.LISTENER, virtual_hosts=[host])


def _of_nodes(plan: Plan) -> Iterator[Data]:
    """What other gateways, and this one as one of them, ask of the engines here; see `llmhost.gateway.peers`."""
    if not peers.listens(plan):
        return
    routes = [_to_engines(service) for service in plan.routed if service.replicas]
    none = _error({"prefix": "/"}, 503, f"The service '%REQ({access.TO})%' has no engine that is ready", formatted=True)
    host = {
        "name": peers.NODES,
        "domains": ["*"],
        "routes": [*routes, none],
        "request_headers_to_remove": [access.TO],
        "request_body_buffer_limit": plan.gateway.max_body_bytes,
    }
    yield typed("config.route.v3.RouteConfiguration", name=peers.NODES, virtual_hosts=[host])


def _to_engines(service: ServicePlan) -> Data:
    found = {"prefix": "/", "headers": [{"name": access.TO, "string_match": {"exact": service.name}}]}
    action = peers.local_action(service, RETRY)
    return {"match": found, "route": action, "metadata": _route_metadata(**limits.route_metadata(service))}


def _configuration(plan: Plan, name: str, services: Sequence[ServicePlan], ready_of: ServicePlan | None = None) -> Data:
    routes = list(_for_everybody(plan.gateway, services, ready_of))
    host = {
        "name": name,
        "domains": ["*"],
        "routes": routes,
        "typed_per_filter_config": access.host_configuration(plan.gateway, _ways(plan.gateway))
        | limits.host_configuration(plan.gateway, services),
        "virtual_clusters": statistics.virtual_clusters(plan.gateway.keys),
        # What the gateway knows of a client is not for engines.
        "request_headers_to_remove": list(access.INTERNAL),
        "request_body_buffer_limit": plan.gateway.max_body_bytes,
        # A body without a content type can only be JSON here, and vLLM insists on the header.
        "request_headers_to_add": [_header("content-type", "application/json", "ADD_IF_ABSENT")],
    }
    longest = max(len(json.dumps(r.get("direct_response", ""))) for r in routes)
    return typed(
        "config.route.v3.RouteConfiguration",
        name=name,
        virtual_hosts=[host],
        max_direct_response_body_size_bytes=max(4096, longest),
    )


def _ways(gateway: GatewayPlan) -> list[Data]:
    return [by_key.way()] if by_key.names(gateway) else []


def _for_everybody(
    gateway: GatewayPlan, services: Sequence[ServicePlan], ready_of: ServicePlan | None
) -> Iterator[Data]:
    """What is open, then keys that have expired, then the keys by what they may use.

    A key that may use some services only gets the routes of a gateway that has these services only, so that nothing
    tells it of others.
    """
    main = ready_of is None
    open_to_all = {"typed_per_filter_config": access.opened() | limits.unlimited()}
    yield from (route | open_to_all for route in _health(services, ready_of))  # not counted, either
    yield _no_tunnel()
    for key in gateway.keys:
        if key.expires is not None:
            yield _error({"prefix": "/", **access.expired(key)}, 401, f"The API key '{key.name}' has expired")
    if not gateway.locked:
        yield from _routes(services, main, locked=False)
        return
    for size, names in limits.sizes(gateway).items():
        yield from (_for_keys(route, names) for route in _too_large_for_key(size))
    for allowed, keys in _scopes(gateway.keys, services).items():
        mine = [s for s in services if s.name in allowed]
        theirs = [s for s in services if s.name not in allowed]
        for route in _routes(mine, main, theirs, locked=True):
            yield from _each_its_way(route, keys, by_key.names(gateway))
    # Nobody is let through for being unknown: whatever a filter did not do ends here.
    yield _error({"prefix": "/"}, 401, "No API key")


def _scopes(keys: Sequence[KeyPlan], services: Sequence[ServicePlan]) -> dict[tuple[str, ...], list[str]]:
    """The names of keys by the services of this listener that they may use."""
    found: dict[tuple[str, ...], list[str]] = {}
    for key in keys:
        allowed = tuple(s.name for s in services if key.services is None or s.name in key.services)
        found.setdefault(allowed, []).append(key.name)
    return {allowed: list(dict.fromkeys(names)) for allowed, names in found.items()}


def _each_its_way(route: Data, keys: Sequence[str], counted: Collection[str]) -> Iterator[Data]:
    """A route for these keys; for those whose requests at once are counted, it may be another one."""
    other = by_key.through_key(route)
    straight = keys if other is route else [key for key in keys if key not in counted]
    if straight:
        yield _for_keys(route, straight)
    if len(straight) < len(keys):
        yield _for_keys(other, [key for key in keys if key in counted])


def _for_keys(route: Data, keys: Sequence[str]) -> Data:
    found = route["match"]
    also = [*found.get("dynamic_metadata", ()), access.one_of_keys(keys)]
    return route | {"match": found | {"dynamic_metadata": also}}


def _routes(
    services: Sequence[ServicePlan], main: bool, forbidden: Sequence[ServicePlan] = (), *, locked: bool
) -> Iterator[Data]:
    # The page of metrics tells of every service.
    yield from _own_answers(services, metrics=main and not forbidden, locked=locked)
    everything = paths_regex(POSTED)
    yield from (_not_yours(everything, s) for s in forbidden)
    for service in services:
        yield from _service_routes(service)
    malformed = match(everything, "POST", metadata=[metadata_present("malformed")])
    yield _error(malformed, 400, "The body of the request is not valid JSON")
    for group in groups():
        yield from _wrong_kind(services, group)
    unknown = match(everything, "POST", metadata=[metadata_present("model")])
    exist = literal(answers.names(services))
    yield _error(unknown, 404, f"The model '{MODEL}' does not exist; models: {exist}", "model", formatted=True)
    for group in groups():
        yield from _without_model(services, group)
    yield from _wrong_method()
    yield _error(match(".*"), 404, "This path is not served here; GET /docs lists those that are")


def _health(services: Sequence[ServicePlan], ready_of: ServicePlan | None) -> Iterator[Data]:
    if ready_of is None:
        yield from _health_of_models(services)
    found = match("/health", *READ)
    yield _reply(found, '{"status":"ok"}') if ready_of is None else _forward_health(found, ready_of)


def _no_tunnel() -> Data:
    """With a route for CONNECT Envoy itself refuses it at once (403); without, it would wait for a body without end."""
    return _error({"connect_matcher": {}}, 403, "")


def _own_answers(services: Sequence[ServicePlan], metrics: bool, locked: bool) -> Iterator[Data]:
    read = READ
    if metrics:
        yield _metrics(match("/metrics", *read))
    yield _reply(match("/docs", *read), answers.docs_page(services, locked), "text/html; charset=utf-8")
    yield _reply(match("/openapi.json", *read), openapi_document(services, locked))
    yield _reply(match("/v1/models", *read), answers.model_list(services))
    for card in answers.model_cards(services):
        path = f"/v1/models/{name_regex(card['id'])}"
        yield _reply(match(path, *read), json.dumps(card, ensure_ascii=False))
    missing = f"This model does not exist; models: {answers.names(services)}"
    yield _error(match("/v1/models/.+", *read), 404, missing, "model")
    own = "/v1/models(/.+)?|/health|/docs|/openapi[.]json" + ("|/metrics" if metrics else "")
    yield _not_allowed(own, "GET, HEAD")


def _health_of_models(services: Sequence[ServicePlan]) -> Iterator[Data]:
    """``/health?model=NAME`` is the health of that service: what another gateway asks that has it as an endpoint.

    No key is needed, so a name that does not exist is like one without an engine.
    """
    for service in services:
        names = "|".join(name_regex(name) for name in service.served_as)
        yield _forward_health(_asked_for(names), service)
    yield _error(_asked_for(".*"), 503, "The model has no engine that is ready")


def _forward_health(found: Data, service: ServicePlan) -> Data:
    route = _forward(found, service)
    return route if service.foreign is None else foreign.rewritten(route, foreign.health_path(service.foreign))


def _asked_for(model: str) -> Data:
    parameter = {"name": "model", "string_match": {"safe_regex": {"regex": model}}}
    return match("/health", *READ) | {"query_parameters": [parameter]}


def name_regex(name: str) -> str:
    """Matches a model's name as the end of a path, whichever of its characters a client percent-encodes."""
    return "".join(_byte_regex(byte) for byte in name.encode())


def _byte_regex(byte: int) -> str:
    encoded = "%" + "".join(h if h.isdecimal() else f"[{h}{h.lower()}]" for h in f"{byte:02X}")
    plain = chr(byte)
    if byte >= 0x80 or quote(plain, safe="/!$&'()*+,;=:@") != plain:
        return encoded
    return f"(?:{plain if plain.isalnum() else f'[{plain}]'}|{encoded})"


def _not_yours(everything: str, service: ServicePlan) -> Data:
    found = match(everything, "POST", metadata=[metadata_is("model", service.served_as)])
    message = f"The API key '{access.KEY_NAME}' may not use the model '{MODEL}'"
    return _error(found, 403, message, "model", formatted=True)


def _service_routes(service: ServicePlan) -> Iterator[Data]:
    served = [e for g in groups() if g.by_model and service.kind in g.served_by for e in g.endpoints]
    foreign.require_routed_paths(service.name, service.kind, service.foreign.paths if service.foreign else ())
    yield from _by_path(served, service, [metadata_is("model", service.served_as)])


def _by_path(served: Sequence[Endpoint], service: ServicePlan, metadata: Sequence[Data] = ()) -> Iterator[Data]:
    """Routes to a service: for paths that have another name at its engine first, one for each."""
    other = foreign.renamed(service, served)
    for endpoint, path in other.items():
        found = match(paths_regex([endpoint]), "POST", metadata=metadata)
        for route in _forward_body(found, service):
            yield foreign.rewritten(route, path)
    rest = [endpoint for endpoint in served if endpoint not in other]
    yield from _forward_body(match(paths_regex(rest), "POST", metadata=metadata), service) if rest else ()


def _forward_body(found: Data, service: ServicePlan) -> Iterator[Data]:
    maximum = service.limits.max_body_bytes
    if maximum is not None:
        yield from _too_large(found, service, maximum)
    yield _forward(found, service)


def _too_large_for_key(maximum: int) -> Iterator[Data]:
    whose = f"The API key '{access.KEY_NAME}' takes bodies up to {_mebibytes(maximum)}"
    yield _error({"prefix": "/", **limits.too_long(maximum)}, 413, f"{whose}; this one is larger", formatted=True)
    found = match(paths_regex(POSTED), "POST")
    message = f"{whose}: send a Content-Length"
    yield _error(_and_headers(found, limits.of_unknown_length()), 411, message, formatted=True)


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.3g} MiB"


def _too_large(found: Data, service: ServicePlan, maximum: int) -> Iterator[Data]:
    size = _mebibytes(maximum)
    message = f"The request is larger than the {size} that the service '{service.name}' takes"
    yield _error(_and_headers(found, limits.too_long(maximum)), 413, message)
    message = f"The service '{service.name}' takes bodies up to {size}: send a Content-Length"
    yield _error(_and_headers(found, limits.of_unknown_length()), 411, message)


def _and_headers(found: Data, more: Data) -> Data:
    return found | {"headers": [*found["headers"], *more["headers"]]}


def _wrong_kind(services: Sequence[ServicePlan], group: EndpointGroup) -> Iterator[Data]:
    """Models that exist, on paths that their kind does not answer."""
    if not group.by_model:
        return
    able = literal(answers.names(services, group.served_by))
    for kind in dict.fromkeys(s.kind for s in services if s.kind not in group.served_by):
        wrong = [name for s in services if s.kind == kind for name in s.served_as]
        found = match(paths_regex(group.endpoints), "POST", metadata=[metadata_is("model", wrong)])
        message = f"The model '{MODEL}' is of kind {kind}, which does not answer this path; models that do: {able}"
        yield _error(found, 400, message, "model", formatted=True)


def _without_model(services: Sequence[ServicePlan], group: EndpointGroup) -> Iterator[Data]:
    found = match(paths_regex(group.endpoints), group.method)
    only = _only_service(services, group)
    if only is not None:
        yield from _by_path(group.endpoints, only) if group.by_model else (_forward(found, only),)
        return
    able = any(s.kind in group.served_by for s in services)
    yield _error(found, 400 if able else 404, answers.which_model(services, group), "model")


def _only_service(services: Sequence[ServicePlan], group: EndpointGroup) -> ServicePlan | None:
    """The one service that a request without `model` can mean; those of ``also`` only when no other is there."""
    meant = [s for s in services if s.kind in group.kinds] or [s for s in services if s.kind in group.also]
    if len(group.kinds) == 1:
        meant = [s for s in meant if s.default] or meant
    return meant[0] if len(meant) == 1 else None


def _wrong_method() -> Iterator[Data]:
    for method in dict.fromkeys(e.method for e in ENDPOINTS):
        yield _not_allowed(paths_regex(e for e in ENDPOINTS if e.method == method), method)


def _not_allowed(regex: str, allow: str) -> Data:
    route = _error(match(regex), 405, f"This path takes {allow.replace(', ', ' and ')} only")
    return route | {"response_headers_to_add": [_header("allow", allow)]}


def _forward(found: Data, service: ServicePlan) -> Data:
    about = _route_metadata(**limits.route_metadata(service))
    route = {"match": found, "route": route_action(service), "metadata": about}
    return route | {"typed_per_filter_config": sticky.route_filters(service)}


def _metrics(found: Data) -> Data:
    """To the exporter, for whom somebody is at most as patient as a scrape of Prometheus."""
    action = {"cluster": METRICS_CLUSTER, "timeout": "15s"}
    return {"match": found, "route": action, "metadata": _route_metadata(service=METRICS_PROGRAM)}


def _reply(found: Data, body: str, content_type: str = "application/json") -> Data:
    return {
        "match": found,
        "direct_response": {"status": 200, "body": {"inline_string": body}},
        "response_headers_to_add": [_header("content-type", content_type)],
    }


def _error(found: Data, status: int, message: str, param: str = "", *, formatted: bool = False) -> Data:
    """Answers with a message, which the listener's local reply puts into the shape of OpenAI's errors.

    ``formatted`` messages hold Envoy's format operators, and plain text as `literal`.
    """
    response: Data = {"status": status, "body": {"inline_string": message}}
    if formatted:
        response["body_format"] = {"text_format_source": {"inline_string": message}}
    return {"match": found, "direct_response": response} | ({"metadata": _route_metadata(param=param)} if param else {})


def _route_metadata(**values: str) -> Data:
    return {"filter_metadata": {METADATA: values}}


def _header(name: str, value: str, action: str = "OVERWRITE_IF_EXISTS_OR_ADD") -> Data:
    return {"header": {"key": name, "value": value}, "append_action": action}
