"""From any end of an engine to nothing: drain, TERM, KILL, sweep, and the memory of the GPUs back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time

from llmhost.supervise.guarding import gpu, shm
from llmhost.supervise.guarding.children import Children
from llmhost.supervise.guarding.processes import connections, describe, kill, marked, say
from llmhost.supervise.guarding.spec import Spec

DRAIN_INTERVAL = 0.1
ORPHAN_STOP_SECONDS = 2.0
"""Seconds that the engine gets to stop when supervisord is dead: nobody waits for it any more."""
BROKEN_STOP_SECONDS = 1.0
"""Seconds that an engine gets to stop that has lost a process which it cannot work without."""
GRACE_SECONDS = 5.0
"""Seconds that an engine gets for SIGTERM although `stop_timeout` is (nearly) over: it may be idle since a moment ago.

The gateway keeps a connection for some seconds after its last request (`llmhost.gateway.clusters.UPSTREAM_IDLE`)."""
DRAINED_SECONDS = 10.0
"""Seconds in which the word of who drained an engine before its stop is about this stop."""
SETTLE_SECONDS = 0.3
"""Seconds in which what belongs to the engine ends after it by itself."""
TERM_SECONDS = 2.0
"""Seconds that processes left by the engine get after SIGTERM (they clean up shared memory then)."""
KILL_SECONDS = 10.0
"""Seconds for killed processes to go away (a driver may hold them in the kernel)."""
GPU_SECONDS = 10.0
"""Seconds for the driver to give back the memory of processes that are gone."""


class Stop:
    """One stop; `killed` and `trouble` tell afterwards what it took."""

    def __init__(self, spec: Spec, children: Children) -> None:
        self.spec = spec
        self.children = children
        self.trouble = ""
        """What could not be undone, '' when all is clean."""
        self._known: set[int] = set()
        self._segments: set[shm.Segment] = set()
        """Shared memory that they had mapped."""
        self._killed: dict[int, str] = {}

    @property
    def killed(self) -> list[str]:
        """What had to be ended because it did not end with the engine, as `describe` names it."""
        return list(self._killed.values())

    def stop_timeout(self) -> float:
        """Seconds of it that are left: a command that took the engine out of balancing may have waited already.

        It says so with ``{"left": SECONDS, "at": MONOTONIC TIME}`` just before the stop.
        """
        try:
            with open(drained_file(self.spec), "rb") as file:
                said = json.load(file)
            left, at = float(said["left"]), float(said["at"])
        except (OSError, ValueError, KeyError, TypeError):
            return self.spec.stop_timeout
        self.forget_drain()
        passed = time.monotonic() - at
        fresh = 0 <= passed < DRAINED_SECONDS
        return min(self.spec.stop_timeout, max(0.0, left - passed)) if fresh else self.spec.stop_timeout

    def forget_drain(self) -> None:
        """What was said before an earlier stop is not about the next one."""
        with contextlib.suppress(OSError):
            os.unlink(drained_file(self.spec))

    def drain(self, seconds: float) -> float:
        """Let running requests finish while the engine is whole, and no new ones come in.

        Without its socket file the gateway cannot connect any more, and sends new requests elsewhere or answers 503. On
        SIGTERM vLLM goes on to accept requests that it then aborts, so that comes last. Returns the seconds that are
        left for SIGTERM to work: a few even when all are over.
        """
        self.remove_socket()
        deadline = time.monotonic() + seconds
        while self.children.engine_runs and connections(self.spec.socket) and time.monotonic() < deadline:
            if self.children.orphaned():
                break
            self.children.sleep(DRAIN_INTERVAL)
        return max(deadline - time.monotonic(), min(self.spec.stop_timeout, GRACE_SECONDS))

    def end(self, stop_timeout: float) -> None:
        """End the engine, and whatever it leaves; never raises."""
        self._note(self.children.left())
        self._end_engine(stop_timeout)
        self._sweep_tree()
        self._free()

    def clean(self) -> None:
        """Remove what a guard that was killed could not, and wait for the memory of the GPUs."""
        record = shm.record_file(self.spec.state_file)
        self._segments |= shm.read_record(record)
        self.sweep_marked()
        self._free()
        with contextlib.suppress(OSError):
            os.unlink(record)
        self.remove_socket()
        self._await_gpus()
        if self.killed:
            say(f"{self.spec.program}: had to end {', '.join(self.killed)}")

    def remove_socket(self) -> None:
        """It outlives its server. A TCP port goes with it."""
        if not self.spec.socket.startswith(b"/"):
            return
        try:
            os.unlink(self.spec.socket)
        except FileNotFoundError:
            pass
        except OSError as e:
            say(f"{self.spec.program}: cannot remove {os.fsdecode(self.spec.socket)}: {e.strerror}")

    def sweep_marked(self) -> None:
        """End processes with our mark that are not below us: what a killed guard left."""
        begin = time.monotonic()
        while (left := marked(self.spec.mark)) and time.monotonic() < begin + KILL_SECONDS:
            self._kill(left, begin)
            self.children.sleep(0.05)

    def _end_engine(self, stop_timeout: float) -> None:
        """SIGTERM to the main process alone: it drains its workers, which would drop their requests on a signal."""
        children = self.children
        if not children.engine_runs:
            return
        kill(children.engine, signal.SIGTERM if stop_timeout > 0 else signal.SIGKILL)
        begin = time.monotonic()
        while children.engine_runs:
            limit = min(stop_timeout, ORPHAN_STOP_SECONDS) if children.orphaned() else stop_timeout
            left = begin + limit - time.monotonic()
            if left <= 0:
                if limit:
                    say(f"{self.spec.program}: the engine did not stop within {limit:.3g} s and is killed")
                return
            children.sleep(min(left, 1.0))

    def _sweep_tree(self) -> None:
        """End every process below us."""
        if not self.children.engine_runs and not self.children.await_none(SETTLE_SECONDS):
            self._signal(self.children.left(), signal.SIGTERM)
            self.children.await_none(TERM_SECONDS)
        begin = time.monotonic()
        while (left := self.children.left()) and time.monotonic() < begin + KILL_SECONDS:
            self._kill(left, begin)
            self.children.await_none(0.2)
        if left := self.children.left():
            self.trouble = f"still there {KILL_SECONDS:g} s after SIGKILL: {', '.join(map(describe, left))}"
            say(f"{self.spec.program}: {self.trouble}")

    def _kill(self, pids: list[int], begin: float) -> None:
        """Resource trackers last: they remove the shared memory of the others."""
        self._note(pids)
        every = time.monotonic() > begin + shm.TRACKER_SECONDS
        self._signal(shm.killable(pids, all_of_them=every), signal.SIGKILL)

    def _note(self, pids: list[int]) -> None:
        self._segments |= shm.segments(set(pids) - self._known)
        self._known.update(pids)

    def _free(self) -> None:
        """Shared memory that outlived its resource tracker."""
        if names := shm.remove(self._segments):
            say(f"{self.spec.program}: removed shared memory that was left: {', '.join(names)}")
        self._segments.clear()

    def _signal(self, pids: list[int], number: int) -> None:
        self._known.update(pids)
        for pid in pids:
            if pid not in self._killed:
                self._killed[pid] = describe(pid)
            kill(pid, number)

    def _await_gpus(self) -> None:
        """The driver may free memory later than the process is gone; the next engine would find too little."""
        if not self.spec.gpus or not self._known:
            return
        command = gpu.question(self.spec.gpu_probe, self.spec.gpus)
        deadline = time.monotonic() + GPU_SECONDS
        while True:
            answer = self.children.output_of(command, max(1.0, deadline - time.monotonic()))
            if answer is None:
                say(f"{self.spec.program}: cannot ask {self.spec.gpu_probe} whether the GPU memory is back")
                return
            held = {pid: used for pid, used in gpu.holders(answer).items() if pid in self._known}
            if not held:
                return
            if time.monotonic() > deadline:
                pids = ", ".join(f"{used} MiB by {pid}" for pid, used in held.items())
                self.trouble = f"GPU memory is not back after {GPU_SECONDS:g} s: {pids}"
                say(f"{self.spec.program}: {self.trouble}")
                return
            self.children.sleep(0.2)


def drained_file(spec: Spec) -> bytes:
    """Beside the state file."""
    return spec.state_file + b".drained"
