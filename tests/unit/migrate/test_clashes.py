"""Names, ports and model names that meet: everything that can stay does, and the report says what could not."""

from __future__ import annotations

from pathlib import Path

from llmhost import config
from llmhost.migrate.compose import import_compose
from llmhost.migrate.read import to_yaml
from llmhost.migrate.report import Imported
from llmhost.migrate.supervisord import import_supervisord

COMPOSE = Path("/srv/llm/compose.yaml")


def compose(services: str) -> Imported:
    imported = import_compose({COMPOSE: f"services:\n{services}"}, {})
    config.parse(to_yaml(imported, [COMPOSE]), "what became of it")
    return imported


def told(imported: Imported, outcome: str) -> list[str]:
    return [f"{line.service}: {line.source} -> {line.detail}" for line in imported.lines if line.outcome == outcome]


def test_names_that_meet_all_stay() -> None:
    imported = compose("""
  chat_a: {image: vllm/vllm-openai, command: --model org/a, ports: ["7001:8000"]}
  chat-a: {image: vllm/vllm-openai, command: --model org/b, ports: ["7002:8000"]}
  Chat-A: {image: vllm/vllm-openai, command: --model org/c}
""")
    services = imported.config["services"]
    assert {name: s["model"] for name, s in services.items()} == {
        "chat-a-2": "hf:org/a", "chat-a": "hf:org/b", "chat-a-3": "hf:org/c",
    }  # fmt: skip
    assert "chat-a-2: chat_a -> the service chat-a-2" in told(imported, "became")


def test_programs_whose_names_meet_all_stay() -> None:
    text = "[program:a_b]\ncommand=vllm serve /m/1 --port 1\n[program:a-b]\ncommand=vllm serve /m/2 --port 2\n"
    imported = import_supervisord(text, Path("n.conf"))
    assert {name: s["model"] for name, s in imported.config["services"].items()} == {"a-b-2": "/m/1", "a-b": "/m/2"}
    assert "a-b-2: [program:a_b] -> the service a-b-2" in told(imported, "became")


def test_long_names_that_meet_stay_short_enough() -> None:
    long = "x" * 50
    imported = compose("".join(f"  {long}{i}: {{image: vllm, command: --model org/{i}}}\n" for i in range(11)))
    assert len(imported.config["services"]) == 11


def test_alternatives_on_one_port_both_stay() -> None:
    imported = compose("""
  big: {image: vllm/vllm-openai, command: --model org/a, ports: ["127.0.0.1:1281:8000"], profiles: [big]}
  small: {image: vllm/vllm-openai, command: --model org/b, ports: ["127.0.0.1:1281:8000"], profiles: [small]}
  same: {image: vllm/vllm-openai, command: --model org/b, ports: ["127.0.0.1:1282:8000"], profiles: [big]}
""")
    services = imported.config["services"]
    assert [(n, s.get("port")) for n, s in services.items()] == [("big", 1281), ("small", None), ("same", 1282)]
    assert [s["served_as"] for s in services.values()] == [["org/a"], ["org/b"], ["same"]]
    assert told(imported, "by hand") == [
        "small: port 1281 -> big has it: write another port:, or ask the gateway for this one",
        "same: served as org/b -> small is: clients ask for this one as same",
    ]


def test_engines_behind_a_balancer_are_replicas() -> None:
    imported = compose("""
  one:
    image: vllm/vllm-openai
    command: --model org/a --port 8001 -tp 2
    ports: ["127.0.0.1:7001:8001"]
    environment: {CUDA_VISIBLE_DEVICES: "0,1"}
  two:
    image: vllm/vllm-openai
    command: --model org/a --port 8002 -tp 2
    ports: ["127.0.0.1:7002:8002"]
    environment: {CUDA_VISIBLE_DEVICES: "2,3"}
  proxy: {image: nginx}
""")
    services = imported.config["services"]
    assert services == {"one": {"model": "hf:org/a", "served_as": ["org/a"], "gpus": 2, "port": 7001, "replicas": 2}}
    assert "two: the service -> a replica of one, which it is like but for port and GPUs" in told(imported, "became")
    assert any(line.startswith("two: ports 127.0.0.1:7002:8002 -> ") for line in told(imported, "by hand"))
    assert "one: the GPUs of its replicas -> gpus: 2 for each, the plan chooses which" in told(imported, "by hand")


def test_names_of_models_go_to_the_first() -> None:
    imported = compose("""
  one: {image: vllm, command: --model org/a --served-model-name gpt-4 three}
  two: {image: vllm, command: --model org/b --served-model-name gpt-4 own}
  three: {image: vllm, command: --model org/c --served-model-name gpt-4}
""")
    assert [s["served_as"] for s in imported.config["services"].values()] == [["gpt-4", "three"], ["own"], ["three-2"]]
    assert "two: served as gpt-4 -> one is: clients ask for this one as own" in told(imported, "by hand")
    assert "three: served as gpt-4 -> one is: clients ask for this one as three-2" in told(imported, "by hand")


def test_a_service_without_a_model_does_not_stop_the_others() -> None:
    imported = compose("""
  good: {image: vllm, command: --model org/a}
  config: {image: vllm, command: vllm serve --config /cfg/v.yaml, ports: ["127.0.0.1:7001:8000"]}
  tei: {image: ghcr.io/huggingface/text-embeddings-inference, environment: {POOLING: cls}}
""")
    assert list(imported.config["services"]) == ["good"]
    assert [line.service for line in imported.lines if line.source == "model"] == ["config", "tei"]


def test_programs_of_one_port_and_name_all_stay() -> None:
    text = "\n".join(f"[program:{n}]\ncommand=vllm serve /m/q --port 8001 --seed {n}" for n in (1, 2))
    imported = import_supervisord(text, Path("n.conf"))
    config.parse(to_yaml(imported, [Path("n.conf")]), "what became of it")
    assert len(told(imported, "by hand")) == 2
