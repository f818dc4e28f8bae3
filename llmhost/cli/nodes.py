"""`llmhost node`: the machines that share the services out among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmhost.cli import Session, console

if TYPE_CHECKING:
    from llmhost.errors import LlmhostError
    from llmhost.facts import NodeFacts
    from llmhost.fleet.sync import Synced

GIB = 2**30
LISTEN_SECONDS = 600.0
"""For somebody whose connection was cut and who cannot end what it has begun."""


@click.group("node")
def node_command() -> None:
    """The machines that share the services out among them, over ssh.

    llmhost.yaml and a few files beside it are the same on all nodes; each computes from them what is its own, and
    starts that. Nothing else runs for it. `llmhost up|status|logs|stop --all-nodes` uses all of them from any one.
    """


@node_command.command("add")
@click.argument("host", metavar="USER@HOST")
@click.option("--name", help="What it is called in llmhost.yaml.  [default: its host name]")
@click.option("--address", help="At which the other nodes reach it.  [default: the address of HOST]")
@click.option("--self-address", help="The same of this machine, which becomes a node, too.  [default: found out]")
@click.option("--home", "there", metavar="DIR", help="$LLMHOST_HOME there.  [default: as here]")
@click.option("--port", type=click.IntRange(1, 65535), help="Of its ssh server.  [default: as ssh is configured]")
@click.option(
    "--bundle", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR",
    help="Install from this bundle (`llmhost bundle create`), without a network there.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an llmhost.yaml that is there; it is kept beside the new one.")
@click.pass_obj
def add(
    session: Session,
    host: str,
    name: str | None,
    address: str | None,
    self_address: str | None,
    there: str | None,
    port: int | None,
    bundle: Path | None,
    force: bool,
) -> int:
    """Make USER@HOST a node: install the llmhost of this machine there, read its facts, bring it the common files.

    ssh must work without a question (a key, an agent, a known host key). The first node added makes this machine one,
    too. The name of a node instead of USER@HOST brings that one up to date. Interrupted anywhere, it goes on.
    """
    from llmhost.cli.progress import shown_progress
    from llmhost.fleet import membership
    from llmhost.supervise.lock import on_wait

    on_wait.set(console.remark)
    wish = membership.Wish(name, address, there, self_address, bundle, force)
    with shown_progress() as progress:
        added = membership.add(session.home, host, port, wish, progress)
    console.result(f"{added.name} is a node, as is this machine ({added.own})")
    _tell_failed(added.synced.failed)
    if added.name in added.synced.failed:
        return 1
    console.remark("run `llmhost up --all-nodes` to share the services out, and `llmhost enable` on each for its boot")
    return 0


@node_command.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON, with the facts of each.")
@click.pass_obj
def list_nodes(session: Session, as_json: bool) -> None:
    """List the nodes with what is known of them; nobody is asked, see `llmhost status --all-nodes` for that."""
    from llmhost.fleet.members import members

    nodes = members(session.home)
    facts = {n.name: _facts(session, n.name) for n in nodes}
    logins = {n.name: str(n.link.target) if n.link else "(this machine)" for n in nodes}
    if as_json:
        console.json_result([
            {"node": n.name, "address": n.address, "ssh": logins[n.name] if n.link else None, "home": str(n.root),
             "here": n.here, "facts": _facts_json(facts[n.name])}
            for n in nodes
        ])  # fmt: skip
        return
    head = ("NODE", "ADDRESS", "SSH", "HOME", "LLMHOST", "VLLM", "CORES", "MEMORY", "GPUS")
    console.table(head, [(n.name, n.address, logins[n.name], str(n.root), *_cells(facts[n.name])) for n in nodes])


@node_command.command("remove")
@click.argument("name")
@click.pass_obj
def remove(session: Session, name: str) -> int:
    """Take the node NAME out: what runs there finishes and stops, and the others forget it.

    One that does not answer is taken out all the same. What it ran is placed on the others by the next
    `llmhost up --all-nodes`; run that before with the node left out of services.….nodes to lose no request.
    """
    from llmhost.cli.progress import shown_progress
    from llmhost.fleet import membership
    from llmhost.supervise.lock import on_wait

    on_wait.set(console.remark)
    with shown_progress() as progress:
        synced, trouble = membership.remove(session.home, name, progress)
    console.result(f"removed {name}")
    if trouble is not None:
        console.remark(f"{name}: {trouble.message}; what runs there goes on, and it keeps its files: {trouble.hint}")
    _tell_failed(synced.failed)
    return 1 if synced.failed else 0


@node_command.command("sync")
@click.option(
    "--from", "source", metavar="NODE", help="Take the files of NODE instead of bringing it those of this one."
)
@click.option("--force", is_flag=True, help="Replace what was changed on other nodes, too.")
@click.option("--facts", "facts", is_flag=True, help="Read the facts of all nodes anew first.")
@click.pass_obj
def sync_command(session: Session, source: str | None, force: bool, facts: bool) -> int:
    """Bring llmhost.yaml, keys.json and what the nodes know of each other from this node to all others.

    For after an edit; `llmhost up --all-nodes` does it first. Where somebody edited the files of another node
    meanwhile, nothing is changed and you are told.
    """
    from llmhost.fleet.members import members
    from llmhost.fleet.membership import refresh
    from llmhost.fleet.sync import fetch, sync
    from llmhost.supervise.lock import on_wait

    on_wait.set(console.remark)
    every = members(session.home)
    if source is not None:
        fetch(session.home, _named(every, source))
        console.result(f"took the files of {source}")
        return 0
    lost = refresh(session.home, every) if facts else {}
    done = sync(session.home, every, force=force)
    _tell(done)
    _tell_failed({**lost, **done.failed})
    return 1 if done.failed or lost else 0


@node_command.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="As JSON: {ok, checks: [{name, status, message, remedy}]}.")
@click.pass_obj
def doctor(session: Session, as_json: bool) -> int:
    """Look at all nodes together: each check is ok, warn or fail, with a remedy.

    Whether they answer; versions of llmhost and the engines; clocks; files that differ; what names mean there; the
    network interface of the address; and from every node to every other: ports, latency and bandwidth.

    Exit status 1 when a check failed; warnings are none.
    """
    from llmhost.cli.doctor import show_checks
    from llmhost.fleet.doctor import examine
    from llmhost.fleet.members import members

    checks = examine(session.home, members(session.home))
    failed = any(check.status == "fail" for check in checks)
    if as_json:
        console.json_result({"ok": not failed, "checks": [asdict(check) for check in checks]})
    else:
        show_checks(checks)
    return 1 if failed else 0


@node_command.command("state", hidden=True)
@click.pass_obj
def state(session: Session) -> None:
    """For other nodes: what this one has of the common files."""
    from llmhost.fleet.files import read_state, state_to_json

    console.json_result(state_to_json(read_state(session.home)))


@node_command.command("receive", hidden=True)
@click.pass_obj
def receive(session: Session) -> None:
    """For other nodes: write what comes on standard input."""
    from llmhost.fleet import files

    files.receive(session.home, console.given())


@node_command.command("send", hidden=True)
@click.argument("node")
@click.pass_obj
def send(session: Session, node: str) -> None:
    """For other nodes: what NODE is to have."""
    from llmhost.fleet.files import document, read_state

    own = read_state(session.home)
    console.json_line(document(session.home, node, own.record.serial, own.node))


@node_command.command("survey", hidden=True)
@click.argument("name")
@click.argument("address")
@click.pass_obj
def survey(session: Session, name: str, address: str) -> None:
    """For other nodes: the facts of this machine, for the llmhost.yaml on standard input."""
    from llmhost.fleet import membership

    text = console.given()
    console.result(membership.survey(session.home, text, name, address).rstrip("\n"))


@node_command.command("listen", hidden=True)
@click.pass_obj
def listen(session: Session) -> None:
    """For the doctor on another node: what this one is, and where it listens until it is ended, for minutes at most."""
    import time

    from llmhost.fleet.doctor import own_view

    console.json_line(own_view(session.home))
    time.sleep(LISTEN_SECONDS)


@node_command.command("reach", hidden=True)
@click.pass_obj
def reach(session: Session) -> None:  # noqa: ARG001
    """For the doctor on another node: the way to the one that standard input describes."""
    from llmhost.fleet import doctor

    console.json_line(doctor.reach(console.given()))


@node_command.command("leave", hidden=True)
@click.pass_obj
def leave(session: Session) -> None:
    """For other nodes: this one is no node any more."""
    from llmhost.fleet.files import forget

    forget(session.home)


def _named(nodes: Any, name: str) -> Any:
    from llmhost.errors import NodeError

    found = next((n for n in nodes if n.name == name), None)
    if found is None:
        raise NodeError(f"there is no node {name}", f"llmhost.yaml has: {', '.join(n.name for n in nodes)}")
    return found


def _facts(session: Session, name: str) -> NodeFacts | None:
    from llmhost.errors import FactsError
    from llmhost.probe.node_facts import read_node

    try:
        return read_node(session.home, name)
    except FactsError as e:
        console.remark(f"{e.message}; {e.hint}")
        return None


def _facts_json(facts: NodeFacts | None) -> dict[str, Any] | None:
    return None if facts is None else asdict(facts)


def _cells(facts: NodeFacts | None) -> tuple[str, ...]:
    if facts is None:
        return ("?",) * 5
    memory = f"{facts.host.memory_total / GIB:.0f} GiB"
    kinds = dict.fromkeys(gpu.name for gpu in facts.gpus)
    gpus = ", ".join(f"{sum(g.name == kind for g in facts.gpus)} x {kind}" for kind in kinds) or "none"
    return facts.llmhost, facts.engine or "none yet", str(len(facts.host.cores)), memory, gpus


def _tell(done: Synced) -> None:
    if done.changed:
        console.result(f"synced {', '.join(done.changed)}")
    if done.same:
        console.result(f"{', '.join(done.same)}: nothing to do")


def _tell_failed(failed: Mapping[str, LlmhostError]) -> None:
    for name, error in failed.items():
        console.remark(f"{name}: {error.message}" + (f"; {error.hint}" if error.hint else ""))
