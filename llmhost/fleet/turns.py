"""Which nodes change at the same time, and which ones wait for others. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from llmhost.errors import LlmhostError, NodeError, SshError

Turns = tuple[tuple[str, ...], ...]
"""Names of nodes; those of a turn at the same time, each turn after the one before."""
Services = Mapping[str, frozenset[str]]
"""Node -> services: in the order of llmhost.yaml, with all of its nodes."""
Names = Mapping[str, Collection[str]]
"""Service -> the names that it answers to."""


def of_restart(running: Services) -> Turns:
    """Nodes that run something one after another; then those where nothing runs, or that did not say what."""
    return _filled((*((n,) for n in running if running[n]), tuple(n for n in running if not running[n])))


def of_up(running: Services, placed: Services, following: Collection[str] = ()) -> Turns:
    """From what runs to what is placed where; ``following`` are the `followers`.

    Where no service is on several nodes, before or after, they do not concern each other. Else they take turns, so that
    the others serve meanwhile. Nodes that get what moves as a whole are first: every other gateway goes on with the old
    place until it is there, see `llmhost.stages`. They go together when one of them waits for another in that way, and
    with all others when one of them gives such a service away, so that nobody is left with its old place. Then come
    those where nothing runs, those that get another replica, and last who gives something away. With followers all go
    together: who has what they follow waits for them, and so does everybody else.
    """
    every = [running[n] | placed.get(n, frozenset()) for n in running]
    moved = _moved(running, placed)
    first = tuple(n for n in running if any(n in move.then for move in moved))
    waiting = any(n not in move.then for n in first for move in moved)
    apart = len(frozenset().union(*every)) == sum(map(len, every))
    if apart or following or any(n in move.now for n in first for move in moved):
        return (tuple(running),)
    rest = [n for n in running if n not in first]
    busy = sorted((n for n in rest if running[n]), key=lambda n: _place(n, running, placed))
    return _filled(
        (
            *((first,) if waiting else ((n,) for n in first)),
            tuple(n for n in rest if not running[n]),
            *((n,) for n in busy),
        )
    )


def followers(answered: Names, running: Services, placed: Services, wanted: Names) -> frozenset[str]:
    """Services that are placed and run nowhere, for names that others, or servers that are no nodes, answer to now.

    Pure. ``answered`` are the names of each service that answers now, ``wanted`` those that each service is to have.
    """
    there, known = frozenset().union(*running.values()), frozenset().union(*answered.values())
    coming = frozenset().union(*placed.values()) - there
    return frozenset(s for s, names in wanted.items() if s in coming and known & set(names))


def stranded(
    running: Services,
    placed: Services,
    following: Collection[str] = (),
    dead: Collection[str] = (),
    refusing: Collection[str] = (),
) -> str:
    """A service that would stop where it runs, and not every gateway would find it again; empty when there is none.

    ``dead`` nodes do not answer: nothing starts there. On those that are ``refusing`` the files something runs, which
    goes on as it is, and sends requests to where the service ran. Pure.
    """
    moves = {move.service: move.then for move in _moved(running, placed)}
    moves |= {s: frozenset(n for n in placed if s in placed[n]) for s in following}
    return next((s for s, then in sorted(moves.items()) if refusing or then <= frozenset(dead)), "")


def require_found(
    running: Services, placed: Services, following: Collection[str], lost: Mapping[str, LlmhostError]
) -> None:
    """Raise NodeError where something is `stranded`; ``lost`` are the nodes that did not take the files, and why."""
    dead = [name for name, error in lost.items() if is_dead(error)]
    refusing = [name for name in lost if name not in dead]
    service = stranded(running, placed, following, dead, refusing)
    if service:
        name = (refusing or [n for n in dead if service in placed[n]])[0]
        raise NodeError(
            f"{service} goes to another node, and {name} did not take the files, so nothing is started or stopped:"
            f" {lost[name].message}",
            lost[name].hint,
        )


def is_dead(error: LlmhostError) -> bool:
    """Whether a node did not answer at all; else a command failed there, or it has another llmhost."""
    return isinstance(error, SshError) and error.reason != "failed"


class _Move(NamedTuple):
    """A service that is to run on other nodes only than now."""

    service: str
    now: frozenset[str]
    then: frozenset[str]


def _moved(running: Services, placed: Services) -> list[_Move]:
    services = frozenset().union(*running.values())
    moves = (_Move(s, *(frozenset(n for n in where if s in where[n]) for where in (running, placed))) for s in services)
    return [move for move in moves if move.then and not move.now & move.then]


def _place(node: str, running: Services, placed: Services) -> int:
    """Among those where something runs: a replica comes before the others change, and goes when they have."""
    then = placed.get(node, frozenset())
    gets = (then - running[node]) & frozenset().union(*running.values())
    gives = (running[node] - then) & frozenset().union(*placed.values())
    return (3 if not gets else 2) if gives else (0 if gets else 1)


def _filled(turns: Turns) -> Turns:
    return tuple(turn for turn in turns if turn)
