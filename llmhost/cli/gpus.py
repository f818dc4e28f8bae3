"""A plan for GPUs as a table and as a picture: one bar for each GPU, one segment for each engine on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click

from llmhost.cli import console
from llmhost.config import Config
from llmhost.facts import Gpu, ModelFacts
from llmhost.plan.gpu import Shares
from llmhost.plan.shapes import GpuShare

GIB = 2**30
WIDTH = 64
FILLS = "█▓▒░▞▚▤▥"
COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "red", "bright_black", "white")


def show(config: Config, models: Mapping[str, ModelFacts], gpus: Sequence[Gpu], shares: Shares) -> None:
    """The table and the picture."""
    programs = {p: (name, share) for name, own in shares.items() for p, share in own.items()}
    console.table(
        ("ENGINE", "KIND", "GPUS", "SPLIT", "WEIGHTS", "KV CACHE", "OTHER", "SHARE", "CONTEXT", "AT ONCE"),
        [
            _row(p, config.services[name].kind or (models[name].kind if name in models else "none"), share)
            for p, (name, share) in programs.items()
        ],
    )
    console.result("\nfor each GPU; AT ONCE: sequences of the whole context that the KV cache holds\n")
    marks = {p: (FILLS[i % len(FILLS)], COLOURS[i % len(COLOURS)]) for i, p in enumerate(programs)}
    for gpu in gpus:
        _bar(gpu, {p: share for p, (_, share) in programs.items() if gpu.index in share.gpus}, marks)


def _row(program: str, kind: str, share: GpuShare) -> tuple[str, ...]:
    need = share.need
    other = need.activations + need.graphs + need.base
    sizes = ((share.tensor, "tensor"), (share.pipeline, "pipeline"), (share.data, "data"))
    split = [f"{n} {what}" for n, what in sizes if n > 1]
    return (
        program,
        kind,
        ", ".join(map(str, share.gpus)),
        " x ".join(split) or "-",
        _gib(need.weights),
        _gib(share.kv_cache_bytes),
        _gib(other),
        f"{share.utilization:.1%}",
        f"{need.context} tokens" if need.context else "-",
        "-" if math.isinf(share.sequences) else f"{share.sequences:.1f}",
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"


def _bar(gpu: Gpu, shares: Mapping[str, GpuShare], marks: Mapping[str, tuple[str, str]]) -> None:
    taken = gpu.total - gpu.free
    cells = [("others", "·", "white", taken)] if taken else []
    cells += [(p, *marks[p], s.gpu_memory_bytes) for p, s in shares.items()]
    free = gpu.total - sum(size for *_, size in cells)
    console.result(f"GPU {gpu.index}  {', '.join(filter(None, (gpu.name, _gib(gpu.total))))}")
    bar, drawn, so_far = "", 0, 0
    for _, fill, colour, size in cells:
        so_far += size
        width = max(1, round(so_far / gpu.total * WIDTH) - drawn)
        drawn += width
        bar += click.style(fill * width, fg=colour)
    console.result(f"  [{bar}{' ' * max(0, WIDTH - drawn)}]")
    legend = [f"{click.style(fill, fg=colour)} {name} {_gib(size)}" for name, fill, colour, size in cells]
    console.result(f"   {'  '.join([*legend, f'free {_gib(free)}'])}")


def to_json(gpus: Sequence[Gpu], shares: Shares) -> dict[str, Any]:
    """The same for machines; sizes in bytes, of each GPU."""
    return {
        "gpus": [
            {**asdict(g), "engines": [p for own in shares.values() for p, s in own.items() if g.index in s.gpus]}
            for g in gpus
        ],
        "services": {name: {program: _share(share) for program, share in own.items()} for name, own in shares.items()},
    }


def _share(share: GpuShare) -> dict[str, Any]:
    return {
        **asdict(share),
        "gpu_memory_bytes": share.gpu_memory_bytes,
        "sequences": None if math.isinf(share.sequences) else round(share.sequences, 2),
        "arguments": share.arguments,
    }
