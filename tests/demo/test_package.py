"""The demonstration models as files: what ships, how much, and that it can be read. Needs no torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from llmhost import demo

KINDS: tuple[demo.Kind, ...] = ("chat", "embed", "rerank")
MEBIBYTE = 1024 * 1024


def header(weights: Path) -> dict[str, dict[str, object]]:
    """The header of a safetensors file."""
    with weights.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        loaded: dict[str, dict[str, object]] = json.loads(file.read(size))
    return loaded


@pytest.mark.parametrize("kind", KINDS)
def test_every_model_is_complete(kind: demo.Kind) -> None:
    folder = demo.model_path(kind)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"):
        assert (folder / name).is_file(), f"{kind}/{name}"


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_readable_and_their_header_fits_the_file(kind: demo.Kind) -> None:
    weights = demo.model_path(kind) / "model.safetensors"
    tensors = header(weights)
    ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]  # type: ignore[index]
    with weights.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
    assert weights.stat().st_size == 8 + size + max(ends)
    assert {entry["dtype"] for name, entry in tensors.items() if name != "__metadata__"} == {"BF16"}


def test_all_together_are_small() -> None:
    total = sum(file.stat().st_size for file in demo.HERE.rglob("*") if file.is_file() and file.suffix != ".pyc")
    assert total <= 16 * MEBIBYTE


def test_nothing_that_runs_code_when_loaded() -> None:
    assert not [f for f in demo.HERE.rglob("*") if f.suffix in {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}]
    for kind in KINDS:
        assert not list(demo.model_path(kind).rglob("*.py"))


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [("chat", "Qwen3ForCausalLM"), ("embed", "BertModel"), ("rerank", "BertForSequenceClassification")],
)
def test_architectures_are_ones_that_vllm_serves(kind: demo.Kind, architecture: str) -> None:
    config = json.loads((demo.model_path(kind) / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == [architecture]
    assert "auto_map" not in config


@pytest.mark.parametrize("kind", KINDS)
def test_model_cards_say_licence_purpose_and_training(kind: demo.Kind) -> None:
    card = (demo.model_path(kind) / "README.md").read_text(encoding="utf-8")
    for words in ("license: apache-2.0", "demonstration", "not for use", "scripts/train_demo_models.py"):
        assert words in card.replace("\n", " "), words


def test_the_chat_model_has_template_and_greedy_defaults() -> None:
    folder = demo.model_path("chat")
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for word in ("<tools>", "<tool_call>", "<tool_response>", "<think>", "enable_thinking"):
        assert word in template
    settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    assert settings["temperature"] == 0.0


def test_the_embedding_model_says_how_to_pool() -> None:
    folder = demo.model_path("embed")
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    assert [m["type"].rsplit(".", 1)[1] for m in modules] == ["Transformer", "Pooling", "Normalize"]
    assert json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))["pooling_mode_mean_tokens"]


def test_probes_have_the_agreed_form() -> None:
    probes = demo.probes()
    assert set(probes) == set(KINDS)
    plain, tool = probes["chat"]["plain"], probes["chat"]["tool"]
    assert plain["messages"]
    assert plain["expect_any"]
    names = [t["function"]["name"] for t in tool["tools"]]
    assert 2 <= len(names) <= 3
    assert tool["expect"]["name"] in names
    asked = tool["messages"][-1]["content"]
    assert all(str(value) in asked for value in tool["expect"]["arguments"].values())
    assert set(probes["embed"]) == {"anchor", "near", "far"}
    documents = probes["rerank"]["documents"]
    assert 4 <= len(documents) <= 5
    assert 0 <= probes["rerank"]["best"] < len(documents)
