"""What runs already, as an input of the next plan: a service that did not change keeps its engines and their shares.

Without it the cores and the memory of a machine would be shared out anew whenever a service comes or goes, and engines
that nobody touched would have to restart for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from llmhost.paths import Home
from llmhost.plan.types import Plan, ProgramPlan, ServicePlan


@dataclass(frozen=True)
class Slots:
    """Which of a service's replicas this node runs, by their numbers, and how many there are on all nodes."""

    own: tuple[int, ...]
    total: int

    def numbers(self) -> Iterator[int]:
        """Its own first; then, for second engines of a surge, others that no other node takes."""
        return (number + turn * self.total for turn in itertools.count() for number in self.own)


@dataclass(frozen=True)
class Running:
    """Engines of a plan in force that run, and services whose next engines start beside those (blue/green)."""

    programs: tuple[ProgramPlan, ...] = ()
    surge: frozenset[str] = frozenset()
    slots: Mapping[str, Slots] = field(default_factory=dict)
    """By service, in a home with nodes; else replicas are numbered from 0 on."""

    def of(self, service: str) -> tuple[ProgramPlan, ...]:
        """Those of a service, in the order of their numbers."""
        own = (p for p in self.programs if service_of(p.name) == service)
        return tuple(sorted(own, key=lambda p: number_of(p.name)))


NOTHING = Running()


def running(plan: Plan | None, names: Iterable[str]) -> Running:
    """The programs of a plan among those that run."""
    there = set(names)
    if plan is None:
        return NOTHING
    return Running(tuple(p for p in plan.programs if p.name in there), slots=_slots(plan) if plan.nodes else {})


def _slots(plan: Plan) -> dict[str, Slots]:
    """Of the plan in force, whatever names its engines have after a surge."""
    found = {}
    for service in plan.services:
        total = len(service.replicas) + sum(len(e.replicas) for e in service.elsewhere)
        own = sorted({number_of(p.name) % total for p in service.replicas})
        found[service.name] = Slots(tuple(own), total)
    return found


def service_of(program: str) -> str:
    """``chat`` for ``chat-0``."""
    return program.rpartition("-")[0]


def number_of(program: str) -> int:
    """0 for ``chat-0``."""
    return int(program.rpartition("-")[2])


def program_names(service: str, count: int, running: Running) -> tuple[str, ...]:
    """The names of a service's next engines: those that run first, then the lowest numbers that are free.

    In a surge the running ones stay beside the next ones, so none of their names is used again.
    """
    taken = [p.name for p in running.of(service)]
    kept = [] if service in running.surge else taken[:count]
    slots = running.slots.get(service)
    numbers = slots.numbers() if slots and slots.own else itertools.count()
    free = (name for number in numbers if (name := f"{service}-{number}") not in taken)
    return tuple(sorted((*kept, *itertools.islice(free, count - len(kept))), key=number_of))


def beside(service: ServicePlan, running: Running, home: Home) -> ServicePlan:
    """The same service with engines of other names, which can start while the present ones run."""
    names = program_names(service.name, len(service.replicas), running)
    moved = tuple(_renamed(p, name, home) for p, name in zip(service.replicas, names, strict=True))
    return replace(service, replicas=moved)


def _renamed(program: ProgramPlan, name: str, home: Home) -> ProgramPlan:
    former, socket = str(home.engine_socket(program.name)), str(home.engine_socket(name))
    argv = tuple(word.replace(former, socket) for word in program.argv)
    env = {key: value.replace(former, socket) for key, value in program.env.items()}
    env |= {"LLMHOST_PROGRAM": program_mark(home.root, name)}
    return replace(program, name=name, socket=program.socket and socket, argv=argv, env=env)


def program_mark(root: Path, program: str) -> str:
    """The value of LLMHOST_PROGRAM: every process of an engine carries it, so leftovers can be told from strangers."""
    return f"{root}:{program}"
