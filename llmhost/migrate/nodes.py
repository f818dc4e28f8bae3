"""The services of several hosts as one configuration with ``nodes:``, each bound to where it ran."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from llmhost.config_nodes import PORT_BESIDE
from llmhost.migrate.clashes import PER_REPLICA, model_names, needs
from llmhost.migrate.compose import Read
from llmhost.migrate.hosts import Host
from llmhost.migrate.names import free, slug
from llmhost.migrate.report import Draft, Imported, Line, Outcome

GATEWAY = 8000
"""Port of every node's gateway."""


@dataclass(frozen=True)
class Part:
    """What a host ran."""

    host: Host
    read: Read
    texts: Mapping[Path, str]
    """Its files."""


@dataclass(eq=False)
class _Group:
    """Services of the old files that are one: the first of them is written, the others are further replicas."""

    members: list[tuple[Draft, Host]] = field(default_factory=list)

    @property
    def service(self) -> Draft:
        return self.members[0][0]

    @property
    def nodes(self) -> list[str]:
        return list(dict.fromkeys(host.name for _, host in self.members))


def unite(parts: Sequence[Part]) -> Imported:
    """One configuration of what the hosts ran.

    Services with the same settings are one with replicas on the nodes of all of them; those that differ and are called
    alike get the name of their node behind their own. A port that clients used stays where one service alone had it;
    the others are told with their hosts. GPUs by number are those of the node.
    """
    for part in parts:
        for draft in part.read.drafts:
            draft.node = part.host.name
            draft.lines = [replace(line, node=part.host.name) for line in draft.lines]
            _relative(draft, part)
    members = [(draft, part.host) for part in parts for draft in part.read.drafts if "model" in draft.keys]
    ports = {id(draft): draft.keys.pop("port") for draft, _ in members if "port" in draft.keys}
    groups = _grouped(members)
    made = [{draft.name: draft for draft in part.read.drafts} for part in parts]
    for group in groups:
        _replicas(group)
        _gpus(group)
    _names(groups)
    owners = {id(draft): group.service for group in groups for draft, _ in group.members}
    model_names([group.service for group in groups])
    _ports(groups, ports)
    every = {group.service.name: group.service for group in groups}
    for part, drafts in zip(parts, made, strict=True):
        own = {name: owners[id(draft)] for name, draft in drafts.items() if id(draft) in owners}
        needs(drafts, own, part.read.names, every)
    return Imported(
        {
            "gateway": {"host": "127.0.0.1", "port": GATEWAY},
            "nodes": {part.host.name: part.host.to_dict() for part in parts},
            "services": {group.service.name: _entry(group) for group in groups},
        },
        tuple(_lines(parts)),
    )


def _lines(parts: Sequence[Part]) -> Iterator[Line]:
    for part in parts:
        host = part.host
        files = ", ".join(str(file) for file in host.files)
        yield Line("", files, "became", f"nodes: {{{host.name}: {{address: {host.address}}}}}", host.name)
        yield from (replace(line, node=host.name) for line in part.read.lines)
        yield from (line for draft in part.read.drafts for line in draft.lines)


def _entry(group: _Group) -> dict[str, object]:
    entry = group.service.to_dict()
    nodes = group.nodes
    return {"model": entry.pop("model"), "nodes": nodes[0] if len(nodes) == 1 else nodes, **entry}


def _relative(draft: Draft, part: Part) -> None:
    """Paths that counted from a compose file: on the node it lay elsewhere, as likely as not."""
    bases = {f"{base}/" for base in (*(file.parent for file in part.texts), Path.home())}
    for line in list(draft.lines):
        source = line.source.removeprefix("volume ").partition(":")[0]
        here = line.source.startswith("volume ") and any(f"{source}/".startswith(base) for base in bases)
        if line.outcome == "became" and here and not any(source in text for text in part.texts.values()):
            draft.by_hand(
                line.source, f"{source} is where the file lies here: write in its place the path on {part.host.name}"
            )


def _grouped(members: Sequence[tuple[Draft, Host]]) -> list[_Group]:
    groups: list[_Group] = []
    for draft, host in members:
        group = next((g for g in groups if _alike(g, draft)), None)
        if group is None:
            group = _Group()
            groups.append(group)
        group.members.append((draft, host))
    return groups


def _alike(group: _Group, draft: Draft) -> bool:
    """Whether it is the same but for its port and which GPUs it has; each of them as many."""
    one = group.service
    first, second = ({k: v for k, v in d.keys.items() if k not in PER_REPLICA} for d in (one, draft))
    sizes = {size for d in (*(d for d, _ in group.members), draft) if (size := _size(d)) is not None}
    same = (first, one.args, one.env, one.profiles) == (second, draft.args, draft.env, draft.profiles)
    return same and len(sizes) < 2


def _size(draft: Draft) -> int | None:
    gpus = draft.keys.get("gpus")
    return len(gpus) if isinstance(gpus, list) else gpus if isinstance(gpus, int) else None


def _replicas(group: _Group) -> None:
    if len(group.members) == 1:
        return
    counts = [draft.keys.get("replicas", 1) for draft, _ in group.members]
    service, host = group.members[0]
    total, where = sum(counts), ", ".join(group.nodes)
    for draft, own in group.members[1:]:
        there = f"{service.name} of {host.name}" if own != host else service.name
        draft.became(f"the service {draft.name}", f"a replica of {there}, which it is like but for port and GPUs")
    service.became(f"the service {service.name}", f"replicas: {total}, nodes: [{where}]: the plan spreads them")
    by_node = dict.fromkeys(group.nodes, 0)
    for (_, own), count in zip(group.members, counts, strict=True):
        by_node[own.name] += count
    if len(set(by_node.values())) > 1:
        had = ", ".join(f"{count} on {name}" for name, count in by_node.items())
        service.by_hand("its replicas", f"there were {had}: `llmhost plan` says where they are now")
    service.keys["replicas"] = total


def _gpus(group: _Group) -> None:
    """GPUs by number stay where every node has one engine on the same ones; else how many is left of them."""
    service = group.service
    lists = [draft.keys.get("gpus") for draft, _ in group.members]
    per_node = len(group.nodes) == len(group.members) and service.keys.get("replicas", 1) == len(group.members)
    if len(group.members) == 1 or (all(gpus == lists[0] for gpus in lists) and per_node):
        for draft, host in group.members:
            _amend(draft, "gpus: [", f"{{}} of {host.name}")
        return
    if all(not isinstance(gpus, list) for gpus in lists) and len(set(lists)) == 1:
        return
    sizes = {_size(draft) for draft, _ in group.members}
    size = sizes.pop() if len(sizes) == 1 else None
    now = f"gpus: {size} for each" if size is not None else "gpus: auto"
    had = ", ".join(f"{gpus or 'auto'} on {host.name}" for gpus, (_, host) in zip(lists, group.members, strict=True))
    if size is None:
        service.keys.pop("gpus", None)
    else:
        service.keys["gpus"] = size
    for draft, _ in group.members:
        _amend(draft, "gpus: [", f"{now}, the plan chooses which")
    service.by_hand("the GPUs of its replicas", f"{now}, the plan chooses which; they were {had}")


def _amend(draft: Draft, start: str, detail: str, outcome: Outcome = "became") -> None:
    """Say in the end of what became ``start``… what became of it; ``{}`` stands for what was said first."""
    for i, line in enumerate(draft.lines):
        if line.outcome == "became" and line.detail.startswith(start):
            draft.lines[i] = replace(line, outcome=outcome, detail=detail.replace("{}", line.detail))


def _names(groups: Sequence[_Group]) -> None:
    """The first keeps its name; a later one with other settings has the name of its node behind it."""
    taken: dict[str, str] = {}
    wished = {group.service.name for group in groups}
    for group in groups:
        service, old = group.service, group.service.name
        if old in taken:
            new = free(slug(f"{old}-{group.nodes[0]}"), {*taken, *wished})
            for draft, _ in group.members:
                if draft.name == old:
                    draft.name, draft.lines = new, [replace(line, service=new) for line in draft.lines]
            service.became(old, f"the service {new}: {old} of {taken[old]} has other settings")
        taken[service.name] = group.nodes[0]


def _ports(groups: Sequence[_Group], ports: Mapping[int, int]) -> None:
    """A port is the same on every gateway, so it stays where one service alone had it, and that service no other.

    ``ports`` are those that clients used, by the id of the draft.
    """
    users: dict[int, list[_Group]] = {}
    for group in groups:
        for draft, _ in group.members:
            if port := ports.get(id(draft)):
                users.setdefault(port, [])
                users[port] += [group] if group not in users[port] else []
    for group in groups:
        for draft, host in group.members:
            if port := ports.get(id(draft)):
                _port(group, draft, host, port, [g.service.name for g in users[port] if g is not group])


def _port(group: _Group, draft: Draft, host: Host, port: int, others: Sequence[str]) -> None:
    service = group.service
    address = f"[{host.address}]" if ":" in host.address else host.address
    start = f"port: {port}"
    name = (service.keys.get("served_as") or [service.name])[0]
    ask = f"clients of {address}:{port} ask {address}:{GATEWAY} for {name}"
    if port == GATEWAY:
        _amend(draft, start, "the gateway's port, which serves every service on every node")
    elif others:
        _amend(draft, start, f"{', '.join(others)} had it, too, and a port is the same on all nodes: {ask}", "by hand")
    elif port == GATEWAY + PORT_BESIDE:
        _amend(draft, start, f"gateways of the nodes reach each other there: {ask}", "by hand")
    elif service.keys.setdefault("port", port) != port:
        _amend(draft, start, f"one service with port {service.keys['port']} on every node: {ask}", "by hand")
    else:
        _amend(draft, start, f"port: {port} on every node, beside the gateway's port")
