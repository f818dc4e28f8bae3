"""`llmhost node doctor`: all nodes looked at together. What is read stands here, what follows in `diagnosis.nodes`."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from llmhost import __version__
from llmhost import config as configuration
from llmhost.config_nodes import gateway_port, is_loopback
from llmhost.diagnosis import Check, fail
from llmhost.diagnosis.nodes import (
    Clock,
    Seen,
    Way,
    check_addresses,
    check_clocks,
    check_files,
    check_versions,
    check_ways,
)
from llmhost.env import find_engine
from llmhost.errors import LlmhostError, NodeError
from llmhost.fleet import files, measure
from llmhost.fleet.addresses import find_addresses
from llmhost.fleet.everywhere import attempt, in_parallel
from llmhost.fleet.members import Member
from llmhost.paths import Home
from llmhost.probe.interface import interface_of
from llmhost.run import Talk

LISTEN_SECONDS = 30.0
TRY_SECONDS = 60.0
ENDED = "\n"
"""In the place of a line, which cannot be this: there are no more."""
GROUP_PORTS = (20480, 28671)
"""The first and the last of those on which the parts of a model over several nodes meet."""


def examine(home: Home, nodes: Sequence[Member]) -> list[Check]:
    """Look at all nodes and at the ways between them; one that does not answer is a check that failed."""
    states, lost = attempt(nodes, lambda node: files.state_from_json(node.ask("node", "state")))
    checks = [fail("ssh", f"{name}: {e.message}", e.hint or "see `llmhost node list`") for name, e in lost.items()]
    there = [node for node in nodes if node.name in states]
    clocks = {node.name: _clock(node) for node in there if node.link}
    # One of another version may not know what it is asked: what can be told of it has been told.
    others = {name: Seen(s.llmhost, "") for name, s in states.items() if s.llmhost != __version__}
    same = [node for node in there if node.name not in others]
    with _listening(same) as listening:
        seen = {name: _seen(told) for name, told in listening.items()}
        ways = _ways([n for n in same if n.name in listening], listening)
    stale = {n.name: files.stale(states[n.name], files.digests(home, n.name)) for n in same if n.link}
    checks += [*_check_versions(seen, others), *check_clocks(clocks), *check_files(stale)]
    addresses = {node.name: node.address for node in nodes}
    return [*checks, *check_addresses(seen, addresses), *check_ways(ways)]


def _check_versions(seen: Mapping[str, Seen], others: Mapping[str, Seen]) -> list[Check]:
    """Whether an engine is built where llmhost is another one (``others``) is not known."""
    about = {"llmhost": {**seen, **others}, "vLLM": seen}
    return [check for name, nodes in about.items() for check in check_versions(nodes) if check.name == name]


def _clock(node: Member) -> Clock:
    """By the time that ssh takes there and back: the clock there was read somewhere in between."""
    assert node.link is not None
    began = time.time()
    said = node.link.run(["date", "+%s.%N"]).stdout.split()[-1]
    ended = time.time()
    seconds, _, rest = said.partition(".")
    coarse = not rest.isdigit()  # a date that knows no nanoseconds
    there = float(seconds) + 0.5 if coarse else float(said)
    return Clock(there - (began + ended) / 2, (ended - began) / 2 + 0.5 * coarse)


def own_view(home: Home) -> dict[str, Any]:
    """For the doctor on another node: what this one is, and where it listens from now on."""
    config = configuration.load(home.config_file)
    own = home.node_file.read_text(encoding="utf-8").strip()
    if own not in config.nodes:
        raise NodeError(f"llmhost.yaml has no node {own!r}", "run `llmhost node sync` where it was edited")
    node = config.nodes[own]
    addresses = find_addresses(home, config)
    address = addresses[own]
    ports = (gateway_port(node, config.gateway.port), *GROUP_PORTS)
    engine = find_engine(home, config.engine)
    return {
        "llmhost": __version__, "engine": engine.vllm_version if engine else "",
        "interface": interface_of(address) if address else "", "loopback": _misleading(addresses),
        "addresses": addresses, **measure.listen(address or node.address, ports),
    }  # fmt: skip


def _misleading(addresses: Mapping[str, str]) -> dict[str, str]:
    """Nodes that the plan finds on loopback or nowhere; homes of one machine, on loopback all, are meant so."""
    if all(is_loopback(address) for address in addresses.values()):
        return {}
    return {n: address for n, address in addresses.items() if address == "" or is_loopback(address)}


@contextmanager
def _listening(nodes: Sequence[Member]) -> Iterator[dict[str, Any]]:
    """`node listen` on every node, for as long as the block takes; what each says of itself."""
    talks: list[Talk] = []
    lines: queue.Queue[tuple[str, str]] = queue.Queue()
    threads = []
    try:
        for node in nodes:
            talk = node.talk("node", "listen")
            talks.append(talk)
            thread = threading.Thread(target=_follow, args=(talk, node.name, lines), daemon=True)
            thread.start()
            threads.append(thread)
        yield _first_lines(nodes, lines)
    finally:
        for talk in talks:
            talk.end()
        for thread in threads:
            thread.join()


def _follow(talk: Talk, name: str, lines: queue.Queue[tuple[str, str]]) -> None:
    talk.follow(lambda line: lines.put((name, line)), lambda _: None)
    lines.put((name, ENDED))


def _first_lines(nodes: Sequence[Member], lines: queue.Queue[tuple[str, str]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    ended: set[str] = set()
    deadline = time.monotonic() + LISTEN_SECONDS
    while len(found.keys() | ended) < len(nodes) and (left := deadline - time.monotonic()) > 0:
        try:
            name, line = lines.get(timeout=left)
        except queue.Empty:
            break
        if line.startswith("{"):
            found[name] = json.loads(line)
        elif line == ENDED:
            ended.add(name)
    return {node.name: found[node.name] for node in nodes if node.name in found}


def _seen(told: Mapping[str, Any]) -> Seen:
    return Seen(told["llmhost"], told["engine"], told["interface"], told["loopback"])


def _ways(nodes: Sequence[Member], listening: Mapping[str, Mapping[str, Any]]) -> list[Way]:
    """From every node to every other; in turns, so that no node measures two ways at once."""
    found: list[Way] = []
    for step in range(1, len(nodes)):
        pairs = {node.name: nodes[(index + step) % len(nodes)] for index, node in enumerate(nodes)}
        rounds = in_parallel(nodes, lambda n, pairs=pairs: _way(n, pairs[n.name], listening))  # type: ignore[misc]
        found += rounds.values()
    order = [node.name for node in nodes]
    return sorted(found, key=lambda way: (order.index(way.source), order.index(way.to)))


def _way(source: Member, to: Member, listening: Mapping[str, Mapping[str, Any]]) -> Way:
    told = listening[to.name]
    seen = listening[source.name].get("addresses", {})  # a name may mean something else there
    address = seen.get(to.name) or to.address
    question = json.dumps({**told, "address": address})
    try:
        answer = json.loads(source.ask("node", "reach", given=question, timeout=TRY_SECONDS))
    except (LlmhostError, ValueError) as e:
        return Way(source.name, to.name, address, {int(told["port"]): str(e)})
    ports = {int(port): why for port, why in answer["ports"].items()}
    return Way(source.name, to.name, address, ports, answer["seconds"], answer["bytes_per_second"])


def reach(text: str) -> dict[str, Any]:
    """For the doctor on another node: the way from here to one that listens (``text`` is what that one said)."""
    told = json.loads(text)
    address = str(told["address"])
    ports = {p: measure.reach(address, int(p)) for p, why in told["ports"].items() if why in ("", measure.TAKEN)}
    ports[str(told["port"])] = measure.reach(address, int(told["port"]))
    return {"ports": ports, **measure.measure(address, told)}
