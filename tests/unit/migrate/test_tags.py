"""``!override`` and ``!reset`` of compose, in files that go on top of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmhost.errors import ConfigError
from llmhost.migrate.read import import_files

BASE = """
services:
  chat:
    image: vllm/vllm-openai
    command: --model /m/qwen
    ports: ["127.0.0.1:7001:8000"]
    volumes: ["./models:/m"]
    environment: {A: "1", B: "2"}
    shm_size: 16g
  other: {image: vllm/vllm-openai, command: --model org/other}
"""


def together(where: Path, over: str, base: str = BASE) -> dict[str, Any]:
    (where / "compose.yaml").write_text(base)
    (where / "compose.override.yaml").write_text(over)
    services = import_files([where / "compose.yaml"], {"B": "outside"}).config["services"]
    assert isinstance(services, dict)
    return services


def test_reset_takes_away(tmp_path: Path) -> None:
    over = """
services:
  chat: {ports: !reset [], volumes: !reset null, environment: {A: !reset null}}
  other: !reset null
"""
    services = together(tmp_path, over)
    assert set(services) == {"chat"}
    chat = services["chat"]
    assert (chat["model"], "port" in chat, chat["env"]) == ("/m/qwen", False, {"B": "2"})


def test_override_takes_the_place(tmp_path: Path) -> None:
    over = """
services:
  chat:
    ports: !override ["127.0.0.1:7009:8000"]
    volumes: !override ["./big:/m"]
    environment: !override [B]
    command: !override --model /m/big
  other: !override {image: vllm, command: --model org/new}
"""
    services = together(tmp_path, over)
    chat = services["chat"]
    assert (chat["model"], chat["port"], chat["env"]) == (f"{tmp_path}/big/big", 7009, {"B": "outside"})
    assert services["other"]["model"] == "hf:org/new"


def test_what_is_extended_may_be_reset_and_replaced(tmp_path: Path) -> None:
    over = """
services:
  two:
    extends: {service: chat, file: compose.yaml}
    ports: !reset []
    environment: !override {C: !override 3}
"""
    two = together(tmp_path, over)["two"]
    assert (two["model"], "port" in two, two["env"]) == (f"{tmp_path}/models/qwen", False, {"C": "3"})


def test_tags_with_nothing_below(tmp_path: Path) -> None:
    base = "services: {a: {image: !override vllm, command: !override [--model, org/a], ports: !reset [], x: !reset {}}}"
    assert together(tmp_path, "services: {}", base)["a"]["model"] == "hf:org/a"
    with pytest.raises(ConfigError, match="is not YAML"):
        together(tmp_path, "services: {a: !remove b}")
