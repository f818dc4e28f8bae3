"""Watching a ready engine: is every process of it there, and does it still answer?

vLLM answers ``/health`` with 200 while it hangs, so a real request decides, and only when nothing else shows that it
works: a busy engine is late and alive. The cost is one page of metrics for each glance, and a request of one token when
nobody was answered for a while.
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

    OnMiss = Callable[[str | None, bool], None]
    """Told in words when a request was not answered and whether that lasts, and None when one was answered again."""

MISSES = 3
"""Requests in a row that were not answered in time, after which an engine hangs."""
COMPUTING_MISSES = 120
"""The same for one that computes what takes minutes: a long prompt on the CPU, a kernel that is compiled."""
COMPUTING_SHARE = 0.5
"""CPUs that must be in use for a prompt to be computed."""
COMPILERS = frozenset({"ninja", "nvcc", "cicc", "ptxas", "cc1plus", "gcc", "g++", "c++", "clang", "clang++"})
"""Titles of processes of an engine that compiles a kernel, which FlashInfer and DeepGEMM do at the first use."""
VITAL = "VLLM::"
"""How the processes are titled that vLLM cannot do without (`set_process_title`: EngineCore, Worker …)."""

# Shares of hang_timeout. Together they leave a tenth of it for the stack dump and the end of what hangs: `longest`.
GLANCE, QUIET = 1 / 12, 1 / 4
IDLE, LOADED, EACH_REQUEST, UNKNOWN = 1 / 10, 3 / 20, 1 / 100, 2 / 3
LAST_LOOK = 1 / 30
FOREIGN = 1 / 5


def glance(hang_timeout: float) -> float:
    """Seconds between two readings of the engine's counters."""
    return hang_timeout * GLANCE


def quiet(hang_timeout: float) -> float:
    """Seconds in which nobody was answered, after which a request is made."""
    return hang_timeout * QUIET


def deadline(hang_timeout: float, load: Load | None) -> float:
    """Seconds for the answer to one request of vLLM: more when others are served; the most when that is not known."""
    share = UNKNOWN if load is None else min(LOADED, IDLE + EACH_REQUEST * load.requests)
    return hang_timeout * share


def foreign_deadline(hang_timeout: float) -> float:
    """The same for an engine that tells nothing of its load: all questions fit into `hang_timeout`."""
    return hang_timeout * FOREIGN


def last_look(hang_timeout: float) -> float:
    """Seconds for the counters after a request that was not answered."""
    return hang_timeout * LAST_LOOK


def longest(hang_timeout: float) -> float:
    """Seconds from the last sign of life of a vLLM that does not compute until it is known to hang, at most.

    When it reads out its counters at once, if at all; without counters it takes longer.
    """
    return quiet(hang_timeout) + MISSES * hang_timeout * LOADED + MISSES * last_look(hang_timeout)


class Hung(Exception):
    """The engine does not answer any more; the message says how that was seen."""


class Lost(Exception):
    """A process is gone that the engine cannot work without; the message says which."""


class Watch:
    """The time of an engine between ready and its end."""

    def __init__(self, spec: Spec, children: Children, engine: Engine, on_miss: OnMiss) -> None:
        self.spec = spec
        self.children = children
        self.engine = engine
        self.on_miss = on_miss
        self.misses = 0
        self._still = 0
        """Of those, the last ones in a row at which nothing was computed either."""
        self._load: Load | None = Load(0, 0)
        """None: the engine does not count its work."""
        self._work = 0.0
        """Of `Load.work`, what is known: somebody else was answered when there is more."""
        self._cache = 0.0
        """`Load.cache` when it was read last."""
        self._sign = self._glanced = time.monotonic()
        """When the engine answered last, at the earliest; when its counters were read."""

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
        watched = self.spec.hang_timeout and self.spec.socket
        while not self.misses:
            left = self._next_look() - time.monotonic() if watched else None
            if left is not None and left <= 0:
                break
            for fd in self.engine.pause(left, tuple(vital)):
                raise Lost(f"the engine lost its process {vital[fd]}")
        for fd in self.engine.pause(0, tuple(vital)):
            raise Lost(f"the engine lost its process {vital[fd]}")

    def _next_look(self) -> float:
        due = self._sign + quiet(self.spec.hang_timeout)
        counts = self.spec.is_vllm and self._load is not None
        return min(due, self._glanced + glance(self.spec.hang_timeout)) if counts else due

    def _look(self) -> None:
        if not self.spec.is_vllm:
            return self._ask(None)  # its metrics, if it has some, tell us nothing: only the deadline counts
        limit, begin, before = self._limit(self._load), time.monotonic(), self._glanced
        used = self._processor_time()
        page = self.engine.ask(REQUEST, begin + limit)
        if not page:
            return self._no_counters(limit, begin, used)
        self._load, self._glanced = read_load(page), begin
        if self._served(self._load):
            return self._answered(before)
        if self.misses or self._load is None or begin >= self._sign + quiet(self.spec.hang_timeout):
            self._ask(self._load)
        return None

    def _no_counters(self, limit: float, begin: float, used: float) -> None:
        """A miss, unless it is too soon for the first: a server that answered a moment ago may be busy with others."""
        self._pause_until(begin + limit)
        if self.misses or time.monotonic() >= self._glanced + quiet(self.spec.hang_timeout):
            self._missed(f"no answer to /metrics within {limit:.3g} s", self._computes(used, begin))

    def _served(self, load: Load | None) -> bool:
        """Whether others were answered since this was asked last, or a step of their prompts was computed."""
        if load is None:
            return False
        served = load.work > self._work or load.cache != self._cache
        self._work, self._cache = max(self._work, load.work), load.cache
        return served

    def _ask(self, load: Load | None) -> None:
        """Make a request of our own, and look at what the engine did meanwhile when it is not answered."""
        limit = self.spec.health.timeout or self._limit(load)
        used, begin = self._processor_time(), time.monotonic()
        self.engine.last_answer = ""
        if self.engine.works(begin + limit):
            self._work = (load.work if load else 0) + 1 + self.engine.last_tokens
            return self._answered(begin)
        self._pause_until(begin + limit)
        computes = self._computes(used, begin)
        if load and self._served(self._counted()):
            return self._answered(begin)
        told = f" ({self.engine.last_answer})" if self.engine.last_answer else ""
        return self._missed(f"no good answer to a request within {limit:.3g} s{told}", computes)

    def _counted(self) -> Load | None:
        return read_load(self.engine.ask(REQUEST, time.monotonic() + last_look(self.spec.hang_timeout)))

    def _processor_time(self) -> float:
        return 0.0 if self.spec.gpus else cpu_seconds(descendants(self.children.engine))

    def _computes(self, used: float, begin: float) -> bool:
        """Whether it compiles, or has had the processor since ``begin``, when it had ``used`` so many seconds of it.

        Requests that it reports do not tell: it reports them after each step, and the first step of a prompt is long.
        """
        busy = (self._processor_time() - used) / max(time.monotonic() - begin, 0.001)
        return (self.spec.is_vllm and not self.spec.gpus and busy >= COMPUTING_SHARE) or self._compiles()

    def _compiles(self) -> bool:
        return any(title(pid) in COMPILERS for pid in descendants(self.children.engine))

    def _limit(self, load: Load | None) -> float:
        seconds = self.spec.hang_timeout
        return deadline(seconds, load) if self.spec.is_vllm else foreign_deadline(seconds)

    def _pause_until(self, moment: float) -> None:
        """An engine that refuses at once gets as much time as one that does not answer."""
        while (left := moment - time.monotonic()) > 0:
            self.engine.pause(left, ())

    def _answered(self, when: float) -> None:
        if self.misses:
            self.on_miss(None, False)
        self.misses = self._still = 0
        self._sign = max(self._sign, when)

    def _missed(self, words: str, computing: bool) -> None:
        self.misses += 1
        self._still = 0 if computing else self._still + 1
        most = COMPUTING_MISSES if computing else min(COMPUTING_MISSES, self.misses - self._still + MISSES)
        if self.misses >= most:
            raise Hung(f"the engine hangs: {words}, {self.misses} times in a row")
        self.on_miss(f"{words} ({self.misses} of {most})", self.misses >= MISSES)
