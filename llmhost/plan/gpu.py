"""Sharing out GPUs: which engine runs on which of them, and how much of their memory it gets. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from llmhost.config import Service
from llmhost.errors import PlanError
from llmhost.facts import Gpu, ModelFacts
from llmhost.plan.demand import ENGINE_BASE_BYTES, NO_MODEL, gpu_bytes, host_bytes, wanted_gpus
from llmhost.plan.memory import MIB, Asked, Need, rank_need, read_asked, written_share
from llmhost.plan.running import NOTHING, Running, program_names
from llmhost.plan.types import ProgramPlan

RESERVE = 0.04
"""Share of a GPU that is left to the display, to fragmentation and to what was reckoned too low."""

DRIFT = 0.01
"""Part of the reserve that may be used up beside running engines: a driver counts some MiB more than its processes
hold (9 on an H200), and for those no engine is planned anew."""

ALL_LEAST = 0.85
"""Share of a GPU that must be there for a foreign engine that is to have all of it; it gets whatever is left. NVML's
free is below the total on an idle card (143,156 of 143,771 MiB on an H200), on one with a display by much more."""

SEARCH_LIMIT = 20_000
"""Placements that are looked at before giving up; a handful is enough but for contrived machines."""


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
            return _taken(gpu_bytes(self.config, int(gpu_memory * ALL_LEAST)), grows=not self.config.gpu_memory)
        kind = self.config.kind or self.model.kind
        need = rank_need(self.model, kind, self.asked, shape.tensor, shape.pipeline, gpu_memory)
        share = None if self.asked.share is None else min(self.asked.share, 1 - RESERVE)
        return written_share(need, share, gpu_memory)


@dataclass(frozen=True)
class Misfit:
    """The engine for which no place was found, its need in the way that came nearest, and what was missing for it
    and those that were to be placed after it."""

    task: Task
    shape: Shape
    need: Need
    missing: int


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
        _shapes(task, gpus)  # refuses what cannot be
    kept = _kept(tasks, gpus, running)
    leaving = [p for name in running.surge for p in running.of(name)]
    free = {gpu.index: _usable(gpu) for gpu in gpus}
    for program in (p for p in leaving if p.gpus):
        for index in program.gpus:
            free[index] = free.get(index, 0) - program.gpu_memory_bytes
    drift = {gpu.index: int(gpu.total * DRIFT) if kept else 0 for gpu in gpus}
    beside = _without({index: room + drift.get(index, 0) for index, room in free.items()}, kept)
    found = _place([t for t in tasks if t.program not in kept], gpus, beside)
    if isinstance(found, Misfit) and kept:
        kept, found = {}, _place(tasks, gpus, free)
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
        _shapes(task, gpus)
    found = _place(tasks, gpus, {gpu.index: _usable(gpu) for gpu in gpus})
    return found if isinstance(found, Misfit) else None


def least_gpu_memory(service: Service, gpus: Sequence[Gpu], model: ModelFacts | None) -> int:
    """Bytes that one replica takes at least of all its GPUs; raises PlanError when it cannot run on these."""
    tasks = _tasks({"": service.model_copy(update={"replicas": 1})}, {"": model} if model else {}, NOTHING)
    return sum(_size(task, gpus) for task in tasks)


def usable_memory(gpus: Sequence[Gpu]) -> int:
    """Bytes of these GPUs that engines share out."""
    return sum(map(_usable, gpus))


def _taken(size: int, *, grows: bool = False) -> Need:
    """The need of an engine of which only is known how much it takes."""
    return Need(size, activations=0, graphs=0, base=0, kv_least=0, kv_most=0, kv_sequence=0, context=0, grows=grows)


def _without_gpus(name: str, service: Service, running: Running) -> dict[str, GpuShare]:
    """The shares of a foreign service that runs beside the GPUs."""
    if not service.is_foreign or wanted_gpus(service):
        return {}
    share = GpuShare((), 0, 0, _taken(0), 0, 0.0, host_bytes(service))
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
        for shape in (s for s in _shapes(task, gpus) if s.gpus == len(program.gpus)):
            need = task.need(shape, total)
            if need.grows:  # it has grown before, and goes on with what it has
                need = _taken(max(need.fixed, program.gpu_memory_bytes))
            enough = need.kv_least <= program.kv_cache_bytes and not need.over
            same = task.asked.share is None or need.kv_least == program.kv_cache_bytes
            fits = enough and same and _allowed(task, program.gpus)
            if fits and program.gpu_memory_bytes == need.fixed + program.kv_cache_bytes:
                kept[task.program] = _share(program.gpus, shape, need, program.kv_cache_bytes, total)
    return kept


def _allowed(task: Task, gpus: Sequence[int]) -> bool:
    written = task.config.gpus
    return not isinstance(written, list) or list(gpus) == written


def _shapes(task: Task, gpus: Sequence[Gpu]) -> list[Shape]:
    """The ways of running an engine here, the fewest GPUs first; of one that spans nodes its part here."""
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


def _place(tasks: Sequence[Task], gpus: Sequence[Gpu], free: Mapping[int, int]) -> dict[str, GpuShare] | Misfit:
    """Search in order of size, emptiest GPUs first, going back where it does not work out."""
    ordered = sorted(tasks, key=lambda t: (not isinstance(t.config.gpus, list), -_size(t, gpus)))
    search = _Search(gpus, dict(free))
    placed = search.run(ordered)
    return search.misfit(ordered) if placed is None else placed


def _size(task: Task, gpus: Sequence[Gpu]) -> int:
    return min(task.need(s, gpus[0].total).least * s.gpus for s in _shapes(task, gpus)) if gpus else 0


class _Search:
    """Depth first, with a limit; remembers how far it came."""

    def __init__(self, gpus: Sequence[Gpu], free: dict[int, int]) -> None:
        self.gpus = {gpu.index: gpu for gpu in gpus}
        self.free = free
        self.looked = 0
        self.deepest = -1
        self.then_free: dict[int, int] = dict(free)

    def run(self, tasks: Sequence[Task]) -> dict[str, GpuShare] | None:
        if not tasks:
            return {}
        return self._from(tasks, 0)

    def _from(self, tasks: Sequence[Task], position: int) -> dict[str, GpuShare] | None:
        if position == len(tasks):
            return {}
        if position > self.deepest:
            self.deepest, self.then_free = position, dict(self.free)
        task = tasks[position]
        for chosen, shape, need in self._options(task):
            self.looked += 1
            if self.looked > SEARCH_LIMIT:
                return None
            self._take(chosen, need.least)
            rest = self._from(tasks, position + 1)
            self._take(chosen, -need.least)
            if rest is not None:
                total = min(self.gpus[i].total for i in chosen)
                return {task.program: _share(chosen, shape, need, need.kv_least, total), **rest}
        return None

    def _take(self, chosen: Sequence[int], size: int) -> None:
        for index in chosen:
            self.free[index] -= size

    def _options(self, task: Task) -> Iterator[tuple[tuple[int, ...], Shape, Need]]:
        written = task.config.gpus
        for shape in _shapes(task, tuple(self.gpus.values())):
            # Of GPUs that are equally free, one is as good as another.
            seen: set[tuple[tuple[int, int], ...]] = set()
            ranked = sorted(self.free, key=lambda i: (-self.free[i], i))
            choices = [tuple(written)] if isinstance(written, list) else itertools.combinations(ranked, shape.gpus)
            for chosen in choices:
                need = task.need(shape, min(self.gpus[i].total for i in chosen))
                alike = tuple(sorted((self.free[i], self.gpus[i].total) for i in chosen))
                if alike in seen or need.over or any(self.free[i] < need.least for i in chosen):
                    continue
                seen.add(alike)
                yield tuple(chosen) if isinstance(written, list) else tuple(sorted(chosen)), shape, need

    def misfit(self, tasks: Sequence[Task]) -> Misfit:
        task = tasks[max(self.deepest, 0)]
        ways = [self._nearest(task, shape) for shape in _shapes(task, tuple(self.gpus.values()))]
        found = min(ways, key=lambda way: (way.missing, way.shape.gpus))
        lacking = sum(_size(t, tuple(self.gpus.values())) for t in tasks) - sum(self.free.values())
        return replace(found, missing=max(found.missing, lacking))

    def _nearest(self, task: Task, shape: Shape) -> Misfit:
        written = task.config.gpus
        ranked = written if isinstance(written, list) else sorted(self.then_free, key=lambda i: -self.then_free[i])
        chosen = ranked[: shape.gpus]
        need = task.need(shape, min(self.gpus[i].total for i in chosen))
        return Misfit(task, shape, need, sum(max(need.over, need.least - self.then_free[i], 0) for i in chosen))


def _share(gpus: Sequence[int], shape: Shape, need: Need, kv: int, total: int) -> GpuShare:
    utilization = math.ceil((need.fixed + kv) / total * 1000) / 1000
    return GpuShare(tuple(gpus), shape.tensor, shape.pipeline, need, kv, min(utilization, 1.0), data=shape.data)


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
            need, cache = _taken(need.fixed + extra), 0
        shares[name] = _share(share.gpus, shape, need, cache, total)
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
