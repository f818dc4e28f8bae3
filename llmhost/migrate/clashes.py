"""Drafts put together: what meets (ports, names of models) is sorted out, so that everything that can stay does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmhost.migrate.report import Draft, Imported, Line

PER_REPLICA = ("port", "gpus", "replicas")
"""Keys in which two engines of one service may differ."""


def finish(
    drafts: Sequence[Draft], before: Sequence[Line], port: int = 8000, names: Mapping[str, str] | None = None
) -> Imported:
    """The whole llmhost.yaml with its report, which begins with the lines ``before``.

    ``port`` is the gateway's; ``names`` has the names of the services by their old ones.
    """
    services, owners = _balanced([draft for draft in drafts if "model" in draft.keys])
    _ports(services, port)
    model_names(services)
    needs({draft.name: draft for draft in drafts}, owners, names or {})
    return Imported(
        {
            "gateway": {"host": "127.0.0.1", "port": port},
            "services": {draft.name: draft.to_dict() for draft in services},
        },
        (*before, *(line for draft in drafts for line in draft.lines)),
    )


def _balanced(drafts: Sequence[Draft]) -> tuple[list[Draft], dict[str, Draft]]:
    """Services that are the same but for port and GPUs are one with replicas, as behind a balancer.

    Also each service by name, with the one that it became a part of.
    """
    kept: list[Draft] = []
    owners: dict[str, Draft] = {}
    for draft in drafts:
        same = next((d for d in kept if d.profiles == draft.profiles and _alike(d, draft)), None)
        if same is None:
            kept.append(draft)
        else:
            draft.became("the service", f"a replica of {same.name}, which it is like but for port and GPUs")
            as_replica(same, draft)
        owners[draft.name] = same or draft
    return kept, owners


def needs(
    drafts: Mapping[str, Draft],
    owners: Mapping[str, Draft],
    names: Mapping[str, str],
    every: Mapping[str, Draft] | None = None,
) -> None:
    """``depends_on`` among the services that are there; compose itself refuses circles.

    ``owners`` has, by the names of the drafts, the service that each became or became a part of; ``every`` all services
    by the names that they have in the end, where these are others.
    """
    every = owners if every is None else every
    for name, draft in drafts.items():
        service = owners.get(name)
        for old in draft.needs if service else ():
            needed = owners.get(names.get(old, old))
            if service is None or needed is None:
                draft.left_out(f"depends_on {old}", "it is not a service of llmhost.yaml")
            elif _reaches(needed, service, every):
                draft.by_hand(f"depends_on {old}", "it waits for this one itself")
            else:
                written = service.keys.setdefault("needs", [])
                written += [needed.name] if needed.name not in written else []
                draft.became(f"depends_on {old}", f"needs: [{needed.name}]")


def _reaches(start: Draft, goal: Draft, owners: Mapping[str, Draft]) -> bool:
    """Whether ``start`` waits for ``goal`` by the needs that are written so far."""
    if start is goal:
        return True
    return any(_reaches(owners[name], goal, owners) for name in start.keys.get("needs", ()))


def _alike(one: Draft, other: Draft) -> bool:
    keys = ({k: v for k, v in draft.keys.items() if k not in PER_REPLICA} for draft in (one, other))
    first, second = keys
    return first == second and one.args == other.args and one.env == other.env and "model" in first


def as_replica(service: Draft, other: Draft) -> None:
    """Count ``other`` as further replicas; what its report says of it alone is to be done by hand."""
    _share_gpus(service, other)
    service.keys["replicas"] = service.keys.get("replicas", 1) + other.keys.get("replicas", 1)
    same = {(line.source, line.detail) for line in service.lines}
    for i, line in enumerate(other.lines):
        if line.outcome == "became" and line.source != "the service" and (line.source, line.detail) not in same:
            what = f"one service with {service.name}: its replicas differ in nothing; clients use {_address(service)}"
            other.lines[i] = Line(line.service, line.source, "by hand", what)


def _address(service: Draft) -> str:
    return f"port {service.keys['port']}" if "port" in service.keys else "the gateway's port"


def _share_gpus(service: Draft, other: Draft) -> None:
    """Lists of GPUs become how many each replica has: which ones, the plan decides."""
    lists = [draft.keys.get("gpus") for draft in (service, other)]
    if lists[0] == lists[1]:
        return
    sizes = [len(gpus) if isinstance(gpus, list) else gpus for gpus in lists]
    if sizes[0] == sizes[1]:
        service.keys["gpus"] = sizes[0]
        service.by_hand("the GPUs of its replicas", f"gpus: {sizes[0]} for each, the plan chooses which")
    else:
        service.keys.pop("gpus", None)


def _ports(drafts: Sequence[Draft], gateway: int) -> None:
    owners: dict[int, str] = {}
    for draft in drafts:
        port = draft.keys.get("port")
        if port == gateway:
            del draft.keys["port"]
            draft.became(f"port {port}", "the gateway's port, which serves every service")
        elif port in owners:
            del draft.keys["port"]
            draft.by_hand(
                f"port {port}", f"{owners[port]} has it: write another port:, or ask the gateway for this one"
            )
        elif port is not None:
            owners[port] = draft.name


def model_names(drafts: Sequence[Draft]) -> None:
    """A name that clients ask for is that of one service: the first keeps it."""
    owners: dict[str, str] = {}
    for draft in drafts:
        names: list[str] = draft.keys.get("served_as") or [draft.name]
        taken = [name for name in names if name in owners]
        free = [name for name in names if name not in owners] or [_unused(draft.name, owners)]
        for name in taken:
            draft.by_hand(f"served as {name}", f"{owners[name]} is: clients ask for this one as {free[0]}")
        if taken:
            draft.keys["served_as"] = free
        owners |= dict.fromkeys(free, draft.name)


def _unused(name: str, owners: Mapping[str, Any]) -> str:
    while name in owners:
        name += "-2"
    return name
