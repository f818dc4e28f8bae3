"""Engines in and out of the gateway's balancing, while they are stopped and started behind it.

All of it goes through the files that Envoy watches, and each step waits until Envoy says that it has taken it up. The
names of members are those of `llmhost.probe.gateway`: the path of a unix socket, or ``address:port``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from llmhost import writer
from llmhost.errors import GatewayError
from llmhost.gateway.clusters import members_file, members_out, take_out
from llmhost.gateway.envoy import version_of
from llmhost.gateway.peers import cluster_name
from llmhost.gateway.routes import MAIN, routes_file
from llmhost.paths import Home
from llmhost.plan import Plan, ServicePlan
from llmhost.probe.gateway import GatewayState, read_gateway
from llmhost.writer import FileChange, replace_file

SECONDS = 20.0
"""Seconds for Envoy to take up new files and to find new engines healthy; it checks each once in a second."""
REBIND_SECONDS = 3.0
"""Seconds for Envoy to bind its listeners; it takes milliseconds."""
POLL_SECONDS = 0.1
SETTLE_SECONDS = 0.2
"""Envoy's threads hear of a change a moment after it is in force; until then they may still choose a member."""
ALL_NODES_SECONDS = 3.0
"""Until what one node has seen of another all have seen: each asks every half second, and may ask once in vain. See
`llmhost.gateway.peers.CHECK`."""

Busy = Callable[[Mapping[str, int]], None]
"""Told the members that still work on requests, and on how many, whenever that changes."""


def is_live(home: Home) -> bool:
    """Whether the gateway serves somebody: one that could not bind its port does not, whatever it says itself."""
    state = read_gateway(home.gateway_admin_socket)
    return state.live and MAIN in state.listeners


def rebind(home: Home) -> None:
    """Let a gateway that could not listen somewhere try again. Envoy does so only when it is given its listeners anew.

    Whether that worked shows in its state: nothing is raised.
    """
    file = home.gateway_conf / "lds.json"
    state = read_gateway(home.gateway_admin_socket)
    if not state.live or not file.exists():
        return
    text = file.read_text(encoding="utf-8")
    if state.errors or not set(_ports(home.gateway_conf)) <= set(state.listeners):
        replace_file(file, text)
        _await(home, lambda now: now.serves({"lds": version_of(text)}), REBIND_SECONDS)


def served(home: Home) -> frozenset[str]:
    """The members of all services that get requests."""
    return _all_served(read_gateway(home.gateway_admin_socket))


def served_of(home: Home, service: str) -> frozenset[str]:
    """The members of one service that get requests, other nodes that run it included."""
    return _served_of(home, read_gateway(home.gateway_admin_socket), service)


def _served_of(home: Home, state: GatewayState, service: str) -> frozenset[str]:
    nodes = state.healthy.get(cluster_name(service), frozenset()) - {str(home.gateway_peer_socket)}
    return state.healthy.get(service, frozenset()) | nodes


def sockets(plan: Plan, programs: Collection[str]) -> frozenset[str]:
    """The members that these programs are; helpers, which the gateway does not know, are none."""
    return frozenset(p.socket for s in plan.routed for p in s.replicas if p.name in programs)


def take_programs_out(home: Home, services: Iterable[ServicePlan], out: Collection[str], on_busy: Busy) -> None:
    """Let these members finish what they work on, up to each service's ``stop_timeout``, and get nothing new."""
    if not is_live(home):
        return
    chosen = [(s, members) for s in services if (members := {p.socket for p in s.replicas} & set(out))]
    for service, members in chosen:
        _write(home, service.name, members.union)
    await_clusters(home)
    started = time.monotonic()
    for service, members in sorted(chosen, key=lambda item: item[0].stop_timeout):
        await_idle(home, members, started + service.stop_timeout - time.monotonic(), on_busy)


def put_back(home: Home, services: Iterable[ServicePlan], back: Collection[str]) -> None:
    """Let these members get requests again as soon as they are healthy."""
    gone = frozenset(back)
    for service in services:
        _write(home, service.name, lambda there: there - gone)


def restore(home: Home) -> None:
    """Let all members get requests again: what is out of balancing was left so by a command that was killed.

    Only with the lock of the home held: whoever takes a member out holds it until the member is back.
    """
    for file in home.gateway_conf.glob(f"{members_file('*')}.json"):
        _write(home, file.stem.removeprefix(members_file("")), lambda _: ())


def _write(home: Home, service: str, change: Callable[[frozenset[str]], Collection[str]]) -> None:
    file = home.gateway_conf / f"{members_file(service)}.json"
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    new = take_out(text, change(members_out(text)))
    if new != text:
        writer.apply(home, [FileChange(str(file.relative_to(home.root)), text, new)])


def await_files(home: Home, seconds: float = SECONDS) -> None:
    """Wait until the gateway serves what its files say; raises GatewayError with Envoy's words when it does not."""

    def serves(state: GatewayState, versions: Mapping[str, str]) -> bool:
        return state.serves(versions, _ports(home.gateway_conf))

    _await_versions(home, lambda: _versions(home.gateway_conf), serves, seconds)


def await_clusters(home: Home, seconds: float = SECONDS) -> None:
    """`await_files` for clusters and their members only, whatever is wrong with a listener."""

    def versions() -> dict[str, str]:
        there = _versions(home.gateway_conf).items()
        return {name: version for name, version in there if name == "cds" or name.startswith("eds-")}

    _await_versions(home, versions, lambda state, wanted: state.knows(wanted), seconds)


def _await_versions(
    home: Home,
    read: Callable[[], Mapping[str, str]],
    serves: Callable[[GatewayState, Mapping[str, str]], bool],
    seconds: float,
) -> None:
    """The files are read again while they are not in force: keys may change in them meanwhile."""
    wanted = read()

    def holds(state: GatewayState) -> bool:
        nonlocal wanted
        if serves(state, wanted):
            return True
        wanted = read()
        return serves(state, wanted)

    state = _await(home, holds, seconds)
    if not serves(state, wanted):
        differing = sorted(name for name in wanted if state.versions.get(name) != wanted[name])
        late = f"{', '.join(f'{name}.json' for name in differing)} was not taken up" if differing else ""
        told = "; ".join(state.errors) or late or "it still asks members whether they are healthy, or binds its ports"
        raise GatewayError(f"the gateway does not serve its new configuration: {told}", "see `llmhost logs gateway`")
    time.sleep(SETTLE_SECONDS)


def await_served(home: Home, plan: Plan, programs: Collection[str], seconds: float = SECONDS) -> None:
    """Wait until all these engines get requests; raises GatewayError naming those that do not."""
    members = sockets(plan, programs)
    state = _await(home, lambda state: members <= _all_served(state), seconds)
    missing = [p.name for p in plan.programs if p.name in programs and p.socket in members - _all_served(state)]
    if missing:
        raise GatewayError(
            f"the gateway sends no requests to {', '.join(missing)}, which cannot be reached",
            "see `llmhost status` and `llmhost logs gateway`",
        )


def await_others_served(home: Home, service: str, own: Collection[str], seconds: float = SECONDS) -> bool:
    """Wait until a service has a member beside ``own`` that gets requests; False when it has none in time."""

    def others(state: GatewayState) -> bool:
        return not _served_of(home, state, service) <= set(own)

    return others(_await(home, others, seconds))


def await_idle(home: Home, members: Collection[str], seconds: float, on_busy: Busy) -> None:
    """Wait until these members work on nothing, or `seconds` are over: then the engine ends what is left."""
    told: dict[str, int] = {}

    def idle(state: GatewayState) -> bool:
        nonlocal told
        busy = {m: count for m in members if (count := state.active.get(m, 0))}
        if busy.keys() != told.keys():
            on_busy(busy)
        told = busy
        return not busy

    _await(home, idle, seconds)


def _await(home: Home, holds: Callable[[GatewayState], bool], seconds: float) -> GatewayState:
    deadline = time.monotonic() + seconds
    while True:
        state = read_gateway(home.gateway_admin_socket)
        if holds(state) or time.monotonic() > deadline:
            return state
        time.sleep(POLL_SECONDS)


def _all_served(state: GatewayState) -> frozenset[str]:
    """Of nodes that run a service, each as `node_member`: for another service it may not be healthy."""
    return frozenset(
        node_member(name, member) if name.endswith(cluster_name("")) else member
        for name, members in state.healthy.items()
        for member in members
    )


def node_member(cluster: str, member: str) -> str:
    """How a node that runs a service is told among the members that get requests."""
    return f"{cluster} {member}"


def _versions(folder: Path) -> dict[str, str]:
    """Of the files that Envoy reads: those of clusters and listeners that are not there any more it does not."""
    texts = {p.stem: p.read_text(encoding="utf-8") for p in folder.glob("*.json")}
    of_clusters = {members_file(name) for name in _names(texts["cds"])}
    of_listeners = {routes_file(name) for name in _names(texts["lds"])}
    return {name: version_of(text) for name in {"cds", "lds", *of_clusters, *of_listeners} if (text := texts.get(name))}


def _ports(folder: Path) -> dict[str, int]:
    """Of the listeners in a folder of files that Envoy reads, by name."""
    resources = json.loads((folder / "lds.json").read_text(encoding="utf-8"))["resources"]
    places = ((str(r["name"]), r.get("address", {}).get("socket_address")) for r in resources)
    return {name: int(place["port_value"]) for name, place in places if place}


def _names(text: str) -> list[str]:
    return [str(resource["name"]) for resource in json.loads(text)["resources"]]
