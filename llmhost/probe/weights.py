"""How large a model's weights are and in what form: from the safetensors headers and config.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmhost.errors import ModelError
from llmhost.probe.safetensors import Tensor, read_tensors, refuse_lfs_pointer

OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.gguf")

HELPERS = (
    ".scales", ".qzeros", ".g_idx", "_scale", "_scale_inv", "_scale_2", "_scales", "_zero_point", ".absmax",
    ".quant_map", ".nested_absmax", ".nested_quant_map", ".weight_shape", ".weight_g_idx", "_global_scale", ".SCB",
    ".weight_format",
)  # fmt: skip
"""Endings of tensors that belong to a quantization and are no parameters of the model."""


@dataclass(frozen=True)
class Weights:
    """Bytes of the weights as they lie on disk, and how many parameters that is (0: not known)."""

    size: int
    parameters: int


def read_weights(path: Path, shards: Iterable[Path] | None, config: Mapping[str, Any]) -> Weights:
    """Of the safetensors files when there are any (``shards``: those that the index names), else of the other files.

    Raises ModelError when there are none, or one is damaged.
    """
    files = sorted(shards) if shards is not None else _safetensors(path)
    if files:
        tensors = [item for file in files for item in read_tensors(file).items()]
        bits = quantized_bits(config)
        return Weights(sum(t.size for _, t in tensors), sum(_parameters(name, t, bits) for name, t in tensors))
    others = next((found for pattern in OTHER_WEIGHTS if (found := sorted(path.glob(pattern)))), [])
    if not others:
        raise ModelError(f"{path} holds no weights (*.safetensors)", "put the model's weights beside config.json")
    return Weights(sum(_other_bytes(file) for file in others), 0)


def _safetensors(path: Path) -> list[Path]:
    """Without the second copy that Mistral ships in a form of its own, where there is a first one."""
    files = sorted(path.glob("*.safetensors"))
    return [file for file in files if not file.name.startswith("consolidated")] or files


def _other_bytes(file: Path) -> int:
    with file.open("rb") as stream:
        refuse_lfs_pointer(file, stream.read(32))
    size = file.stat().st_size
    if size == 0:
        raise ModelError(f"{file} is empty", "fetch this file again")
    return size


def _parameters(name: str, tensor: Tensor, bits: int) -> int:
    """Parameters in a tensor; packed ones (GPTQ, AWQ, compressed-tensors, bitsandbytes, MXFP4) hold several each."""
    if name.endswith(HELPERS) or ".quant_state." in name:
        return 0
    if name.endswith((".qweight", ".weight_packed")) and tensor.dtype == "I32" and bits:
        return tensor.numbers * 32 // bits
    if tensor.dtype == "U8" and (bits == 4 or name.endswith("_blocks")):
        return tensor.numbers * 2
    return tensor.numbers


def quantization(config: Mapping[str, Any]) -> str:
    """Method and bits of a quantized checkpoint in words (``gptq 4-bit``); empty for one that is not quantized."""
    settings = _settings(config)
    if not settings:
        return ""
    method = str(settings.get("quant_method") or settings.get("quant_algo") or "unknown").lower()
    bits = quantized_bits(config)
    return f"{method} {bits}-bit" if bits else method


def quantized_bits(config: Mapping[str, Any]) -> int:
    """Bits of a quantized weight, 0 when it is not quantized or not said."""
    settings = _settings(config)
    groups = settings.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = first.get("weights") if isinstance(first, Mapping) else None
    inner: Mapping[str, Any] = weights if isinstance(weights, Mapping) else {}
    for value in (settings.get("bits"), settings.get("w_bit"), inner.get("num_bits")):
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    method = str(settings.get("quant_method") or settings.get("quant_algo")).lower()
    if settings.get("load_in_4bit") or settings.get("_load_in_4bit") or "fp4" in method:
        return 4
    return 8 if settings.get("load_in_8bit") or settings.get("_load_in_8bit") or "fp8" in method else 0


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """transformers calls it quantization_config; older compressed-tensors checkpoints compression_config."""
    text = config.get("text_config")
    places = (config, text) if isinstance(text, Mapping) else (config,)
    found = (p.get(key) for p in places for key in ("quantization_config", "compression_config"))
    return next((settings for settings in found if isinstance(settings, Mapping)), {})
