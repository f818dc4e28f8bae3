"""Stopping engines so that nobody notices more than they must: out of balancing, finished, then ended."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol

from llmhost import balancing, writer
from llmhost.errors import GatewayError, HomeError, LlmhostError
from llmhost.paths import Home
from llmhost.plan import Plan
from llmhost.stopped import after_stop, read_stopped, write_stopped
from llmhost.supervise import daemon, lifecycle
from llmhost.supervise.planfile import read_plan


class Told(Protocol):
    """Who is told what happens (`llmhost.env.Progress` is one)."""

    def started(self, step: str) -> None: ...

    def finished(self, step: str, detail: str = "") -> None: ...

    def note(self, text: str) -> None: ...


def waiting(told: Told) -> lifecycle.Progress:
    """Says who is waited for while programs stop."""

    def on_progress(names: tuple[str, ...]) -> None:
        if names:
            told.note(f"waiting for {', '.join(names)} to stop")

    return on_progress


def stop_engines(home: Home, plan: Plan, programs: Sequence[str], told: Told) -> tuple[str, ...]:
    """Stop engines when they have finished; new requests get 503 from the gateway. Returns those that ran."""
    services = [s for s in plan.services if any(p.name in programs for p in s.replicas)]
    try:
        with noting(told):
            drain(home, plan, programs, told)
        return lifecycle.stop(home, programs, waiting(told))
    finally:  # also of what goes on after Ctrl-C; what has stopped is not healthy
        with noting(told):
            balancing.put_back(home, services, balancing.sockets(plan, programs))


def stop_everything(home: Home, told: Told) -> bool:
    """Stop engines when they have finished, then the gateway and supervisord; False when nothing was running.

    Nothing is left then, whatever happened before: see `llmhost.supervise.daemon.shutdown`.
    """
    daemon.wake(home, told.note)
    plan = read_plan(home)
    if plan is not None and daemon.is_running(home):
        try:
            stop_engines(home, plan, [p.name for p in plan.programs], told)
        except LlmhostError as e:  # a supervisord that ends or hangs; what follows asks nobody
            told.note(e.message)
    return daemon.shutdown(home, waiting(told), told.note)


def remember(home: Home, plan: Plan, services: Collection[str], told: Told) -> None:
    """What is stopped now, on purpose, stays so when the machine starts; unless the disk is full, which is told."""
    try:
        write_stopped(home, after_stop(read_stopped(home), services, (s.name for s in plan.services)))
    except HomeError as e:
        told.note(f"{e.message}: what is stopped now starts again with the machine")


@contextlib.contextmanager
def noting(told: Told) -> Iterator[None]:
    """A gateway that takes nothing up, or a full disk, keeps nobody from stopping: the guards drain by themselves."""
    try:
        yield
    except (GatewayError, HomeError) as e:
        told.note(e.message)


def drain(home: Home, plan: Plan, programs: Collection[str], told: Told) -> None:
    """Take engines out of balancing and let them finish; those that are stopped already do not matter."""

    def on_busy(busy: Mapping[str, int]) -> None:
        if busy:
            names = [p.name for p in plan.programs if p.socket in busy]
            count = sum(busy.values())
            told.note(f"waiting for {', '.join(names)} to finish {count} request{'s' * (count > 1)}")

    begin = time.monotonic()
    balancing.take_programs_out(home, plan.services, balancing.sockets(plan, programs), on_busy)
    for service in plan.services:
        for program in {p.name for p in service.replicas} & set(programs):
            _tell_guard(home, program, begin + service.stop_timeout)


def _tell_guard(home: Home, program: str, end: float) -> None:
    """Running requests have `stop_timeout` once, not once here and once with the guard."""
    now = time.monotonic()
    with contextlib.suppress(OSError):  # on a full disk they get more
        writer.replace_file(home.drained_file(program), json.dumps({"left": max(0.0, end - now), "at": now}))
