"""`llmhost up`, `down`, `start`, `stop`, `restart`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from llmhost.cli import Session, console
from llmhost.cli import everywhere as fleet
from llmhost.cli.completion import complete_services
from llmhost.gateway_address import GATEWAY_PROGRAM

if TYPE_CHECKING:
    from llmhost.env.progress import Progress
    from llmhost.supervise.states import ProgramState
    from llmhost.workflow import Started


def _waiting(command: Callable[..., None]) -> Callable[..., None]:
    """The options of everything that starts something."""
    command = click.option(
        "--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait at most this long until all is ready."
    )(command)
    return click.option("--wait/--no-wait", default=True, help="Wait until all is ready (the default).")(command)


def _services(command: Callable[..., None]) -> Callable[..., None]:
    return click.argument("services", nargs=-1, shell_complete=complete_services)(command)


@click.command("up")
@_services
@click.option("--demo", is_flag=True, help="Write the demo's llmhost.yaml first when there is none.")
@click.option("--port", type=click.IntRange(1, 65535), help="With --demo: port of the gateway.  [default: 8000]")
@click.option(
    "--surge",
    is_flag=True,
    help="What changed starts beside what runs, takes over when it is ready, and only then the old one stops:"
    " no request is lost, also with one replica. Needs memory for both.",
)
@click.option(
    "--rebalance",
    is_flag=True,
    help="Share out cores and memory anew among all services (restarts those whose share changes).",
)
@click.option("--insecure", is_flag=True, help="Serve everybody who can reach gateway.host, without API keys.")
@_waiting
@fleet.all_nodes(" Nodes that run the same service go one after another.")
@click.pass_obj
def up_command(
    session: Session,
    services: tuple[str, ...],
    demo: bool,
    port: int | None,
    surge: bool,
    rebalance: bool,
    insecure: bool,
    wait: bool,
    timeout: float | None,
    all_nodes: bool,
) -> int:
    """Make this machine serve what llmhost.yaml says, and wait until it does.

    Builds the engine when it is not there, writes the files of supervisord and the gateway, starts what is not running
    and restarts what changed; everything else keeps running. With SERVICES only these are started.

    A service with several replicas is changed one replica after another, and a service that takes over the names of
    another one starts beside it, so no request is lost; both take their time, also with --no-wait. A service with one
    replica answers 503 while it restarts, unless --surge starts the new one beside the old.
    """
    if surge and rebalance:
        raise click.UsageError("--surge keeps what runs, --rebalance does not: use one of them")
    if all_nodes and demo:
        raise click.UsageError("--demo writes the llmhost.yaml of one machine: use it without --all-nodes first")
    if all_nodes:
        return fleet.bring_up(session, fleet.words_of(click.get_current_context()))
    from llmhost import workflow
    from llmhost.cli.progress import shown_progress

    if port is not None and not demo:
        raise click.UsageError("--port goes with --demo; otherwise write gateway.port in llmhost.yaml")
    _take_turns()
    if demo:
        from llmhost.first_config import require_demo_config

        require_demo_config(session.home, port)
    with shown_progress() as progress:
        started = workflow.up(session.home, services, progress, surge=surge, rebalance=rebalance, insecure=insecure)
        if wait:
            _await_ready(session, started, timeout, progress)
    _show(session, started)
    return 0


@click.command("down")
@fleet.all_nodes()
@click.pass_obj
def down_command(session: Session, all_nodes: bool) -> int:
    """Stop all services, the gateway and supervisord; nothing of ours is left running.

    Running requests get `stop_timeout` to finish, new ones get 503.
    """
    if all_nodes:
        return fleet.act(session, ("down",), show_results=True)
    from llmhost import workflow
    from llmhost.cli.progress import shown_progress

    begin = time.time()
    _take_turns()
    with shown_progress() as progress:
        stopped = workflow.down(session.home, progress)
    if stopped:
        _tell_stops(session, begin)
        console.result("everything has stopped")
    else:
        console.result("nothing was running")
    return 0


@click.command("start")
@_services
@_waiting
@fleet.all_nodes()
@click.pass_obj
def start_command(
    session: Session, services: tuple[str, ...], wait: bool, timeout: float | None, all_nodes: bool
) -> int:
    """Start SERVICES (default: all) as the last `llmhost up` left them, and wait until they are ready."""
    if all_nodes:
        return fleet.act(session, fleet.words_of(click.get_current_context()), show_results=True)
    from llmhost import workflow
    from llmhost.cli.progress import shown_progress

    _take_turns()
    with shown_progress() as progress:
        started = workflow.start(session.home, services, progress)
        if wait:
            _await_ready(session, started, timeout, progress)
    console.result(_started(started, wait))
    return 0


@click.command("stop")
@_services
@fleet.all_nodes()
@click.pass_obj
def stop_command(session: Session, services: tuple[str, ...], all_nodes: bool) -> int:
    """Stop SERVICES (default: all of them, and then the gateway).

    Running requests get `stop_timeout` to finish, new ones get 503 with Retry-After.
    """
    if all_nodes:
        return fleet.act(session, fleet.words_of(click.get_current_context()), show_results=True)
    from llmhost import workflow
    from llmhost.cli.progress import shown_progress

    begin = time.time()
    _take_turns()
    with shown_progress() as progress:
        stopped = workflow.stop(session.home, services, progress)
    _tell_stops(session, begin)
    console.result(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")
    return 0


@click.command("restart")
@_services
@click.option(
    "--rolling",
    is_flag=True,
    help="One replica after another: it leaves balancing, finishes its requests, restarts, and is back before the next"
    " one leaves. No request is lost. For services with several replicas.",
)
@click.option(
    "--surge",
    is_flag=True,
    help="New engines start beside the old ones and take over when they are ready; then the old ones finish and stop."
    " No request is lost, also with one replica. Needs memory for both.",
)
@_waiting
@fleet.all_nodes(" With --rolling one node after another.")
@click.pass_obj
def restart_command(
    session: Session,
    services: tuple[str, ...],
    rolling: bool,
    surge: bool,
    wait: bool,
    timeout: float | None,
    all_nodes: bool,
) -> int:
    """Stop SERVICES (default: all), start them again and wait until they are ready.

    An edited llmhost.yaml is not read: that is what `llmhost up` (and `llmhost up --surge`) is for.
    """
    from llmhost import workflow
    from llmhost.cli.progress import shown_progress

    if rolling and surge:
        raise click.UsageError("--rolling and --surge are two ways of doing the same: use one of them")
    if (rolling or surge) and not wait:
        raise click.UsageError("--no-wait: taking turns means to wait for each other")
    if all_nodes:
        words = fleet.words_of(click.get_current_context())
        return fleet.roll(session, words) if rolling else fleet.act(session, words, show_results=True)
    way = workflow.restart_rolling if rolling else workflow.restart_surge if surge else workflow.restart
    _take_turns()
    with shown_progress() as progress:
        started = way(session.home, services, progress)
        if wait:
            _await_ready(session, started, timeout, progress)
    names = ", ".join(name for name in started.programs if name != GATEWAY_PROGRAM)
    console.result(f"restarted {names}" if wait else f"restarting {names}; `llmhost status` says when it is ready")
    return 0


def _started(started: Started, waited: bool) -> str:
    if not started.begun:
        return f"{', '.join(started.programs)}: {'ready already' if waited else 'running already'}"
    names = ", ".join(started.begun)
    return f"started {names}" if waited else f"starting {names}; `llmhost status` says when it is ready"


def _take_turns() -> None:
    """Say so when another command has to finish first."""
    from llmhost.supervise.lock import on_wait

    on_wait.set(console.remark)


def _tell_stops(session: Session, since: float) -> None:
    """What had to be ended or could not be undone, of everything that was stopped since then."""
    from llmhost.supervise.states import stop_reports

    for report in stop_reports(session.home, since):
        if report.killed:
            console.remark(f"{report.name}: had to end {', '.join(report.killed)}")
        if report.trouble:
            console.remark(f"{report.name}: {report.trouble}")


def _await_ready(session: Session, started: Started, timeout: float | None, progress: Progress) -> None:
    from llmhost import readiness

    running: set[str] = set()
    told: set[tuple[str, str]] = set()

    def on_change(state: ProgramState) -> None:
        """A step for each program that was not ready when we looked first."""
        step = f"start {state.name}"
        if state.state not in readiness.SETTLED and step not in running:
            running.add(step)
            progress.started(step)
        elif state.state in readiness.SETTLED and step in running:
            running.remove(step)
            progress.finished(step, state.state)
        if state.state == "queued" and state.error and (state.name, state.error) not in told:
            told.add((state.name, state.error))  # it may be another node, which is not asked to start from here
            progress.note(f"{state.name}: {state.error}")

    readiness.await_ready(session.home, started.plan, started.programs, timeout, on_change)


def _call(address: str) -> str:
    return f"POST {address}" if address else "-"


def _show(session: Session, started: Started) -> None:
    """What runs now and how to call it."""
    from llmhost.cli.calls import curl_line, endpoint_of
    from llmhost.supervise.status import read_status

    states = {s.name: s.state for s in read_status(session.home).services}
    plan = started.plan
    console.table(
        ("SERVICE", "KIND", "NAMES", "STATE", "CALL"),
        [
            (s.name, s.kind, ", ".join(s.served_as), console.state(states[s.name]), _call(endpoint_of(plan, s)))
            for s in plan.services
        ],
    )
    for kind in ("chat", "embed", "rerank"):
        service = next((s for s in plan.services if s.kind == kind), None)
        if service is not None:
            console.result(f"\n{curl_line(plan, service)}")
