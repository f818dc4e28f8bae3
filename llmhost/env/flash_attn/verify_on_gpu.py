"""Run by an engine's interpreter: does flash-attn compute what attention in 32 bits on the same GPU does?

Standard library, torch and flash_attn only, nothing of llmhost. Prints one line of JSON. Ends with GPU_UNUSABLE where
torch alone cannot compute on a device: that says nothing about flash-attn. The error of a result is
|result - reference| / |reference| in the Euclidean norm, over all its numbers.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
from typing import Any

torch: Any = importlib.import_module("torch")
Tensor = Any
GPU_UNUSABLE = 3
CASES = ("forward", "causal", "gqa", "varlen", "backward")


def main(argv: list[str]) -> None:
    """``argv``: devices (``cuda:0``), by default all GPUs that are visible."""
    devices = argv or [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    require_usable(devices)
    flash = importlib.import_module("flash_attn")
    errors = dict.fromkeys(CASES, 0.0)
    for device in devices:
        for name, error in measured(flash, device).items():
            errors[name] = max(errors[name], error)
    print(f"\n{json.dumps({'version': flash.__version__, 'devices': devices, 'errors': errors})}")


def require_usable(devices: list[str]) -> None:
    """End here where torch sees no GPU or cannot compute on one: no driver, no free memory, another program has it."""
    try:
        if not devices:
            raise RuntimeError("torch sees no GPU")
        for device in devices:
            float(torch.ones(64, 64, device=device).matmul(torch.ones(64, 64, device=device)).sum())
    except (RuntimeError, AssertionError) as e:
        print(str(e).partition("\n")[0], file=sys.stderr)  # more lines are advice to who writes kernels
        raise SystemExit(GPU_UNUSABLE) from None


def measured(flash: Any, device: str) -> dict[str, float]:
    """The error of each case on one device, over two head sizes."""
    torch.manual_seed(7)
    found = dict.fromkeys(CASES, 0.0)
    for size in (64, 128):
        for name in CASES:
            error = globals()[f"error_of_{name}"](flash, device, size)
            found[name] = max(found[name], math.inf if math.isnan(error) else error)
    return found


def error_of_forward(flash: Any, device: str, size: int) -> float:
    """Every query sees every key."""
    q, k, v = inputs(device, 256, 256, 8, 8, size)
    return distance(flash.flash_attn_func(q, k, v), attention(q, k, v))


def error_of_causal(flash: Any, device: str, size: int) -> float:
    """Queries see keys up to their own; with fewer queries than keys these are the last ones."""
    even = inputs(device, 256, 256, 8, 8, size)
    late = inputs(device, 64, 320, 8, 8, size)
    pairs = [(flash.flash_attn_func(*x, causal=True), attention(*x, causal=True)) for x in (even, late)]
    return max(distance(*pair) for pair in pairs)


def error_of_gqa(flash: Any, device: str, size: int) -> float:
    """Four query heads share one of keys and values."""
    q, k, v = inputs(device, 192, 192, 8, 2, size)
    return distance(flash.flash_attn_func(q, k, v, causal=True), attention(q, k, v, causal=True))


def error_of_varlen(flash: Any, device: str, size: int) -> float:
    """Sequences of several lengths in one batch without padding."""
    lengths = (1, 77, 130, 256)
    parts = [inputs(device, n, n, 8, 2, size, batch=1) for n in lengths]
    q, k, v = (torch.cat([part[i][0] for part in parts]) for i in range(3))
    ends = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
    out = flash.flash_attn_varlen_func(q, k, v, ends, ends, max(lengths), max(lengths), causal=True)
    return distance(out, torch.cat([attention(*part, causal=True)[0] for part in parts]))


def error_of_backward(flash: Any, device: str, size: int) -> float:
    """Gradients of queries, keys and values."""
    ours = [x.requires_grad_() for x in inputs(device, 256, 256, 8, 2, size)]
    reference = [x.detach().float().requires_grad_() for x in ours]
    out = flash.flash_attn_func(*ours, causal=True)
    weight = torch.randn_like(out)
    out.backward(weight)
    attention(*reference, causal=True).backward(weight.float())
    return max(distance(a.grad, b.grad) for a, b in zip(ours, reference, strict=True))


def inputs(device: str, queries: int, keys: int, heads: int, kv_heads: int, size: int, batch: int = 2) -> list[Tensor]:
    """Random q, k and v as flash-attn takes them: (batch, length, heads, head size) in bfloat16."""
    shapes = ((queries, heads), (keys, kv_heads), (keys, kv_heads))
    return [torch.randn(batch, length, h, size, device=device, dtype=torch.bfloat16) for length, h in shapes]


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """softmax(q·kᵀ/√size)·v in 32 bits."""
    q, k, v = (x.float().transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device)
        scores = scores.masked_fill(hidden.triu(scores.shape[-1] - scores.shape[-2] + 1), float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2)


def distance(result: Tensor, reference: Tensor) -> float:
    """The relative error."""
    return float((result.float() - reference.float()).norm() / reference.float().norm())


if __name__ == "__main__":
    main(sys.argv[1:])
