"""Who may ask: API keys, checked by Envoy's own filters.

A key is ``sk-`` and base64 of ``<user>:<secret>``, so that Envoy's basic_auth filter, which knows hashes only, can
check it: the filters below take it from ``Authorization: Bearer`` or ``x-api-key``, put it into the form of that
filter, and afterwards know the name of the key as dynamic metadata. The list of keys is configuration of the virtual
host: it comes with the routes, so a key is added or revoked without a listener being drained. The filter that decides
is off until a virtual host switches it on, and what switches it on is in the same file as the routes to the engines.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmhost.errors import RenderError
from llmhost.gateway.envoy import METADATA, Data, extension, typed
from llmhost.plan.types import GatewayPlan, KeyPlan

USER = "x-llmhost-user"
"""Request header inside the gateway: whose key it is, as Envoy found out. What a client sends under it is removed."""
TIME = "x-llmhost-time"
"""Request header inside the gateway: seconds since 1970, for keys that expire."""
CREDENTIAL = "x-llmhost-credential"
"""Request header inside the gateway: the key in the form of basic_auth."""
WAY = "x-llmhost-way"
"""Request header inside the gateway: the cluster of the key, where requests at once are counted for it."""
INTERNAL = (USER, TIME, CREDENTIAL, WAY)
TO = "x-llmhost-service"
"""Request header from that cluster to the listener inside, and between gateways: the service that is meant."""

KEY = "key"
"""Dynamic metadata: the name of the key."""

AUTH = "llmhost.auth"
STRIP = "llmhost.strip"
"""Names of the filters that a virtual host switches on."""

KEY_NAME = f"%DYNAMIC_METADATA({METADATA}:{KEY})%"
"""Format operator: the name of the key that was used."""


def early_mutation() -> Data:
    """Before anything is decided: remove what only the gateway may say, and say what time it is."""
    removed = [{"remove": name} for name in (*INTERNAL, TO)]
    now = _append(TIME, "%START_TIME(%s)%")
    return extension(
        "envoy.http.early_header_mutation.header_mutation",
        "extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        mutations=[*removed, now],
    )


def filters() -> list[Data]:
    """From the headers of a request to the metadata `KEY`; they do not depend on the keys."""
    credential = {"metadata_namespace": METADATA, "key": "credential", "type": "STRING"}
    read = _filter(
        "llmhost.credential",
        "header_to_metadata.v3.Config",
        # The second rule wins where both headers are there.
        request_rules=[
            _rule("authorization", credential, r"^(?i:bearer) +(?:sk-)?([A-Za-z0-9+/=]+)$"),
            _rule("x-api-key", credential, r"^(?:sk-)?([A-Za-z0-9+/=]+)$"),
        ],
    )
    value = f"Basic %DYNAMIC_METADATA({METADATA}:credential)%"
    rewrite = _mutation("llmhost.basic", [_append(CREDENTIAL, value)])
    auth = _filter(AUTH, "basic_auth.v3.BasicAuth", users={"inline_string": "#"}) | {"disabled": True}
    auth["typed_config"] |= {"forward_username_header": USER, "authentication_header": CREDENTIAL}
    name = {"metadata_namespace": METADATA, "key": KEY, "type": "STRING"}
    known = _filter("llmhost.key", "header_to_metadata.v3.Config", request_rules=[_rule(USER, name, r"^(.+)\.[0-9]+$")])
    return [read, rewrite, auth, known, _mutation(STRIP, [{"remove": CREDENTIAL}])]


def _rule(header: str, target: Data, regex: str) -> Data:
    rewrite = {"pattern": {"regex": regex}, "substitution": r"\1"}
    return {"header": header, "on_header_present": target | {"regex_value_rewrite": rewrite}}


def host_configuration(gateway: GatewayPlan, more: Sequence[Data] = ()) -> Data:
    """What the virtual host says to these filters: nothing at all unless the gateway is locked.

    ``more`` are mutations of a request whose key is known.
    """
    if not gateway.locked:
        return {}
    # Lines as in an htpasswd file; one that is a comment, so that no key at all is a list, too.
    lines = "\n".join(("# llmhost", *(_htpasswd(key) for key in gateway.keys)))
    # Engines have no use for the key, and whoever can read an engine's log must not find it there.
    mutations = [{"remove": "authorization"}, {"remove": "x-api-key"}, *more]
    return {
        AUTH: typed("extensions.filters.http.basic_auth.v3.BasicAuthPerRoute", users={"inline_string": lines}),
        STRIP: typed(
            "extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute",
            mutations={"request_mutations": mutations},
        ),
    }


def _htpasswd(key: KeyPlan) -> str:
    if not key.digest:
        raise RenderError(f"the digest of the API key {key.name} is not there", "this is a bug: please report it")
    return f"{key.user}:{{SHA}}{key.digest}"


def opened() -> Data:
    """Configuration of a route that needs no key."""
    return {AUTH: typed("config.route.v3.FilterConfig", disabled=True)}


def expired(key: KeyPlan) -> Data:
    """Headers that match a request with this key from its expiry on."""
    late = {"range_match": {"start": str(key.expires), "end": str(2**53)}}
    return {"headers": [{"name": USER, "string_match": {"exact": key.user}}, {"name": TIME, **late}]}


def one_of_keys(keys: Sequence[str]) -> Data:
    """Matches requests with one of these keys, by their names."""
    value = {"string_match": {"safe_regex": {"regex": "|".join(map(re.escape, keys))}}}
    return {"filter": METADATA, "path": [{"key": KEY}], "value": value}


def _append(name: str, value: str) -> Data:
    return {"append": {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}


def _mutation(name: str, mutations: Sequence[Data]) -> Data:
    return _filter(name, "header_mutation.v3.HeaderMutation", mutations={"request_mutations": list(mutations)})


def _filter(name: str, type_name: str, **fields: object) -> Data:
    return extension(name, f"extensions.filters.http.{type_name}", **fields)
