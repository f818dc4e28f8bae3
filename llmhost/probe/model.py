"""A model directory: what it is, how large it is and whether it is whole. Reads small files and headers only."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmhost import demo
from llmhost.errors import ModelError
from llmhost.facts import Kind, ModelFacts
from llmhost.probe.kind import infer_kind, is_decoder
from llmhost.probe.safetensors import refuse_lfs_pointer, tensor_bytes

HUBS = ("modelscope", "hf")
OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.gguf")
KV_ELEMENT_BYTES = 2
"""vLLM's ``--dtype auto`` computes in 16 bits whatever the checkpoint holds: float32 is cast down
(vllm/config/model.py, ``_resolve_auto_dtype``)."""
PADDED_POSITIONS = ("roberta", "camembert")
"""Model types whose position numbers start behind the padding index, so that two of them hold no token."""


def resolve_model(reference: str, models_dir: Path, base: Path | None = None) -> Path:
    """The directory that ``model:`` names; relative paths start from ``base`` (the home).

    ``demo:KIND`` makes the demo model's directory; ``modelscope:owner/name`` and ``hf:owner/name`` are looked up in
    ``models_dir``. Raises ModelError when a hub model is not there or the reference makes no sense.
    """
    scheme, colon, name = reference.partition(":")
    path = (base or Path()) / Path(reference).expanduser()
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
            f"model {reference} is not on this machine: {path} does not exist", f"put its files into {path}"
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
    if kind:
        inferred, reason = kind, "written in llmhost.yaml"
    else:
        inferred, reason = infer_kind(path, architecture, config)
    return ModelFacts(
        path=str(path),
        architecture=architecture,
        kind=inferred,
        kind_reason=reason,
        weight_bytes=_weight_bytes(path),
        kv_bytes_per_token=_kv_bytes_per_token(text) if is_decoder(architecture) else 0,
        context_length=_context_length(text),
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


def _weight_bytes(path: Path) -> int:
    """Bytes of the weights: of the safetensors files when there are any, else the size of the other files."""
    index = path / "model.safetensors.index.json"
    files = _shards(index) if index.exists() else _safetensors(path)
    if files:
        return sum(tensor_bytes(file) for file in files)
    others = next((found for pattern in OTHER_WEIGHTS if (found := sorted(path.glob(pattern)))), [])
    if not others:
        raise ModelError(f"{path} holds no weights (*.safetensors)", "put the model's weights beside config.json")
    return sum(_other_bytes(file) for file in others)


def _safetensors(path: Path) -> list[Path]:
    """Without the second copy that Mistral ships in a form of its own, where there is a first one."""
    files = sorted(path.glob("*.safetensors"))
    return [file for file in files if not file.name.startswith("consolidated")] or files


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


def _other_bytes(file: Path) -> int:
    with file.open("rb") as stream:
        refuse_lfs_pointer(file, stream.read(32))
    size = file.stat().st_size
    if size == 0:
        raise ModelError(f"{file} is empty", "fetch this file again")
    return size


def _kv_bytes_per_token(text: Mapping[str, Any]) -> int:
    """Keys and values of one token over all layers, as ``--dtype auto`` stores them."""
    layers, heads = _number(text, "num_hidden_layers", "n_layer"), _number(text, "num_attention_heads", "n_head")
    kv_heads = _number(text, "num_key_value_heads") or heads
    head_dim = _number(text, "head_dim") or (_number(text, "hidden_size", "n_embd") // heads if heads else 0)
    return 2 * layers * kv_heads * head_dim * KV_ELEMENT_BYTES


def _context_length(text: Mapping[str, Any]) -> int:
    """Tokens that fit into one sequence, 0 when config.json does not say."""
    positions = _number(text, "max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
    padded = any(name in str(text.get("model_type")) for name in PADDED_POSITIONS)
    return max(0, positions - 2) if padded else positions


def _number(data: Mapping[str, Any], *keys: str) -> int:
    return next((v for k in keys if isinstance(v := data.get(k), int) and not isinstance(v, bool)), 0)
