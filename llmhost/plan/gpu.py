"""Sharing out GPUs: which engine runs on which of them, and how much of their memory it gets. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from llmhost.config import Service
from llmhost.facts import Gpu, ModelFacts
from llmhost.plan.demand import NO_MODEL, host_bytes, wanted_gpus
from llmhost.plan.memory import MIB, read_asked
from llmhost.plan.running import NOTHING, Running, program_names
from llmhost.plan.search import Misfit, place
from llmhost.plan.shapes import RESERVE, GpuShare, Shape, Task, find_shapes, least_size, make_share, taken
from llmhost.plan.types import ProgramPlan

DRIFT = 0.01
"""Part of the reserve that may be used up beside running engines: a driver counts some MiB more than its processes
hold (9 on an H200), and for those no engine is planned anew."""

Shares = dict[str, dict[str, GpuShare]]


def share_gpus(
    services: Mapping[str, Service], gpus: Sequence[Gpu], models: Mapping[str, ModelFacts], running: Running = NOTHING
) -> Shares | Misfit:
    """Place every replica: the share of each program, by service; or the one for which there is no room.

    What runs keeps its place and its share while that is possible. ``gpus: auto`` takes the fewest GPUs that are enough
    for the asked context and concurrency; what is left over becomes KV cache. Raises PlanError when what is written
    cannot be (a GPU that is not there, a split that the model does not allow).
    """
    tasks = _tasks(services, models, running)
    for task in tasks:
        find_shapes(task, gpus)  # refuses what cannot be
    kept = _kept(tasks, gpus, running)
    leaving = [p for name in running.surge for p in running.of(name)]
    free = {gpu.index: _usable(gpu) for gpu in gpus}
    for program in (p for p in leaving if p.gpus):
        for index in program.gpus:
            free[index] = free.get(index, 0) - program.gpu_memory_bytes
    drift = {gpu.index: int(gpu.total * DRIFT) if kept else 0 for gpu in gpus}
    beside = _without({index: room + drift.get(index, 0) for index, room in free.items()}, kept)
    found = place([t for t in tasks if t.program not in kept], gpus, beside)
    if isinstance(found, Misfit) and kept:
        kept, found = {}, place(tasks, gpus, free)
    if isinstance(found, Misfit):
        return found
    grown = _grow({**found}, gpus, _without(free, kept))
    shares: Shares = {name: _without_gpus(name, service, running) for name, service in services.items()}
    for task in tasks:
        share = kept.get(task.program) or grown[task.program]
        shares[task.service][task.program] = _on_host(share, task.config)
    return shares


def gpu_misfit(services: Mapping[str, Service], gpus: Sequence[Gpu], models: Mapping[str, ModelFacts]) -> Misfit | None:
    """The one for which `share_gpus` would find no room on a machine where nothing runs; None: all fit."""
    tasks = _tasks(services, models, NOTHING)
    for task in tasks:
        find_shapes(task, gpus)
    found = place(tasks, gpus, {gpu.index: _usable(gpu) for gpu in gpus})
    return found if isinstance(found, Misfit) else None


def least_gpu_memory(service: Service, gpus: Sequence[Gpu], model: ModelFacts | None) -> int:
    """Bytes that one replica takes at least of all its GPUs; raises PlanError when it cannot run on these."""
    tasks = _tasks({"": service.model_copy(update={"replicas": 1})}, {"": model} if model else {}, NOTHING)
    return sum(least_size(task, gpus) for task in tasks)


def usable_memory(gpus: Sequence[Gpu]) -> int:
    """Bytes of these GPUs that engines share out."""
    return sum(map(_usable, gpus))


def _without_gpus(name: str, service: Service, running: Running) -> dict[str, GpuShare]:
    """The shares of a foreign service that runs beside the GPUs."""
    if not service.is_foreign or wanted_gpus(service):
        return {}
    share = GpuShare((), 0, 0, taken(0), 0, 0.0, host_bytes(service))
    return dict.fromkeys(program_names(name, service.replicas, running), share)


def _on_host(share: GpuShare, service: Service) -> GpuShare:
    return replace(share, host_bytes=host_bytes(service)) if service.is_foreign else share


def _usable(gpu: Gpu) -> int:
    return int(gpu.free - gpu.total * RESERVE)


def _without(free: Mapping[int, int], kept: Mapping[str, GpuShare]) -> dict[int, int]:
    left = dict(free)
    for share in kept.values():
        for index in share.gpus:
            left[index] -= share.gpu_memory_bytes
    return left


def _tasks(services: Mapping[str, Service], models: Mapping[str, ModelFacts], running: Running) -> list[Task]:
    return [
        Task(program, name, service, model, read_asked(service, model))
        for name, service in services.items()
        if service.replicas and (not service.is_foreign or wanted_gpus(service))
        for model in [models.get(name, NO_MODEL)]
        for program in program_names(name, service.replicas, running)
    ]


def _kept(tasks: Sequence[Task], gpus: Sequence[Gpu], running: Running) -> dict[str, GpuShare]:
    """The shares of running programs that are still what their services need."""
    by_index = {gpu.index: gpu for gpu in gpus}
    old = {p.name: p for p in running.programs if p.gpus and all(i in by_index for i in p.gpus)}
    kept: dict[str, GpuShare] = {}
    for task in (t for t in tasks if t.program in old):
        program = old[task.program]
        total = min(by_index[i].total for i in program.gpus)
        for shape in (s for s in find_shapes(task, gpus) if s.gpus == len(program.gpus)):
            need = task.need(shape, total)
            if need.grows:  # it has grown before, and goes on with what it has
                need = taken(max(need.fixed, program.gpu_memory_bytes))
            enough = need.kv_least <= program.kv_cache_bytes and not need.over
            same = task.asked.share is None or need.kv_least == program.kv_cache_bytes
            fits = enough and same and _allowed(task, program.gpus)
            if fits and program.gpu_memory_bytes == need.fixed + program.kv_cache_bytes:
                kept[task.program] = make_share(program.gpus, shape, need, program.kv_cache_bytes, total)
    return kept


def _allowed(task: Task, gpus: Sequence[int]) -> bool:
    written = task.config.gpus
    return not isinstance(written, list) or list(gpus) == written


def _grow(shares: dict[str, GpuShare], gpus: Sequence[Gpu], free: Mapping[int, int]) -> dict[str, GpuShare]:
    """Give what is left to KV caches, and to engines that take all of a GPU.

    First to those that can use so much only, then to all others alike.
    """
    totals = {gpu.index: gpu.total for gpu in gpus}
    left = _without(free, shares)
    limited = [name for name, s in shares.items() if s.need.kv_most is not None and s.need.kv_most > s.kv_cache_bytes]
    endless = [name for name, s in shares.items() if s.need.grows or (s.need.kv_most is None and s.need.kv_sequence)]
    growing = [*limited, *endless]
    while growing:
        name = growing[0]
        share = shares[name]
        rivals = {i: sum(i in shares[other].gpus for other in growing) for i in share.gpus}
        extra = min(left[i] // rivals[i] for i in share.gpus)
        if share.need.kv_most is not None and not share.need.grows:
            extra = min(extra, share.need.kv_most - share.kv_cache_bytes)
        extra = max(0, extra) // MIB * MIB
        for i in share.gpus:
            left[i] -= extra
        total = min(totals[i] for i in share.gpus)
        shape = Shape(share.tensor, share.pipeline, share.data)
        need, cache = share.need, share.kv_cache_bytes + extra
        if need.grows:
            need, cache = taken(need.fixed + extra), 0
        shares[name] = make_share(share.gpus, shape, need, cache, total)
        growing = growing[1:]
    return shares


def gpus_have_room(programs: Iterable[ProgramPlan], gpus: Sequence[Gpu]) -> bool:
    """Whether these engines fit on their GPUs at the same time."""
    free = {gpu.index: gpu.free for gpu in gpus}
    for program in programs:
        for index in program.gpus:
            free[index] = free.get(index, 0) - program.gpu_memory_bytes
    return all(left >= 0 for left in free.values())


def more_gpus(gpus: Sequence[Gpu], count: int) -> tuple[Gpu, ...]:
    """The same machine with as many more GPUs like its largest one, all of them free."""
    last = max((gpu.index for gpu in gpus), default=-1)
    model = max(gpus, key=lambda gpu: gpu.total)
    return (*gpus, *(replace(model, index=last + 1 + i, free=model.total) for i in range(count)))
