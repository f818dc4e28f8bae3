"""Start, stop, restart and converge: what has to happen is computed first, then done, all programs at the same time."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from llmhost.errors import SupervisorError
from llmhost.gateway_address import GATEWAY_PROGRAM
from llmhost.paths import Home
from llmhost.supervise.guarding import processes
from llmhost.supervise.rpc import Changes, ProgramInfo, Supervisor
from llmhost.supervise.states import ProgramState, read_states

STOP_MARGIN = 15.0
"""Seconds beyond ``stopwaitsecs``, after which supervisord has killed a program, for it to be gone."""
POLL_SECONDS = 0.05
READY_POLL_SECONDS = 0.2

Progress = Callable[[tuple[str, ...]], None]
"""Told the names that are still awaited, whenever they change."""


@dataclass(frozen=True)
class Actions:
    """What brings supervisord from what runs to what is wanted; names of programs, sorted."""

    add: tuple[str, ...] = ()
    """New: taken over, and started when wanted (then also in ``start``)."""
    restart: tuple[str, ...] = ()
    """Changed while it ran, or changed and wanted: stopped, taken over anew, started."""
    refresh: tuple[str, ...] = ()
    """Changed, but neither running nor wanted: taken over anew only."""
    remove: tuple[str, ...] = ()
    """No longer in the configuration: stopped and forgotten."""
    start: tuple[str, ...] = ()
    """Wanted and not running, as it is or new."""

    def __bool__(self) -> bool:
        return any((self.add, self.restart, self.refresh, self.remove, self.start))


def convergence(changes: Changes, programs: Iterable[ProgramInfo], wanted: Collection[str]) -> Actions:
    """Compute the actions; pure. A program that is unchanged and runs is in none of them."""
    running = {p.name for p in programs if p.running}
    changed = set(changes.changed)
    again = {name for name in changed if name in running or name in wanted}
    kept = {p.name for p in programs} - changed - set(changes.removed)
    start = {name for name in wanted if name in changes.added or (name in kept and name not in running)}
    return Actions(
        add=tuple(sorted(changes.added)),
        restart=tuple(sorted(again)),
        refresh=tuple(sorted(changed - again)),
        remove=tuple(sorted(changes.removed)),
        start=tuple(sorted(start)),
    )


def converge(home: Home, wanted: Collection[str], on_progress: Progress = lambda _: None) -> Actions:
    """Read the configuration again and make supervisord run `wanted` as it says; returns what was done.

    Raises SupervisorError; what was done until then stays, and the next call goes on from there.
    """
    actions = pending(home, wanted)
    renew(home, (*actions.restart, *actions.refresh), on_progress, then_start=False)
    retire(home, actions.remove, on_progress)
    take_over(home, actions.add)
    start(home, (*actions.restart, *actions.start))
    return actions


def pending(home: Home, wanted: Collection[str]) -> Actions:
    """Read the configuration again and compute what would bring supervisord to it; nothing is stopped or started."""
    supervisor = Supervisor(home.supervisor_socket)
    return convergence(supervisor.reload(), supervisor.programs(), wanted)


def retire(home: Home, names: Sequence[str], on_progress: Progress = lambda _: None) -> None:
    """Stop programs and forget them."""
    supervisor = Supervisor(home.supervisor_socket)
    _stop(supervisor, names, supervisor.stop_seconds(), on_progress)
    for name in names:
        supervisor.remove(name)
        home.state_file(name).unlink(missing_ok=True)


def take_over(home: Home, names: Iterable[str]) -> None:
    """Make supervisord know programs of the configuration that it read last; they do not run yet."""
    supervisor = Supervisor(home.supervisor_socket)
    for name in names:
        supervisor.add(name)


def renew(home: Home, names: Sequence[str], on_progress: Progress = lambda _: None, *, then_start: bool = True) -> None:
    """Stop programs, take them over as the configuration that was read last has them, and start them."""
    supervisor = Supervisor(home.supervisor_socket)
    _stop(supervisor, names, supervisor.stop_seconds(), on_progress)
    for name in names:
        supervisor.remove(name)
        supervisor.add(name)
    if then_start:
        _start(home, supervisor, names)


def running(home: Home) -> frozenset[str]:
    """Names of the programs that run, whatever their state; none without supervisord."""
    supervisor = Supervisor(home.supervisor_socket)
    return frozenset(p.name for p in supervisor.programs() if p.running) if supervisor.alive() else frozenset()


def states(home: Home, names: Iterable[str]) -> dict[str, ProgramState]:
    """The states of these programs at this moment, by name."""
    return read_states(home, Supervisor(home.supervisor_socket).programs(), names)


def start(home: Home, names: Iterable[str]) -> tuple[str, ...]:
    """Start programs that do not run; returns those. They are not ready yet: see `wait_ready`."""
    supervisor = Supervisor(home.supervisor_socket)
    idle = _not_running(supervisor, names)
    _start(home, supervisor, idle)
    return idle


def stop(home: Home, names: Iterable[str], on_progress: Progress = lambda _: None) -> tuple[str, ...]:
    """Stop programs, all at the same time, and wait until they have stopped; returns those that ran.

    The gateway stops last: running requests go through it while the engines drain.
    """
    supervisor = Supervisor(home.supervisor_socket)
    limits = supervisor.stop_seconds()
    names = tuple(names)
    engines = tuple(name for name in names if name != GATEWAY_PROGRAM)
    gateway = tuple(name for name in names if name == GATEWAY_PROGRAM)
    return _stop(supervisor, engines, limits, on_progress) + _stop(supervisor, gateway, limits, on_progress)


def restart(home: Home, names: Iterable[str], on_progress: Progress = lambda _: None) -> None:
    """Stop programs and start them again, also those that did not run."""
    names = tuple(names)
    stop(home, names, on_progress)
    start(home, names)


def _start(home: Home, supervisor: Supervisor, names: Sequence[str]) -> None:
    limits = supervisor.stop_seconds()
    _await_stopped(supervisor, names, _stop_limit(names, limits), lambda _: None)
    for name in names:
        # A wanted start: restarts are counted from here, and the error of a former life is history; also for others,
        # which may wait for this one.
        home.state_file(name).unlink(missing_ok=True)
    for name in names:
        supervisor.start(name)


def _not_running(supervisor: Supervisor, names: Iterable[str]) -> tuple[str, ...]:
    running = {p.name for p in supervisor.programs() if p.running}
    return tuple(name for name in names if name not in running)


def _stop(
    supervisor: Supervisor, names: Sequence[str], limits: dict[str, int], on_progress: Progress
) -> tuple[str, ...]:
    _wake(supervisor, names)
    stopped = tuple(name for name in names if supervisor.stop(name))
    _await_stopped(supervisor, names, _stop_limit(names, limits), on_progress)
    return stopped


def _wake(supervisor: Supervisor, names: Sequence[str]) -> None:
    """Who was stopped by SIGSTOP would be told to end in vain, and be killed with all that it knows."""
    for guard in (p.pid for p in supervisor.programs() if p.name in names and p.pid):
        for pid in (guard, *processes.descendants(guard)):
            if processes.state(pid) == "T":
                processes.kill(pid, signal.SIGCONT)


def _stop_limit(names: Sequence[str], limits: dict[str, int]) -> float:
    """Seconds until supervisord has killed the slowest of these."""
    return max((limits.get(name, 10) for name in names), default=0) + STOP_MARGIN


def _await_stopped(supervisor: Supervisor, names: Sequence[str], seconds: float, on_progress: Progress) -> None:
    """Wait for programs in STOPPING; supervisord kills what does not stop, so this ends."""
    deadline = time.monotonic() + seconds
    shown: tuple[str, ...] = ()
    while names:
        left = tuple(p.name for p in supervisor.programs() if p.name in names and p.state == "STOPPING")
        if left != shown:
            on_progress(left)
        if not left:
            return
        if time.monotonic() > deadline:
            raise SupervisorError(f"{', '.join(left)} did not stop within {seconds:.0f} s", "see `llmhost logs`")
        shown = left
        time.sleep(POLL_SECONDS)


def wait_ready(
    home: Home,
    names: Collection[str],
    timeout: float,
    on_change: Callable[[ProgramState], None] = lambda _: None,
) -> dict[str, ProgramState]:
    """Wait until all programs are ready, one has failed or been stopped, or `timeout` seconds are over.

    Returns the last states by name; `on_change` is told every new state of a program. Raises SupervisorError when
    supervisord ends meanwhile.
    """
    supervisor = Supervisor(home.supervisor_socket)
    deadline = time.monotonic() + timeout
    seen: dict[str, ProgramState] = {}
    while True:
        states = read_states(home, supervisor.programs(), names)
        for name, state in states.items():
            if name not in seen or seen[name].state != state.state:
                on_change(state)
        seen = states
        over = time.monotonic() > deadline or any(s.state in ("failed", "stopped") for s in states.values())
        if over or all(s.state == "ready" for s in states.values()):
            return states
        time.sleep(min(READY_POLL_SECONDS, max(0.0, deadline - time.monotonic()) + 0.01))
