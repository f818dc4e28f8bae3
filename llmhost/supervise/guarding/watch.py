"""Watching a ready engine: is every process of it there, and does it still answer?

vLLM answers ``/health`` with 200 while it hangs, so a real request decides, and only when nothing else shows that it
works: a busy engine is late and alive. The cost is one page of metrics each interval, and a request of one token when
nobody else asked for anything.
"""

from __future__ import annotations

import contextlib
import os
import time

from llmhost.supervise.guarding.children import Children
from llmhost.supervise.guarding.metrics import REQUEST, Load, read_load
from llmhost.supervise.guarding.probe import Engine
from llmhost.supervise.guarding.processes import cpu_seconds, descendants, title
from llmhost.supervise.guarding.spec import Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MISSES = 3
"""Requests in a row that were not answered in time, after which an engine hangs."""
COMPUTING_MISSES = 30
"""The same for an engine on the CPU that reports requests and computes: a long prompt can take minutes there."""
COMPUTING_SHARE = 0.5
"""CPUs that must be in use for that."""
LARGEST_FACTOR = 4.0
"""The deadline grows up to this with the load."""
VITAL = "VLLM::"
"""How the processes are titled that vLLM cannot do without (`set_process_title`: EngineCore, Worker …)."""


def interval(hang_timeout: float) -> float:
    """Seconds between two looks, so that an idle engine that hangs is restarted `hang_timeout` after its last sign."""
    return hang_timeout / 4


def deadline(hang_timeout: float, load: Load | None) -> float:
    """Seconds for the answer to one request of vLLM: more when others are served; the most when that is not known."""
    factor = LARGEST_FACTOR if load is None else min(LARGEST_FACTOR, 1 + load.requests)
    return hang_timeout / 6 * factor


def foreign_deadline(hang_timeout: float) -> float:
    """The same for an engine that tells nothing of its load: all questions fit into `hang_timeout`."""
    return (hang_timeout - interval(hang_timeout)) / MISSES


class Hung(Exception):
    """The engine does not answer any more; the message says how that was seen."""


class Lost(Exception):
    """A process is gone that the engine cannot work without; the message says which."""


class Watch:
    """The time of an engine between ready and its end."""

    def __init__(self, spec: Spec, children: Children, engine: Engine, on_miss: Callable[[str | None], None]) -> None:
        self.spec = spec
        self.children = children
        self.engine = engine
        self.on_miss = on_miss
        """Told in words when a request was not answered, and None when one was again."""
        self.misses = 0
        self._last: Load | None = Load(0, 0)
        """None: the engine does not count its work."""
        self._own_work = 0
        """Of `Load.work` since then: for our own request."""

    def run(self) -> None:
        """Raises Hung or Lost, or what the engine's `pause` raises: it ended, or a stop is wanted."""
        vital = self._vital()
        try:
            while True:
                self._wait(vital)
                self._look()
        finally:
            for fd in vital:
                os.close(fd)

    def _vital(self) -> dict[int, str]:
        """Descriptors that can be read when a process ends which the engine cannot do without."""
        found = {}
        for pid in descendants(self.children.engine):
            if (name := title(pid)).startswith(VITAL):
                with contextlib.suppress(OSError):
                    found[os.pidfd_open(pid)] = f"{name} ({pid})"
        return found

    def _wait(self, vital: dict[int, str]) -> None:
        """Until it is time to look; at once when the last look was a miss."""
        end = time.monotonic() + interval(self.spec.hang_timeout)
        watched = self.spec.hang_timeout and self.spec.socket
        while not self.misses:
            left = end - time.monotonic() if watched else None
            if left is not None and left <= 0:
                break
            for fd in self.engine.pause(left, tuple(vital)):
                raise Lost(f"the engine lost its process {vital[fd]}")
        for fd in self.engine.pause(0, tuple(vital)):
            raise Lost(f"the engine lost its process {vital[fd]}")

    def _look(self) -> None:
        if not self.spec.is_vllm:
            return self._ask(None)  # its metrics, if it has some, tell us nothing: only the deadline counts
        last, limit = self._last, deadline(self.spec.hang_timeout, self._last)
        begin = time.monotonic()
        page = self.engine.ask(REQUEST, begin + limit)
        if not page:
            self._pause_until(begin + limit)
            return self._missed(f"no answer to /metrics within {limit:.3g} s", MISSES)
        before = self._last = read_load(page)
        if before and last and before.work > last.work + self._own_work:
            self._own_work = 0
            return self._answered()  # others were served meanwhile
        return self._ask(before)

    def _ask(self, before: Load | None) -> None:
        """Make a request of our own, and look at what the engine did meanwhile when it is not answered."""
        limit = self.spec.health.timeout or self._limit(before)
        members = descendants(self.children.engine)
        computed, begin = cpu_seconds(members), time.monotonic()
        self._own_work, self.engine.last_answer = 0, ""
        if self.engine.works(begin + limit):
            self._own_work = 1 + self.engine.last_tokens
            return self._answered()
        self._pause_until(begin + limit)
        busy = (cpu_seconds(members) - computed) / (time.monotonic() - begin)
        after = read_load(self.engine.ask(REQUEST, time.monotonic() + limit)) if before else None
        if before and after and after.work > before.work:
            self._last = after
            return self._answered()
        others = after is not None and after.requests > 1
        computing = others and not self.spec.gpus and busy >= COMPUTING_SHARE
        told = f" ({self.engine.last_answer})" if self.engine.last_answer else ""
        words = f"no good answer to a request within {limit:.3g} s{told}"
        return self._missed(words, COMPUTING_MISSES if computing else MISSES)

    def _limit(self, load: Load | None) -> float:
        seconds = self.spec.hang_timeout
        return deadline(seconds, load) if self.spec.is_vllm else foreign_deadline(seconds)

    def _pause_until(self, moment: float) -> None:
        """An engine that refuses at once gets as much time as one that does not answer."""
        while (left := moment - time.monotonic()) > 0:
            self.engine.pause(left, ())

    def _answered(self) -> None:
        if self.misses:
            self.on_miss(None)
        self.misses = 0

    def _missed(self, words: str, most: int) -> None:
        self.misses += 1
        if self.misses >= most:
            raise Hung(f"the engine hangs: {words}, {self.misses} times in a row")
        self.on_miss(f"{words} ({self.misses} of {most})")
