"""Members that are not vLLM: where they listen, how they are looked at, other paths, another name of the model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from llmhost.errors import GatewayError
from llmhost.facts import ServiceKind
from llmhost.gateway.endpoints import Endpoint, groups
from llmhost.gateway.envoy import METADATA, Data, extension, upstream_codec
from llmhost.plan.types import ForeignPlan, ProgramPlan, ServicePlan

HOST = "localhost"
"""What a server is called on the loopback: some refuse requests to any other name (ollama, against DNS rebinding)."""

HEADER = "x-llmhost-model"
"""Carries the name from a member's metadata to the script, on the way to that member; no engine sees it."""
NAMING = "llmhost.model"
"""The filter that writes it."""

RENAME = r"""
-- Gives the engine another name of the model: the value of the last "model" in the outermost object of the body, which
-- is the one that counts. The rest stays byte for byte as it is.
local function string_end(text, first)
  local i = text:find('["\\]', first + 1)
  while i and text:byte(i) == 92 do
    i = text:find('["\\]', i + 2)
  end
  return i
end

local function plain(key)
  return (key:gsub('\\u00(%x%x)', function(code) return string.char(tonumber(code, 16)) end))
end

local function value_end(text, first)
  if text:byte(first) == 34 then return string_end(text, first) end
  local _, last = text:find('^[%w.+-]+', first)
  return last
end

local function model_at(text)
  local depth, i, first, last = 0, 1, nil, nil
  while true do
    i = text:find('["%[%]{}]', i)
    if i == nil then return first, last end
    local c = text:byte(i)
    if c == 34 then
      local stop = string_end(text, i)
      if stop == nil then return nil end
      local _, colon = text:find('^%s*:%s*', stop + 1)
      if depth == 1 and colon and plain(text:sub(i + 1, stop - 1)) == 'model' then
        first, last = colon + 1, value_end(text, colon + 1)
      end
      i = stop
    elseif c == 91 or c == 123 then depth = depth + 1
    else depth = depth - 1 end
    i = i + 1
  end
end

function envoy_on_request(handle)
  local name = handle:headers():get('HEADER')
  if name == nil then return end
  handle:headers():remove('HEADER')
  local body = handle:body()
  if body == nil then return end
  local text = body:getBytes(0, body:length())
  local first, last = model_at(text)
  if first and last then
    body:setBytes(text:sub(1, first - 1) .. name .. text:sub(last + 1))
    return
  end
  local close = text:find('}%s*$')
  if close == nil or not text:find('^%s*{') then return end
  local comma = text:find('^%s*{%s*}%s*$') and '' or ','
  body:setBytes(text:sub(1, close - 1) .. comma .. '"model":' .. name .. text:sub(close))
end
"""


def member(replica: ProgramPlan) -> Data:
    """One that listens on a TCP port of the loopback."""
    address, _, port = replica.socket.rpartition(":")
    place = {"socket_address": {"address": address, "port_value": int(port)}}
    return {"endpoint": {"address": place, "hostname": HOST, "health_check_config": {"hostname": HOST}}}


def health_path(foreign: ForeignPlan) -> str:
    """What whoever asks the gateway for the health of a model is answered by: written, or what OpenAI's API has."""
    return foreign.looked_at or "/v1/models"


def health_check(foreign: ForeignPlan) -> Data:
    """GET where somebody wrote a path for it, else whether it accepts connections."""
    if not foreign.looked_at:
        return {"tcp_health_check": {}}
    fine = [{"start": "200", "end": "300"}]
    return {"http_health_check": {"path": foreign.looked_at, "expected_statuses": fine}}


def renamed(service: ServicePlan, served: Sequence[Endpoint]) -> dict[Endpoint, str]:
    """Of these endpoints those that have another path at the engine, and that path."""
    paths = service.foreign.paths if service.foreign else {}
    return {endpoint: paths[endpoint.path] for endpoint in served if endpoint.path in paths}


def rewritten(route: Data, path: str) -> Data:
    """The same route, but what it sends on goes to another path; the query stays."""
    if "route" not in route:
        return route
    return route | {"route": route["route"] | {"prefix_rewrite": path}}


def require_routed_paths(service: str, kind: ServiceKind, paths: Iterable[str]) -> None:
    """Raise GatewayError for ``paths`` of a service that the gateway does not send to one of its kind."""
    known = [e.path for group in groups() if group.by_model and kind in group.served_by for e in group.endpoints]
    for path in paths:
        if path not in known:
            raise GatewayError(
                f"services.{service}.paths: {path} is not sent to a service of kind {kind}",
                f"these are: {', '.join(known)}",
            )


def naming(service: ServicePlan) -> Data:
    """Metadata of a member: the name that it knows its model by, as it stands in JSON; {} where it keeps the client's.

    Of the member, not of the cluster: while a service changes, engines that want different names are in one cluster.
    """
    name = service.foreign.model_name if service.foreign else None
    return {} if name is None else {"metadata": {"filter_metadata": {METADATA: {"model": json.dumps(name)}}}}


def filters(service: ServicePlan) -> Data:
    """Options of the cluster's protocol: each member gets the name that it knows its model by, see `naming`."""
    if not naming(service):
        return {}
    value = {"key": HEADER, "value": f"%UPSTREAM_METADATA({METADATA}:model)%"}
    mutations: list[Data] = [
        {"remove": HEADER},
        {"append": {"header": value, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}},
    ]
    naming_filter = extension(
        NAMING,
        "extensions.filters.http.header_mutation.v3.HeaderMutation",
        mutations={"request_mutations": mutations},
    )
    rename = extension(
        "envoy.filters.http.lua",
        "extensions.filters.http.lua.v3.Lua",
        default_source_code={"inline_string": RENAME.replace("HEADER", HEADER)},
    )
    return {"http_filters": [naming_filter, rename, upstream_codec()]}
