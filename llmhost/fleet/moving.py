"""A service goes to another node: what is decided before anything changes (pure), and the edit with its way back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from llmhost import config as configuration
from llmhost import nodes as placing
from llmhost import writer
from llmhost.config import Config
from llmhost.errors import ConfigError, LlmhostError, NodeError, PlanError
from llmhost.fleet import edit
from llmhost.fleet.everywhere import Everywhere
from llmhost.fleet.members import Member, members
from llmhost.fleet.sync import Synced, states, sync
from llmhost.fleet.turns import Turns
from llmhost.nodes import Whole
from llmhost.paths import Home
from llmhost.plan.linked import linked
from llmhost.plan.placement import Placement
from llmhost.plan.room import Room
from llmhost.probe.node_facts import read_nodes
from llmhost.supervise.lock import home_lock

CLEAR_SECONDS = 600.0
"""Seconds for the target of a move that failed to stop what it began."""


@dataclass(frozen=True)
class Move:
    """What goes where; nothing has changed yet."""

    services: tuple[str, ...]
    """The service, and those that must be on one node with it."""
    source: str
    target: str
    replicas: tuple[str, ...]
    """Programs that start on the target, and stop on the source when they are ready."""
    nodes: Mapping[str, tuple[str, ...]]
    """What ``nodes:`` of each service will be: where it runs afterwards."""
    wished: Placement


def decide(
    config: Config,
    placement: Placement,
    service: str,
    target: str,
    source: str | None = None,
    spanning: Collection[str] = (),
) -> Move:
    """What the words mean; pure. ``spanning`` are the services whose replicas are spread over nodes.
    Raises ConfigError for names that there are not, NodeError for what makes no sense."""
    if service not in config.services:
        raise ConfigError(f"there is no service {service}", f"llmhost.yaml has: {', '.join(config.services)}")
    for node in (target, source):
        if node is not None and node not in config.nodes:
            raise NodeError(f"there is no node {node}", f"llmhost.yaml has: {', '.join(config.nodes)}")
    group = next(each for each in linked(config.services) if service in each)
    if any(s in spanning or config.services[s].span for s in group):
        raise NodeError(
            f"{service} spans nodes: its parts restart as one, so it cannot move without losing requests",
            f"write services.{service}.nodes in llmhost.yaml and run `llmhost up --all-nodes`",
        )
    origin = _source(placement, service, target, source)
    moved = {s: _moved(placement.nodes[s], origin, target) for s in group if s in placement.nodes}
    nodes = {s: tuple(n for n in config.nodes if n in own.values()) for s, own in moved.items()}
    replicas = tuple(f"{s}-{number}" for s in moved for number, n in placement.nodes[s].items() if n == origin)
    return Move(tuple(moved), origin, target, replicas, nodes, Placement({**placement.nodes, **moved}))


def _moved(own: Mapping[int, str], source: str, target: str) -> dict[int, str]:
    return {number: target if node == source else node for number, node in own.items()}


def _source(placement: Placement, service: str, target: str, source: str | None) -> str:
    there = list(dict.fromkeys(placement.nodes.get(service, {}).values()))
    if not there:
        raise NodeError(f"{service} has no engine on any node", "it is served by its endpoints: nothing could move")
    if there == [target]:
        raise NodeError(f"{service} is only on {target} already", "`llmhost plan` shows what is where")
    if source is None and len(there) > 1:
        raise NodeError(
            f"{service} is on {', '.join(there)}: say whose share is to move",
            f"llmhost move {service} --to {target} --from {next(n for n in there if n != target)}",
        )
    chosen = source or there[0]
    if chosen == target:
        raise NodeError(f"--from and --to are both {target}", f"{service} is on {', '.join(there)}")
    if chosen not in there:
        raise NodeError(f"{service} is not on {chosen}", f"it is on {', '.join(there)}")
    return chosen


def turns_of(move: Move, live: Collection[str]) -> Turns:
    """Who runs `up` when: the target, then those that only send requests there, and last who gives it away; pure.

    ``live`` are the nodes on which something runs: who was stopped stays so.
    """
    others = tuple(n for n in live if n not in (move.target, move.source))
    last = (move.source,) if move.source in live else ()
    return tuple(turn for turn in ((move.target,), others, last) if turn)


@dataclass(frozen=True)
class Prepared:
    """A move that fits, with the file and the placement before and after it."""

    move: Move
    before: Whole
    after: Whole
    old_text: str
    new_text: str


def prepare(home: Home, service: str, target: str, source: str | None) -> Prepared:
    """Plan a move; changes nothing.

    Raises what `decide` and `llmhost.nodes.read_whole` raise, NodeError while llmhost.yaml is not what was placed last,
    ConfigError for a file that cannot be edited, and PlanError when it does not fit on the target.
    """
    text = configuration.read_text(home.config_file)
    config = configuration.parse(text, str(home.config_file))
    members(home, config)
    before = placing.read_whole(home, config)
    assert before is not None  # there are nodes, or `members` had refused
    move = decide(config, before.part.placement, service, target, source, before.part.spans.widths)
    if before.part.placement.digest != placing.read_placement(home).digest:
        raise NodeError(
            "llmhost.yaml has changed since everything was placed last",
            "bring that to the nodes first: `llmhost up --all-nodes`",
        )
    edited = text
    for name, nodes in move.nodes.items():
        edited = edit.with_places(edited, name, nodes)
    try:
        after = placing.read_whole(home, configuration.parse(edited, str(home.config_file)), move.wished)
    except PlanError as e:
        raise _no_room(home, before, move) or e from e
    assert after is not None
    if after.part.placement.digest != move.wished.digest:
        raise _no_room(home, before, move) or PlanError(
            f"{', '.join(move.replicas)} cannot run on {target}", "`llmhost plan` shows what is where"
        )
    return Prepared(move, before, after, text, edited)


def _no_room(home: Home, before: Whole, move: Move) -> PlanError | None:
    """What is missing on the target, beside what stays there."""
    services = before.config.services
    room = Room(services, read_nodes(home, [n.name for n in before.part.nodes]), before.models)
    here = {s: len(numbers) for s, numbers in before.part.placement.on(move.target).items()}
    room.add(move.target, here)
    coming = {s: sum(n == move.source for n in before.part.placement.nodes[s].values()) for s in move.services}
    coming = {s: count for s, count in coming.items() if count}
    if room.holds(move.target, {s: here.get(s, 0) + coming.get(s, 0) for s in (here | coming)}):
        return None
    _, why = room.nearest(coming, {move.target})
    names = ", ".join(move.replicas)
    verb = "does" if len(move.replicas) == 1 else "do"
    return PlanError(f"{names} {verb} not fit on {move.target}: {why.message}", why.hint)


def require_both(move: Move, every: Sequence[Member]) -> None:
    """Raise NodeError or SshError unless source and target answer, with this llmhost; before anything is changed."""
    _, failed = states(n for n in every if n.name in (move.source, move.target))
    for error in failed.values():
        raise error


def carry_out(home: Home, made: Prepared, needed: Collection[str]) -> Synced:
    """Bring the edit and the new placement to all nodes. Raises NodeError, with all as it was, if one of ``needed``
    does not take them: a node that goes on sending to the source would find nobody there."""
    try:
        synced = _write(home, made.new_text, made.old_text, made.after)
    except BaseException as e:  # Ctrl-C, too
        if configuration.read_text(home.config_file) == made.new_text:
            try:
                take_back(home, made)
            except LlmhostError as stuck:
                raise NodeError(f"llmhost.yaml is edited and was not put back: {stuck.message}", stuck.hint) from e
        raise
    for name, failed in synced.failed.items():
        if name in needed:
            take_back(home, made)
            raise NodeError(f"{name} did not take the files, and nothing has moved: {failed.message}", failed.hint)
    return synced


def take_back(home: Home, made: Prepared) -> Mapping[str, LlmhostError]:
    """The file and the placement as they were, on all nodes; which of them did not take them.

    Raises NodeError where somebody has edited llmhost.yaml meanwhile.
    """
    return _write(home, made.old_text, made.new_text, made.before).failed


def _write(home: Home, text: str, present: str, whole: Whole) -> Synced:
    def change() -> None:
        with home_lock(home, "move"):
            if configuration.read_text(home.config_file) != present:
                raise NodeError(f"{home.config_file} was edited meanwhile", "see what it says, and run this again")
            writer.replace_file(home.config_file, text, home.config_file.stat().st_mode & 0o777)
            placing.write_shared(home, whole)

    return sync(home, members(home), first=change)


def clear(target: Member, services: tuple[str, ...], was_live: bool) -> bool:
    """Let the target stop what it began, with the files of before; whether it did."""
    words = ("up", "--no-wait", *services) if was_live else ("down",)
    return Everywhere(lambda *_: None, CLEAR_SECONDS).run([target], words)[target.name].status == 0
