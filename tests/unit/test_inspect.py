"""`llmhost inspect` without an engine."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

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


def make(directory: Path, config: dict[str, object], tokenizer: dict[str, object] | None = None) -> str:
    """A model of one tensor, in the form that transformers writes."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"hidden_size": 64, "num_attention_heads": 4, **config}))
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer or {}))
    header = json.dumps({"w": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    return str(directory)


def inspected(path: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run(["inspect", path, "--json"]) == 0
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    return data


def test_a_directory_counts_from_where_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make(tmp_path / "here" / "Mine", {"architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 2})
    monkeypatch.chdir(tmp_path / "here")
    assert inspected("./Mine", capsys)["path"] == path


def test_several_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = {str(i): f"l{i}" for i in range(3)}
    path = make(tmp_path / "m", {"architectures": ["XLMRobertaForSequenceClassification"], "id2label": labels})
    facts = inspected(path, capsys)
    assert facts["kind"] is None
    assert "3 labels: it sorts texts into classes" in facts["kind_reason"]
    assert run(["inspect", path]) == 0
    assert "kind              not known  (" in capsys.readouterr().out


def test_speech(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = inspected(make(tmp_path / "m", {"architectures": ["WhisperForConditionalGeneration"]}), capsys)
    assert (facts["kind"], "turns speech into text" in facts["kind_reason"]) == (None, True)


@pytest.mark.parametrize("ending", ["Model", "ForSequenceClassification"])
def test_an_encoder_that_vllm_calls_otherwise(ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """gte-multilingual: vLLM registers GteNewModel, and does not find it by the name in the checkpoint."""
    config: dict[str, object] = {"architectures": [f"New{ending}"], "id2label": {"0": "x"}, "num_hidden_layers": 2}
    path = make(tmp_path / "m", config)
    facts = inspected(path, capsys)
    assert facts["kind"] == {"Model": "embed"}.get(ending, "rerank")
    assert facts["kv_bytes_per_token"] == 0
    assert facts["overrides"] == {"hf_overrides": {"architectures": [f"GteNew{ending}"]}}
    assert run(["inspect", path]) == 0
    assert f'needs hf_overrides {{"architectures": ["GteNew{ending}"]}}' in capsys.readouterr().out


@pytest.mark.parametrize("tokens", [True, False])
def test_a_parser_that_needs_tokens_of_the_vocabulary(
    tokens: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """GLM-Z1: its prompts end in <think>; vLLM's parser stops the engine when the tokenizer has no such token."""
    added = {"1": {"content": "<think>"}, "2": {"content": "</think>"}} if tokens else {}
    tokenizer: dict[str, object] = {"chat_template": "<|assistant|><think>", "added_tokens_decoder": added}
    facts = inspected(make(tmp_path / "m", {"architectures": ["Glm4ForCausalLM"]}, tokenizer), capsys)
    assert facts["reasoning_parser"]["chosen"] == ("deepseek_r1" if tokens else None)
    assert tokens or "no token of its vocabulary" in facts["reasoning_parser"]["reason"]
