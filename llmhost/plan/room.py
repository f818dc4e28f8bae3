"""What nodes still have room for. Nodes with the same hardware and the same engines are looked at once, not each.

That is what makes a plan for a thousand of them a matter of seconds: few of them differ.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from llmhost.config import Service
from llmhost.errors import PlanError
from llmhost.facts import Device, Gpu, HostFacts, ModelFacts, NodeFacts
from llmhost.plan.cpu import GIB, memory_left, memory_limit, share_cpu
from llmhost.plan.demand import ENGINE_BASE_BYTES, host_bytes, wanted_cores, wanted_gpus
from llmhost.plan.gpu import gpu_misfit, least_gpu_memory, usable_memory
from llmhost.plan.remedies import require_gpus

LOOKED_AT = 20
"""Groups of nodes of which it is reckoned how much is missing there, the emptiest first."""

NEVER = -1
"""The size of what cannot run on a kind of hardware at all."""

Counts = Mapping[str, int]
"""Replicas by service."""
Key = tuple[int, tuple[tuple[str, int], ...]]


@dataclass(frozen=True)
class Hardware:
    """What decides how much fits on a node."""

    device: Device
    gpus: tuple[Gpu, ...]
    cores: int
    memory: int
    """Bytes of the host in all."""

    @classmethod
    def of(cls, node: NodeFacts) -> Hardware:
        gpus = tuple(replace(gpu, uuid="", name="") for gpu in node.gpus) if node.device == "cuda" else ()
        return cls(node.device, gpus, len(node.host.cores), node.host.memory_total)

    @property
    def host(self) -> HostFacts:
        return HostFacts(tuple(range(self.cores)), self.memory, self.memory)

    @property
    def total(self) -> int:
        """Bytes that are shared out: of its GPUs, where it has some."""
        return usable_memory(self.gpus) if self.device == "cuda" else memory_limit(self.host)


@dataclass
class Alike:
    """Nodes with the same hardware and the same engines, by their places in llmhost.yaml."""

    hardware: int
    counts: dict[str, int]
    left: int
    """Bytes that are left at most."""
    free_cores: int
    """Cores that no engine is bound to (CPU); engines beyond them share cores."""
    nodes: list[int] = field(default_factory=list)


class Room:
    """Nodes that fill up with engines."""

    def __init__(
        self, services: Mapping[str, Service], nodes: Mapping[str, NodeFacts], models: Mapping[str, ModelFacts]
    ) -> None:
        self.services, self.models = services, models
        self.names = list(nodes)
        self.index = {name: i for i, name in enumerate(self.names)}
        kinds: dict[Hardware, int] = {}
        self.hardware_of = [kinds.setdefault(Hardware.of(node), len(kinds)) for node in nodes.values()]
        self.hardware = list(kinds)
        self.order = {name: i for i, name in enumerate(services)}
        self.sizes: dict[tuple[int, str], int] = {}
        self.known: dict[Key, bool] = {}
        self.alike: dict[Key, Alike] = {}
        self.where: list[Alike] = []
        for i, kind in enumerate(self.hardware_of):
            group = self._group(kind, {})
            group.nodes.append(i)
            self.where.append(group)

    def size(self, service: str) -> int:
        """Bytes that a replica takes at least, on the first kind of node that can run it; 0 where none can."""
        sizes = (self._size(kind, service) for kind in range(len(self.hardware)))
        return next((size for size in sizes if size != NEVER), 0)

    def holds(self, node: str, counts: Counts) -> bool:
        """Whether an empty node has room for these replicas."""
        return self._fits(self._key(self.hardware_of[self.index[node]], counts))

    def add(self, node: str, counts: Counts) -> None:
        """Put replicas on a node."""
        i = self.index[node]
        group = self.where[i]
        group.nodes.remove(i)
        if not group.nodes:
            del self.alike[self._key(group.hardware, group.counts)]
        after = self._group(group.hardware, _added(group.counts, counts))
        bisect.insort(after.nodes, i)
        self.where[i] = after

    def choose(self, counts: Counts, allowed: Collection[str]) -> str | None:
        """The node for these replicas: the one with the fewest of their service, then one with cores for them, then one
        that is in use, the fullest of those; None when they fit on none."""
        ranked = [(*rank, first, group) for group, first in self._open(allowed) if (rank := self._rank(group, counts))]
        heapq.heapify(ranked)
        while ranked:
            *_, first, group = heapq.heappop(ranked)
            if self._fits(self._key(group.hardware, _added(group.counts, counts))):
                return self.names[first]
        return None

    def nearest(self, counts: Counts, allowed: Collection[str]) -> tuple[str, PlanError]:
        """The node on which the least is missing for these replicas, and what."""
        found = sorted(self._open(allowed), key=lambda each: (-each[0].left, each[1]))[:LOOKED_AT]
        wanted = [(self.hardware[g.hardware], self._services(_added(g.counts, counts)), first) for g, first in found]
        hardware, services, first = min(wanted, key=lambda each: self._missing(*each[:2]))  # of equals the emptiest
        return self.names[first], self._refusal(hardware, services)

    def _open(self, allowed: Collection[str]) -> list[tuple[Alike, int]]:
        """The groups with a node that may be taken, and the first such node."""
        if len(allowed) == len(self.names):
            return [(group, group.nodes[0]) for group in self.alike.values()]
        places = ((g, next((i for i in g.nodes if self.names[i] in allowed), None)) for g in self.alike.values())
        return [(group, first) for group, first in places if first is not None]

    def _rank(self, group: Alike, counts: Counts) -> tuple[int, bool, bool, int] | None:
        """The smaller the better; None where it cannot fit."""
        left = group.left
        for service, n in counts.items():
            size = self._size(group.hardware, service)
            if size == NEVER or (left := left - size * n) < 0:
                return None
        there = sum(group.counts.get(service, 0) for service in counts)
        bound = self.hardware[group.hardware].device == "cpu"
        return there, bound and group.free_cores < sum(map(self._cores, counts)), not group.counts, left

    def _key(self, hardware: int, counts: Counts) -> Key:
        return hardware, tuple(sorted(counts.items(), key=lambda item: self.order[item[0]]))

    def _group(self, hardware: int, counts: dict[str, int]) -> Alike:
        key = self._key(hardware, counts)
        if key not in self.alike:
            kind = self.hardware[hardware]
            taken = sum(max(self._size(hardware, service), 0) * n for service, n in counts.items())
            cores = sum(self._cores(service) * n for service, n in counts.items())
            self.alike[key] = Alike(hardware, counts, kind.total - taken, kind.cores - cores)
        return self.alike[key]

    def _cores(self, service: str) -> int:
        wanted = wanted_cores(self.services[service])
        return 1 if wanted is None else wanted

    def _size(self, hardware: int, service: str) -> int:
        key = hardware, service
        if key not in self.sizes:
            self.sizes[key] = self._reckon_size(self.hardware[hardware], service)
        return self.sizes[key]

    def _reckon_size(self, kind: Hardware, name: str) -> int:
        service, model = self.services[name], self.models.get(name)
        try:
            if kind.device == "cpu":
                one = {name: service.model_copy(update={"replicas": 1})}
                return kind.total - memory_left(one, kind.host, self.models)
            if not _on_gpus(service):
                return 0
            return least_gpu_memory(service, kind.gpus, model) if kind.gpus else NEVER
        except PlanError:
            return NEVER

    def _services(self, counts: Counts) -> dict[str, Service]:
        return {name: self.services[name].model_copy(update={"replicas": n}) for name, n in counts.items()}

    def _fits(self, key: Key) -> bool:
        if key not in self.known:
            hardware, counts = key
            self.known[key] = self._missing(self.hardware[hardware], self._services(dict(counts))) <= 0
        return self.known[key]

    def _missing(self, kind: Hardware, services: Mapping[str, Service]) -> float:
        """Bytes that are missing on such a node for all these; at most 0 where they fit."""
        try:
            if kind.device == "cpu":
                return -memory_left(services, kind.host, self.models)
            if not kind.gpus and any(map(_on_gpus, services.values())):
                return float("inf")
            found = gpu_misfit(services, kind.gpus, self.models)
        except PlanError:
            return float("inf")
        return max(found.missing, 1) if found else _host_bytes(services) - memory_limit(kind.host)

    def _refusal(self, kind: Hardware, services: Mapping[str, Service]) -> PlanError:
        """What the plan for one such node says."""
        plan: Callable[[], object] = (
            (lambda: share_cpu(services, kind.host, self.models))
            if kind.device == "cpu"
            else (lambda: require_gpus(services, kind.gpus, self.models))
        )
        try:
            plan()
        except PlanError as e:
            return PlanError(e.message.removeprefix("services."), e.hint)
        missing = _host_bytes(services) - memory_limit(kind.host)
        return PlanError(f"{missing / GIB:.1f} GiB of memory of the host are missing")


def _added(counts: Counts, more: Counts) -> dict[str, int]:
    return {**counts, **{service: counts.get(service, 0) + n for service, n in more.items()}}


def _on_gpus(service: Service) -> bool:
    """Of a node that has some."""
    return not service.is_foreign or wanted_gpus(service) > 0


def _host_bytes(services: Mapping[str, Service]) -> int:
    """Memory of the host that engines take which compute on GPUs."""
    return sum(s.replicas * (host_bytes(s) if s.is_foreign else ENGINE_BASE_BYTES) for s in services.values())
