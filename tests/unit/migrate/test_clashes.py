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
