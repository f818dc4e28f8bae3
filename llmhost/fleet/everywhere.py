"""One command on several nodes, at once or in turns; none is waited for longer than it takes to see that it is gone."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from llmhost.errors import CommandError, LlmhostError, SshError
from llmhost.fleet.members import PROGRAM, Member
from llmhost.fleet.turns import Turns
from llmhost.run import Talk
from llmhost.ssh import NOT_FOUND

OnLine = Callable[[str, str, bool], None]
"""Told the node, a line, and whether it came from stderr; one line at a time."""
T = TypeVar("T")
KEPT = 20
"""Lines of stderr that are kept to tell what went wrong."""


@dataclass(frozen=True)
class Outcome:
    """What became of a command on one node."""

    node: str
    status: int | None = None
    """Its exit status; None where it could not be run to its end."""
    lines: tuple[str, ...] = ()
    """What it said on stdout."""
    failure: LlmhostError | None = None
    """Why it could not be run, or what connection was lost."""

    @property
    def reason(self) -> str:
        """Why it could not be run, in a word or two."""
        return self.failure.reason if isinstance(self.failure, SshError) else "failed" if self.failure else ""

    @property
    def unreachable(self) -> bool:
        """The way there is the trouble, and not what the node said."""
        return isinstance(self.failure, SshError) and self.reason != "failed"


class Everywhere:
    """A command that runs on several nodes."""

    def __init__(self, told: OnLine | None = None, timeout: float | None = None) -> None:
        """Without ``told`` its lines are kept; ``timeout`` is in seconds, after the login."""
        self._told, self._timeout = told, timeout
        self._lock = threading.Lock()
        self._talks: set[Talk] = set()
        self._ended = False

    def run(self, nodes: Iterable[Member], words: tuple[str, ...]) -> dict[str, Outcome]:
        """Run it and wait for all; Ctrl-C ends it on every node."""
        return in_parallel(nodes, lambda member: self._one(member, words), self.end)

    def run_in_turns(
        self, nodes: Collection[Member], words: tuple[str, ...], turns: Turns, busy: Collection[str]
    ) -> dict[str, Outcome]:
        """One turn after another, until it fails on a node; one that does not answer fails when it is of ``busy``.

        Nodes that had no turn are not in what is returned.
        """
        found: dict[str, Outcome] = {}
        for turn in turns:
            done = self.run([member for member in nodes if member.name in turn], words)
            found |= done
            if any(o.status != 0 and (o.status is not None or name in busy) for name, o in done.items()):
                break
        return found

    def end(self) -> None:
        """End it on every node; `run` returns then."""
        with self._lock:
            self._ended = True
            for talk in self._talks:
                talk.end()

    def _one(self, member: Member, words: tuple[str, ...]) -> Outcome:
        lines: list[str] = []
        errors: deque[str] = deque(maxlen=KEPT)
        try:
            member.connect()
            status = self._follow(member, words, lines, errors)
            _require(member, status, "\n".join(errors))
        except (SshError, CommandError) as e:
            return Outcome(member.name, None, tuple(lines), e)
        return Outcome(member.name, status, tuple(lines))

    def _follow(self, member: Member, words: tuple[str, ...], lines: list[str], errors: deque[str]) -> int:
        def out(line: str) -> None:
            self._tell(member, line, False) if self._told else lines.append(line)

        def err(line: str) -> None:
            errors.append(line)
            self._tell(member, line, True)

        with self._talk(member, words) as talk:
            return talk.follow(out, err)

    def _tell(self, member: Member, line: str, error: bool) -> None:
        if self._told:
            with self._lock:
                self._told(member.name, line, error)

    @contextmanager
    def _talk(self, member: Member, words: tuple[str, ...]) -> Iterator[Talk]:
        """One that others may end; raises SshError when that was for want of time."""
        late = threading.Event()

        def too_late() -> None:
            late.set()
            talk.end()

        with self._lock:
            if self._ended:
                raise SshError(f"{member.name}: ended", "", "ended")
            talk = member.talk(*words)
            self._talks.add(talk)
        timer = threading.Timer(self._timeout or 0, too_late)
        if self._timeout is not None:
            timer.start()
        try:
            yield talk
        finally:
            timer.cancel()
            with self._lock:
                self._talks.discard(talk)
        if late.is_set():
            raise SshError(f"{member.name} did not answer within {self._timeout:.0f} s", "", "takes too long")


def _require(member: Member, status: int, said: str) -> None:
    """Raise SshError for an exit status that is not llmhost's."""
    if member.link is None:
        return
    member.link.require_connection(status, said)
    if status == NOT_FOUND:
        raise SshError(
            f"{member.name}: there is no llmhost at {member.root / PROGRAM}",
            f"install it there: llmhost node add {member.link.target} --name {member.name}", "no llmhost",
        )  # fmt: skip


def in_parallel(
    nodes: Iterable[Member], what: Callable[[Member], T], on_abort: Callable[[], None] = lambda: None
) -> dict[str, T]:
    """Do something with every node at the same time; by name, in their order.

    ``on_abort`` must bring them to their ends when we are interrupted.
    """
    each = list(nodes)
    with ThreadPoolExecutor(max(1, len(each)), thread_name_prefix="node") as pool:
        futures = {member.name: pool.submit(what, member) for member in each}
        try:
            return {name: future.result() for name, future in futures.items()}
        except BaseException:
            on_abort()
            raise


def attempt(nodes: Iterable[Member], what: Callable[[Member], T]) -> tuple[dict[str, T], dict[str, LlmhostError]]:
    """`in_parallel` after a login; what failed stands apart, with the reason."""

    def one(member: Member) -> T | LlmhostError:
        try:
            member.connect()
            return what(member)
        except LlmhostError as e:
            return e

    done = in_parallel(nodes, one)
    good = {name: answer for name, answer in done.items() if not isinstance(answer, LlmhostError)}
    return good, {name: answer for name, answer in done.items() if isinstance(answer, LlmhostError)}
