"""`llmhost move`: a service goes to another node while it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from llmhost.cli import Session, console
from llmhost.cli import everywhere as fleet
from llmhost.cli.completion import complete_services

if TYPE_CHECKING:
    from llmhost.errors import LlmhostError
    from llmhost.fleet.moving import Move, Prepared


@click.command("move")
@click.argument("service", shell_complete=complete_services)
@click.option("--to", "target", required=True, metavar="NODE", help="Where it goes.")
@click.option("--from", "source", metavar="NODE", help="Whose share of it goes, where it is on several nodes.")
@click.option("--dry-run", is_flag=True, help="Show what would start and stop where; nothing is changed.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON; what goes on is told on stderr.")
@click.pass_obj
def move_command(session: Session, service: str, target: str, source: str | None, dry_run: bool, as_json: bool) -> int:
    """Move SERVICE to another node: it starts there, gateways switch to it, then it finishes and stops where it was.

    No gateway loses a request. First it is planned whether it fits there; what does not is refused and nothing is
    changed. Then `nodes:` of SERVICE in llmhost.yaml is written (comments stay), all nodes get the files, and
    `llmhost up SERVICE` runs on NODE, which fetches the model and builds the engine where they are missing; then on
    the nodes that only pass requests on, and last where it was. Nodes on which nothing runs stay as they are. When it
    does not start on NODE, llmhost.yaml is put back everywhere, and the old engine has served all the time.

    \b
      llmhost move chat --to b --dry-run
      llmhost move chat --to b
      llmhost move chat --from a --to c    # chat is on a and b; afterwards on b and c

    Services that reach each other at 127.0.0.1 move together. A model that spans nodes cannot move so.

    Exit status: 0 moved, 1 refused or failed, 3 moved, and a node did not answer or did not take
    the files.
    """
    from llmhost.fleet import moving
    from llmhost.supervise.lock import on_wait

    on_wait.set(console.remark)
    made = moving.prepare(session.home, service, target, source)
    status = 0
    if not dry_run:
        status = _carry_out(session, made)
    if as_json:
        console.json_result(_to_json(made.move, moved=not dry_run, ready=not dry_run and status == 0))
    else:
        _show(made.move, dry_run=dry_run)
    return status


def _carry_out(session: Session, made: Prepared) -> int:
    from llmhost.errors import NodeError
    from llmhost.fleet import moving
    from llmhost.fleet.members import members

    move = made.move
    every = members(session.home)
    moving.require_both(move, every)
    said = fleet.live(every)
    for name in (move.target, move.source):
        if name not in said:
            raise NodeError(
                f"{name} does not say what runs there", f"see `llmhost status` on {name}; nothing has changed"
            )
    live = tuple(n for n, runs in said.items() if runs)
    synced = moving.carry_out(session.home, made, {move.target, move.source, *live})
    if synced.changed:
        console.remark(f"synced {', '.join(synced.changed)}")
    _tell(synced.failed)
    silent = [n.name for n in every if n.name not in said and n.name not in synced.failed]
    if silent:
        console.remark(f"{', '.join(silent)}: no answer; `llmhost up` there brings the change")
    there = [n for n in every if n.name in {*live, move.target} and n.name not in synced.failed]
    first, *rest = moving.turns_of(move, [n.name for n in there])
    words = ("up", *move.services)
    busy = [n.name for n in there]
    serving = f"{move.source} serves until that is ready" if move.source in live else f"nothing runs on {move.source}"
    console.remark(f"{move.target} starts {', '.join(move.replicas)}; {serving}")
    try:
        begun = fleet.act_in_turns(there, words, (first,), busy)
    except BaseException:
        _give_up(session, made, live)
        raise
    if begun:
        _give_up(session, made, live)
        raise NodeError(
            f"{', '.join(move.replicas)} did not start on {move.target}: llmhost.yaml is as it was, and {move.source}"
            " serves as before",
            f"see what it says above, and `llmhost logs {move.services[0]}` on {move.target}; then run this again",
        )
    goes_on = f"`llmhost up {' '.join(move.services)} --all-nodes` goes on from there"
    try:
        status = fleet.act_in_turns(there, words, tuple(rest), busy) if rest else 0
    except BaseException:
        console.remark(f"{move.target} serves {', '.join(move.services)}: {goes_on}")
        raise
    if status:
        raise NodeError(
            f"{move.target} serves {', '.join(move.services)}, and the rest of the move failed: {move.source} may still"
            " run its engine",
            f"see what it says above; {goes_on}",
        )
    return fleet.NOT_READY if silent or synced.failed else 0


def _give_up(session: Session, made: Prepared, live: tuple[str, ...]) -> None:
    """All as it was, on the target too; what could not be undone is told, and no reason to leave the rest."""
    from llmhost.errors import LlmhostError
    from llmhost.fleet import moving
    from llmhost.fleet.members import members

    move = made.move
    console.remark("it did not start there: everything is put back")
    try:
        _tell(moving.take_back(session.home, made))
    except LlmhostError as e:
        console.remark(f"llmhost.yaml is not put back: {e.message}; {e.hint}")
        return
    target = next(n for n in members(session.home) if n.name == move.target)
    if not moving.clear(target, move.services, move.target in live):
        console.remark(f"{move.target} may still run what it began: `llmhost up` there stops it")


def _tell(failed: Mapping[str, LlmhostError]) -> None:
    for name, error in failed.items():
        console.remark(f"{name}: {error.message}" + (f"; {error.hint}" if error.hint else ""))


def _show(move: Move, *, dry_run: bool) -> None:
    if not dry_run:
        console.result(f"moved {', '.join(move.replicas)} from {move.source} to {move.target}")
        return
    console.table(("REPLICA", "STARTS ON", "STOPS ON"), [(r, move.target, move.source) for r in move.replicas])
    console.result()
    for service, nodes in move.nodes.items():
        console.result(f"llmhost.yaml: services.{service}.nodes: {', '.join(nodes)}")
    console.remark(f"{move.target} fetches the model and builds the engine first where they are missing there")


def _to_json(move: Move, *, moved: bool, ready: bool) -> dict[str, Any]:
    return {
        "services": list(move.services), "from": move.source, "to": move.target, "replicas": list(move.replicas),
        "nodes": {service: list(nodes) for service, nodes in move.nodes.items()}, "moved": moved, "ready": ready,
    }  # fmt: skip
