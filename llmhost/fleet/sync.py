"""The common files of this node to all others, unless those of another one are newer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from llmhost import __version__
from llmhost.errors import LlmhostError, NodeError
from llmhost.fleet import files
from llmhost.fleet.everywhere import attempt
from llmhost.fleet.files import NodeState
from llmhost.fleet.members import Member
from llmhost.paths import Home
from llmhost.supervise.lock import require_account

STATE_SECONDS = 30.0
SEND_SECONDS = 120.0
"""A node waits for its turn while another command changes it."""


@dataclass(frozen=True)
class Synced:
    """What became of each node."""

    changed: tuple[str, ...] = ()
    same: tuple[str, ...] = ()
    failed: Mapping[str, LlmhostError] = field(default_factory=dict)


def states(nodes: Iterable[Member]) -> tuple[dict[str, NodeState], dict[str, LlmhostError]]:
    """What each other node has of the common files; and which of them do not answer."""
    return attempt((n for n in nodes if not n.here), _state)


def sync(
    home: Home, nodes: Iterable[Member], *, force: bool = False, first: Callable[[], None] = lambda: None
) -> Synced:
    """Bring the common files of this node to all others that answer and do not have them.

    Raises NodeError, and changes nothing, where a node was edited or got newer files since, unless ``force`` says that
    these go. ``first`` may change files here, as soon as it is known that nothing stands against it. Raises HomeError
    for one who must not write here.
    """
    require_account(home)
    every = tuple(nodes)
    found, failed = states(every)
    for name, state in list(found.items()):
        if state.llmhost != __version__:
            failed[name] = _other_version(next(n for n in every if n.name == name), state)
            del found[name]
    own = files.read_state(home)
    if not force:
        require_newest(own, found)
    first()
    for state in found.values():
        files.adopt_locked(home, state.locked)
    stale = [n for n in every if n.name in found and is_stale(home, n, found[n.name])]
    sent, lost = _bring(home, found, stale) if found else ({}, {})
    same = tuple(name for name in found if name not in {n.name for n in stale})
    return Synced(tuple(sent), same, failed | lost)


def _bring(
    home: Home, found: Mapping[str, NodeState], stale: list[Member]
) -> tuple[dict[str, str], dict[str, LlmhostError]]:
    """The files to those that lack them, under a new number.

    Where no other node has them afterwards, what was edited here still counts as edited.
    """
    own = files.read_state(home)
    serial = max(s.record.serial for s in (own, *found.values()))
    if stale or own.files != own.record.files:
        serial += 1
        files.remember(home, files.Record(serial, own.node, own.files))
    sent, lost = attempt(stale, lambda node: _send(home, node, serial, own.node))
    if len(lost) == len(found):
        files.remember(home, own.record)
    return sent, lost


def fetch(home: Home, node: Member) -> None:
    """Take the common files of another node instead; raises SshError, NodeError, HomeError."""
    require_account(home)
    if node.link is None:
        raise NodeError(f"{node.name} is this node", "name another one")
    node.connect()
    own = files.read_state(home).node
    files.receive(home, node.ask("node", "send", own, timeout=STATE_SECONDS))


def _state(node: Member) -> NodeState:
    return files.state_from_json(node.ask("node", "state", timeout=STATE_SECONDS))


def _send(home: Home, node: Member, serial: int, by: str) -> str:
    text = json.dumps(files.document(home, node.name, serial, by), ensure_ascii=False)
    return node.ask("node", "receive", given=text, timeout=SEND_SECONDS)


def _other_version(node: Member, state: NodeState) -> NodeError:
    where = node.link.target if node.link else node.name
    return NodeError(
        f"{node.name} has llmhost {state.llmhost}, and this node {__version__}",
        f"bring this one there: llmhost node add {where} --name {node.name}",
    )


def is_stale(home: Home, node: Member, state: NodeState) -> bool:
    """Whether a node has other files than this one would give it."""
    return state.node != node.name or bool(files.stale(state, files.digests(home, node.name)))


def require_newest(own: NodeState, found: Mapping[str, NodeState]) -> None:
    """Raise NodeError where a node was edited, or got files from somewhere else, since it had those of this one."""
    for name, state in found.items():
        edited = [p for p in state.edited if state.files.get(p) != own.files.get(p)]
        if edited:
            raise NodeError(
                f"{', '.join(edited)} of {name} was changed there since the nodes had the same",
                f"take it over: `llmhost node sync --from {name}`; or replace it by that of this node:"
                " `llmhost node sync --force`",
            )
        if state.record.serial > own.record.serial and files.differ(own, state):
            raise NodeError(
                f"{name} has newer files than this node, from {state.record.by}",
                f"take them over: `llmhost node sync --from {name}`; or replace them by those of this node:"
                " `llmhost node sync --force`",
            )
