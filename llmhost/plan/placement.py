"""Which node runs which replica. Pure: every node computes the same from the same files, and starts what is its own.

Replicas of a service are spread first, so that it outlives a node; beyond that the fewest nodes are used. Whether an
engine fits on a node is asked of the plan for one machine (`llmhost.plan.gpu`, `llmhost.plan.cpu`), which shares out
that node afterwards: nothing is placed that it would refuse. What was placed before stays while it fits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmhost.config import Config, Service
from llmhost.errors import PlanError
from llmhost.facts import ModelFacts, NodeFacts
from llmhost.plan.linked import linked
from llmhost.plan.room import Room
from llmhost.plan.running import Slots
from llmhost.plan.spans import NO_SPANS, Spans
from llmhost.plan.spreading import Spread, assign, choose_nodes, put_back
from llmhost.plan.types import ElsewherePlan, NodePlan

FORMAT = 1


@dataclass(frozen=True)
class Placement:
    """The node of each replica: service -> number -> node. A service without replicas is not in it."""

    nodes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)

    def on(self, node: str) -> dict[str, tuple[int, ...]]:
        """The numbers of the replicas that a node runs, of every service that it runs some of."""
        found = {s: tuple(n for n, place in own.items() if place == node) for s, own in self.nodes.items()}
        return {service: numbers for service, numbers in found.items() if numbers}

    def of(self, service: str) -> dict[str, tuple[str, ...]]:
        """The programs of a service, by node."""
        found: dict[str, tuple[str, ...]] = {}
        for number, node in sorted(self.nodes.get(service, {}).items()):
            found[node] = (*found.get(node, ()), f"{service}-{number}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return {"format": FORMAT, "services": {s: {str(n): node for n, node in own.items()}
                                               for s, own in self.nodes.items()}}  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Placement:
        """Raises KeyError, ValueError or AttributeError for what `to_dict` did not make."""
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']!r}")
        return cls({s: {int(n): str(node) for n, node in own.items()} for s, own in data["services"].items()})

    @property
    def digest(self) -> str:
        """The same for equal placements, whatever their order."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


NOWHERE = Placement()


@dataclass(frozen=True)
class Part:
    """What one node does of the whole."""

    node: str
    nodes: tuple[NodePlan, ...]
    placement: Placement
    spans: Spans = NO_SPANS

    def hosts(self, service: str, number: int) -> tuple[NodePlan, ...]:
        """The nodes of the parts of a replica, by rank; of one that spans nothing its node."""
        names = [self.placement.nodes[part][number] for part in self.spans.parts(service)]
        known = {node.name: node for node in self.nodes}
        return tuple(known[name] for name in names)

    def of(self, config: Config) -> Config:
        """The configuration as this node carries it out: with as many replicas as it runs itself."""
        own = self.placement.on(self.node)
        services = {
            name: s.model_copy(update={"replicas": len(own.get(name, ()))}) if name in self.placement.nodes else s
            for name, s in config.services.items()
        }
        return config.model_copy(update={"services": services})

    @property
    def slots(self) -> dict[str, Slots]:
        """Which replicas of each service are its own."""
        own = self.placement.on(self.node)
        return {name: Slots(own.get(name, ()), len(every)) for name, every in self.placement.nodes.items()}

    def elsewhere(self, service: str) -> tuple[ElsewherePlan, ...]:
        """The replicas of a service that other nodes run, in the order of the nodes."""
        programs = self.placement.of(service)
        others = (n.name for n in self.nodes if n.name != self.node and n.name in programs)
        return tuple(ElsewherePlan(name, programs[name]) for name in others)


@dataclass(frozen=True)
class Unit:
    """What goes to one node as a whole: a replica, or all replicas of services that are `linked`."""

    replicas: tuple[tuple[str, int], ...]
    allowed: frozenset[str]
    size: int
    order: int

    @property
    def service(self) -> str:
        return self.replicas[0][0]

    @property
    def counts(self) -> dict[str, int]:
        """Replicas by service."""
        found: dict[str, int] = {}
        for service, _ in self.replicas:
            found[service] = found.get(service, 0) + 1
        return found


def place(
    services: Mapping[str, Service],
    nodes: Mapping[str, NodeFacts],
    models: Mapping[str, ModelFacts],
    before: Placement = NOWHERE,
    spans: Spans = NO_SPANS,
) -> Placement:
    """Where each replica runs; ``before`` is where it was. ``nodes`` in the order of llmhost.yaml.

    ``services`` with one for every rank of those that span nodes (`Spans.expand`). What fits where it was stays there;
    only when the others find no room beside it, all are placed anew. Raises PlanError, naming the service and what is
    missing, when something fits on no node that it may run on.
    """
    if before.nodes:
        try:
            return place_beside(services, nodes, models, before, spans)
        except PlanError:
            pass
    return place_beside(services, nodes, models, NOWHERE, spans)


def place_beside(
    services: Mapping[str, Service],
    nodes: Mapping[str, NodeFacts],
    models: Mapping[str, ModelFacts],
    before: Placement,
    spans: Spans = NO_SPANS,
) -> Placement:
    """`place` without moving anything that fits where it was."""
    room = Room(services, nodes, models)
    found: dict[str, dict[int, str]] = {name: {} for name, s in services.items() if s.replicas}
    units = list(_units(services, nodes, room, spans))
    spread = []
    for each in _spanning(services, nodes, spans):
        if put_back(each, nodes, before.nodes, room):
            assign(each, [before.nodes[part][each.number] for part in each.parts], room, found)
        else:
            spread.append(each)
    homeless = _keep(units, before, room, found)
    for each in spread:
        assign(each, choose_nodes(each, nodes, room), room, found)
    for unit in sorted(homeless, key=lambda u: (-u.size, u.order)):
        node = room.choose(unit.counts, unit.allowed)
        if node is None:
            raise _no_room(unit, services, room)
        _put(unit, node, room, found)
    return Placement({name: dict(sorted(own.items())) for name, own in found.items()})


def _spanning(services: Mapping[str, Service], nodes: Mapping[str, NodeFacts], spans: Spans) -> Iterator[Spread]:
    for service in spans.widths:
        allowed = _allowed([service], services, nodes)
        for number in range(services[service].replicas):
            yield Spread(spans.parts(service), number, allowed)


def _put(unit: Unit, node: str, room: Room, found: dict[str, dict[int, str]]) -> None:
    room.add(node, unit.counts)
    for service, number in unit.replicas:
        found[service][number] = node


def _units(services: Mapping[str, Service], nodes: Mapping[str, NodeFacts], room: Room, spans: Spans) -> Iterator[Unit]:
    order = 0
    for group in linked(services):
        if spanning := next((name for name in group if name in spans.ranks), ""):
            if len(group) > 1:
                raise PlanError(
                    f"services.{spanning}: it spans nodes, and {' and '.join(group)} must be on one",
                    "let it need only services that can be asked through the gateway",
                )
            continue
        allowed = _allowed(group, services, nodes)
        every = [(name, number) for name in group for number in range(services[name].replicas)]
        for replicas in [tuple(every)] if len(group) > 1 else [(one,) for one in every]:
            size = sum(room.size(name) for name, _ in replicas)
            yield Unit(replicas, allowed, size, order)
            order += 1


def _allowed(group: Sequence[str], services: Mapping[str, Service], nodes: Mapping[str, NodeFacts]) -> frozenset[str]:
    """The nodes that all services of a group may run on: with GPUs, where an engine of vLLM has the choice."""
    written = [services[name].nodes or list(nodes) for name in group]
    allowed = [node for node in nodes if all(node in own for own in written)]
    if not allowed:
        raise PlanError(
            f"services.{group[0]}.nodes: {' and '.join(group)} must be on one node, and may be on none together",
            "they reach each other at 127.0.0.1: write the same nodes: for them, or leave it out",
        )
    if any(not services[name].is_foreign for name in group):
        allowed = [node for node in allowed if nodes[node].device == "cuda"] or allowed
    return frozenset(allowed)


def _keep(units: Sequence[Unit], before: Placement, room: Room, found: dict[str, dict[int, str]]) -> list[Unit]:
    """Put every unit where it was, as far as they fit there; the others are returned. The last are let go first."""
    stay: dict[str, list[Unit]] = {}
    homeless = []
    for unit in units:
        were = {before.nodes.get(service, {}).get(number, "") for service, number in unit.replicas}
        (node,) = were if len(were) == 1 else ("",)
        if node in unit.allowed:
            stay.setdefault(node, []).append(unit)
        else:
            homeless.append(unit)
    for node, there in stay.items():
        while there and not room.holds(node, _sum(there)):
            homeless.append(there.pop())
        for unit in there:
            _put(unit, node, room, found)
    return homeless


def _sum(units: Sequence[Unit]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for unit in units:
        for service, count in unit.counts.items():
            counts[service] = counts.get(service, 0) + count
    return counts


def _no_room(unit: Unit, services: Mapping[str, Service], room: Room) -> PlanError:
    """What is missing on the node that comes nearest."""
    node, why = room.nearest(unit.counts, unit.allowed)
    names = ", ".join(f"{service}-{number}" for service, number in unit.replicas)
    what = f"{names} fit{'s' if len(unit.replicas) == 1 else ' together'} on no node"
    limited = services[unit.service].nodes
    ways = ["add a node (`llmhost node add`)", why.hint]
    if limited:
        ways.insert(0, f"allow it more nodes than {', '.join(limited)}")
    return PlanError(
        f"services.{unit.service}: {what}; {node} comes nearest: {why.message}", "; or ".join(w for w in ways if w)
    )
