"""Models that span nodes: how many nodes a replica takes, and the services that its parts run as. Pure.

The part of rank 0 has the API server and keeps the name of its service; the others are services of their own beside it
(``chat-rank1``), each with as many replicas as the model has, so that they are placed, started and shown like others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from llmhost.config import Service
from llmhost.config_span import Span, part_name
from llmhost.errors import PlanError
from llmhost.facts import ModelFacts, NodeFacts
from llmhost.plan.args import flag_name

FIRST_PORT, SLOTS, SLOT = 20480, 128, 64
"""Where the ports of groups begin, below those that kernels give out by themselves; how many groups, how many each."""
LAST_PORT = 65535

GUARD, MASTER, CLUSTER = 0, 1, 2
"""Of the ports of a group: its guards', vLLM's own, and the first of Ray's."""


@dataclass(frozen=True)
class Rank:
    """What a service is a part of."""

    service: str
    rank: int


@dataclass(frozen=True)
class Spans:
    """Every model that spans nodes."""

    widths: Mapping[str, int] = field(default_factory=dict)
    """Service -> nodes of each replica, more than one."""

    @property
    def ranks(self) -> dict[str, Rank]:
        """By the name of the service that a part runs as, rank 0 included."""
        return {part_name(s, r): Rank(s, r) for s, width in self.widths.items() for r in range(width)}

    def parts(self, service: str) -> tuple[str, ...]:
        """The services that the parts of a model run as, by rank."""
        return tuple(part_name(service, rank) for rank in range(self.widths[service]))

    def expand(self, services: Mapping[str, Service]) -> dict[str, Service]:
        """With a service for every rank."""
        found: dict[str, Service] = {}
        for name, service in services.items():
            if name not in self.widths:
                found[name] = service
                continue
            width = self.widths[name]
            span = Span(nodes=width, port=service.span.port if service.span else None)
            head = service.model_copy(update={"span": span})
            part: dict[str, Any] = {
                "served_as": [],
                "port": None,
                "default": False,
                "endpoints": [],
                "sticky": None,
                "needs": [],
            }
            found[name] = head
            found |= {own: head.model_copy(update=part) for own in self.parts(name)[1:]}
        return found


NO_SPANS = Spans()


def find_spans(
    services: Mapping[str, Service], nodes: Mapping[str, NodeFacts], models: Mapping[str, ModelFacts]
) -> Spans:
    """Which services span nodes: those that say so, and those with more GPUs than any node has.

    Raises PlanError for parts that do not divide.
    """
    widths = {}
    for name, service in services.items():
        if service.is_foreign or not service.replicas:
            continue
        allowed = [nodes[node] for node in (service.nodes or nodes)]
        width = written_width(service) or _needed(name, service, allowed)
        if width > 1:
            _check(name, service, width, models.get(name))
            widths[name] = width
    return Spans(widths)


def written_width(service: Service) -> int:
    """Nodes of each replica as they are written, 0 where they are not."""
    return (service.span and service.span.nodes) or 0


def total_gpus(service: Service) -> int | None:
    """GPUs of a replica on all its nodes, None where that is not said."""
    if isinstance(service.gpus, int):
        return service.gpus
    sizes = parallel_sizes(service)
    return math.prod(sizes.values()) if max(sizes.values()) > 1 else None


def parallel_sizes(service: Service) -> dict[str, int]:
    """What is written of tensor, pipeline and data parallelism; 1 where nothing is."""
    args: dict[str, Any] = {flag_name(key): value for key, value in service.args.items()}
    names = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    return {name: int(str(args[name])) if str(args.get(name, "")).isdecimal() else 1 for name in names}


def _needed(name: str, service: Service, nodes: list[NodeFacts]) -> int:
    """The fewest nodes whose GPUs are enough, 1 where one is, or nobody has GPUs."""
    count, have = total_gpus(service), sorted((len(n.gpus) for n in nodes if n.device == "cuda"), reverse=True)
    if count is None or not have or count <= have[0]:
        return 1
    for width in range(2, len(have) + 1):
        if count % width == 0 and have[width - 1] >= count // width:
            return width
    many = ", ".join(map(str, have))
    raise PlanError(
        f"services.{name}.gpus: {count} GPUs cannot be divided into equal parts over its nodes, which have {many}",
        "ask for a multiple of what several of them have",
    )


def _check(name: str, service: Service, width: int, model: ModelFacts | None) -> None:
    sizes = parallel_sizes(service)
    if sizes["data_parallel_size"] > 1:
        raise PlanError(
            f"services.{name}.args.data_parallel_size: a model that spans nodes has one engine",
            "write replicas: instead; each is a copy of it",
        )
    count = service.gpus if isinstance(service.gpus, int) else None
    if count is not None and count % width:
        raise PlanError(
            f"services.{name}.gpus: {count} GPUs cannot be divided into {width} equal parts",
            f"write a multiple of {width}, or another span",
        )
    written = sizes["tensor_parallel_size"] * sizes["pipeline_parallel_size"]
    if written > 1 and written % width:
        raise PlanError(
            f"services.{name}.args: tensor and pipeline parallelism make {written} parts, which {width} nodes cannot"
            " share equally",
            "leave them out: they follow from gpus and span",
        )
    layers = model.shape.layers if model else 0
    if written <= 1 and layers and layers < width and not _divides_heads(model, width):
        raise PlanError(
            f"services.{name}.span: the model has {layers} layers for {width} nodes", "write a smaller span"
        )


def _divides_heads(model: ModelFacts | None, parts: int) -> bool:
    return model is None or (not model.shape.heads % parts and not (model.shape.kv_heads or parts) % parts)


def cpu_sizes(service: Service, model: ModelFacts) -> tuple[int, int]:
    """Tensor and pipeline parallelism of a model that spans nodes without GPUs: one part on each node."""
    sizes, width = parallel_sizes(service), written_width(service) or 1
    tensor, pipeline = sizes["tensor_parallel_size"], sizes["pipeline_parallel_size"]
    if tensor * pipeline > 1:
        return tensor, pipeline
    return (width, 1) if _divides_heads(model, width) else (1, width)


def first_ports(replicas: Mapping[str, int], services: Mapping[str, Service]) -> dict[str, int]:
    """The first port of each group by program (``chat-0``): what is written, or what follows from its name.

    ``replicas`` in the order of llmhost.yaml. Names that meet give way to what is written and to the ones before them.
    Raises PlanError for written ports that there are not, or that two services have.
    """
    written = _written_ports({n: (s.port, replicas[n]) for n in replicas if (s := services[n].span) and s.port})
    taken = {(port - FIRST_PORT) // SLOT for own in written.values() for port in own}
    found: dict[str, int] = {}
    for service, count in replicas.items():
        own = written.get(service)
        for number in range(count):
            program = f"{service}-{number}"
            found[program] = own[number * SLOT] if own else FIRST_PORT + _free_slot(program, taken) * SLOT
    return found


def _free_slot(program: str, taken: set[int]) -> int:
    """The one that follows from its name or the next that nobody has, which is taken then."""
    first = crc32(program.encode()) % SLOTS
    slots = ((first + step) % SLOTS for step in range(SLOTS))
    slot = next((slot for slot in slots if slot not in taken), first)
    taken.add(slot)
    return slot


def _written_ports(spans: Mapping[str, tuple[int, int]]) -> dict[str, range]:
    """All ports of the groups of each service, from its first port and its replicas."""
    found: dict[str, range] = {}
    for name, (first, replicas) in spans.items():
        own = range(first, first + replicas * SLOT)
        where = f"services.{name}.span.port: {replicas} x {SLOT} ports from {first} on"
        if own.stop > LAST_PORT + 1:
            raise PlanError(f"{where} go beyond {LAST_PORT}", f"write {LAST_PORT + 1 - replicas * SLOT} at most")
        for other, its in found.items():
            if own.start < its.stop and its.start < own.stop:
                raise PlanError(
                    f"{where} meet those of {other}, {its.start} to {its.stop - 1}",
                    f"write {its.stop} or another one, or leave it out: it follows from the name then",
                )
        found[name] = own
    return found
