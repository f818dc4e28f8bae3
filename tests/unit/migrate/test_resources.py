"""Replicas, order and limits of compose services; and what a service is that serves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmhost import config
from llmhost.errors import ConfigError
from llmhost.migrate.compose import import_compose
from llmhost.migrate.read import to_yaml
from llmhost.migrate.report import Imported

COMPOSE = Path("/srv/llm/compose.yaml")


def compose(services: str) -> Imported:
    imported = import_compose({COMPOSE: f"services:\n{services}"}, {})
    config.parse(to_yaml(imported, [COMPOSE]), "what became of it")
    return imported


def outcomes(imported: Imported) -> dict[str, str]:
    return {line.source: line.outcome for line in imported.lines}


def test_limits_are_told() -> None:
    told = outcomes(
        compose("""
  a:
    image: vllm
    command: --model /m/q
    deploy: {resources: {limits: {memory: 20g, cpus: '4'}, reservations: {memory: 4g}}, placement: {}}
    devices: ["/dev/nvidia0:/dev/nvidia0"]
    mem_reservation: 1g
    x-foo: bar
""")
    )
    for source in (
        "deploy.resources.limits.memory: 20g",
        "deploy.resources.limits.cpus: 4",
        "deploy.resources.reservations.memory: 4g",
        "deploy.placement",
        "devices: ['/dev/nvidia0:/dev/nvidia0']",
        "mem_reservation: 1g",
        "x-foo",
    ):
        assert told[source] == "left out"
    assert "by hand" not in told.values()


@pytest.mark.parametrize("written", ["--port $$PORT", "--port 0", "--port"])
def test_a_port_that_is_none(written: str) -> None:
    told = outcomes(compose(f"  a: {{image: vllm, command: --model /m/q {written}}}\n"))
    assert told[written.replace("$$", "$")] == "by hand"


@pytest.mark.parametrize(
    ("written", "replicas", "outcome"),
    [
        ("deploy: {replicas: 3}", 3, "became"),
        ("scale: 2", 2, "became"),
        ("scale: 1", None, "became"),
        ("scale: 0", None, "by hand"),
        ("deploy: {replicas: 100}", None, "by hand"),
    ],
)
def test_replicas(written: str, replicas: int | None, outcome: str) -> None:
    imported = compose(f"  a:\n    image: vllm\n    command: --model /m/q\n    {written}\n")
    assert imported.config["services"]["a"].get("replicas") == replicas
    assert [o for source, o in outcomes(imported).items() if "replicas: " in source or "scale" in source] == [outcome]


def test_order() -> None:
    imported = compose("""
  chat_one: {image: vllm, command: --model org/a, depends_on: [chat-one, redis]}
  chat-one: {image: vllm, command: --model org/b, depends_on: {rerank: {condition: service_healthy}}}
  rerank: {image: vllm, command: --model org/c, depends_on: [chat_one]}
  redis: {image: redis}
""")
    services = imported.config["services"]
    assert [(n, s.get("needs")) for n, s in services.items()] == [
        ("chat-one-2", ["chat-one"]), ("chat-one", ["rerank"]), ("rerank", None),
    ]  # fmt: skip
    told = outcomes(imported)
    assert (told["depends_on redis"], told["depends_on chat_one"]) == ("left out", "by hand")


def test_replicas_do_not_need_each_other() -> None:
    imported = compose("""
  a: {image: vllm, command: --model org/a --port 1}
  b: {image: vllm, command: --model org/a --port 2, depends_on: [a]}
  c: {image: vllm, command: --model org/c, depends_on: [a, b]}
""")
    services = imported.config["services"]
    assert services["a"]["replicas"] == 2
    assert "needs" not in services["a"]
    assert services["c"]["needs"] == ["a"]


def test_what_serves_no_model() -> None:
    imported = compose("""
  good: {image: vllm, command: --model org/a, environment: {VLLM_USE_V1: "0", VLLM_ATTENTION_BACKEND: FLASHINFER}}
  bench: {image: vllm/vllm-openai, entrypoint: [vllm, bench], command: [throughput]}
  text: {image: vllm/vllm-openai, entrypoint: vllm bench, command: serve --model org/a}
""")
    assert list(imported.config["services"]) == ["good"]
    assert "env" not in imported.config["services"]["good"]
    told = {line.source: line.detail for line in imported.lines if line.outcome == "left out"}
    assert "attention_backend" in told["VLLM_ATTENTION_BACKEND=FLASHINFER"]
    assert told["vllm/vllm-openai: vllm bench"] == "it serves no model"
    with pytest.raises(ConfigError):
        compose("  bench: {image: vllm/vllm-openai, entrypoint: vllm bench}\n")


@pytest.mark.parametrize(
    "written",
    ["depends_on: redis", "profiles: 3", "ports: 8000", "deploy: [a]", "deploy: {resources: {limits: [a]}}", "3: 4",
     "scale: many", "depends_on: {a: {}}", "devices: 3", "volumes: 7"],
)  # fmt: skip
def test_what_compose_would_refuse_stops_nothing(written: str) -> None:
    assert compose(f"  a:\n    image: vllm\n    command: --model /m/q\n    {written}\n").config["services"]
