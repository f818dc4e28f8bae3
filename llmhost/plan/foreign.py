"""Services with a command of their own: its words and its environment with every placeholder filled in. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from llmhost.config import Config, Service
from llmhost.config_foreign import PORT, Request, fill, names_in
from llmhost.errors import PlanError
from llmhost.facts import ForeignFacts, PortFacts
from llmhost.paths import Home
from llmhost.plan.demand import wanted_cores
from llmhost.plan.types import ForeignPlan, RequestPlan

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Address:
    """Where one program may listen; ``ports`` by placeholder (``port:web``)."""

    uds: str
    ports: Mapping[str, int]

    def of(self, placeholder: str) -> str:
        return self.uds if placeholder == "uds" else str(self.ports[placeholder])


def addresses(
    config: Config, programs: Mapping[str, Iterable[str]], home: Home, known: PortFacts
) -> dict[str, Address]:
    """An address for each program (``programs`` are their names by service): ports that it has stay.

    Raises PlanError when there are too few free ports.
    """
    wanted = {
        program: sorted(own_ports(service))
        for name, service in config.services.items() if service.is_foreign
        for program in programs[name]
    }  # fmt: skip
    kept = {p: {n: known.held[p][n] for n in names if n in known.held.get(p, {})} for p, names in wanted.items()}
    used = {port for ports in kept.values() for port in ports.values()} | _published(config)
    free = (port for port in known.free if port not in used)
    found = {}
    for program, names in wanted.items():
        ports = {name: kept[program].get(name) or _next(free, program) for name in names}
        found[program] = Address(str(home.engine_socket(program)), ports)
    return found


def own_ports(service: Service) -> set[str]:
    """The placeholders of a service that stand for TCP ports of each of its replicas."""
    return {n for n in names_in(service, service.env) if n.partition(":")[0] == "port"}


def _published(config: Config) -> set[int]:
    return {config.gateway.port, *(s.port for s in config.services.values() if s.port)}


def _next(free: Iterator[int], program: str) -> int:
    port = next(free, None)
    if port is None:
        raise PlanError(f"{program}: this machine has no free port for it", "see `ss -ltn`: who listens on so many?")
    return port


@dataclass(frozen=True)
class Filling:
    """The values of placeholders, for one program."""

    home: Home
    facts: ForeignFacts
    own: Address
    gpus: tuple[int, ...]
    others: Mapping[str, Address]
    """Of services with one program, by service."""

    def text(self, text: str) -> str:
        """The text as the engine gets it."""
        return fill(text, self._value)

    def _value(self, name: str) -> str:
        if name in ("gpus", "home", "model_dir"):
            gpus = ",".join(map(str, self.gpus))
            return {"gpus": gpus, "home": str(self.home.root), "model_dir": self.facts.model_dir}[name]
        found = PORT.fullmatch(name)
        assert found is not None, name  # `llmhost.config` refuses others
        if found["service"] is None:
            return self.own.of(name)
        return self.others[found["service"]].of(name.partition(".")[2])


def listens_on(service: Service, own: Address) -> str:
    """Where to ask it: its unix socket, or the port on the loopback; '' for a helper that does not listen."""
    names = set(names_in(service, service.env))
    if "uds" in names:
        return own.uds
    return f"{LOOPBACK}:{own.ports['port']}" if "port" in names else ""


def thread_environment(service: Service, cores: Sequence[int], threads: int) -> dict[str, str]:
    """As many OpenMP threads as it has cores, or as are its fair part (``threads``) where nobody is bound to any."""
    count = len(cores) or service.cores or (threads if wanted_cores(service) is None else 0)
    return {"OMP_NUM_THREADS": str(count)} if count else {}


def foreign_plan(service: Service, facts: ForeignFacts) -> ForeignPlan:
    """What guard and gateway must know of it; ``ready`` and ``health`` stand for each other."""
    return ForeignPlan(
        bin=facts.bin,
        ready=_request(service.ready or service.health),
        health=_request(service.health or service.ready),
        paths=dict(service.paths),
        model_name=service.model_name,
    )


def _request(written: Request | None) -> RequestPlan | None:
    if written is None:
        return None
    body = None if written.body is None else json.dumps(written.body, ensure_ascii=False)
    return RequestPlan(written.path, body, written.timeout)


def label(service: Service) -> str:
    """What tells best what runs: its model, the module behind ``-m``, or the program. Nothing else of the command."""
    if service.model_dir:
        return service.model_dir
    words = service.command
    module = words[words.index("-m") + 1] if "-m" in words[:-1] else words[0]
    return PurePath(module).name
