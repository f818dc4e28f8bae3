"""The ways of running an engine on GPUs: how it can be split, what it needs then, and what it is given. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmhost.config import Service
from llmhost.errors import PlanError
from llmhost.facts import Gpu, ModelFacts
from llmhost.plan.demand import ENGINE_BASE_BYTES, gpu_bytes, wanted_gpus
from llmhost.plan.memory import Asked, Need, rank_need, written_share

RESERVE = 0.04
"""Share of a GPU that is left to the display, to fragmentation and to what was reckoned too low."""

ALL_LEAST = 0.85
"""Share of a GPU that must be there for a foreign engine that is to have all of it; it gets whatever is left. NVML's
free is below the total on an idle card (143,156 of 143,771 MiB on an H200), on one with a display by much more."""


@dataclass(frozen=True)
class GpuShare:
    """What one engine process gets: a part of the memory of each of ``gpus``; bytes for each GPU."""

    gpus: tuple[int, ...]
    tensor: int
    pipeline: int
    need: Need
    kv_cache_bytes: int
    utilization: float
    """Its share of the whole memory of a GPU, as vLLM's --gpu-memory-utilization wants it."""
    host_bytes: int = ENGINE_BASE_BYTES
    data: int = 1

    @property
    def gpu_memory_bytes(self) -> int:
        return self.need.fixed + self.kv_cache_bytes

    @property
    def sequences(self) -> float:
        """Sequences of full length that the KV cache holds at once; infinity without a cache."""
        return self.data * self.kv_cache_bytes / self.need.kv_sequence if self.need.kv_sequence else math.inf

    @property
    def cores(self) -> tuple[int, ...]:
        return ()

    @property
    def threads(self) -> int:
        return 0

    @property
    def memory_bytes(self) -> int:
        """Memory of the host."""
        return self.host_bytes

    @property
    def environment(self) -> dict[str, str]:
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, self.gpus))}

    @property
    def arguments(self) -> dict[str, str]:
        """Flags of vLLM for it."""
        cache = {"kv_cache_memory_bytes": str(self.kv_cache_bytes)} if self.kv_cache_bytes else {}
        sizes = {"tensor_parallel_size": self.tensor, "pipeline_parallel_size": self.pipeline}
        parallel = {flag: str(size) for flag, size in sizes.items() if size > 1}
        return {**parallel, **cache, "gpu_memory_utilization": f"{self.utilization:g}"}


@dataclass(frozen=True)
class Shape:
    """One way of running an engine: on so many GPUs, split like this."""

    tensor: int
    pipeline: int
    data: int = 1
    nodes: int = 1
    """Of each of them it takes an equal part."""

    @property
    def gpus(self) -> int:
        """On one node."""
        return self.tensor * self.pipeline * self.data // self.nodes


@dataclass(frozen=True)
class Task:
    """An engine that needs a place."""

    program: str
    service: str
    config: Service
    model: ModelFacts
    asked: Asked

    def need(self, shape: Shape, gpu_memory: int) -> Need:
        """``gpu_memory``: bytes of the GPU in all."""
        if self.config.is_foreign:
            return taken(gpu_bytes(self.config, int(gpu_memory * ALL_LEAST)), grows=not self.config.gpu_memory)
        kind = self.config.kind or self.model.kind
        need = rank_need(self.model, kind, self.asked, shape.tensor, shape.pipeline, gpu_memory)
        share = None if self.asked.share is None else min(self.asked.share, 1 - RESERVE)
        return written_share(need, share, gpu_memory)


def taken(size: int, *, grows: bool = False) -> Need:
    """The need of an engine of which only is known how much it takes."""
    return Need(size, activations=0, graphs=0, base=0, kv_least=0, kv_most=0, kv_sequence=0, context=0, grows=grows)


def make_share(gpus: Sequence[int], shape: Shape, need: Need, kv: int, total: int) -> GpuShare:
    """What an engine gets on GPUs of which the smallest has ``total`` bytes; ``kv``: bytes of KV cache on each."""
    utilization = math.ceil((need.fixed + kv) / total * 1000) / 1000
    return GpuShare(tuple(gpus), shape.tensor, shape.pipeline, need, kv, min(utilization, 1.0), data=shape.data)


def least_size(task: Task, gpus: Sequence[Gpu]) -> int:
    """Bytes that an engine takes at least of all its GPUs."""
    return min(task.need(s, gpus[0].total).least * s.gpus for s in find_shapes(task, gpus)) if gpus else 0


def find_shapes(task: Task, gpus: Sequence[Gpu]) -> list[Shape]:
    """The ways of running an engine here, the fewest GPUs first; of one that spans nodes its part here.

    Raises PlanError when what is written cannot be on these.
    """
    path = f"services.{task.service}"
    written, asked = task.config.gpus, task.asked
    nodes = (task.config.span and task.config.span.nodes) or 1
    if isinstance(written, list):
        unknown = sorted(set(written) - {gpu.index for gpu in gpus})
        if unknown:
            have = ", ".join(str(gpu.index) for gpu in gpus) or "none"
            raise PlanError(f"{path}.gpus: there is no GPU {unknown[0]}", f"this machine has: {have}")
    count = len(written) if isinstance(written, list) else written // nodes if isinstance(written, int) else None
    if task.config.is_foreign:
        count = wanted_gpus(task.config)
    if count is not None and count > len(gpus):
        raise PlanError(f"{path}.gpus: {count} GPUs are asked for, there are {len(gpus)}", "ask for fewer")
    data = 1 if task.config.is_foreign else asked.data
    if asked.tensor or asked.pipeline:
        shape = Shape(asked.tensor or 1, asked.pipeline or 1, data, nodes)
        if count is not None and count != shape.gpus:
            raise PlanError(
                f"{path}.gpus: {count * nodes} GPUs, but its args split the model over {_product(shape)}",
                "leave tensor_parallel_size and pipeline_parallel_size out: they follow from gpus",
            )
        return [shape] if shape.gpus <= len(gpus) else _too_many(path, shape, gpus)
    if data > len(gpus):
        _too_many(path, Shape(1, 1, data), gpus)
    if count and count % data:
        raise PlanError(
            f"{path}.gpus: {count} GPUs cannot be divided among {data} data-parallel ranks",
            f"write a multiple of {data}, or leave gpus out",
        )
    sizes = (count // data,) if count else range(1, len(gpus) // data + 1)
    return [replace(_across(_split(task.model, n), nodes), data=data) for n in sizes]


def _across(shape: Shape, nodes: int) -> Shape:
    """What one node does, as a stage (or several) of a pipeline over all of them."""
    return replace(shape, pipeline=shape.pipeline * nodes, nodes=nodes)


def _product(shape: Shape) -> str:
    parts = [str(n) for n in (shape.tensor, shape.pipeline, shape.data) if n > 1]
    return f"{shape.gpus * shape.nodes}" + (f" ({' x '.join(parts)})" if len(parts) > 1 else "")


def _too_many(path: str, shape: Shape, gpus: Sequence[Gpu]) -> list[Shape]:
    raise PlanError(
        f"{path}.args: tensor, pipeline and data parallelism ask for {_product(shape)} GPUs, there are {len(gpus)}",
        "leave the first two out, they follow from gpus; data_parallel_size multiplies them, replicas do as well",
    )


def _split(model: ModelFacts, gpus: int) -> Shape:
    """Tensor parallelism as far as it divides the heads, a pipeline for the rest."""
    heads, kv = model.shape.heads, model.shape.kv_heads
    if not heads:
        return Shape(gpus, 1)
    sizes = (n for n in range(gpus, 0, -1) if gpus % n == 0 and heads % n == 0)
    tensor = next(n for n in sizes if not kv or (kv % n == 0 if kv >= n else n % kv == 0))
    return Shape(tensor, gpus // tensor)
