"""Servers on other hosts, and stickiness, in llmhost.yaml and in the plan."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmhost import config
from llmhost.errors import ConfigError, PlanError
from llmhost.facts import EndpointFacts
from llmhost.gateway import render_gateway
from llmhost.plan import Plan, stored
from llmhost.plan.build import make_plan
from llmhost.plan.types import EndpointPlan, StickyPlan
from llmhost.probe.endpoint import read_key
from llmhost.render import render
from tests.samples import machine, model


def parse(service: str) -> config.Service:
    return config.parse(f"services: {{chat: {{model: /m, {service}}}}}").services["chat"]


def plan(text: str, *facts: EndpointFacts, service: str = "chat") -> Plan:
    here = replace(machine(), endpoints={service: facts})
    return make_plan(config.parse(text), here, {"chat": model()})


def test_an_endpoint_is_one_line_or_several_keys() -> None:
    assert [e.url for e in parse("endpoints: http://10.0.0.2:8000").endpoints] == ["http://10.0.0.2:8000"]
    (first, second) = parse("endpoints: [https://gpu, {url: 'http://[fd00::1]/', key_file: keys/two}]").endpoints
    assert (first.url, first.key_file) == ("https://gpu:443", None)
    assert (second.url, second.key_file) == ("http://[fd00::1]:80", "keys/two")


@pytest.mark.parametrize(
    ("service", "message"),
    [
        ("endpoints: [10.0.0.2:8000]", "'10.0.0.2:8000' is not of the form http://HOST:PORT"),
        ("endpoints: [ftp://a]", "'ftp://a' is not of the form"),
        ("endpoints: ['http://u:secret@a']", "is not of the form"),
        ("endpoints: [http://a/v1]", "'http://a/v1' must end behind the port"),
        ("endpoints: ['http://a?x=1']", "must end behind the port"),
        ("endpoints: ['http://a:99999']", "endpoints.0.url"),
        ("endpoints: [{key_file: a}]", "endpoints.0.url"),
        ("endpoints: [{url: http://a, key: sk}]", "unknown key services.chat.endpoints.0.key"),
        ("endpoints: 5", "services.chat.endpoints"),
        (
            "endpoints: [http://a, 'http://a:80']",
            "endpoint 'http://a:80' is used by both endpoints[0] and endpoints[1]",
        ),
        ("replicas: 0", "replicas: 0 leaves nobody to serve it"),
        ("replicas: 0, endpoints: [http://a]", "write kind: chat, embed or rerank"),
        ("sticky: yes", "services.chat.sticky"),
        ("sticky: {}", "write either a header or a prefix"),
        ("sticky: {header: x-a, prefix: 100}", "write either a header or a prefix"),
        ("sticky: {header: 'x a'}", "services.chat.sticky.header"),
        ("sticky: {prefix: 0}", "services.chat.sticky.prefix"),
        ("sticky: {heder: x}", "unknown key services.chat.sticky.heder"),
    ],
)
def test_mistakes_are_named(service: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(service)
    assert message in caught.value.message
    assert caught.value.hint


def test_an_unknown_key_is_answered_with_those_of_its_own_section() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("endpoints: [{url: http://a, keyfile: sk}]")
    assert "did you mean key_file?" in caught.value.hint


FAR = "services: {chat: {model: /m, endpoints: [http://gpu2:8000]}}"
ALONE = "services: {chat: {model: qwen, kind: chat, replicas: 0, endpoints: [http://gpu2:8000]}}"
FACTS = EndpointFacts("10.0.0.2", False, "sk-verysecret")


def test_a_plan_with_another_host() -> None:
    made = plan(FAR, FACTS)
    assert made.services[0].endpoints == (EndpointPlan("http://gpu2:8000", "10.0.0.2", key="sk-verysecret"),)
    assert made.services[0].endpoints[0].member == "10.0.0.2:8000"
    assert len(made.programs) == 1
    back = stored.from_dict(json.loads(json.dumps(stored.to_dict(made))))
    assert back.services[0].endpoints == (EndpointPlan("http://gpu2:8000", "10.0.0.2"),), "the key stays in memory"


def test_the_key_is_in_one_file_of_the_gateway_only() -> None:
    made = plan(FAR, FACTS)
    assert "sk-verysecret" not in repr(made)
    assert {f.path for f in render(made) if "sk-verysecret" in f.text} == {"conf/gateway/eds-chat.json"}


def test_a_service_without_a_replica_here_needs_no_model() -> None:
    made = make_plan(config.parse(ALONE), replace(machine(), endpoints={"chat": (FACTS,)}), {})
    (service,) = made.services
    assert (service.kind, service.model, service.replicas, made.programs) == ("chat", "qwen", (), ())
    assert stored.from_dict(json.loads(json.dumps(stored.to_dict(made)))).services[0].served_as == ("chat",)
    assert [f.path for f in render(made) if "/guard/" in f.path] == []


def test_a_gateway_that_is_its_own_endpoint_is_refused() -> None:
    ours = replace(FACTS, ours=True)
    with pytest.raises(PlanError, match="http://gpu2:8000 is this gateway itself"):
        plan(FAR, ours)
    plan(FAR.replace("8000", "8001"), ours)
    own_port = "services: {chat: {model: /m, port: 9000, endpoints: [http://gpu2:9000]}}"
    with pytest.raises(PlanError, match="this gateway itself"):
        plan(own_port, ours)


def test_stickiness_in_the_plan() -> None:
    assert plan("services: {chat: {model: /m, sticky: prefix}}").services[0].sticky == StickyPlan(prefix=1024)
    header = plan("services: {chat: {model: /m, sticky: {header: X-Session-Id}}}")
    assert header.services[0].sticky == StickyPlan(header="x-session-id")
    assert stored.from_dict(json.loads(json.dumps(stored.to_dict(header)))) == header


def test_what_sticks_is_in_clusters_and_routes_and_no_listener() -> None:
    def files(text: str) -> dict[str, str]:
        return {f.path: f.text for f in render_gateway(plan(text))}

    plain, sticky = files("services: {chat: {model: /m}}"), files("services: {chat: {model: /m, sticky: prefix}}")
    changed = {path.removeprefix("conf/gateway/") for path in plain if plain[path] != sticky[path]}
    assert changed == {"cds.json", "rds.json", "rds-keys.json"}
    cluster: dict[str, Any] = json.loads(sticky["conf/gateway/cds.json"])["resources"][0]
    assert cluster["lb_policy"] == "RING_HASH"


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [(None, 0, "cannot read the key"), ("", 0o600, "does not hold a key"), ("a b", 0o600, "does not hold a key"),
     ("schlüssel", 0o600, "plain characters"), ("sk", 0o644, "others can read the key")],
)  # fmt: skip
def test_a_key_file_that_cannot_be_used(tmp_path: Path, content: str | None, mode: int, message: str) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content)
        file.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        read_key(file)
    assert message in caught.value.message
    assert "sk" not in caught.value.message.replace(str(tmp_path), "")


def test_a_key_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-1\n")
    file.chmod(0o600)
    assert read_key(file) == "sk-1"
