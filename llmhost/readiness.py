"""The errors of a wait for programs that do not become ready."""

from __future__ import annotations

from collections.abc import Iterable

from llmhost.errors import NotReadyError
from llmhost.paths import Home
from llmhost.plan.running import service_of
from llmhost.supervise.states import ProgramState


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
