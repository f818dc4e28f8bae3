"""The access log: one JSON object a line on Envoy's standard output, which supervisord writes to a file and rotates.

What is in a request or its answer is never in it, nor the query of its path, nor any header.
"""

from __future__ import annotations

from llmhost.gateway.access import KEY_NAME
from llmhost.gateway.envoy import METADATA, Data, extension

NAME_CHARACTERS = 200
"""Longest model name and path that are kept: clients choose them."""

FIELDS: Data = {
    "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
    "key": KEY_NAME,
    "service": f"%METADATA(ROUTE:{METADATA}:service)%",
    "model": f"%DYNAMIC_METADATA({METADATA}:model):{NAME_CHARACTERS}%",
    "method": "%REQ(:METHOD)%",
    "path": f"%PATH(NQ:PATH):{NAME_CHARACTERS}%",
    "status": "%RESPONSE_CODE%",
    "ms": "%DURATION%",
    "bytes_in": "%BYTES_RECEIVED%",
    "bytes_out": "%BYTES_SENT%",
    "flags": "%RESPONSE_FLAGS%",
}
"""``key`` is the name of the client's key, null without one; ``ms`` until the last byte; ``flags`` are Envoy's."""


def access_log() -> list[Data]:
    """The field of a connection manager; health checks that go well are left out."""
    entry = extension(
        "envoy.access_loggers.stdout",
        "extensions.access_loggers.stream.v3.StdoutAccessLog",
        log_format={"json_format": FIELDS},
    )
    return [entry | {"filter": {"or_filter": {"filters": [_not_health(), _failed()]}}}]


def _not_health() -> Data:
    path = {"safe_regex": {"regex": r"/health(\?.*)?"}}  # with a query: another llmhost that has us as an endpoint
    return {"header_filter": {"header": {"name": ":path", "string_match": path, "invert_match": True}}}


def _failed() -> Data:
    comparison = {"op": "GE", "value": {"default_value": 400, "runtime_key": "llmhost.access_log.failed"}}
    return {"status_code_filter": {"comparison": comparison}}
