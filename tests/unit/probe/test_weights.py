"""Bytes and parameters of quantized checkpoints, from headers as the tools write them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from llmhost.probe.weights import quantization, read_weights

WIDTHS = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "U8": 1, "I8": 1, "F8_E4M3": 1, "I64": 8}
Tensors = dict[str, tuple[str, list[int]]]

# One linear layer of 4096 x 4096 (16,777,216 parameters), quantized in groups of 128.
GPTQ: Tensors = {
    "l.qweight": ("I32", [512, 4096]), "l.scales": ("F16", [32, 4096]), "l.qzeros": ("I32", [32, 512]),
    "l.g_idx": ("I32", [4096]),
}  # fmt: skip
GPTQ8: Tensors = {**GPTQ, "l.qweight": ("I32", [1024, 4096]), "l.qzeros": ("I32", [32, 1024])}
AWQ: Tensors = {"l.qweight": ("I32", [4096, 512]), "l.scales": ("F16", [32, 4096]), "l.qzeros": ("I32", [32, 512])}
FP8: Tensors = {"l.weight": ("F8_E4M3", [4096, 4096]), "l.weight_scale_inv": ("F32", [32, 32])}
COMPRESSED: Tensors = {
    "l.weight_packed": ("I32", [4096, 512]), "l.weight_scale": ("BF16", [4096, 32]), "l.weight_shape": ("I64", [2]),
}  # fmt: skip
BNB: Tensors = {
    "l.weight": ("U8", [8388608, 1]), "l.weight.absmax": ("U8", [262144]), "l.weight.quant_map": ("F32", [16]),
    "l.weight.nested_absmax": ("F32", [1024]), "l.weight.quant_state.bitsandbytes__nf4": ("U8", [82]),
}  # fmt: skip
MXFP4: Tensors = {"l.down_proj_blocks": ("U8", [1, 4096, 128, 16]), "l.down_proj_scales": ("U8", [1, 4096, 128])}
PLAIN: Tensors = {"l.weight": ("BF16", [4096, 4096])}


def write(path: Path, tensors: Tensors) -> int:
    """A file with these tensors, sparse; their bytes."""
    header: dict[str, Any] = {}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        size = WIDTHS[dtype]
        for n in shape:
            size *= n
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    return offset


PACKED = "compressed-tensors 4-bit"
GROUPS = {"group_0": {"weights": {"num_bits": 4}}}


@pytest.mark.parametrize(
    ("tensors", "settings", "words", "parameters"),
    [
        (PLAIN, None, "", 4096 * 4096),
        (GPTQ, {"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq 4-bit", 4096 * 4096),
        (GPTQ8, {"quant_method": "gptq", "bits": 8}, "gptq 8-bit", 4096 * 4096),
        (AWQ, {"quant_method": "awq", "bits": 4, "version": "gemm"}, "awq 4-bit", 4096 * 4096),
        (FP8, {"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8 8-bit", 4096 * 4096),
        (COMPRESSED, {"quant_method": "compressed-tensors", "config_groups": GROUPS}, PACKED, 4096 * 4096),
        (BNB, {"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes 4-bit", 4096 * 4096),
        (MXFP4, {"quant_method": "mxfp4"}, "mxfp4 4-bit", 4096 * 4096),
    ],
)  # fmt: skip
def test_quantized(
    tmp_path: Path, tensors: Tensors, settings: dict[str, Any] | None, words: str, parameters: int
) -> None:
    size = write(tmp_path, tensors)
    config = {"quantization_config": settings} if settings else {}
    weights = read_weights(tmp_path, None, config)
    assert (weights.size, weights.parameters) == (size, parameters)
    assert quantization(config) == words


def test_quantization_of_a_multimodal_model_is_nested() -> None:
    assert quantization({"text_config": {"quantization_config": {"quant_method": "awq", "w_bit": 4}}}) == "awq 4-bit"
