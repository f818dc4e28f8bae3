"""Waiting for programs to become ready, and the errors of such a wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable

from llmhost import balancing
from llmhost.errors import GatewayError, NotReadyError, SupervisorError
from llmhost.paths import Home
from llmhost.plan import Plan
from llmhost.plan.running import service_of
from llmhost.plan.starting import start_seconds
from llmhost.supervise import daemon, lifecycle
from llmhost.supervise.states import ProgramState

START_MARGIN = 60.0
"""Seconds beyond what starts may take: guards back off, and other homes start engines on the same GPUs."""

SERVED_SECONDS = balancing.SECONDS
"""Seconds for the gateway to find out that an engine is ready."""

SETTLED = ("ready", "failed", "stopped")
"""States that a starting program does not leave by itself."""


def await_ready(
    home: Home,
    plan: Plan,
    programs: Collection[str],
    timeout: float | None,
    on_change: Callable[[ProgramState], None],
) -> None:
    """Wait until all these programs of a plan are ready, and get requests, or have failed.

    ``timeout`` in seconds; by default as long as the slowest service may take, after others on its GPU. Raises
    NotReadyError naming those that are not ready, with their causes; GatewayError when Envoy does not take up its
    files. Envoy checks engines by itself, so it can be a moment behind their guards: a client would get 503 then.
    """
    longest = START_MARGIN + start_seconds(plan, {p.name for p in plan.programs})
    deadline = time.monotonic() + (longest if timeout is None else timeout)
    while True:
        _await_states(home, programs, deadline, on_change, timeout)
        balancing.await_files(home)
        try:
            return balancing.await_served(home, plan, programs, SERVED_SECONDS)
        except GatewayError:  # an engine that has ended meanwhile is waited for, as it would have been before
            states = lifecycle.states(home, programs).values()
            if all(s.state == "ready" for s in states):
                raise


def _await_states(
    home: Home,
    programs: Collection[str],
    deadline: float,
    on_change: Callable[[ProgramState], None],
    timeout: float | None,
) -> None:
    pending, last = set(programs), dict[str, ProgramState]()
    while pending:
        try:
            last |= lifecycle.wait_ready(home, pending, deadline - time.monotonic(), on_change)
        except SupervisorError as e:
            if daemon.serves(home):
                raise
            raise stopped_meanwhile() from e
        settled = {name for name in pending if last[name].state in SETTLED}
        if not settled:
            raise out_of_time(last.values(), timeout)
        pending -= settled
    if any(s.state != "ready" for s in last.values()):
        raise not_ready(home, last.values())


def out_of_time(states: Iterable[ProgramState], timeout: float | None) -> NotReadyError:
    """The error of a wait that is over although nothing has gone wrong; ``timeout`` in seconds, None: the longest."""
    waiting = ", ".join(f"{s.name} is {s.state}" for s in states if s.state != "ready")
    after = "in time" if timeout is None else f"within {timeout:g} s"
    return NotReadyError(
        f"not ready {after}: {waiting}", "it goes on: see `llmhost status`, or wait with `llmhost start`"
    )


def stopped_meanwhile() -> NotReadyError:
    """The error of a wait for what another command has stopped altogether."""
    return NotReadyError("another command stopped everything while this one waited", "run `llmhost up` again")


def _words(state: ProgramState) -> str:
    if state.state == "stopped" and not state.error:
        return f"{state.name} was stopped by another command"
    return f"{state.name} is {state.state}" + (f" ({state.error})" if state.error else "")


def not_ready(home: Home, states: Iterable[ProgramState], consequence: str = "") -> NotReadyError:
    """The error that names programs that are not ready, with their causes."""
    missing = [s for s in states if s.state != "ready"]
    causes = "; ".join(map(_words, missing))
    name = missing[0].name
    if consequence:  # then it may be of a plan that is not in force, which `llmhost logs` does not know
        return NotReadyError(f"{causes}; {consequence}", f"see {home.log_file(name)} and `llmhost status`")
    return NotReadyError(causes, f"see `llmhost logs {service_of(name) or name}` and `llmhost status`")
