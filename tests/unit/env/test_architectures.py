"""The architectures of an installed vLLM, from the form of its registry."""

from __future__ import annotations

from pathlib import Path

from llmhost.env.architectures import registered_architectures

REGISTRY = """
_TEXT_GENERATION_MODELS = {"LlamaForCausalLM": ("llama", "LlamaForCausalLM")}
_EMBEDDING_MODELS = {
    "BertModel": ("bert", "BertEmbeddingModel"),
    **{k: v for k, v in _TEXT_GENERATION_MODELS.items()},
}
_VLLM_MODELS = {**_TEXT_GENERATION_MODELS, **_EMBEDDING_MODELS}
"""


def test_tables(tmp_path: Path) -> None:
    file = tmp_path / "lib/python3.12/site-packages/vllm/model_executor/models/registry.py"
    file.parent.mkdir(parents=True)
    file.write_text(REGISTRY)
    assert registered_architectures(tmp_path / "bin/python") == {"LlamaForCausalLM", "BertModel"}


def test_nothing_there(tmp_path: Path) -> None:
    assert registered_architectures(tmp_path / "bin/python") == frozenset()
