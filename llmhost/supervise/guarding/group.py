"""The guards of a model that spans nodes act as one: all parts start together, and one that ends ends all.

The guard of rank 0, the head, listens; the others, its members, connect to it and hold the connection, which lasts as
long as one life of the group (an epoch). This module is what both have in common, and `Alone`, the group of an engine
that spans nothing; `llmhost.supervise.guarding.head` and `llmhost.supervise.guarding.member` are the two sides.

Messages: a member says ``rank`` (hello, with ``group``, ``digest`` and ``vllm``), ``proof``, ``reaches`` ('' when it
gets through to the port of the engine, else why not), ``locked`` and ``end``; the head says ``proof``, ``is`` (its
state, with ``refused`` when it closes the connection because of what its ``error`` says), ``lock``, ``go`` (with the
epoch), ``end`` and ``over`` (what becomes of the group: again, stopped or failed).
"""

from __future__ import annotations

from llmhost.supervise.guarding.ending import BROKEN, FAILED, LEFT, STOPPED, Ending

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from llmhost.supervise.guarding.locks import StartLocks

    Message = dict[str, Any]

INTERVAL = 0.2
"""Seconds between two looks at what is waited for."""
SHOW_SECONDS = 10.0
"""Seconds of waiting for a node after which it is said what is wrong with it."""


class Place:
    """What a guard knows of its group: ``group`` of its spec.

    ``name``, of the group; ``rank``; ``nodes`` and ``addresses``, of all parts by rank; ``port``, where the guard of
    rank 0 listens; ``master_port``, where its engine will, 0 for one that does not; ``cluster_port``, where its Ray
    does already, 0 without Ray; ``digest``, of what all parts must have in common; ``secret``, of the group only;
    ``vllm``, the version of the engine here, '' when it is not known.
    """

    def __init__(self, data: Message) -> None:
        self.name = str(data["name"])
        self.rank = int(data["rank"])
        self.nodes = [str(name) for name in data["nodes"]]
        self.addresses = [str(address) for address in data["addresses"]]
        self.port = int(data["port"])
        self.master_port = int(data.get("master_port") or 0)
        self.cluster_port = int(data.get("cluster_port") or 0)
        self.digest = str(data.get("digest") or "")
        self.vllm = str(data.get("vllm") or "")
        self.secret = str(data["secret"]).encode()
        if not 0 <= self.rank < len(self.nodes) == len(self.addresses):
            raise ValueError("its group has no such rank")
        if len(self.secret) < 16:
            raise ValueError("the secret of its group is too short")

    @property
    def way(self) -> int:
        """The port at the head that all parts must reach before they start."""
        return self.master_port or self.cluster_port

    @property
    def address(self) -> str:
        """Ours."""
        return self.addresses[self.rank]

    def at(self, port: int) -> str:
        """A port of the head, for a message."""
        head = self.addresses[0]
        return f"[{head}]:{port}" if ":" in head else f"{head}:{port}"


class Waiting:
    """How a guard that waits for others sleeps (`pause` may raise Ending), and says what for."""

    def __init__(self, pause: Callable[[float], object], tell: Callable[[str], None]) -> None:
        self.pause = pause
        self._tell = tell
        self._told = ""

    def tell(self, words: str) -> None:
        if words != self._told:
            self._tell(words)
        self._told = words


class Alone:
    """The group of an engine by itself: nobody to wait for, nobody to tell."""

    counts = True
    """Failures are counted here, and starts put off."""
    epoch = 0
    """Number of the life of the group."""

    def fds(self) -> tuple[int, ...]:
        """What wakes the guard up."""
        return ()

    def turn(self) -> None:
        """Hear and answer the others; never blocks, never raises."""

    def require_whole(self) -> None:
        """Raises Ending when another part of this life has ended."""

    def gather(self, waiting: Waiting, locks: StartLocks) -> None:
        """Wait until all parts may start; the start locks are held then."""
        locks.take(waiting.pause, waiting.tell)

    def state(self, state: str, error: str | None) -> None:
        """Tell the others ours."""

    def is_ready(self) -> bool:
        """Whether the group is, as far as others decide."""
        return True

    def announce(self, ending: Ending, rest: Callable[[float], bool], seconds: float) -> None:
        """Before a part is ended: say why. One that is stopped goes on for ``seconds`` while the head drains.

        ``rest`` sleeps; when it returns False, nothing is waited for any more.
        """

    def settle(self, ending: Ending, rest: Callable[[float], bool]) -> Ending:
        """After it has ended: how the group did."""
        return ending

    def dismiss(self, how: str, error: str | None) -> None:
        """The life is over; what follows from it is decided."""


def group_of(place: Place | None) -> Alone:
    """The side of a group that a guard has to play."""
    if place is None:
        return Alone()
    if place.rank == 0:
        from llmhost.supervise.guarding.head import Head  # noqa: PLC0415 (needs memory, few need it)

        return Head(place)
    from llmhost.supervise.guarding.member import Member  # noqa: PLC0415

    return Member(place)


def merge(own: Ending, others: list[tuple[str, Message]]) -> Ending:
    """How a group ended, from the end of rank 0 and what the others said: node, and its ``how error explained``.

    A cause that no restart mends counts, unless somewhere else a connection or a process was lost: then that is why.
    """
    if own.how in (STOPPED, LEFT):
        return own
    told = [(node, said) for node, said in others if said.get("error")]
    lost = any(said.get("how") in ("lost", "killed") for _, said in told)
    doomed = [Ending(FAILED, f"node {node}: {said['error']}") for node, said in told if said.get("how") == FAILED]
    if not lost and (own.how == FAILED or doomed):
        return own if own.how == FAILED else doomed[0]
    words = [own.error or "", *(f"node {node}: {said['error']}" for node, said in told)]
    known = own.explained or any(bool(said.get("explained")) for _, said in told)
    return Ending(BROKEN if own.how == FAILED else own.how, "; ".join(dict.fromkeys(filter(None, words))), known)


def as_message(ending: Ending) -> Message:
    """An end as it is told to others."""
    killed = (ending.error or "").startswith("the engine was killed")
    return {"how": "killed" if killed else ending.how, "error": ending.error, "explained": ending.explained}
