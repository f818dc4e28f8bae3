"""Requests that belong together go to the same replica, so that its prefix cache is used.

A hash of what they have in common chooses a replica on a ring; one that is much busier than the others passes them on
to the next (consistent hashing with bounded loads), so a system prompt that everybody sends does not bury one engine.
"""

from __future__ import annotations

from llmhost.gateway.envoy import Data, extension, typed
from llmhost.plan.types import ServicePlan

PREFIX_HEADER = "x-llmhost-prefix"
LUA = "envoy.filters.http.lua"

BALANCE_PERCENT = 150
"""A replica may have this share of what each has on average before it passes requests on."""

LOOKED_AT = 65536
"""Bytes of a body in which its messages must begin."""

SCRIPT = """
-- Hashes the beginning of a request: its messages up to the first one of the user, which stay the same while a
-- conversation grows, or its prompt or input; at most PREFIX bytes of it.
local function last_byte(text, first, limit)
  local depth, quoted, begin, i = 0, false, first, first
  while i <= limit do
    local c = text:byte(i)
    if quoted then
      if c == 92 then i = i + 1 elseif c == 34 then quoted = false end
    elseif c == 34 then quoted = true
    elseif c == 91 or c == 123 then
      if depth == 1 then begin = i end
      depth = depth + 1
    elseif c == 93 or c == 125 then
      depth = depth - 1
      if depth <= 0 then return i end
      local user = depth == 1 and text:find('"user"', begin, true)
      if user and user <= i then return i end
    elseif c == 44 and depth == 0 then return i
    end
    i = i + 1
  end
  return limit
end

function envoy_on_request(handle)
  handle:headers():remove("HEADER")
  local body = handle:body()
  if body == nil then return end
  local text = body:getBytes(0, math.min(body:length(), LOOKED_AT + PREFIX))
  for _, key in ipairs({'"messages"%s*:%s*', '"prompt"%s*:%s*', '"input"%s*:%s*'}) do
    local _, stop = text:find(key)
    if stop then
      local hash = 5381
      for i = stop + 1, last_byte(text, stop + 1, math.min(#text, stop + PREFIX)) do
        hash = (hash * 33 + text:byte(i)) % 4294967296
      end
      handle:headers():add("HEADER", string.format("%.0f", hash))
      return
    end
  end
end
"""


def reader() -> Data:
    """The filter that reads prefixes; it does nothing but on routes that want it (`route_filters`).

    It is always there: a listener that changed would close its connections.
    """
    return extension(LUA, "extensions.filters.http.lua.v3.Lua")


def route_filters(service: ServicePlan) -> Data:
    """Per-route configuration of `reader`."""
    if service.sticky is None or service.sticky.prefix is None:
        return {}
    values = {"HEADER": PREFIX_HEADER, "LOOKED_AT": str(LOOKED_AT), "PREFIX": str(service.sticky.prefix)}
    script = SCRIPT
    for word, value in values.items():
        script = script.replace(word, value)
    source = {"inline_string": script}
    return {LUA: typed("extensions.filters.http.lua.v3.LuaPerRoute", source_code=source)}


def hash_policy(service: ServicePlan) -> list[Data]:
    """What the routes of a service hash."""
    if service.sticky is None:
        return []
    return [{"header": {"header_name": service.sticky.header or PREFIX_HEADER}}]


def balancing(service: ServicePlan) -> Data:
    """How a cluster chooses a member."""
    # No panic: with no healthy engine the answer is 503 at once, not a try at a dead one.
    # No merging: by default Envoy's threads hear up to a second late that a member came back or failed.
    common: Data = {"healthy_panic_threshold": {"value": 0}, "update_merge_window": "0s"}
    if service.sticky is None:
        return {"lb_policy": "LEAST_REQUEST", "common_lb_config": common}
    bounded = {"consistent_hashing_lb_config": {"hash_balance_factor": BALANCE_PERCENT}}
    return {"lb_policy": "RING_HASH", "common_lb_config": common | bounded}
