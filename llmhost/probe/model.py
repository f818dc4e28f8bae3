"""A model directory: what it is, how large it is and whether it is whole. Reads small files and headers only."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmhost import demo
from llmhost.config import Config
from llmhost.errors import ModelError
from llmhost.facts import CacheFacts, Kind, ModelFacts, ShapeFacts
from llmhost.paths import Home, in_user_home, templates_dir
from llmhost.probe.cache import kv_heads_of, number, read_cache
from llmhost.probe.families import Checkpoint, Reranker, find_reranker, infer_parsers, renamed_architecture
from llmhost.probe.kind import infer_kind, is_decoder
from llmhost.probe.safetensors import refuse_lfs_pointer
from llmhost.probe.weights import quantization, read_weights

HUBS = ("modelscope", "hf")
SENTENCE_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Where vLLM looks for ``max_seq_length`` (``get_sentence_transformer_tokenizer_config``)."""
PADDED_POSITIONS = ("roberta", "camembert")
"""Model types whose position numbers start behind the padding index, so that two of them hold no token."""


def models_directory(home: Home, config: Config) -> Path:
    """Where models of hubs are kept: ``models_dir``, or a directory in the home."""
    return home.root / in_user_home("models_dir", config.models_dir) if config.models_dir else home.models


def resolve_model(reference: str, models_dir: Path, base: Path | None = None) -> Path:
    """The directory that ``model:`` names; relative paths start from ``base`` (the home).

    ``demo:KIND`` makes the demo model's directory; ``modelscope:owner/name`` and ``hf:owner/name`` are looked up in
    ``models_dir``. Raises ModelError when a hub model is not there or the reference makes no sense.
    """
    scheme, colon, name = reference.partition(":")
    path = (base or Path()) / in_user_home("model", reference)
    if not colon or "/" in scheme or path.exists():
        return path
    if scheme == "demo":
        return _demo(reference, name)
    if scheme in HUBS:
        return _downloaded(reference, name, models_dir)
    raise ModelError(
        f"model {reference}: {scheme}: is not a known source",
        "use a directory, demo:chat, modelscope:owner/name or hf:owner/name",
    )


def _demo(reference: str, kind: str) -> Path:
    path = {str(known): folder for known, folder in demo.MODELS.items()}.get(kind)
    if path is None:
        raise ModelError(f"model {reference} does not exist", "use demo:chat, demo:embed or demo:rerank")
    return path


def _downloaded(reference: str, name: str, models_dir: Path) -> Path:
    owner, _, model = name.partition("@")[0].partition("/")
    if not owner or not model or "/" in model or {owner, model} & {".", ".."}:
        raise ModelError(
            f"model {reference} is not owner/name", f"write it like {reference.partition(':')[0]}:Qwen/Qwen3-8B"
        )
    path = models_dir / owner / model
    if not path.is_dir():
        raise ModelError(
            f"model {reference} is not on this machine: {path} does not exist",
            f"fetch it with `llmhost pull`, or put its files into {path}",
        )
    return path


def read_model(path: Path, kind: Kind | None = None) -> ModelFacts:
    """Facts of the model directory ``path``; ``kind`` is what llmhost.yaml says, else it is inferred.

    Raises ModelError when the directory is missing or incomplete, a file is damaged, or the kind cannot be told.
    """
    _require_directory(path)
    config = _config(path)
    architecture = _architecture(path, config)
    text = _text_config(config)
    checkpoint = _checkpoint(path, config, text, architecture)
    reranker = None if (path / "modules.json").exists() else find_reranker(checkpoint)
    inferred, reason = _kind(path, architecture, config, kind, reranker)
    index = path / "model.safetensors.index.json"
    weights = read_weights(path, _shards(index) if index.exists() else None, config)
    cache = read_cache(architecture, text) if is_decoder(architecture) else CacheFacts()
    tool, reasoning = infer_parsers(checkpoint)
    return ModelFacts(
        path=str(path),
        architecture=architecture,
        kind=inferred,
        kind_reason=reason,
        weight_bytes=weights.size,
        kv_bytes_per_token=cache.full_bytes + cache.window_bytes,
        context_length=_sentence_length(path) or _context_length(text),
        model_type=str(config.get("model_type") or ""),
        parameters=weights.parameters,
        dtype=str(text.get("dtype") or text.get("torch_dtype") or ""),
        quantization=quantization(config),
        cache=cache,
        shape=_shape(text),
        tool_parser=tool,
        reasoning_parser=reasoning,
        multimodal=any(key in config for key in ("vision_config", "audio_config", "visual", "vision_tower")),
        remote_code="auto_map" in config,
        overrides=_overrides(reranker) if reranker and inferred == "rerank" else _renamed(architecture),
    )


def _kind(
    path: Path, architecture: str, config: Mapping[str, Any], written: Kind | None, reranker: Reranker | None
) -> tuple[Kind, str]:
    if written:
        return written, "written in llmhost.yaml"
    if reranker:
        return "rerank", f"{reranker.name}, a language model that answers yes or no"
    return infer_kind(path, architecture, config)


def _overrides(reranker: Reranker) -> dict[str, Any]:
    template = templates_dir() / "score" / reranker.template
    return {"hf_overrides": dict(reranker.overrides), "chat_template": str(template)}


def _renamed(architecture: str) -> dict[str, Any]:
    name = renamed_architecture(architecture)
    return {"hf_overrides": {"architectures": [name]}} if name else {}


def _checkpoint(path: Path, config: Mapping[str, Any], text: Mapping[str, Any], architecture: str) -> Checkpoint:
    tokenizer = _optional_json(path / "tokenizer_config.json")
    own = tokenizer.get("response_template")
    types = tuple(dict.fromkeys(str(t) for t in (config.get("model_type"), text.get("model_type")) if t))
    template = _template(path, tokenizer)
    directory = path.resolve().name
    added = tokenizer.get("added_tokens_decoder")
    entries = added.values() if isinstance(added, dict) else ()
    tokens = frozenset(str(entry.get("content")) for entry in entries if isinstance(entry, dict))
    return Checkpoint(architecture, types, template, own if isinstance(own, dict) else None, directory, tokens)


def _template(path: Path, tokenizer: Mapping[str, Any]) -> str:
    """The sources of all chat templates, wherever transformers looks for them; "" without one."""
    written = tokenizer.get("chat_template")
    named = written if isinstance(written, list) else [{"template": written}]
    texts = [str(t["template"]) for t in named if isinstance(t, dict) and t.get("template")]
    texts += [str(t) for t in [_optional_json(path / "chat_template.json").get("chat_template")] if t]
    files = [path / "chat_template.jinja", *sorted((path / "additional_chat_templates").glob("*.jinja"))]
    if (path / "tekken.json").exists():
        # mistral-common makes the prompts: it knows tools, and thoughts where the system prompt asks for them.
        texts.append("[TOOL_CALLS] tools")
        files.append(path / "SYSTEM_PROMPT.txt")
    return "\n".join((*texts, *(_read_text(file) for file in files if file.exists())))


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError as e:
        raise ModelError(f"cannot read {file}: {e.strerror}", "llmhost must be able to read the model's files") from e


def _optional_json(file: Path) -> Mapping[str, Any]:
    data = read_json(file) if file.exists() else {}
    return data if isinstance(data, dict) else {}


def _shape(text: Mapping[str, Any]) -> ShapeFacts:
    experts = number(text, "num_experts_per_tok", "num_experts_per_token") * number(text, "moe_intermediate_size")
    return ShapeFacts(
        layers=number(text, "num_hidden_layers", "n_layer", "num_layers", "n_layers"),
        heads=number(text, "num_attention_heads", "n_head", "num_heads"),
        kv_heads=kv_heads_of(text),
        hidden=number(text, "hidden_size", "n_embd", "d_model"),
        intermediate=max(number(text, "intermediate_size", "ffn_hidden_size", "n_inner"), experts),
        vocabulary=number(text, "vocab_size", "padded_vocab_size"),
    )


def _require_directory(path: Path) -> None:
    if not path.exists():
        raise ModelError(f"model directory {path} does not exist", "check `model:`, or put the model's files there")
    if not path.is_dir():
        raise ModelError(f"{path} is a file, not a model directory", "name the directory that holds config.json")
    if not os.access(path, os.R_OK | os.X_OK):
        raise ModelError(f"cannot read the model directory {path}", "give this user read permission")
    if not any(path.iterdir()):
        raise ModelError(f"model directory {path} is empty", "put the model's files there")


def _config(path: Path) -> Mapping[str, Any]:
    file = path / "config.json"
    if not file.exists() and (path / "adapter_config.json").exists():
        base = _optional_json(path / "adapter_config.json").get("base_model_name_or_path") or "another model"
        raise ModelError(
            f"{path} is a LoRA adapter of {base}, not a model",
            "serve that model, and name the adapter under args: enable_lora: true, lora_modules: [name=DIRECTORY]",
        )
    if not file.exists():
        raise ModelError(
            f"{path} has no config.json, so it is no model in Hugging Face form",
            "name the directory that holds config.json beside the weights",
        )
    config = read_json(file)
    if not isinstance(config, dict):
        raise ModelError(f"{file} is not a JSON object", "fetch this file again")
    return config


def read_json(file: Path) -> Any:
    """The content of a JSON file of a model; raises ModelError when it is unreadable or not JSON."""
    try:
        data = file.read_bytes()
        refuse_lfs_pointer(file, data)
        return json.loads(data)
    except OSError as e:
        raise ModelError(f"cannot read {file}: {e.strerror}", "llmhost must be able to read the model's files") from e
    except ValueError as e:
        raise ModelError(f"{file} is not JSON: {e}", "fetch this file again: the copy is incomplete or damaged") from e


def _architecture(path: Path, config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return names[0]
    raise ModelError(f"{path / 'config.json'} names no architectures", "vLLM needs them to choose the model's code")


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language part: multimodal models nest it, and may keep some of its keys outside."""
    for key in ("text_config", "llm_config", "language_config"):
        nested = config.get(key)
        if isinstance(nested, dict):
            return {**config, **nested}
    return config


def _shards(index: Path) -> list[Path]:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} holds no weight_map", "fetch this file again")
    files = sorted({index.parent / str(name) for name in weight_map.values()})
    missing = [file.name for file in files if not file.exists()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"{index.parent} is incomplete: {missing[0]}{more} of {len(files)} weight files missing",
            "finish the download: every file that model.safetensors.index.json names must be there",
        )
    return files


SCALED_ALREADY = ("default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
"""Kinds of rotary embedding whose factor does not count (vLLM's ``_get_and_verify_max_len``)."""


def _context_length(text: Mapping[str, Any]) -> int:
    """Tokens that fit into one sequence, 0 when config.json does not say."""
    positions = number(text, "max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
    model_type = str(text.get("model_type"))
    if any(name in model_type for name in PADDED_POSITIONS):
        return max(0, positions - 2)
    rope = text.get("rope_scaling") or text.get("rope_parameters")
    kind = rope.get("rope_type") or rope.get("type") if isinstance(rope, Mapping) else None
    if isinstance(rope, Mapping) and kind and kind not in SCALED_ALREADY and "gemma3" not in model_type:
        factor = rope.get("factor")
        return int(positions * factor) if isinstance(factor, int | float) and factor > 1 else positions
    return positions


def _sentence_length(path: Path) -> int:
    """What sentence-transformers cuts a text to, which vLLM takes for the length of the model."""
    files = [f for f in sorted(path.glob("sentence_*_config.json")) if f.name in SENTENCE_FILES]
    return next((n for f in files if (n := number(_optional_json(f), "max_seq_length"))), 0)
