"""Does a model chat, embed or rerank? Inferred from its files in the order in which vLLM decides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmhost.errors import UnknownKindError
from llmhost.facts import Kind
from llmhost.probe.families import registered_kind, renamed_architecture

CHAT_SUFFIXES = ("ForCausalLM", "ForConditionalGeneration", "ChatModel", "LMHeadModel")
"""Architectures that generate (vLLM's ``_SUFFIX_TO_DEFAULTS`` in vllm/config/model.py)."""
EMBED_SUFFIXES = ("ForTextEncoding", "EmbeddingModel", "ForMaskedLM", "Model")
SPEECH = ("WhisperForConditionalGeneration", "WhisperForCausalLM")
"""vLLM serves them for transcriptions only."""
ENCODERS = ("Bert", "Roberta", "RoBERTa", "Camembert", "Electra", "MPNet", "Gte", "Bidirectional", "T5Encoder")
"""Parts of the names of architectures that read a text in both directions and keep no KV cache."""


def infer_kind(path: Path, architecture: str, config: Mapping[str, Any]) -> tuple[Kind, str]:
    """The kind and the reason for it in words. Raises UnknownKindError when it cannot be told."""
    if (path / "modules.json").exists():
        return _sentence_transformer(path, architecture, config)
    if known := registered_kind(architecture):
        return known, f"vLLM has registered {architecture} for that"
    if architecture.endswith("ForSequenceClassification"):
        return _classifier(path, architecture, config)
    if architecture in SPEECH:
        raise _unknown(path, f"architecture {architecture} turns speech into text")
    if architecture.endswith(CHAT_SUFFIXES):
        return "chat", f"architecture {architecture} generates text"
    if architecture.endswith(EMBED_SUFFIXES) and not architecture.endswith(("RewardModel", "ClassificationModel")):
        return "embed", f"architecture {architecture} encodes text"
    raise _unknown(path, f"architecture {architecture}")


def _sentence_transformer(path: Path, architecture: str, config: Mapping[str, Any]) -> tuple[Kind, str]:
    """sentence-transformers keeps embedding models and cross-encoders alike; the latter are classifiers."""
    if architecture.endswith("ForSequenceClassification"):
        return _classifier(path, architecture, config)
    return "embed", "modules.json of sentence-transformers"


def _classifier(path: Path, architecture: str, config: Mapping[str, Any]) -> tuple[Kind, str]:
    labels = _labels(config)
    if labels == 1:
        return "rerank", f"architecture {architecture} with one label"
    raise _unknown(
        path, f"architecture {architecture} with {labels} labels: it sorts texts into classes, a reranker has one label"
    )


def _labels(config: Mapping[str, Any]) -> int:
    """Labels of a classifier; transformers assumes two when config.json does not say."""
    if isinstance(names := config.get("id2label"), dict):
        return len(names)
    count = config.get("num_labels")
    return count if isinstance(count, int) else 2


def _unknown(path: Path, what: str) -> UnknownKindError:
    return UnknownKindError(
        f"cannot tell whether {path} chats, embeds or reranks: {what}",
        "write `kind: chat`, `kind: embed` or `kind: rerank` for this service",
        what,
    )


def is_decoder(architecture: str) -> bool:
    """Does the model keep keys and values of past tokens (a KV cache)?"""
    return not any(part in (renamed_architecture(architecture) or architecture) for part in ENCODERS)
