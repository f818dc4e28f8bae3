"""The lives of one engine, each from the start lock to the last process that it leaves."""

from __future__ import annotations

import contextlib
import os
import time

from llmhost.supervise.guarding import causes, port, processes, shm
from llmhost.supervise.guarding.alerts import Alerts
from llmhost.supervise.guarding.children import Children
from llmhost.supervise.guarding.dump import dump_stacks
from llmhost.supervise.guarding.ending import AGAIN, BROKEN, CRASHED, FAILED, HUNG, LEFT, STOPPED, Ending
from llmhost.supervise.guarding.group import Waiting, group_of
from llmhost.supervise.guarding.launch import launch
from llmhost.supervise.guarding.locks import StartLocks
from llmhost.supervise.guarding.log import LogFile
from llmhost.supervise.guarding.probe import Engine
from llmhost.supervise.guarding.processes import descendants, say
from llmhost.supervise.guarding.restarts import Restarts
from llmhost.supervise.guarding.spec import BadSpec, Spec, read_spec
from llmhost.supervise.guarding.state import StateFile, service_state
from llmhost.supervise.guarding.stop import BROKEN_STOP_SECONDS, Stop
from llmhost.supervise.guarding.watch import Hung, Lost, Watch
from llmhost.supervise.guarding.words import last_words, outcome, signal_name

OK, DOOMED = 0, 78  # EX_CONFIG of sysexits.h

NEEDS_INTERVAL = 0.2
FAILED_SECONDS = 5.0
"""Seconds in which a service that is needed and has failed may be started anew, by the command that started us."""
TELL_SECONDS = 3.0
"""Seconds of a start after which it is told what is still waited for."""
SILENT_SECONDS = 1.0
"""Seconds that a program must run which cannot be asked whether it is ready."""
PORT_SECONDS = 3.0
"""Seconds in which whoever has the engine's port may leave it."""
PROBE_INTERVAL = 0.1
PROBE_TIMEOUT = 120.0
"""Seconds for one request; the first one of a cold engine compiles kernels."""
RETRY_SECONDS = 1.0
"""Seconds until a state is written again that the disk did not take."""
DYING_SECONDS = 0.3
"""Seconds for the main process to go when one that it cannot do without has gone."""


class Guard:
    """`run` returns the exit status of the guard."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.group = group_of(spec.group)
        self.children = Children(self.group)
        self.file = StateFile(spec.state_file, spec.program)
        self.log = LogFile(spec.program, spec.log_file)
        self.alerts = Alerts(spec, self.children)
        self.restarts = Restarts(spec.max_restarts)
        self.engine = Engine(spec.socket, spec.ready.questions, self._pause)
        self.state = "stopped"
        self.since_ready = 0.0
        """Monotonic time at which this life became ready, 0 while it is not."""
        self.was_ready = False
        """In any life."""
        self.crash: Ending | None = None
        """What the next life has to wait for."""
        self.locks = StartLocks(spec)

    def run(self) -> int:
        """Life after life, until a wanted stop or an end that no restart mends."""
        self.children.adopt()
        self._inherit()
        while True:
            try:
                self._live()
            except Ending as ending:
                status = self._end(ending)
                if status is not None:
                    return status

    def _live(self) -> None:
        """One life; always ends by an Ending."""
        self._back_off()
        self._await_needs()
        self._gather()
        self._await_port()
        self._start_engine()
        self._wait_until_ready()
        self.locks.release()
        self.since_ready, self.was_ready = time.monotonic(), True
        self._enter("ready")
        self.alerts.recovered()
        self._record_memory()
        self._watch()

    def _pause(self, seconds: float | None, fds: tuple[int, ...] = ()) -> list[int]:
        """The sleep of a guard that is not ending: raises Ending when a stop is wanted or the engine ended."""
        children = self.children
        found: list[int] = []
        if not children.stop_wanted and children.engine_status is None:
            retry = None if self.file.kept else RETRY_SECONDS
            found = children.sleep(min((s for s in (seconds, retry) if s is not None), default=None), fds)
            self.file.again()
        if children.stop_wanted:
            raise Ending(STOPPED)
        if children.engine_status is not None:
            raise self._engine_ended(children.engine_status)
        self._require_whole()
        return found

    def _require_whole(self) -> None:
        try:
            self.group.require_whole()
        except Ending as ending:
            if self.since_ready and ending.how != LEFT:
                self._not_ready(ending.error or "another part of it ended")
            raise

    # From nothing to ready.

    def _inherit(self) -> None:
        """A guard that was killed counts as a failure of its engine, and what it left is ended."""
        former = self.file.former()
        if former is None:
            return
        self.file.restarts, self.file.exit = former.restarts, former.exit
        self.restarts.failures = former.failures
        self.was_ready = True  # nobody knows, so the failure is not held against it
        if former.state != "backoff":
            self.restarts.failed(former.ready_seconds)
        self.crash = Ending(CRASHED, former.error or "its guard was killed")
        if former.ready_seconds:
            self.alerts.trouble("unhealthy", "backoff", self.crash.error)

    def _back_off(self) -> None:
        """Leftovers go first: they may hold the GPU for as long as we wait."""
        leftovers = Stop(self.spec, self.children)
        leftovers.forget_drain()
        leftovers.clean()
        if self.crash is None:
            return
        self._enter("backoff", self.crash.error, time.time() + self.restarts.delay)
        self._pause_for(self.restarts.delay)
        self.file.restarts += 1
        self.crash = None

    def _await_needs(self) -> None:
        """Says who is waited for; one that has failed for good is waited for in vain."""
        told, hoped = "", time.monotonic()
        while waiting := {name: state for name, state in self._needed() if state != "ready"}:
            failed = [name for name, state in waiting.items() if state == "failed"]
            hoped = hoped if failed else time.monotonic()
            if time.monotonic() > hoped + FAILED_SECONDS:
                raise Ending(FAILED, f"it needs {' and '.join(failed)}, which failed")
            words = " and ".join(f"{name}, which is {state}" for name, state in waiting.items())
            if words != told:
                self._enter("queued", f"waits for {words}")
            told = words
            self._pause(NEEDS_INTERVAL)

    def _needed(self) -> list[tuple[str, str]]:
        folder = os.path.dirname(self.spec.state_file)
        return [(name, service_state(folder, name)) for name in self.spec.needs]

    def _gather(self) -> None:
        """Every part of the engine may start, and has the start locks of its GPUs."""
        self._enter("queued")
        self.group.gather(Waiting(self._pause, lambda words: self._enter("queued", words)), self.locks)
        self.file.epoch = self.group.epoch
        self._pause(0)

    def _await_port(self) -> None:
        """Else a stranger there would be taken for our engine, and sent what clients ask."""
        deadline = time.monotonic() + PORT_SECONDS
        while not port.is_free(self.spec.socket):
            if time.monotonic() > deadline:
                raise Ending(BROKEN, port.taken(self.spec.socket))
            self._pause(PROBE_INTERVAL)

    def _start_engine(self) -> None:
        self.log.start_life()
        self.engine.last_answer, self.engine.reached = "", False
        self.engine.questions = self.spec.ready.questions
        try:
            self.children.engine = launch(self.spec)
        except OSError as e:
            raise Ending(FAILED, f"cannot run {os.fsdecode(self.spec.command[0])}: {e.strerror}") from e
        self._enter("loading")

    def _record_memory(self) -> None:
        """Shared memory outlives even a machine-wide massacre; the next guard, or doctor, knows of it then."""
        found = shm.segments((self.children.engine, *descendants(self.children.engine)))
        with contextlib.suppress(OSError):
            shm.write_record(shm.record_file(self.spec.state_file), found)

    def _wait_until_ready(self) -> None:
        if not self.spec.socket:
            self._pause_for(SILENT_SECONDS)
        while not self.group.is_ready():
            self._pause(PROBE_INTERVAL)
        begin, told = time.monotonic(), ""
        deadline = begin + self.spec.start_timeout
        timeout = self.spec.ready.timeout or PROBE_TIMEOUT
        while not self.engine.works(min(deadline, time.monotonic() + timeout)):
            left = deadline - time.monotonic()
            if left <= 0:
                raise Ending(BROKEN, self._not_ready_in_time(), explained=False)
            if not self.spec.is_vllm and time.monotonic() > begin + TELL_SECONDS and told != (now := self._waited()):
                told = now
                self._enter("loading", told)
            self._pause(min(PROBE_INTERVAL, left))
        self.engine.questions = self.spec.health.questions

    def _waited(self) -> str:
        """What a start still waits for."""
        where, asked = os.fsdecode(self.spec.socket), self.spec.ready.words or "a connection"
        if self.engine.last_answer:
            return f"its last answer was {self.engine.last_answer}"
        return f"no answer to {asked} on {where}" if self.engine.reached else f"nobody listens on {where}, for {asked}"

    def _not_ready_in_time(self) -> str:
        """With what it said last; of vLLM, which says much while it loads, only what it answered."""
        how = f"the engine was not ready within {self.spec.start_timeout:g} s"
        if self.engine.last_answer:
            return f"{how}; {self._waited()}"
        if self.spec.is_vllm:
            return how
        said = last_words(self.log.since_start(f"{how} (guard {os.getpid()})"))
        return f"{how}: {self._waited()}; its last words: {said or 'none'}"

    # While it is ready.

    def _watch(self) -> None:
        try:
            Watch(self.spec, self.children, self.engine, self._on_miss).run()
        except Lost as e:
            self._pause(0)  # a wanted stop and the end of the engine itself come first
            self._not_ready(str(e))
            self._let_it_die()
            raise Ending(BROKEN, self.log.explain(str(e))) from e
        except Hung as e:
            raise Ending(HUNG, str(e)) from e

    def _let_it_die(self) -> None:
        """A main process that the kernel kills for its memory goes after its children: then that is what happened."""
        self._pause_for(DYING_SECONDS)

    def _pause_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._pause(left)

    def _not_ready(self, error: str) -> None:
        """At once: why it ended, and what it left, takes seconds to find out, and clients get 503 already."""
        self._enter("unhealthy", error)

    def _on_miss(self, error: str | None, lasting: bool) -> None:
        """The first request that is not answered makes the engine unhealthy, the next one that is makes it ready."""
        say(f"{self.spec.program}: {error or 'the engine answers again'}")
        self._enter("unhealthy" if error else "ready", error)
        if lasting:
            self.alerts.trouble("unhealthy", "unhealthy", error)
        elif not error:
            self.alerts.recovered()

    def _engine_ended(self, status: int) -> Ending:
        """What an engine says last matters only before it is ready: afterwards it worked, and may do so again."""
        how = f"the engine {outcome(status)}"
        if self.since_ready:
            self._not_ready(how)
            return Ending(CRASHED, self.log.explain(how) if status == 0 or os.WIFEXITED(status) else how)
        how = f"{how} before it was ready"
        cause = causes.classify(status, self.log.since_start(f"{how} (guard {os.getpid()})"))
        if cause.doomed:
            return Ending(FAILED, cause.words or how)
        return Ending(CRASHED, cause.words or how, explained=cause.known)

    # From any end to nothing, or to the next life.

    def _end(self, ending: Ending) -> int | None:
        """Clean up; the exit status of the guard, None when there is another life."""
        ready_seconds = time.monotonic() - self.since_ready if self.since_ready else 0.0
        self.since_ready = 0.0
        if ending.error:
            say(f"{self.spec.program}: {ending.error}")
        if self.children.stop_wanted:
            ending = Ending(STOPPED)
        self.group.announce(ending, self._rest_unless_orphaned, self.spec.stop_timeout)
        self._stop_engine(ending)
        self.locks.release()
        told, ending = ending.error, self.group.settle(ending, self._rest)
        if ending.error and ending.error != told:
            say(f"{self.spec.program}: {ending.error}")
        if self.children.stop_wanted:
            return self._stopped()
        self.file.exit = self._exit_record(ending)
        self.children.engine, self.children.engine_status = 0, None
        return self._decide(ending, ready_seconds)

    def _decide(self, ending: Ending, ready_seconds: float) -> int | None:
        """What follows from an end that nobody wished."""
        if ending.how == FAILED:
            return self._failed(ending.error)
        if ending.how in (AGAIN, LEFT):
            self.file.restarts += ending.how == AGAIN
            self.group.dismiss(AGAIN, ending.error)
            return None
        self.restarts.failed(ready_seconds)
        if self.restarts.open(ending.explained or self.was_ready):
            return self._failed(f"{ending.error}; given up after {self.restarts.failures} failures in a row")
        if self.was_ready:  # again after each try that failed: it may have been too soon to tell of the first
            self.alerts.trouble("unhealthy", "backoff", ending.error)
        self.crash = ending
        self.group.dismiss(AGAIN, ending.error)
        return None

    def _rest(self, seconds: float) -> bool:
        self.children.sleep(seconds)
        return not self.children.stop_wanted

    def _rest_unless_orphaned(self, seconds: float) -> bool:
        self.children.sleep(seconds)
        return not self.children.orphaned()

    def _stop_engine(self, ending: Ending) -> None:
        if ending.how == HUNG:
            dump_stacks(self.children, self.spec.program, os.fsdecode(self.spec.command[0]))
        stop = Stop(self.spec, self.children)
        short = min(self.spec.stop_timeout, BROKEN_STOP_SECONDS)
        seconds = {HUNG: 0.0, BROKEN: short, AGAIN: short}.get(ending.how)
        if not self.group.counts:  # whoever asked it something is rank 0, which has ended
            seconds = short
        elif ending.how in (STOPPED, LEFT) and self.state in ("ready", "unhealthy"):
            seconds = stop.drain(stop.stop_timeout()) if self.spec.kind != "none" else stop.stop_timeout()
        stop.end(self.spec.stop_timeout if seconds is None else seconds)
        if not self.file.superseded():
            stop.clean()
        self.file.killed, self.file.trouble = stop.killed, stop.trouble or None

    def _stopped(self) -> int:
        error = "supervisord ended without stopping it" if self.children.orphaned() else None
        self.group.dismiss(STOPPED, error)
        if not self.file.superseded():
            self.file.exit = None
            self._enter("stopped", error)
        return OK

    def _failed(self, error: str | None) -> int:
        self.group.dismiss(FAILED, error)
        if not self.file.superseded():
            self._enter("failed", error)
            self.alerts.trouble("failed", "failed", error)
        return DOOMED

    def _exit_record(self, ending: Ending) -> dict[str, object] | None:
        """How the engine ended by itself; of an earlier life while this one has nothing to tell."""
        status = self.children.engine_status
        if status is None or ending.how in (BROKEN, HUNG, AGAIN, LEFT):
            return self.file.exit
        code = os.waitstatus_to_exitcode(status)
        name = signal_name(-code) if code < 0 else None
        return {"code": code if code >= 0 else None, "signal": name, "time": time.time(), "error": ending.error}

    def _enter(self, state: str, error: str | None = None, retry_at: float | None = None) -> None:
        """A full disk must not end a service."""
        self.state = state
        self.group.state(state, error)
        self.file.failures = self.restarts.failures
        try:
            self.file.write(state, self.children.engine if self.children.engine_runs else None, error, retry_at)
        except OSError as e:
            say(f"{self.spec.program}: cannot write {os.fsdecode(self.spec.state_file)}: {e.strerror}")


def main(argv: list[str]) -> int:
    """The exit status of a guard that was given ``SPEC.json -- COMMAND…``."""
    try:
        spec = read_spec(argv)
    except BadSpec as e:
        say(str(e))
        return DOOMED
    processes.log_file = spec.log_file
    return Guard(spec).run()
