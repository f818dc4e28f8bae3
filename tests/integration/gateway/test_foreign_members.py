"""Members that are not vLLM: each gets the name that it knows its model by. The real Envoy, stubs as engines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llmhost.gateway.clusters import merge_clusters, merge_members
from llmhost.plan.types import ForeignPlan, RequestPlan, ServicePlan
from tests.integration.gateway.running import Gateway
from tests.integration.gateway.stub import Stub
from tests.unit.gateway.plans import make_service

pytestmark = pytest.mark.integration

CHAT = "/v1/chat/completions"
BODIES = {
    '{"model": "a", "n": {"model": 1}, "x": ["model"]}': '{"model": "B/\\"%1", "n": {"model": 1}, "x": ["model"]}',
    '{"model": "x", "n": 1, "model" : "a"}': '{"model": "x", "n": 1, "model" : "B/\\"%1"}',
    '{"model": null, "n": 1}': '{"model": "B/\\"%1", "n": 1}',
    '{"mod\\u0065l": "a"}': '{"mod\\u0065l": "B/\\"%1"}',
    '{"model": {"a": 1}}': '{"model": {"a": 1},"model":"B/\\"%1"}',
    '{"n": 1} ': '{"n": 1,"model":"B/\\"%1"} ',
    "{ }": '{ "model":"B/\\"%1"}',
}
"""What a client sends, and what the engine gets. Of several values the last one counts, as JSON is read everywhere."""


def named(gateway: Gateway, name: str, number: int) -> ServicePlan:
    service = make_service(gateway.root, "a", replicas=2)
    foreign = ForeignPlan(health=RequestPlan("/health"), model_name=name)
    return replace(service, replicas=service.replicas[number:][:1], foreign=foreign)


def test_the_engine_gets_its_name_of_the_model(gateway: Gateway) -> None:
    service = named(gateway, 'B/"%1', 0)
    with Stub(Path(service.replicas[0].socket)) as stub, gateway.client() as client:
        gateway.start(service)
        gateway.wait_healthy(a=1)
        for sent in BODIES:
            headers = {"content-type": "application/json", "x-llmhost-model": "forged"}
            assert client.post(CHAT, content=sent, headers=headers).status_code == 200
        assert [s.body.decode() for s in stub.asked] == list(BODIES.values())
        assert not any("x-llmhost-model" in s.headers for s in stub.asked)


def test_members_of_two_plans_get_the_names_of_theirs(gateway: Gateway) -> None:
    """As while a service changes: one member is vLLM, the other one wants a name of its own."""
    vllm, foreign = replace(named(gateway, "", 0), foreign=None), named(gateway, "own", 1)
    first, second = (Stub(Path(s.replicas[0].socket), s.replicas[0].name) for s in (vllm, foreign))
    with first, second, gateway.client() as client:
        gateway.write(gateway.plan(foreign))
        files = [gateway.home.gateway_conf / f"{name}.json" for name in ("cds", "eds-a")]
        new = [file.read_text() for file in files]
        gateway.start(vllm)
        merge = (merge_clusters, merge_members)
        for file, text, united in zip(files, new, merge, strict=True):
            fresh = file.with_suffix(".tmp")
            fresh.write_text(united(file.read_text(), text))
            fresh.rename(file)
        gateway.wait_healthy(a=2)
        for _ in range(40):
            client.post(CHAT, json={"model": "a"})
        assert {json.loads(s.body)["model"] for s in first.asked} == {"a"}
        assert {json.loads(s.body)["model"] for s in second.asked} == {"own"}
