"""`llmhost status`. Imports little: it is run most often, also by scripts."""

from __future__ import annotations

import time

import click

from llmhost import __version__
from llmhost.cli import Session, console
from llmhost.cli.everywhere import all_nodes, show_status
from llmhost.homedir import require_access
from llmhost.supervise.status import DiskStatus, ReplicaStatus, ServiceStatus, read_status
from llmhost.supervise.units import Unit

MIB = 2**20
HEAD = ("SERVICE", "KIND", "NAMES", "STATE", "PID", "UPTIME", "RESTARTS", "MEMORY")


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="As JSON; the keys are described in docs/operations.md.")
@all_nodes()
@click.pass_obj
def status_command(session: Session, as_json: bool, all_nodes: bool) -> int:
    """Show the state of every service; exit status 0 when all is ready, 3 when not.

    States: stopped, queued (waits for its turn to start), loading, ready, draining (finishes its requests and gets no
    new ones), unhealthy, backoff (will be restarted), failed (will not: see the error).
    """
    require_access(session.home)
    if all_nodes:
        return show_status(session, as_json=as_json)
    status = read_status(session.home)
    if as_json:
        console.json_result({"llmhost": __version__, **status.to_dict()})
        return 0 if status.ready else 3
    supervisor, gateway = status.supervisor, status.gateway
    console.result(f"supervisor  {supervisor.state}{_pid(supervisor.pid)}")
    console.result(f"gateway     {console.state(gateway.state)}{_pid(gateway.pid)}  {gateway.url or ''}".rstrip())
    if status.disk is not None and (status.disk.low or status.disk.read_only):
        console.result(f"disk        {_disk(status.disk)}")
    console.result(f"boot        {_boot(status.unit)}")
    if not status.services:
        console.remark(_nothing_yet(session))
    else:
        console.result()
        beside = [beside_row(replica) for replica in status.beside]
        console.table(HEAD, [*(row for service in status.services for row in rows_of(service)), *beside])
        if gateway.error:
            console.result(f"\ngateway: {gateway.error}; mend that, then run `llmhost up`")
        for replica in (*(r for service in status.services for r in service.replicas), *status.beside):
            if replica.error:
                console.result(f"\n{replica.name}: {replica.error}{_retry(replica.retry_at)}")
    return 0 if status.ready else 3


def _nothing_yet(session: Session) -> str:
    if session.home.config_file.exists():
        return f"nothing has been brought up yet: run `llmhost up` for {session.home.config_file}"
    return f"there is no {session.home.config_file}: write one with `llmhost init`, or run `llmhost up --demo`"


def _disk(disk: DiskStatus) -> str:
    free = disk.free_bytes
    if disk.read_only:
        return click.style("read-only: services go on, but nothing can be started or changed; see `dmesg`", fg="red")
    if free < MIB:
        return click.style("full: services go on, but what they log is lost, and nothing can be changed", fg="red")
    return click.style(f"only {free / MIB:.0f} MiB free for logs and state", fg="yellow")


def _boot(unit: Unit | None) -> str:
    if unit is None:
        return "not with the machine (see `llmhost enable --help`)"
    if unit.at_boot:
        return f"with the machine ({unit.name})"
    when = f"when {unit.account} logs in" if unit.enabled else "not with the machine"
    return f"{when} ({unit.name})"


def _pid(pid: int | None) -> str:
    return f" (pid {pid})" if pid else ""


def _retry(moment: float | None) -> str:
    """When an engine is started again."""
    return f"; next try in {_duration(max(0.0, moment - time.time()))}" if moment else ""


def rows_of(service: ServiceStatus) -> list[tuple[str, ...]]:
    """The lines of a table, see `HEAD`: one for the service, and where it has several members one for each."""
    names = ", ".join(service.served_as)
    if len(service.replicas) == 1 and not service.endpoints and not service.nodes:
        return [(service.name, service.kind, names, *_cells(service.replicas[0]))]
    head = (service.name, service.kind, names, console.state(service.state), "", "", "", "")
    replicas = ((f"  {replica.name}", "", "", *_cells(replica)) for replica in service.replicas)
    endpoints = ((f"  {e.url}", "", "", console.state(e.state), "", "", "", "") for e in service.endpoints)
    nodes = (
        (f"  {', '.join(n.replicas)} on {n.node}", "", "", console.state(n.state), *[""] * 4) for n in service.nodes
    )
    return [head, *replicas, *endpoints, *nodes]


def beside_row(replica: ReplicaStatus) -> tuple[str, ...]:
    """The line of an engine that is not of the plan in force."""
    return (replica.name, "", "(not in force yet)", *_cells(replica))


def _cells(replica: ReplicaStatus) -> tuple[str, ...]:
    return (
        console.state(replica.state),
        str(replica.pid or "-"),
        _duration(replica.uptime_s),
        str(replica.restarts),
        f"{replica.rss_bytes / MIB:.0f} MiB" if replica.rss_bytes else "-",
    )


def _duration(seconds: float | None) -> str:
    """The two largest units that matter: 3d4h, 2h05m, 1m30s, 12s."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
