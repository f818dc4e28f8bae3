"""Model directories, whole and broken."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from llmhost.errors import ModelError
from llmhost.facts import Kind
from llmhost.probe.model import read_model, resolve_model

QWEN = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "hidden_size": 3584, "max_position_embeddings": 32768, "torch_dtype": "bfloat16",
}  # fmt: skip
BGE = {
    "architectures": ["XLMRobertaForSequenceClassification"], "model_type": "xlm-roberta", "num_hidden_layers": 12,
    "num_attention_heads": 12, "hidden_size": 768, "max_position_embeddings": 514, "id2label": {"0": "LABEL_0"},
}  # fmt: skip


def safetensors(tensors: dict[str, int]) -> bytes:
    """A file with tensors of so many bytes each."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, size in tensors.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(offset)


def model(path: Path, config: dict[str, Any] | None = None, **files: bytes | str) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config if config is not None else QWEN))
    for name, content in (files or {"model.safetensors": safetensors({"w": 1000})}).items():
        (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model"


def test_chat_model(path: Path) -> None:
    facts = read_model(model(path))
    assert (facts.kind, facts.architecture) == ("chat", "Qwen2ForCausalLM")
    assert facts.weight_bytes == 1000
    assert facts.kv_bytes_per_token == 2 * 28 * 4 * 128 * 2  # 56 KiB, as vLLM reports for Qwen2.5-7B
    assert facts.context_length == 32768
    assert facts.path == str(path)


def test_reranker(path: Path) -> None:
    facts = read_model(model(path, BGE))
    assert (facts.kind, facts.kv_bytes_per_token, facts.context_length) == ("rerank", 0, 512)
    assert "one label" in facts.kind_reason


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("BertModel", "embed"), ("XLMRobertaModel", "embed"), ("BertForMaskedLM", "embed"), ("Qwen2Model", "embed"),
        ("GteNewModel", "embed"), ("LlamaForCausalLM", "chat"), ("Qwen2VLForConditionalGeneration", "chat"),
        ("GPT2LMHeadModel", "chat"), ("ChatGLMModel", "chat"), ("T5EncoderForTextEncoding", "embed"),
    ],
)  # fmt: skip
def test_kind_by_architecture(path: Path, architecture: str, kind: Kind) -> None:
    facts = read_model(model(path, {**QWEN, "architectures": [architecture]}))
    assert facts.kind == kind
    assert architecture in facts.kind_reason


def test_sentence_transformers_come_first(path: Path) -> None:
    """Qwen3-Embedding says Qwen3ForCausalLM; its modules.json says what it is for."""
    model(path, **{"model.safetensors": safetensors({"w": 1}), "modules.json": "[]"})
    assert read_model(path).kind == "embed"


def test_cross_encoder_of_sentence_transformers(path: Path) -> None:
    model(path, BGE, **{"model.safetensors": safetensors({"w": 1}), "modules.json": "[]"})
    assert read_model(path).kind == "rerank"


@pytest.mark.parametrize(
    "config",
    [
        {**BGE, "id2label": {"0": "a", "1": "b", "2": "c"}},
        {k: v for k, v in BGE.items() if k != "id2label"},
        {**QWEN, "architectures": ["BertForTokenClassification"]},
        {**QWEN, "architectures": ["Qwen2RewardModel"]},
    ],
)
def test_kind_that_cannot_be_told(path: Path, config: dict[str, Any]) -> None:
    model(path, config)
    with pytest.raises(ModelError, match="cannot tell") as caught:
        read_model(path)
    assert "kind:" in caught.value.hint
    assert read_model(path, "rerank").kind_reason == "written in llmhost.yaml"


def test_multimodal_model_nests_its_text_part(path: Path) -> None:
    text = {k: v for k, v in QWEN.items() if k != "architectures"}
    facts = read_model(model(path, {"architectures": ["Qwen2VLForConditionalGeneration"], "text_config": text}))
    assert (facts.kv_bytes_per_token, facts.context_length) == (57344, 32768)


def test_sharded_weights(path: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"}}
    shards = {"model-1.safetensors": safetensors({"a": 10}), "model-2.safetensors": safetensors({"b": 20, "c": 30})}
    # A file that the index does not name (a consolidated copy, for one) is not loaded and does not count.
    extra = {"consolidated.safetensors": safetensors({"x": 500})}
    model(path, QWEN, **{"model.safetensors.index.json": json.dumps(index)}, **shards, **extra)
    assert read_model(path).weight_bytes == 60
    (path / "model-2.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-2\.safetensors of 2 weight files missing"):
        read_model(path)


def test_two_copies_of_the_weights(path: Path) -> None:
    copies = {"model.safetensors": safetensors({"w": 10}), "consolidated.safetensors": safetensors({"w": 10})}
    assert read_model(model(path, QWEN, **copies)).weight_bytes == 10
    (path / "model.safetensors").unlink()
    assert read_model(path).weight_bytes == 10


def test_weights_in_an_older_form(path: Path) -> None:
    assert read_model(model(path, QWEN, **{"pytorch_model.bin": b"x" * 77})).weight_bytes == 77


def test_missing(path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        read_model(path)


def test_a_file(path: Path) -> None:
    path.write_text("x")
    with pytest.raises(ModelError, match="is a file"):
        read_model(path)


def test_empty(path: Path) -> None:
    path.mkdir()
    with pytest.raises(ModelError, match="is empty"):
        read_model(path)


def test_no_config(path: Path) -> None:
    model(path)
    (path / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        read_model(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"), ("", "is not JSON"), ("[]", "not a JSON object"), ("{}", "names no architectures"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"), ("\udcff", "is not JSON"),
    ],
)  # fmt: skip
def test_broken_config(path: Path, text: str, message: str) -> None:
    model(path)
    (path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ModelError, match=message):
        read_model(path)


def test_no_weights(path: Path) -> None:
    with pytest.raises(ModelError, match="no weights"):
        read_model(model(path, QWEN, **{"tokenizer.json": "{}"}))


WHOLE = safetensors({"a": 100, "b": 200})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x01\x02", "cut short"),
        (WHOLE[:40], "cut short"),
        (WHOLE[:-1], "cut short"),
        (WHOLE + b"x", "cut short or damaged"),
        (b"<html>not found</html>" * 20, "cut short or damaged"),
        (struct.pack("<Q", 4) + b"{{{{", "header is not JSON"),
        (struct.pack("<Q", 4) + b"\xff\xff\xff\xff", "header is not JSON"),
        (struct.pack("<Q", 2) + b"[]", "header is not a mapping"),
        (struct.pack("<Q", 8) + b'{"a": 1}', "lacks offsets"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git-lfs pointer"),
    ],
)
def test_broken_weights(path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        read_model(model(path, QWEN, **{"model.safetensors": content}))
    assert "model.safetensors" in caught.value.message
    assert caught.value.hint


def test_lfs_pointer_for_a_bin(path: Path) -> None:
    with pytest.raises(ModelError, match="git-lfs pointer"):
        read_model(model(path, QWEN, **{"pytorch_model.bin": "version https://git-lfs.github.com/spec/v1\n"}))


def test_resolve_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("/data/m:1", tmp_path) == Path("/data/m:1")
    assert resolve_model("models/x", tmp_path, Path("/home/h")) == Path("/home/h/models/x")
    assert resolve_model("~/x", tmp_path, Path("/home/h")) == tmp_path / "x"


@pytest.mark.parametrize("hub", ["hf", "modelscope"])
def test_resolve_hub_models(tmp_path: Path, hub: str) -> None:
    with pytest.raises(ModelError, match="not on this machine") as caught:
        resolve_model(f"{hub}:Qwen/Qwen3-8B", tmp_path)
    assert str(tmp_path / "Qwen/Qwen3-8B") in caught.value.hint
    (tmp_path / "Qwen/Qwen3-8B").mkdir(parents=True)
    assert resolve_model(f"{hub}:Qwen/Qwen3-8B", tmp_path) == tmp_path / "Qwen/Qwen3-8B"
    assert resolve_model(f"{hub}:Qwen/Qwen3-8B@main", tmp_path) == tmp_path / "Qwen/Qwen3-8B"


@pytest.mark.parametrize("reference", ["hf:", "hf:Qwen", "hf:a/b/c", "hf:../x", "hf:a/.."])
def test_resolve_refuses_what_is_not_owner_and_name(tmp_path: Path, reference: str) -> None:
    with pytest.raises(ModelError, match="not owner/name"):
        resolve_model(reference, tmp_path)


@pytest.mark.parametrize("reference", ["demo:voice", "ollama:llama3"])
def test_resolve_refuses_unknown_sources(tmp_path: Path, reference: str) -> None:
    with pytest.raises(ModelError, match=r"does not exist|not a known source"):
        resolve_model(reference, tmp_path)
