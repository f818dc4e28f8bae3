"""Where the gateway listens, what it reads of a request, and the shape of the errors that Envoy itself answers with."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path

from llmhost.errors import GatewayError
from llmhost.gateway import access, by_key, limits, peers, sticky
from llmhost.gateway.access_log import access_log
from llmhost.gateway.envoy import METADATA, Data, extension, resource_source, typed
from llmhost.gateway.routes import MAIN, own_port_name, routes_file
from llmhost.gateway.tls import filter_chain
from llmhost.paths import Home
from llmhost.plan.types import Plan

STREAM_IDLE = "3600s"
"""A stream on which nothing moves for an hour is given up; one that moves is never cut."""

RETRY_AFTER = "5"
"""Seconds after which a client should ask a service again that is not ready."""

BUFFER = 1024 * 1024
"""Bytes that one connection may hold back in either direction; bodies have a limit of their own."""

SLOWEST: Data = {"request_headers_timeout": "10s", "request_timeout": "300s"}
"""How long the headers of a request, and the whole request, may take to arrive: a client that sends a byte now and then
holds nothing for ever. Answers may take as long as they take."""

HTTP2: Data = {
    # Memory for one connection has a bound: many streams that each hold a window back would have none.
    "max_concurrent_streams": 100,
    "initial_stream_window_size": 65536,
    "initial_connection_window_size": 1024 * 1024,
}

ERROR_TYPES: tuple[tuple[int, str], ...] = (
    (400, "BadRequestError"),
    (401, "AuthenticationError"),
    (403, "PermissionDeniedError"),
    (404, "NotFoundError"),
    (405, "MethodNotAllowedError"),
    (408, "RequestTimeoutError"),
    (411, "LengthRequiredError"),
    (413, "RequestTooLargeError"),
    (426, "UpgradeRequiredError"),
    (429, "RateLimitError"),
    (431, "RequestHeadersTooLargeError"),
    (502, "BadGatewayError"),
    (503, "ServiceUnavailableError"),
    (504, "GatewayTimeoutError"),
)
"""``type`` of an error by its status, in vLLM's manner."""

NO_HOST: Data = {"header_filter": {"header": {"name": ":authority", "present_match": False}}}
"""What could not be parsed, and what came without a Host header: Envoy has no message of its own for it."""

CONNECT: Data = {"header_filter": {"header": {"name": ":method", "string_match": {"exact": "CONNECT"}}}}

NO_PATH: Data = {"header_filter": {"header": {"name": ":path", "string_match": {"prefix": "/"}, "invert_match": True}}}
"""``OPTIONS *``."""

HEALTH_OF_MODEL: Data = {"header_filter": {"header": {"name": ":path", "string_match": {"prefix": "/health?"}}}}

NOT_HTTP: Data = {
    "or_filter": {"filters": [CONNECT, {"header_filter": {"header": {"name": "upgrade", "present_match": True}}}]}
}

SERVICE = f"%METADATA(ROUTE:{METADATA}:{limits.SERVICE})%"
LIMITED = f"%METADATA(ROUTE:{METADATA}:{limits.LIMITED})%"
PARAM = f"%METADATA(ROUTE:{METADATA}:param)%"


def listeners(plan: Plan) -> tuple[Data, ...]:
    """The resources of lds.json. Raises GatewayError when ``gateway.host`` is not an address."""
    own = (_listener(plan, own_port_name(s), s.port) for s in plan.routed if s.port)
    return (_listener(plan, MAIN, plan.gateway.port), *own, *_of_nodes(plan), _inside(plan))


def is_for_clients(listener: Data) -> bool:
    """Whether a resource of lds.json is not one that gateways alone can reach."""
    return "internal_listener" not in listener and listener["name"] not in (peers.NODES, peers.HERE)


def _inside(plan: Plan) -> Data:
    """Where the clusters of keys lead; nothing outside this process can reach it."""
    fields = {
        **_common(plan, by_key.LISTENER),
        # The rest can only happen before a request comes here.
        "local_reply_config": {"mappers": [_busy(), *_causes(), *_by_status()]},
        "http_filters": [_router()],
        # What the first listener said of the client holds.
        "use_remote_address": False,
        "skip_xff_append": True,
    }
    return typed(
        "config.listener.v3.Listener",
        name=by_key.LISTENER,
        internal_listener={},
        per_connection_buffer_limit_bytes=BUFFER,
        filter_chains=[{"filters": [_connection_manager(fields)]}],
    )


def _connection_manager(fields: Data) -> Data:
    return extension(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        **fields,
    )


def _listener(plan: Plan, name: str, port: int) -> Data:
    return _listening(name, _address(plan.gateway.host, port), _manager(plan, name), _tls(plan))


def _of_nodes(plan: Plan) -> Iterator[Data]:
    """For the gateways of other nodes, and for this one to ask as they do."""
    node = plan.here
    if node is None or not peers.listens(plan):
        return
    address = _address(node.listen, node.port)
    here = {"pipe": {"path": str(Home(Path(plan.home)).gateway_peer_socket), "mode": 0o600}}
    for_others = _listening(peers.NODES, address, _node_manager(plan, peers.NODES), peers.filter_chain(plan))
    yield for_others | peers.mark(plan) | {"socket_options": peers.socket_options()}
    # The log has the client's request already.
    yield _listening(peers.HERE, here, _node_manager(plan, peers.HERE) | {"access_log": []}, {})


def _listening(name: str, address: Data, manager: Data, chain: Data) -> Data:
    return typed(
        "config.listener.v3.Listener",
        name=name,
        address=address,
        # With SO_REUSEPORT a second gateway could bind the same port, and half of the requests would go astray.
        enable_reuse_port=False,
        tcp_backlog_size=1024,
        per_connection_buffer_limit_bytes=BUFFER,
        filter_chains=[{"filters": [_connection_manager(manager)], **chain}],
    )


def _tls(plan: Plan) -> Data:
    tls = plan.gateway.tls
    return {} if tls is None else filter_chain(tls, lambda name: resource_source(plan, name))


def _address(host: str, port: int) -> Data:
    try:
        address = ipaddress.ip_address({"localhost": "127.0.0.1"}.get(host, host))
    except ValueError:
        raise GatewayError(
            f"gateway.host: {host!r} is not an IP address", "use 127.0.0.1 for this machine only, 0.0.0.0 for all"
        ) from None
    both = {"ipv4_compat": True} if str(address) == "::" else {}
    return {"socket_address": {"address": str(address), "port_value": port, **both}}


def _common(plan: Plan, name: str) -> Data:
    return {
        "stat_prefix": name,
        "rds": {"route_config_name": name, "config_source": resource_source(plan, routes_file(name))},
        "stream_idle_timeout": STREAM_IDLE,
        "server_name": "llmhost",
        "preserve_external_request_id": True,
    }


def _manager(plan: Plan, name: str) -> Data:
    """For clients."""
    early = [access.early_mutation()]
    return _from_outside(plan, name, _filters(plan), _mappers(plan), early_header_mutation_extensions=early)


def _from_outside(plan: Plan, name: str, filters: list[Data], mappers: list[Data], **more: list[Data]) -> Data:
    return {
        **_common(plan, name),
        **SLOWEST,
        # The client is whoever connects: its x-envoy-* headers, which could change timeouts and retries, are dropped.
        "use_remote_address": True,
        "http_protocol_options": {"accept_http_10": True, "default_host_for_http_10": "llmhost"},
        "http2_protocol_options": HTTP2,
        **more,
        "http_filters": filters,
        "access_log": access_log(),
        "local_reply_config": {"mappers": mappers},
    }


def _router() -> Data:
    return extension(
        "envoy.filters.http.router", "extensions.filters.http.router.v3.Router", suppress_envoy_headers=True
    )


def _node_manager(plan: Plan, name: str) -> Data:
    """What comes from a gateway was read, counted and let through there: here it only finds its engine."""
    rds = {"route_config_name": peers.NODES, "config_source": resource_source(plan, routes_file(peers.NODES))}
    # Whoever asked tries another node then; without one, the client reads what the last of them said.
    mappers = _mappers(plan, not_ready=_status("EQ", 503))
    return _from_outside(plan, name, [*peers.health_filters(plan), _router()], mappers) | {"rds": rds}


def _filters(plan: Plan) -> list[Data]:
    limit = extension(
        "envoy.filters.http.body_size_limit",
        "extensions.filters.http.body_size_limit.v3.BodySizeLimit",
        max_request_bytes=plan.gateway.max_body_bytes,
    )
    # A route sets the limit of what is held back while `model` is looked for, but not one that answers by itself, which
    # is what is found first when several services could be meant: then only BUFFER bytes would get through.
    hold = extension(
        "envoy.filters.http.buffer",
        "extensions.filters.http.buffer.v3.Buffer",
        max_request_bytes=plan.gateway.max_body_bytes,
    )
    rule = {
        "selectors": [{"key": "model"}],
        "on_present": {"metadata_namespace": METADATA, "key": "model", "type": "STRING"},
        "on_error": {"metadata_namespace": METADATA, "key": "malformed", "value": True},
    }
    # Whatever the body is, something is said about it: Envoy then looks for the route again, now that it is known whose
    # request it is.
    done = {"metadata_namespace": METADATA, "key": "read", "value": True}
    always = {"selectors": [{"key": "model"}], "on_present": done, "on_missing": done, "on_error": done}
    read = extension(
        "envoy.filters.http.json_to_metadata",
        "extensions.filters.http.json_to_metadata.v3.JsonToMetadata",
        # Whatever a client calls its body, it is routed by what is in it; vLLM then judges the content type.
        request_rules={
            "rules": [rule, always],
            "allow_content_types_regex": {"regex": ".*"},
            "allow_empty_content_type": True,
        },
    )
    who = [*limits.response_filters(), *access.filters(), limits.key_filter()]
    return [*who, limit, hold, read, limits.service_filter(), sticky.reader(), _router()]


def _mappers(plan: Plan, not_ready: Data | None = None) -> list[Data]:
    """Local replies by cause, then by status. Answers with status 200 match none and stay as they are.

    ``not_ready`` finds the replies of routes that have no engine, by default of those that are asked for health.
    """
    mebibytes = plan.gateway.max_body_bytes / 2**20
    full = _error("The gateway is out of memory for the moment", "ServiceUnavailableError")
    return [
        *_refused(),
        *_causes(),
        # Not larger than the gateway takes, but than a service does: its route says so.
        _mapper(_both(_status("EQ", 413), _body_up_to(plan)), _error("%LOCAL_REPLY_BODY%", "RequestTooLargeError")),
        _not_ready(not_ready or _both(_status("EQ", 503), HEALTH_OF_MODEL)),
        # Every other cause has a flag, see above.
        _mapper(_status("EQ", 503), full) | {"headers_to_add": [_header("retry-after", RETRY_AFTER)]},
        _mapper(_status("EQ", 413), _error(f"The request is larger than {mebibytes:g} MiB", "RequestTooLargeError")),
        _mapper(_both(_status("EQ", 400), NO_HOST), _error("The request is not valid HTTP/1.1", "BadRequestError")),
        _mapper(_both(_status("EQ", 404), NO_PATH), _error("The request has no path", "NotFoundError")),
        # The only 403 of Envoy itself: a request for WebSocket or another protocol.
        _mapper(_both(_status("EQ", 403), NOT_HTTP), _error("Only plain HTTP is served here", "PermissionDeniedError")),
        *_by_status(),
    ]


def _not_ready(found: Data) -> Data:
    """The reply of a route, which says of what there is no engine."""
    body = _error("%LOCAL_REPLY_BODY%", "ServiceUnavailableError")
    return _mapper(found, body) | {"headers_to_add": [_header("retry-after", RETRY_AFTER)]}


def _causes() -> list[Data]:
    """What happened to the engine."""
    return [
        _by_cause(("UH", "UF", "NC"), 503, f"The service '{SERVICE}' has no engine that is ready", retry=True),
        _by_cause(("UC", "UR", "LR", "UPE"), 502, f"The engine of the service '{SERVICE}' broke off its answer"),
        _by_cause(("UT", "SI", "DT", "UMSDR"), 504, f"The service '{SERVICE}' did not answer in time"),
    ]


def _by_status() -> list[Data]:
    return [
        *(_mapper(_status("EQ", code), _error("%LOCAL_REPLY_BODY%", kind)) for code, kind in ERROR_TYPES),
        _mapper(_status("GE", 500), _error("%LOCAL_REPLY_BODY%", "InternalServerError")),
        _mapper(_status("GE", 400), _error("%LOCAL_REPLY_BODY%", "BadRequestError")),
    ]


def _body_up_to(plan: Plan) -> Data:
    length = {"start": "0", "end": str(plan.gateway.max_body_bytes + 1)}
    return {"header_filter": {"header": {"name": "content-length", "range_match": length}}}


def _refused() -> list[Data]:
    """No key, a wrong one, too many requests: in the words that a client's developer needs."""
    missing = _error(
        "No API key: send it as `Authorization: Bearer <key>` or `x-api-key: <key>`", "AuthenticationError"
    )
    wrong = _error("The API key is not valid", "AuthenticationError")
    often = _error("Too many requests in this minute", "RateLimitError")
    bearer = {"headers_to_add": [_header("www-authenticate", "Bearer")]}
    return [
        # Who is known is refused by a route, which says why: the key has expired.
        _mapper(_both(_status("EQ", 401), _sent(access.USER)), _error("%LOCAL_REPLY_BODY%", "AuthenticationError")),
        _mapper(_both(_status("EQ", 401), _either("authorization", "x-api-key")), wrong) | bearer,
        _mapper(_status("EQ", 401), missing) | bearer,
        _busy(),
        _mapper(_status("EQ", 429), often),
    ]


def _busy() -> Data:
    body = _error(f"{LIMITED} has as many requests at once as it may have", "RateLimitError")
    return _mapper(_flags("UO"), body) | {"status_code": 429, "headers_to_add": [_header("retry-after", "1")]}


def _sent(header: str) -> Data:
    return {"header_filter": {"header": {"name": header, "present_match": True}}}


def _either(*headers: str) -> Data:
    return {"or_filter": {"filters": [_sent(header) for header in headers]}}


def _header(name: str, value: str) -> Data:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _by_cause(flags: tuple[str, ...], status: int, message: str, *, retry: bool = False) -> Data:
    mapper = _mapper(_flags(*flags), _error(message, dict(ERROR_TYPES)[status])) | {"status_code": status}
    if retry:
        mapper["headers_to_add"] = [{"header": {"key": "retry-after", "value": RETRY_AFTER}}]
    return mapper


def _flags(*flags: str) -> Data:
    return {"response_flag_filter": {"flags": list(flags)}}


def _both(*filters: Data) -> Data:
    return {"and_filter": {"filters": list(filters)}}


def _status(op: str, value: int) -> Data:
    comparison = {"op": op, "value": {"default_value": value, "runtime_key": f"llmhost.status.{op}.{value}".lower()}}
    return {"status_code_filter": {"comparison": comparison}}


def _mapper(found: Data, body: Data) -> Data:
    return {"filter": found, "body_format_override": {"json_format": body}}


def _error(message: str, kind: str) -> Data:
    return {"error": {"message": message, "type": kind, "param": PARAM, "code": "%RESPONSE_CODE%"}}
