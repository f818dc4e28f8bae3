"""`llmhost enable` and `disable`, and what the systemd unit itself runs."""

from __future__ import annotations

import click

from llmhost.cli import Session, console
from llmhost.cli import everywhere as fleet


@click.command("enable")
@click.option("--user", is_flag=True, help="A unit of your own user manager: no root needed.")
@click.option("--now", is_flag=True, help="Start it, too; what runs by hand is stopped and started by systemd.")
@click.option(
    "--name", default="llmhost", show_default=True, help="Of the unit; a second home needs another: llmhost-NAME."
)
@click.option(
    "--account", metavar="USER", help="Who runs the services. [default: the owner of the home; if root, `llmhost`]"
)
@fleet.all_nodes(" Each login must be root, or with --user an ordinary user.")
@click.pass_obj
def enable_command(
    session: Session, user: bool, now: bool, name: str, account: str | None, all_nodes: bool
) -> int | None:
    """Start the services with the machine, through systemd.

    Writes a unit for this home and enables it. Without --user that is a unit of the system (as root), whose services
    run as the owner of the home; a home of root's is given to an account of its own, `llmhost`, which is made when it
    is missing. systemd then also brings everything back when supervisord dies. `systemctl start`, `stop`, `reload`
    (applies an edited llmhost.yaml), `restart` and `status` work as with any service; services that were stopped by
    name stay stopped.
    """
    from llmhost.boot.install import Wish, enable

    if not name.startswith("llmhost") or not name.replace("-", "").replace("_", "").isalnum():
        raise click.BadParameter("the name of the unit is llmhost or begins with llmhost-", param_hint="--name")
    if user and account:
        raise click.BadParameter("with --user the services are yours", param_hint="--account")
    if all_nodes:
        return fleet.act(session, fleet.words_of(click.get_current_context()), show_results=True)
    unit = enable(session.home, Wish("user" if user else "system", name, account, now), console.remark)
    scope = " --user" if user else ""
    when = "with the machine" if unit.at_boot else "when you log in"
    console.result(f"{unit.path}: starts {session.home.root} {when}, as {unit.account}")
    verb, more = ("status", " and `llmhost status`") if now else ("start", " starts it now")
    console.result(f"`systemctl{scope} {verb} {unit.name}`{more}")
    return None


@click.command("disable")
@click.option("--now", is_flag=True, help="Stop the services, too.")
@click.pass_obj
def disable_command(session: Session, now: bool) -> None:
    """Do not start with the machine any more; the unit is removed.

    While it runs services they go on and the unit stays, without its place in the boot, until they are stopped: --now
    does both.
    """
    from llmhost.boot.install import disable

    unit, gone = disable(session.home, now=now)
    if gone:
        console.result(f"removed {unit.path}")
    else:
        console.result(f"{unit.name} does not start with the machine any more; it goes on running services")
        console.remark("`llmhost disable --now` stops them and removes the unit")


@click.group("boot", hidden=True)
def boot_command() -> None:
    """What the unit runs; not for people."""


@boot_command.command("prepare")
@click.pass_obj
def prepare_command(session: Session) -> None:
    """Before supervisord: GPUs, llmhost.yaml, leftovers."""
    from llmhost.boot import phases

    phases.prepare(session.home, console.remark)


@boot_command.command("started")
@click.pass_obj
def started_command(session: Session) -> None:
    """After supervisord: start what was not stopped on purpose."""
    from llmhost.boot import phases

    console.result(f"started {', '.join(phases.started(session.home)) or 'nothing: all was stopped on purpose'}")


@boot_command.command("reload")
@click.pass_obj
def reload_command(session: Session) -> None:
    """Apply llmhost.yaml."""
    from llmhost.boot import phases
    from llmhost.cli.progress import shown_progress

    with shown_progress() as progress:
        phases.reload(session.home, progress)


@boot_command.command("stop")
@click.pass_obj
def stop_command(session: Session) -> None:
    """Stop everything, running requests first."""
    from llmhost.boot import phases
    from llmhost.cli.progress import shown_progress

    with shown_progress() as progress:
        phases.stop(session.home, progress)
