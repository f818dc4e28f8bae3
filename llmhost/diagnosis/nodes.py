"""Checks of several nodes together. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from llmhost.diagnosis.findings import Check, fail, ok, warn

CLOCK_WARN, CLOCK_FAIL = 1.0, 300.0
"""Seconds apart. Logs are merged by time and keys end at a time; certificates begin a day early."""
SLOW_SECONDS = 0.002
SLOW_BYTES = 100 * 10**6
"""A second: less than 1 Gbit/s, so that the weights of a model of 70B take more than 20 minutes."""


@dataclass(frozen=True)
class Seen:
    """What a node says of itself."""

    llmhost: str
    engine: str
    """Version of vLLM; '' while none is built."""
    interface: str = ""
    """The one that has its address; '' where none has."""
    loopback: Mapping[str, str] = field(default_factory=dict)
    """Names of nodes that mean this machine itself there, or nothing: name -> address or ''."""


@dataclass(frozen=True)
class Clock:
    """How far a clock is from the one here: seconds, and how much that may be wrong."""

    ahead: float
    bound: float

    @property
    def apart(self) -> float:
        """Seconds by which it is wrong for certain."""
        return max(0.0, abs(self.ahead) - self.bound)


@dataclass(frozen=True)
class Way:
    """From one node to another."""

    source: str
    to: str
    address: str
    ports: Mapping[int, str]
    """'' where one gets through, else why not."""
    seconds: float | None = None
    """There and back."""
    bytes_per_second: float | None = None


def check_versions(seen: Mapping[str, Seen]) -> Iterator[Check]:
    """All nodes have the same llmhost and the same vLLM."""
    yield from _same("llmhost", {n: s.llmhost for n, s in seen.items()}, "`llmhost node add NAME` brings the same one")
    engines = {name: s.engine for name, s in seen.items() if s.engine}
    without = [name for name in seen if name not in engines]
    if without:
        yield warn("vLLM", f"no engine is built on {', '.join(without)}", "`llmhost up --all-nodes` builds it")
    steps = "`llmhost node sync`; `llmhost setup` there; `llmhost node sync --facts`"
    yield from _same("vLLM", engines, f"pin engine.vllm in llmhost.yaml, then {steps}")


def _same(what: str, versions: Mapping[str, str], remedy: str) -> Iterator[Check]:
    found = dict.fromkeys(versions.values())
    if len(found) > 1:
        told = "; ".join(f"{v} on {', '.join(n for n, own in versions.items() if own == v)}" for v in found)
        yield fail(what, f"the nodes have different ones: {told}", remedy)
    elif found:
        yield ok(what, f"{next(iter(found))} on {', '.join(versions)}")


def check_clocks(clocks: Mapping[str, Clock]) -> Iterator[Check]:
    """Clocks of the other nodes beside the one here."""
    for name, clock in clocks.items():
        told = f"{abs(clock.ahead):.2f} s {'ahead of' if clock.ahead > 0 else 'behind'} this node's"
        told = f"the clock of {name} is {told} (± {clock.bound:.2f} s)"
        remedy = "let all nodes set their clocks by the same servers: timedatectl set-ntp true, or chrony"
        if clock.apart > CLOCK_FAIL:
            yield fail("clock", told, remedy)
        elif clock.apart > CLOCK_WARN:
            yield warn("clock", told, remedy)
        else:
            yield ok("clock", told)


def check_addresses(seen: Mapping[str, Seen], addresses: Mapping[str, str]) -> Iterator[Check]:
    """Every node has its own address on an interface, and every node's name means that node."""
    for name, node in seen.items():
        address = addresses[name]
        if node.interface:
            yield ok("interface", f"{name} has {address} on {node.interface}")
        else:
            yield warn(
                "interface",
                f"no interface of {name} has {address}: somebody forwards to it",
                "models over several nodes (NCCL, gloo) need the address of an interface: nodes."
                f"{name}.address, or --address of `llmhost node add`",
            )
        for other, meaning in node.loopback.items():
            told = f"means {meaning}, the machine itself" if meaning else "means nothing"
            yield fail(
                "name",
                f"{addresses[other]}, the address of {other}, {told} on {name}",
                f"write an IP address as nodes.{other}.address, or mend /etc/hosts on {name}",
            )


def check_files(stale: Mapping[str, Sequence[str]]) -> Iterator[Check]:
    """Every node has the same files; ``stale`` has those that differ."""
    for name, paths in stale.items():
        if paths:
            few = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
            yield warn("files", f"{name} has other files than this node: {few}", "run `llmhost node sync`")
        else:
            yield ok("files", f"{name} has the files of this node")


def check_ways(ways: Sequence[Way]) -> Iterator[Check]:
    """From every node to every other: ports, then latency and bandwidth."""
    for way in ways:
        closed = {port: why for port, why in way.ports.items() if why}
        if closed:
            told = ", ".join(f"{port} ({why})" for port, why in closed.items())
            yield fail(
                "ports",
                f"{way.source} does not reach {way.to} ({way.address}) on port {told}",
                f"let TCP from {way.source} through the firewalls of {way.to} and in between:"
                " nodes need the gateway's port, and for models over several nodes 20480-28671 and those above 32767",
            )
        if way.seconds is None or way.bytes_per_second is None:
            if not closed:
                yield fail(
                    "network", f"nothing gets through from {way.source} to {way.to}", "see `llmhost node doctor`"
                )
            continue
        told = (
            f"{way.source} to {way.to}: {way.seconds * 1000:.2f} ms there and back,"
            f" {way.bytes_per_second * 8 / 1e9:.2f} Gbit/s"
        )
        if way.seconds > SLOW_SECONDS or way.bytes_per_second < SLOW_BYTES:
            yield warn("network", told, "enough for replicas; too slow for one model over several nodes")
        else:
            yield ok("network", told)
