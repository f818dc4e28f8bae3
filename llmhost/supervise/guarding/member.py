"""Another rank of a group than 0: connects to the head, starts when it says so, and ends with it."""

from __future__ import annotations

import time

from llmhost.supervise.guarding.channel import Attempt, Channel
from llmhost.supervise.guarding.ending import AGAIN, BROKEN, FAILED, LEFT, STOPPED, Ending
from llmhost.supervise.guarding.group import INTERVAL, SHOW_SECONDS, Alone, Place, Waiting, as_message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from llmhost.supervise.guarding.group import Message
    from llmhost.supervise.guarding.locks import StartLocks

RETRY_SECONDS = 1.0
"""Seconds between two tries to connect."""
REACH_SECONDS = 5.0
"""Seconds between two tries to get through to the port of the engine, unless it is refused."""


class Member(Alone):
    """The guard of a rank that has no API server."""

    counts = False

    def __init__(self, place: Place) -> None:
        self.place = place
        self.head = place.nodes[0]
        self.channel: Channel | None = None
        self.lives = False
        self._heads: Message = {}
        """Its state."""
        self._may_lock = False
        self._go = 0
        self._end: Message | None = None
        self._over: Message | None = None

    # What happens by itself.

    def fds(self) -> tuple[int, ...]:
        return (self.channel.fileno(),) if self.channel is not None and self.channel.open else ()

    def turn(self) -> None:
        if (channel := self.channel) is not None:
            for message in channel.turn():
                self._hear(channel, message)

    def _hear(self, channel: Channel, message: Message) -> None:
        """Also what was said just before the connection was closed."""
        if not channel.proved:
            if channel.open and not channel.answer(message):
                channel.close(f"its secret is another one than that of {self.place.nodes[self.place.rank]}")
        elif "is" in message:
            self._heads = message
        elif "lock" in message:
            self._may_lock = True
        elif "go" in message:
            self._go = int(message["go"])
        elif "end" in message:
            self._end = dict(message["end"])
        elif "over" in message:
            self._over = message

    # Before the life.

    def gather(self, waiting: Waiting, locks: StartLocks) -> None:
        why = str(self._over.get("over")) if self._over else ""
        self._over = None
        while True:
            self._say(waiting, why)
            why = self._join(waiting, locks)
            if not why:
                break
            locks.release()
            self._close()
            self._say(waiting, why)
            waiting.pause(RETRY_SECONDS)
        self.epoch, self.lives = self._go, True

    def _say(self, waiting: Waiting, why: str) -> None:
        waiting.tell(f"waiting for node {self.head}" + (f": {why}" if why else ""))

    def _join(self, waiting: Waiting, locks: StartLocks) -> str:
        """'' once the head says go; else why that did not come about."""
        if why := self._connect(waiting):
            return why
        why = self._await(waiting, lambda: self.channel is not None and self.channel.proved)
        why = why or self._reach(waiting) or self._await(waiting, lambda: self._may_lock)
        if why or self.channel is None:
            return why
        locks.take(waiting.pause, waiting.tell)
        self.channel.send({"locked": 1})
        return self._await(waiting, lambda: self._go > 0)

    def _connect(self, waiting: Waiting) -> str:
        place = self.place
        attempt = Attempt(place.addresses[0], place.port, place.address)
        while not attempt.stands:
            if attempt.error:
                hints = {"connection refused": "; does llmhost run there?", "no answer": "; a firewall?"}
                return f"{place.at(place.port)}: {attempt.error}{hints.get(attempt.error, '')}"
            waiting.pause(INTERVAL)
        self.channel = Channel(attempt.connection, place.secret)
        self._heads, self._may_lock, self._go, self._end = {}, False, 0, None
        self.channel.greet({"group": place.name, "rank": place.rank, "digest": place.digest, "vllm": place.vllm})
        return ""

    def _await(self, waiting: Waiting, done: Callable[[], bool]) -> str:
        """Says what the head waits for itself, meanwhile."""
        while not done():
            if self.channel is None or not self.channel.open:
                return self._why_closed()
            if self._heads:  # until then what was said last counts
                self._say(waiting, ": ".join(filter(None, (self._heads.get("is"), self._heads.get("error")))))
            waiting.pause(INTERVAL)
        return ""

    def _why_closed(self) -> str:
        if self._heads.get("refused"):
            return str(self._heads.get("error"))
        return self.channel.closed if self.channel is not None else "there is no connection"

    def _reach(self, waiting: Waiting) -> str:
        """Whether the port of the engine can be reached: what stands in its way would make the engine hang."""
        place, begin = self.place, time.monotonic()
        while place.way and (error := self._try_to_reach(waiting)):
            refused = error == "connection refused"  # until the head has backed off, nobody listens there
            if self._heads.get("is") == "backoff":
                begin = time.monotonic()
            if not refused or time.monotonic() - begin > SHOW_SECONDS:
                asked = " does Ray run there?" if refused and not place.master_port else ""
                why = f"{place.address} does not reach {place.at(place.way)} ({error});{asked} a firewall?"
                self._send({"reaches": why})
            again = time.monotonic() + (INTERVAL if refused else REACH_SECONDS)
            if lost := self._await(waiting, lambda until=again: time.monotonic() > until):  # type: ignore[misc]
                return lost
        self._send({"reaches": ""})
        return ""

    def _try_to_reach(self, waiting: Waiting) -> str:
        """'' when somebody is there, else what went wrong."""
        place = self.place
        attempt = Attempt(place.addresses[0], place.way, place.address)
        self._await(waiting, lambda: attempt.stands or bool(attempt.error))
        if attempt.error in ("", "connection reset by peer"):
            attempt.connection.close()
            return ""
        return attempt.error

    def _send(self, message: Message) -> None:
        if self.channel is not None and self.channel.open:
            self.channel.send(message)

    # The life, and its end.

    def require_whole(self) -> None:
        if not self.lives:
            return
        if self._end is not None or self._over is not None:
            raise Ending(AGAIN, (self._end or self._over or {}).get("error"))
        if self.channel is None or not self.channel.open:
            raise Ending(BROKEN, f"node {self.head}: {self.channel.closed if self.channel else 'no connection'}")

    def is_ready(self) -> bool:
        return self._heads.get("is") == "ready"

    def announce(self, ending: Ending, rest: Callable[[float], bool], seconds: float) -> None:
        if ending.how != STOPPED:
            return self._send({"end": as_message(ending)})
        self._send({"end": {"how": LEFT}})
        deadline = time.monotonic() + seconds
        while self.lives and self.fds() and self._end is None and time.monotonic() < deadline and rest(INTERVAL):
            pass
        return None

    def settle(self, ending: Ending, rest: Callable[[float], bool]) -> Ending:
        """The head decides, as long as it is there; a part alone has no reason to give up."""
        if not self.lives or ending.how == STOPPED:
            return ending
        while self.fds() and self._over is None and rest(INTERVAL):
            pass
        if self._over is None:
            return Ending(AGAIN, ending.error)
        why = str(self._over.get("error") or ending.error or "its part ended")
        words = why if why.startswith("node ") else f"node {self.head}: {why}"
        return Ending(FAILED if self._over["over"] == FAILED else AGAIN, words)

    def dismiss(self, how: str, error: str | None) -> None:
        self._close()
        self.lives = False

    def _close(self) -> None:
        if self.channel is not None:
            self.channel.close("it is over")
        self.channel = None
