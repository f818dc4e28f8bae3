"""A plan as JSON: what `conf/plan.json` holds, and the way back. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from llmhost.facts import Tools
from llmhost.plan.types import (
    Choice,
    ElsewherePlan,
    EndpointPlan,
    EnginePlan,
    ForeignPlan,
    GatewayPlan,
    GroupPlan,
    KeyPlan,
    Limits,
    NodePlan,
    Plan,
    ProgramPlan,
    RequestPlan,
    ServicePlan,
    StickyPlan,
    TlsPlan,
)


def to_dict(plan: Plan) -> dict[str, Any]:
    """JSON-ready; `from_dict` reads it back.

    Without what is for Envoy only (digests of keys, keys of endpoints) and ``on_event``, for the guards only.
    """
    keys = tuple(replace(key, digest="") for key in plan.gateway.keys)
    data = asdict(replace(plan, gateway=replace(plan.gateway, keys=keys)))
    for service in data["services"]:
        service["endpoints"] = tuple({**endpoint, "key": None} for endpoint in service["endpoints"])
        service["replicas"] = tuple(map(_without_secret, service["replicas"]))
        if not service["part_of"]:
            del service["part_of"]
        if not plan.nodes:
            del service["elsewhere"]
    left_out = ("on_event",) if plan.nodes else ("on_event", "node", "nodes", "placement")
    return {key: value for key, value in data.items() if key not in left_out}


def from_dict(data: Mapping[str, Any]) -> Plan:
    """The inverse of `to_dict` after a trip through JSON; raises KeyError or TypeError on foreign data."""
    return Plan(
        home=data["home"],
        tools=Tools(**data["tools"]),
        engine=EnginePlan(**data["engine"]),
        gateway=_gateway(data["gateway"]),
        services=tuple(_service(s) for s in data["services"]),
        node=data.get("node", ""),
        nodes=tuple(NodePlan(**n) for n in data.get("nodes", ())),
        placement=data.get("placement", ""),
    )


def _without_secret(program: dict[str, Any]) -> dict[str, Any]:
    """And without a group where there is none."""
    if program["group"]:
        return {**program, "group": {**program["group"], "secret": ""}}
    return {key: value for key, value in program.items() if key != "group"}


def _gateway(data: Mapping[str, Any]) -> GatewayPlan:
    tls = TlsPlan(**data["tls"]) if data["tls"] else None
    keys = tuple(_key(k) for k in data["keys"])
    return GatewayPlan(**{**data, "keys": keys, "tls": tls, "key_limits": Limits(**data["key_limits"])})


def _key(data: Mapping[str, Any]) -> KeyPlan:
    services = None if data["services"] is None else tuple(data["services"])
    return KeyPlan(**{**data, "services": services, "limits": Limits(**data["limits"])})


def _service(data: Mapping[str, Any]) -> ServicePlan:
    replicas = tuple(_program(p) for p in data["replicas"])
    more = {
        "limits": Limits(**data["limits"]),
        "served_as": tuple(data["served_as"]),
        "endpoints": tuple(EndpointPlan(**e) for e in data["endpoints"]),
        "sticky": StickyPlan(**data["sticky"]) if data["sticky"] else None,
        "choices": tuple(Choice(**c) for c in data.get("choices", ())),
        "needs": tuple(data.get("needs", ())),
        "elsewhere": tuple(ElsewherePlan(e["node"], tuple(e["replicas"])) for e in data.get("elsewhere", ())),
        "foreign": _foreign(data["foreign"]) if data.get("foreign") else None,
    }
    return ServicePlan(**{**data, **more, "replicas": replicas})


def _foreign(data: Mapping[str, Any]) -> ForeignPlan:
    requests = {key: RequestPlan(**data[key]) if data[key] else None for key in ("ready", "health")}
    return ForeignPlan(**{**data, **requests})


def _program(data: Mapping[str, Any]) -> ProgramPlan:
    lists = {key: tuple(data[key]) for key in ("argv", "gpus", "cores")}
    return ProgramPlan(**{**data, **lists, "group": _group(data["group"]) if data.get("group") else None})


def _group(data: Mapping[str, Any]) -> GroupPlan:
    return GroupPlan(**{**data, **{key: tuple(data[key]) for key in ("nodes", "addresses")}})
