"""Rank 0 of a group: waits for its members, starts the life of all, and ends it for all."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time

from llmhost.supervise.guarding import port
from llmhost.supervise.guarding.channel import Attempt, Channel, listen
from llmhost.supervise.guarding.ending import AGAIN, BROKEN, FAILED, LEFT, STOPPED, Ending
from llmhost.supervise.guarding.group import INTERVAL, SHOW_SECONDS, Alone, Place, Waiting, merge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmhost.supervise.guarding.group import Message
    from llmhost.supervise.guarding.locks import StartLocks

LOOK_SECONDS = 5.0
"""Seconds between two looks whether the host of a missing node answers at all."""
SETTLE_SECONDS = 8.0
"""Seconds in which the members say how their parts ended."""
GUESTS = 32
"""Connections at once that have not proved who they are."""


class Part:
    """A member as the head sees it."""

    def __init__(self, rank: int, place: Place) -> None:
        self.rank = rank
        self.place = place
        self.node = place.nodes[rank]
        self.address = place.addresses[rank]
        self.channel: Channel | None = None
        self.next: Channel | None = None
        """Its guard came anew while a life with its former one lasts."""
        self.early: list[Message] = []
        """What that said already: it says it once."""
        self.reaches = self.locked = False
        self.ended: Message | None = None
        self.trouble = ""
        """What went wrong with it last, in words."""
        self._look: Attempt | None = None
        self._looked = ""

    @property
    def there(self) -> bool:
        return self.channel is not None and self.channel.open

    def begin(self, channel: Channel | None) -> None:
        """A connection of which nothing is known but what it said before its turn."""
        early = self.early
        self.channel, self.next, self.early = channel, None, []
        self.reaches = self.locked = False
        self.ended = None
        for message in early:
            self.hear(message, lives=False)

    def send(self, message: Message) -> None:
        if self.channel is not None and self.channel.open:
            self.channel.send(message)

    def hear(self, message: Message, lives: bool) -> None:
        if "reaches" in message:
            self.reaches, self.trouble = not message["reaches"], str(message["reaches"])
        elif "locked" in message:
            self.locked = True
        elif "end" in message and isinstance(message["end"], dict):
            self.ended = message["end"]
            stopped = "it was stopped there" if self.ended.get("how") == LEFT else ""
            self.trouble = "" if lives else str(self.ended.get("error") or stopped)

    def how_ended(self) -> Message:
        """What it said, or that its connection was lost; {} for one that ended because others did."""
        if self.ended is not None:
            return {} if self.ended.get("how") in (AGAIN, LEFT) else self.ended
        why = self.channel.closed if self.channel is not None else ""
        return {"how": "lost", "error": why, "explained": True} if why else {}

    def why_missing(self, whole: bool) -> str:
        """In words; with `whole` after a look at its host."""
        if self.trouble or not whole:
            return self.trouble
        if self.there:
            return f"{self.address} tries to reach {self.place.at(self.place.way)}"
        here = f"{self.address} does not connect to {self.place.at(self.place.port)}"
        self._look_again()
        if self._looked == "connection refused":  # so its host is there
            return f"{here}; does llmhost run there? a firewall?"
        if self._looked in ("", "no answer", "it answers"):
            return f"{here}; a firewall?"
        return f"{here}, nor we to it: {self._looked}"

    def _look_again(self) -> None:
        """Whether its host answers us: whatever listens at that port there, nothing is said."""
        if self._look is None or (self._looked and time.monotonic() - self._look.began > LOOK_SECONDS):
            self._look = Attempt(self.address, self.place.port, self.place.address)
        if self._look.stands:
            self._look.connection.close()
            self._look.error = "it answers"
        self._looked = self._look.error or self._looked


class Head(Alone):
    """The guard of rank 0."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.parts = [Part(rank, place) for rank in range(1, len(place.nodes))]
        self.server: socket.socket | None = None
        self.engine_port: socket.socket | None = None
        """Held while the members try whether they reach it; the engine listens there later."""
        self.guests: dict[Channel, Part | None] = {}
        self.lives = False
        """From `go` to `dismiss`."""
        self._state: Message = {"is": "queued", "error": None}
        self._cannot = ""
        """Why nobody can connect to us, in words."""

    # What happens by itself.

    def fds(self) -> tuple[int, ...]:
        every = (*self._channels(), *self.guests, self.server, self.engine_port)
        return tuple(o.fileno() for o in every if o is not None and o.fileno() >= 0)

    def turn(self) -> None:
        if self.server is not None:
            for connection in _accepted(self.server):
                self._accept(connection)
        if self.engine_port is not None:
            for connection in _accepted(self.engine_port):
                _reset(connection)
        for guest in tuple(self.guests):
            self._hear_guest(guest)
            if guest.proved or not guest.open:
                self.guests.pop(guest, None)
        for part in self.parts:
            if part.channel is not None:
                for message in part.channel.turn():
                    part.hear(message, self.lives)
            if part.next is not None:
                part.early += part.next.turn()

    def _channels(self) -> Iterator[Channel]:
        return (c for p in self.parts for c in (p.channel, p.next) if c is not None)

    def _accept(self, connection: socket.socket) -> None:
        if len(self.guests) < GUESTS:
            self.guests[Channel(connection, self.place.secret)] = None
        else:
            connection.close()

    def _hear_guest(self, guest: Channel) -> None:
        """Nothing that a stranger sends may end the guard, and the engine with it."""
        try:
            for message in guest.turn():
                self._meet(guest, message)
        except Exception:
            if guest.proved:
                raise
            guest.close("it sends what no guard would")

    def _meet(self, guest: Channel, message: Message) -> None:
        """Hello, then the proof."""
        part = self.guests[guest]
        if part is not None and guest.proved:
            if guest is part.channel:
                part.hear(message, self.lives)
            elif guest is part.next:
                part.early.append(message)
        elif part is None:
            ours = message.get("group") == self.place.name
            part = next((p for p in self.parts if ours and p.rank == message.get("rank")), None)
            if part is None:
                guest.close("it is not of this group")
                return
            self.guests[guest] = part
            guest.challenge(message)
        elif message.get("refused") or not guest.check(message):
            part.trouble = f"{part.address} has another secret than this node"
            guest.close(part.trouble)
        elif guest.digest != self.place.digest:
            part.trouble = _difference(guest.vllm, self.place.vllm)
            guest.send({"is": "queued", "error": _difference(self.place.vllm, guest.vllm), "refused": 1})
            guest.close(part.trouble)
        else:
            self._welcome(part, guest)

    def _welcome(self, part: Part, channel: Channel) -> None:
        """A guard that comes again has lost its part: the life with its former one is over."""
        part.trouble = ""
        if part.next is not None:
            part.next.close("its guard came anew")
        if part.channel is not None:
            part.channel.close("its guard was started anew")
        if self.lives:
            part.next, part.early = channel, []
        else:
            part.begin(channel)
        channel.send(self._state)

    # Before the life.

    def gather(self, waiting: Waiting, locks: StartLocks) -> None:
        while True:
            self._await_parts(waiting)
            locks.take(waiting.pause, waiting.tell)
            if self._lock_parts(waiting):
                break
            locks.release()
        self._let_go_of_engine_port()
        self.epoch += 1
        self.lives = True
        for part in self.parts:
            part.send({"go": self.epoch})

    def _await_parts(self, waiting: Waiting) -> None:
        begin = time.monotonic()
        while True:
            self._listen()
            missing = [p for p in self.parts if not (p.there and p.reaches)]
            if not missing and not self._cannot:
                return
            whole = time.monotonic() - begin > SHOW_SECONDS
            waiting.tell(self._cannot or _waiting_for(missing, whole))
            waiting.pause(INTERVAL)

    def _listen(self) -> None:
        self._cannot = ""
        if self.server is None:
            self.server = self._try_to_listen(self.place.port)
        if self.engine_port is None and self.place.master_port:
            self.engine_port = self._try_to_listen(self.place.master_port)

    def _try_to_listen(self, number: int) -> socket.socket | None:
        where = self.place.at(number)
        try:
            return listen(self.place.address, number)
        except OSError as e:
            taken = e.errno == errno.EADDRINUSE
            why = os.strerror(e.errno or errno.EIO).lower()
            self._cannot = port.taken(where.encode()) if taken else f"cannot listen on {where}: {why}"
            return None

    def _lock_parts(self, waiting: Waiting) -> bool:
        """In the order of ranks, which is that of the nodes for all groups: none waits for another in a circle."""
        for part in self.parts:
            part.send({"lock": 1})
            begin = time.monotonic()
            while not part.locked:
                if not all(p.there for p in self.parts):
                    return self._try_again()
                if time.monotonic() - begin > LOOK_SECONDS:
                    waiting.tell(f"waiting for node {part.node}: another engine starts on its GPUs")
                waiting.pause(INTERVAL)
        return all(p.there for p in self.parts) or self._try_again()

    def _try_again(self) -> bool:
        """Members let go of their locks when their connection goes, and come again."""
        for part in self.parts:
            if part.channel is not None:
                part.channel.close("another start is tried")
            part.begin(None)
        return False

    def _let_go_of_engine_port(self) -> None:
        if self.engine_port is not None:
            self.engine_port.close()
        self.engine_port = None

    # The life, and its end.

    def require_whole(self) -> None:
        for part in self.parts if self.lives else ():
            if part.ended is not None and part.ended.get("how") == LEFT:
                raise Ending(LEFT, f"stopped on node {part.node}")
            if part.ended is not None or not part.there:
                said = part.how_ended()
                words = f"node {part.node}: {said.get('error') or 'its part ended'}"
                raise Ending(BROKEN, words, bool(said.get("explained")))

    def state(self, state: str, error: str | None) -> None:
        self._state = {"is": state, "error": error}
        for channel in self._channels():
            if channel.open:
                channel.send(self._state)

    def announce(self, ending: Ending, rest: Callable[[float], bool], seconds: float) -> None:
        """What drains does so with all its parts, so they are told afterwards."""
        if self.lives and ending.how not in (STOPPED, LEFT):
            self._end_all(ending)

    def _end_all(self, ending: Ending) -> None:
        for part in self.parts:
            part.send({"end": {"how": AGAIN, "error": ending.error}})

    def settle(self, ending: Ending, rest: Callable[[float], bool]) -> Ending:
        if not self.lives:
            return ending
        self._end_all(ending)
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline and any(p.there and p.ended is None for p in self.parts) and rest(INTERVAL):
            pass
        return merge(ending, [(p.node, p.how_ended()) for p in self.parts])

    def dismiss(self, how: str, error: str | None) -> None:
        """Members learn what becomes of the group. Who came anew stays, but for an end for good."""
        for part in self.parts if self.lives else ():
            part.send({"over": how, "error": error})
            if part.channel is not None:
                part.channel.close("the life is over")
            part.begin(part.next)
        self.lives = False
        if how in (STOPPED, FAILED):
            self.state(how, error)
            for channel in (*self._channels(), *self.guests):
                channel.close(how)
            if self.server is not None:
                self.server.close()
            self.server = None
        self._let_go_of_engine_port()


def _difference(theirs: str, ours: str) -> str:
    """Of parts that may not start together, for a node that waits for the other one; '' is no known version."""
    if theirs and ours and theirs != ours:
        return f"it has vLLM {theirs}, this node {ours}"
    return "its plan is another one; run `llmhost up` on both nodes"


def _waiting_for(missing: list[Part], whole: bool) -> str:
    """The first that has something to say says why."""
    why = next(filter(None, (p.why_missing(whole) for p in missing)), "")
    return f"waiting for node {' and '.join(p.node for p in missing)}" + (f": {why}" if why else "")


def _accepted(server: socket.socket) -> Iterator[socket.socket]:
    with contextlib.suppress(OSError):
        while True:
            yield server.accept()[0]


def _reset(connection: socket.socket) -> None:
    """Whoever tried has got through, and nothing of it is left in the kernel when the engine binds the port."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
