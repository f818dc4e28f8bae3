"""Replicas whose parts go to different nodes: which nodes those are. Pure; a part of `llmhost.plan.placement`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from packaging.version import Version

from llmhost.errors import PlanError
from llmhost.facts import NodeFacts
from llmhost.plan.room import Room

Found = dict[str, dict[int, str]]
"""Service -> number -> node."""


@dataclass(frozen=True)
class Spread:
    """A replica that spans nodes."""

    parts: tuple[str, ...]
    """The services that its parts run as, by rank. They are in the order of the nodes."""
    number: int
    allowed: frozenset[str]
    """Nodes."""

    @property
    def name(self) -> str:
        return f"{self.parts[0]}-{self.number}"


def put_back(each: Spread, nodes: Mapping[str, NodeFacts], before: Mapping[str, Mapping[int, str]], room: Room) -> bool:
    """Put the parts of a replica where they were; False when they cannot all be there any more."""
    were = [before.get(part, {}).get(each.number, "") for part in each.parts]
    in_order = were == [node for node in nodes if node in were]
    if not in_order or not each.allowed.issuperset(were) or len({nodes[n].engine for n in were} - {""}) > 1:
        return False
    return all(room.choose({part: 1}, {node}) for part, node in zip(each.parts, were, strict=True))


def choose_nodes(each: Spread, nodes: Mapping[str, NodeFacts], room: Room) -> list[str]:
    """Nodes for its parts, all with the same version of vLLM; raises PlanError when there are too few."""
    for engine in dict.fromkeys(nodes[node].engine for node in nodes if node in each.allowed):
        free = {node for node in each.allowed if nodes[node].engine in (engine, "")}
        chosen: list[str] = []
        while len(chosen) < len(each.parts) and (node := room.choose({each.parts[len(chosen)]: 1}, free - {*chosen})):
            chosen.append(node)
        if len(chosen) == len(each.parts):
            return [node for node in nodes if node in chosen]
    raise _too_few(each, nodes, room)


def assign(each: Spread, hosts: Sequence[str], room: Room, found: Found) -> None:
    """Put its parts on these nodes."""
    for part, node in zip(each.parts, hosts, strict=True):
        room.add(node, {part: 1})
        found[part][each.number] = node


def _too_few(each: Spread, nodes: Mapping[str, NodeFacts], room: Room) -> PlanError:
    service = each.parts[0]
    what = f"services.{service}: {each.name} takes {len(each.parts)} nodes"
    fit = [node for node in nodes if node in each.allowed and room.choose({service: 1}, {node})]
    if len(fit) >= len(each.parts) and len({nodes[node].engine for node in fit} - {""}) > 1:
        return _other_engines(what, {node: nodes[node].engine for node in fit})
    rest = each.allowed - {*fit}
    if not rest:
        return PlanError(
            f"{what}, and it may run on {len(each.allowed)}", "write a smaller span, or allow it more nodes"
        )
    node, why = room.nearest({service: 1}, rest)
    return PlanError(f"{what}, and a part of it fits on {', '.join(fit) or 'none'}; on {node}: {why.message}", why.hint)


def _other_engines(what: str, engines: Mapping[str, str]) -> PlanError:
    """The hint has all steps: nodes have the file after a sync only, and plan with facts that were read before."""
    versions = ", ".join(f"{node} has {engine or 'none'}" for node, engine in engines.items())
    newest = max(filter(None, engines.values()), key=Version)
    lagging = [node for node, engine in engines.items() if engine not in ("", newest)]
    return PlanError(
        f"{what} with the same version of vLLM: {versions}",
        f"write engine.vllm: {newest} in llmhost.yaml (or one that all can run) and run `llmhost node sync`;"
        f" `llmhost setup` on {' and '.join(lagging)}; then `llmhost node sync --facts`",
    )
