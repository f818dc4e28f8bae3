"""Sharing out a machine without GPUs: cores and memory for every engine process."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llmhost.config import Service
from llmhost.errors import PlanError
from llmhost.facts import HostFacts, ModelFacts
from llmhost.plan.args import flag_name
from llmhost.plan.demand import ENGINE_BASE_BYTES, host_bytes, wanted_cores
from llmhost.plan.running import NOTHING, Running, program_names
from llmhost.plan.types import ProgramPlan

GIB = 2**30
MIB = 2**20

SYSTEM_RESERVE = 0.1
"""Share of the machine's memory that is left to everything else."""

SMALLEST_KV_CACHE = 256 * MIB
HUMAN_READABLE = re.compile(r"(\d+(?:\.\d+)?)([kKmMgGtT]?)")
"""vllm.engine.arg_utils.human_readable_int."""

CONCURRENT_SEQUENCES = 8
"""How many sequences of full length the KV cache is sized for when memory allows."""


@dataclass(frozen=True)
class CpuShare:
    """What one engine process gets; ``cores`` is empty when it is not bound to any, and ``threads`` says how many."""

    cores: tuple[int, ...]
    memory_bytes: int
    kv_cache_bytes: int
    threads: int = 0

    @property
    def gpus(self) -> tuple[int, ...]:
        return ()

    @property
    def gpu_memory_bytes(self) -> int:
        return 0

    @property
    def arguments(self) -> dict[str, str]:
        """Flags of vLLM for it."""
        return {"kv_cache_memory_bytes": str(self.kv_cache_bytes)}

    @property
    def environment(self) -> dict[str, str]:
        """vLLM's variables for its OpenMP threads (documented in its CPU installation guide)."""
        if self.cores:
            return {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, self.cores))}
        return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(self.threads)}


def share_cpu(
    services: Mapping[str, Service], host: HostFacts, models: Mapping[str, ModelFacts], running: Running = NOTHING
) -> dict[str, dict[str, CpuShare]]:
    """Divide cores and memory among all replicas: the share of each program, by service.

    What runs keeps its share, and the others get what is left; when that is too little, all is divided anew. Memory is
    reckoned from the total, not from what is free at the moment: a plan must not change because its own engines are
    running. Raises PlanError when a model does not fit into its part, or not beside what runs (``running.surge``), and
    when a service asks for GPUs.
    """
    _refuse_gpus(services)
    needs = {name: _need(service, models.get(name)) for name, service in services.items() if service.replicas}
    programs = {p: name for name, s in services.items() for p in program_names(name, s.replicas, running)}
    kept = _kept(host, programs, needs, running)
    leaving = tuple(p for name in running.surge for p in running.of(name))
    room = _room(host, [needs[programs[p]] for p in programs if p not in kept], (*kept.values(), *leaving))
    if room < 0 and leaving:
        raise _no_room_beside(sorted(running.surge), -room)
    if room < 0:
        kept, room = {}, _room(host, [needs[name] for name in programs.values()], ())
    if room < 0:
        raise _does_not_fit(needs, -room)
    wanted = {p: wanted_cores(services[name]) for p, name in programs.items()}
    bound = [p for p in programs if wanted[p] != 0]
    new = [p for p in bound if p not in kept]
    free = _free_cores(host, {p: share for p, share in kept.items() if p in bound})
    cores = dict(zip(new, _divide_cores(free, [wanted[p] for p in new]), strict=True))
    threads = max(1, len(host.cores) // max(len(bound), 1))
    shares: dict[str, dict[str, CpuShare]] = {name: {} for name in services}
    caches = sum(p not in kept and not services[name].is_foreign for p, name in programs.items())
    for program, name in programs.items():
        extra = room // max(1, caches)
        own = threads if wanted[program] != 0 else 0
        shares[name][program] = kept.get(program) or _share(needs[name], extra, cores.get(program, ()), own)
    return shares


def _refuse_gpus(services: Mapping[str, Service]) -> None:
    for name, service in services.items():
        if service.gpus not in ("auto", 0) and service.replicas:
            raise PlanError(
                f"services.{name}.gpus: {service.gpus}, but this engine computes on the CPU",
                "leave the key out here, or build an engine for the GPUs: engine: {device: cuda}",
            )


def missing_bytes(programs: Iterable[ProgramPlan], host: HostFacts) -> int:
    """How much memory is missing for these engines at the same time; 0 when they fit."""
    return max(0, -_room(host, (), tuple(programs)))


def require_room(services: Iterable[str], programs: Iterable[ProgramPlan], host: HostFacts) -> None:
    """Raise PlanError when these engines, which include second ones of ``services``, do not fit at the same time."""
    missing = missing_bytes(programs, host)
    if missing:
        raise _no_room_beside(sorted(services), missing)


def memory_left(services: Mapping[str, Service], host: HostFacts, models: Mapping[str, ModelFacts]) -> int:
    """Bytes that are left when every replica gets its least; below 0 so many are missing. Raises PlanError for GPUs."""
    _refuse_gpus(services)
    needs = (_need(s, models.get(name)) for name, s in services.items() for _ in range(s.replicas))
    return _room(host, needs, ())


def memory_limit(host: HostFacts) -> int:
    """Bytes of a machine that engines share out."""
    return int(host.memory_total * (1 - SYSTEM_RESERVE))


def _room(host: HostFacts, needs: Iterable[_Need], given: Iterable[CpuShare | ProgramPlan]) -> int:
    """Bytes that are left when each need gets its least."""
    return memory_limit(host) - sum(need.smallest for need in needs) - sum(share.memory_bytes for share in given)


def _kept(
    host: HostFacts, programs: Mapping[str, str], needs: Mapping[str, _Need], running: Running
) -> dict[str, CpuShare]:
    """The shares of running programs that are still what their services need."""
    return {
        p.name: CpuShare(p.cores, p.memory_bytes, p.kv_cache_bytes, p.threads)
        for p in running.programs
        if p.name in programs and needs[programs[p.name]].is_met_by(p) and set(p.cores) <= set(host.cores)
    }


def _share(need: _Need, extra: int, cores: tuple[int, ...], threads: int) -> CpuShare:
    kv = min(need.wanted_kv, need.smallest_kv + extra) // MIB * MIB
    return CpuShare(cores, need.fixed + kv, kv, 0 if cores else threads)


@dataclass(frozen=True)
class _Need:
    """Bytes that one engine process takes: without its KV cache, and the least and the wanted size of that."""

    fixed: int
    smallest_kv: int
    wanted_kv: int
    context: int
    cores: int | None = None
    """How many it must be bound to; None: as many as there are."""

    @property
    def smallest(self) -> int:
        return self.fixed + self.smallest_kv

    def is_met_by(self, program: ProgramPlan) -> bool:
        """Whether a share that was given out earlier would do."""
        fixed = program.memory_bytes - program.kv_cache_bytes
        # One that is bound to none although it should be was given threads instead: there were too few cores for all.
        if self.cores == 0 or not program.cores:
            bound = not program.cores and bool(self.cores == 0 or program.threads)
        else:
            bound = self.cores in (None, len(program.cores))
        return bound and fixed == self.fixed and self.smallest_kv <= program.kv_cache_bytes <= self.wanted_kv


def _need(service: Service, model: ModelFacts | None) -> _Need:
    """A KV cache holds at least one sequence of full length, and several when memory allows."""
    if model is None:  # a foreign engine takes what is written
        return _Need(host_bytes(service), 0, 0, 0, wanted_cores(service))
    context, nodes = context_length(service, model), (service.span and service.span.nodes) or 1
    one = -(-model.kv_bytes_per_token * context // nodes // MIB) * MIB  # of a model that spans nodes a part
    smallest = max(one * (service.concurrency or 1), SMALLEST_KV_CACHE)
    fixed = ENGINE_BASE_BYTES + -(-model.weight_bytes // nodes)
    return _Need(fixed, smallest, max(smallest, one * CONCURRENT_SEQUENCES), context)


def _does_not_fit(needs: Mapping[str, _Need], missing: int) -> PlanError:
    name, need = max(needs.items(), key=lambda item: item[1].smallest)
    lacking = f"services.{name}: {missing / GIB:.1f} GiB of memory are missing: it takes {need.fixed / GIB:.1f} GiB"
    if not need.context:
        return PlanError(lacking, "write less as its memory:, if that is enough, or serve fewer services here")
    return PlanError(
        f"{lacking} and {need.smallest_kv / GIB:.1f} GiB of KV cache for one sequence of {need.context} tokens",
        "write a smaller max_model_len under args:, use a smaller model, or serve fewer services here",
    )


def _no_room_beside(services: list[str], missing: int) -> PlanError:
    what = " and ".join(services)
    return PlanError(
        f"no room for a second {what} beside what runs: {missing / GIB:.1f} GiB of memory are missing",
        "leave --surge out (the service then answers 503 until it is ready again), or stop another service first",
    )


def _free_cores(host: HostFacts, kept: Mapping[str, CpuShare]) -> tuple[int, ...]:
    """Cores that no kept program is bound to; none while one runs that is bound to no core, and so runs on all."""
    if any(not share.cores for share in kept.values()):
        return ()
    return tuple(core for core in host.cores if not any(core in share.cores for share in kept.values()))


def _divide_cores(cores: tuple[int, ...], wanted: Sequence[int | None]) -> list[tuple[int, ...]]:
    """Disjoint runs of cores for programs: so many as one wants, and for the others (None) fair parts of the rest.

    The first of them are longer by one. Nothing is bound when there are too few to go round.
    """
    others = wanted.count(None)
    left = len(cores) - sum(count or 0 for count in wanted)
    if left < others:
        return [()] * len(wanted)
    size, extra = divmod(left, max(others, 1))
    fair = iter(size + (i < extra) for i in range(others))
    ends = list(itertools.accumulate(next(fair) if count is None else count for count in wanted))
    return [cores[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def context_length(service: Service, model: ModelFacts) -> int:
    """Tokens of the longest sequence: ``max_model_len`` when it is written as a number, else the model's own."""
    written = {flag_name(key): value for key, value in service.args.items()}.get("max_model_len")
    return tokens_of(written) or model.context_length


def tokens_of(written: object) -> int:
    """``8192``, ``"8k"`` (thousands), ``"8K"`` (1024), as vLLM reads them; 0 for ``auto``, -1 and what is none."""
    found = HUMAN_READABLE.fullmatch(str(written).strip())
    if found is None:
        return 0
    number, suffix = found.groups()
    base = 1024 if suffix.isupper() else 1000
    return int(float(number) * base ** ("kmgt".index(suffix.lower()) + 1 if suffix else 0))
