"""`llmhost inspect` without an engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmhost.__main__ import run


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMHOST_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_demo_model(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert run(["inspect", "demo:chat"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["kind"] == "chat  (architecture Qwen3ForCausalLM generates text)"
    assert lines["tool_call_parser"].startswith(
        "hermes or qwen3_json  (Qwen3 and its like that think only when asked to: "
    )
    assert lines["reasoning_parser"].startswith("deepseek_v3  ")  # as the demo's llmhost.yaml has it by hand
    assert lines["parameters"] == "4.59 million"
    assert not home.exists()


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "demo:embed", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["context_length"], facts["tool_parser"]["chosen"]) == ("embed", 512, None)
    assert facts["weight_bytes"] > facts["parameters"] > 0


def test_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "/nowhere/model"]) == 1
    assert "error: model directory /nowhere/model does not exist" in capsys.readouterr().err
