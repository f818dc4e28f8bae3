"""Keys, scopes and limits in the gateway's configuration."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmhost.errors import RenderError
from llmhost.gateway import render_gateway
from llmhost.plan import stored
from llmhost.plan.types import KeyPlan, Plan
from tests.unit.gateway.issued import issue
from tests.unit.gateway.plans import make_plan, make_service

HOME = Path("/srv/llmhost")
CHAT = make_service(HOME, "chat", "chat", ("gpt-4",))
EMBED = make_service(HOME, "embedding", "embed", ("gte",), port=1283)


def plan_with(*keys: KeyPlan, locked: bool = True) -> Plan:
    plan = make_plan(HOME, CHAT, EMBED)
    return replace(plan, gateway=replace(plan.gateway, keys=keys, locked=locked))


def files(plan: Plan) -> dict[str, str]:
    return {f.path.rpartition("/")[2]: f.text for f in render_gateway(plan)}


def host(plan: Plan, name: str = "rds.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files(plan)[name])["resources"][0]["virtual_hosts"][0]
    return found


def test_keys_change_the_route_files_and_no_other() -> None:
    before, after = files(plan_with(issue("a")[0])), files(plan_with(issue("b", ("chat",))[0], issue("c")[0]))
    assert {name for name in before if before[name] != after[name]} == {"rds.json", "rds-port-embedding.json"}


def test_every_port_of_a_locked_gateway_checks_keys() -> None:
    plan = plan_with()
    for name in ("rds.json", "rds-port-embedding.json"):
        users = host(plan, name)["typed_per_filter_config"]["llmhost.auth"]["users"]["inline_string"]
        assert users == "# llmhost"
        open_routes = [r for r in host(plan, name)["routes"] if "llmhost.auth" in r.get("typed_per_filter_config", {})]
        assert {r["match"]["safe_regex"]["regex"] for r in open_routes} == {"/health"}
        assert all(r["match"]["headers"][0]["string_match"]["safe_regex"]["regex"] == "GET|HEAD" for r in open_routes)


def test_a_locked_gateway_has_no_route_to_an_engine_that_does_not_ask_for_a_key() -> None:
    routes = host(plan_with(issue("a")[0], issue("b", ("chat",))[0]))["routes"]
    for route in routes:
        if "cluster" in route.get("route", {}) and route["match"]["safe_regex"]["regex"] != "/health":
            assert any(m["path"] == [{"key": "key"}] for m in route["match"]["dynamic_metadata"])


def test_an_open_gateway_asks_nobody() -> None:
    assert "llmhost.auth" not in host(plan_with(locked=False))["typed_per_filter_config"]


def test_the_key_and_its_digest_are_in_the_route_files_only() -> None:
    key, text = issue("a")
    plan = plan_with(key)
    assert all(text not in content for content in files(plan).values())
    holding = {name for name, content in files(plan).items() if key.digest in content}
    assert holding == {"rds.json", "rds-port-embedding.json"}
    assert key.digest not in json.dumps(stored.to_dict(plan))
    assert key.digest not in repr(plan)


def test_a_plan_that_was_read_back_cannot_be_rendered_as_if_there_were_no_keys() -> None:
    again = stored.from_dict(json.loads(json.dumps(stored.to_dict(plan_with(issue("a")[0])))))
    assert again.gateway.locked
    with pytest.raises(RenderError, match="digest of the API key a"):
        render_gateway(again)
