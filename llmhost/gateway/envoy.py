"""The vocabulary of Envoy's configuration that the other modules share: types, matchers, resource files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llmhost.gateway.endpoints import Endpoint
from llmhost.paths import Home
from llmhost.plan.types import Plan

Data = dict[str, Any]
"""A protobuf message of Envoy's API in its JSON form."""

METADATA = "llmhost"
"""Namespace of our dynamic metadata (read from the body) and of our route metadata."""

MODEL = f"%DYNAMIC_METADATA({METADATA}:model)%"
"""Format operator: the model that the request named."""


def typed(name: str, /, **fields: Any) -> Data:
    """A message that is packed into an Any: ``name`` is its full name after ``envoy.``."""
    return {"@type": f"type.googleapis.com/envoy.{name}", **fields}


def extension(name: str, type_name: str, /, **fields: Any) -> Data:
    """A named extension (filter, resource monitor, …) with its configuration."""
    return {"name": name, "typed_config": typed(type_name, **fields)}


def upstream_codec() -> Data:
    """The last filter of a cluster's own."""
    return extension("envoy.filters.http.upstream_codec", "extensions.filters.http.upstream_codec.v3.UpstreamCodec")


def literal(text: str) -> str:
    """Text as part of a format string: Envoy's operators start with '%'."""
    return text.replace("%", "%%")


def paths_regex(endpoints: Iterable[Endpoint]) -> str:
    """A regular expression (RE2) that matches exactly these paths; ``{id}`` is one segment of plain characters."""
    paths = (re.escape(e.path).replace(re.escape("{id}"), "[A-Za-z0-9._-]+") for e in endpoints)
    return "|".join(paths)


def match(regex: str, *methods: str, metadata: Sequence[Data] = ()) -> Data:
    """A route match on the whole path (without query), the methods if any are given, and dynamic metadata."""
    found: Data = {"safe_regex": {"regex": regex}}
    if methods:
        value = {"exact": methods[0]} if len(methods) == 1 else {"safe_regex": {"regex": "|".join(methods)}}
        found["headers"] = [{"name": ":method", "string_match": value}]
    if metadata:
        found["dynamic_metadata"] = list(metadata)
    return found


def metadata_is(key: str, values: Sequence[str]) -> Data:
    """Matches when dynamic metadata ``key`` is one of ``values`` (at least one)."""
    exact: list[Data] = [{"string_match": {"exact": value}} for value in values]
    # Envoy's or_match wants at least two members.
    value = exact[0] if len(exact) == 1 else {"or_match": {"value_matchers": exact}}
    return {"filter": METADATA, "path": [{"key": key}], "value": value}


def metadata_present(key: str) -> Data:
    """Matches when dynamic metadata has ``key``."""
    return {"filter": METADATA, "path": [{"key": key}], "value": {"present_match": True}}


def resource_file(resources: Sequence[Data]) -> str:
    """A DiscoveryResponse as Envoy reads it from a file; its version is a hash of what it holds."""
    body = json.dumps(resources, ensure_ascii=False, sort_keys=True)
    version = hashlib.sha256(body.encode()).hexdigest()[:16]
    document = {"version_info": version, "resources": list(resources)}
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def version_of(text: str) -> str:
    """The version of a file that `resource_file` made."""
    return str(json.loads(text)["version_info"])


def resource_source(plan: Plan, name: str) -> Data:
    """Where Envoy finds a resource file; it looks again whenever something is renamed into the directory."""
    folder = gateway_dir(plan)
    return {
        "resource_api_version": "V3",
        "path_config_source": {"path": f"{folder}/{name}.json", "watched_directory": {"path": folder}},
    }


def gateway_dir(plan: Plan) -> str:
    """The directory of the rendered gateway files."""
    return str(Home(Path(plan.home)).gateway_conf)
