"""One life of one engine, from the start lock to the last process that it leaves."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import time

from llmhost.supervise.guarding.kernel import PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, prctl
from llmhost.supervise.guarding.probe import REQUESTS, http_body, http_request, http_status
from llmhost.supervise.guarding.processes import descendants, kill, marked, say
from llmhost.supervise.guarding.spec import BadSpec, Spec, read_spec
from llmhost.supervise.guarding.state import StateFile
from llmhost.supervise.guarding.tether import tether
from llmhost.supervise.guarding.words import last_words, outcome, plain, signal_name

OK, TRANSIENT, DOOMED = 0, 75, 78  # EX_TEMPFAIL and EX_CONFIG of sysexits.h

LOCK_INTERVAL = 0.2
PROBE_INTERVAL = 0.1
PROBE_TIMEOUT = 120.0
"""Seconds for one request; the first one of a cold engine compiles kernels."""
ORPHAN_STOP_SECONDS = 2.0
"""Seconds that the engine gets to stop when supervisord is dead: nobody waits for it any more."""
TERM_SECONDS = 2.0
"""Seconds that processes left by the engine get after SIGTERM (they clean up shared memory then)."""
KILL_SECONDS = 10.0
"""Seconds for killed processes to go away (a driver may hold them in the kernel)."""
LOG_SECONDS = 3.0
"""Seconds for the last output of the engine to reach the log file through supervisord."""
SWEEP_SECONDS = TERM_SECONDS + KILL_SECONDS + LOG_SECONDS + 5
"""Seconds that a guard may need beyond ``stop_timeout``."""
TAIL_BYTES = 65536


class Ending(Exception):
    """Why the guard ends, as the state that it leaves and the exit status that supervisord sees."""

    def __init__(self, state: str, status: int, error: str | None = None) -> None:
        super().__init__(error)
        self.state, self.status, self.error = state, status, error


def stopped() -> Ending:
    """Somebody wants the engine to stop."""
    return Ending("stopped", OK)


def failed(error: str) -> Ending:
    """Trying again is pointless."""
    return Ending("failed", DOOMED, plain(error))


class Guard:
    """`run` returns the exit status of the guard."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.file = StateFile(spec.state_file, spec.program)
        self.state = "stopped"
        self.supervisor = os.getppid()
        self.engine = 0
        self.engine_status: int | None = None
        self.stop_wanted = False
        self.left_behind = 0
        self.locks: list[int] = []
        self.last_answer = ""
        self.wakeup, self._wakeup_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> int:
        """The whole life."""
        self._become_guard()
        try:
            self._take_locks()
            self._clear_leftovers()
            self._start_engine()
            self._wait_until_ready()
            self._release_locks()
            self._enter("ready")
            while True:
                self._pause(None)
        except Ending as ending:
            return self._end(ending)

    def _become_guard(self) -> None:
        signal.set_wakeup_fd(self._wakeup_in, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only to wake us up
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if self._orphaned():  # supervisord died before the kernel knew what to tell us
            self.stop_wanted = True

    def _on_stop(self, *_: object) -> None:
        self.stop_wanted = True

    def _orphaned(self) -> bool:
        return os.getppid() != self.supervisor

    # Waiting: every sleep of a guard is one of these two.

    def _sleep(self, seconds: float | None, fd: int = -1) -> None:
        """Until a signal comes, `seconds` are over, or there is something to read from `fd`; then reap who ended."""
        poll = select.poll()
        poll.register(self.wakeup, select.POLLIN)
        if fd >= 0:
            poll.register(fd, select.POLLIN)
        poll.poll(None if seconds is None else max(0, int(seconds * 1000) + 1))
        try:
            while os.read(self.wakeup, 512):
                pass
        except BlockingIOError:
            pass
        self._reap()

    def _pause(self, seconds: float | None, fd: int = -1) -> None:
        """The sleep of a guard that is not ending: raises Ending when a stop is wanted or the engine ended."""
        if not self.stop_wanted and self.engine_status is None:
            self._sleep(seconds, fd)
        if self.stop_wanted:
            raise stopped()
        if self.engine_status is not None:
            raise self._engine_ended(self.engine_status)

    def _reap(self) -> bool:
        """Collect ended children; False when none is left, which for a subreaper means no descendant either."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.engine:
                self.engine_status = status

    def _engine_ended(self, status: int) -> Ending:
        """The class of a failure: before the engine was ready it is doomed, afterwards it is transient."""
        if self.state == "ready":
            return Ending("backoff", TRANSIENT, f"the engine {outcome(status)}")
        what = f"the engine {outcome(status)} before it was ready"
        return failed(self._words_before(f"{what} (guard {os.getpid()})") or what)

    # From nothing to ready.

    def _take_locks(self) -> None:
        self._enter("queued")
        for path in self.spec.locks:
            try:
                self.locks.append(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
                while not _try_lock(self.locks[-1]):
                    self._pause(LOCK_INTERVAL)
            except OSError as e:
                raise failed(f"cannot take the start lock {os.fsdecode(path)}: {e.strerror}") from e
        self._pause(0)

    def _release_locks(self) -> None:
        while self.locks:
            os.close(self.locks.pop())

    def _clear_leftovers(self) -> None:
        """A guard that was killed could not sweep; a socket file outlives its server."""
        self._sweep_marked()
        self._remove_socket()
        self.left_behind = 0

    def _remove_socket(self) -> None:
        try:
            os.unlink(self.spec.socket)
        except FileNotFoundError:
            pass
        except OSError as e:
            say(f"{self.spec.program}: cannot remove {os.fsdecode(self.spec.socket)}: {e.strerror}")

    def _start_engine(self) -> None:
        say(self._start_line())
        report, report_in = os.pipe2(os.O_CLOEXEC)
        guard = os.getpid()
        self.engine = os.fork()
        if self.engine == 0:
            self._become_engine(guard, report_in)
        os.close(report_in)
        trouble = os.read(report, 16)  # empty when exec worked and closed the other end
        os.close(report)
        if trouble:
            raise failed(f"cannot run {os.fsdecode(self.spec.command[0])}: {os.strerror(int(trouble))}")
        self._enter("loading")

    def _become_engine(self, guard: int, report: int) -> None:
        """In the child: a session of its own, dead with the guard, default signals, then exec. Never returns."""
        try:
            os.setsid()
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == guard:
                for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, which would be inherited
                    signal.signal(number, signal.SIG_DFL)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                # Else setproctitle, which vLLM uses, overwrites /proc/PID/environ and with it our mark.
                env = {**os.environb, b"SPT_NOENV": b"1", **self.spec.env}
                os.execvpe(self.spec.command[0], self.spec.command, env)
        except OSError as e:
            os.write(report, str(e.errno).encode())
        finally:
            os._exit(127)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.spec.start_timeout
        while not self._works(deadline):
            left = deadline - time.monotonic()
            if left <= 0:
                told = f"; its last answer was {self.last_answer}" if self.last_answer else ""
                raise failed(f"the engine was not ready within {self.spec.start_timeout:g} s{told}")
            self._pause(min(PROBE_INTERVAL, left))

    def _works(self, deadline: float) -> bool:
        for path, fields in REQUESTS[self.spec.kind]:
            limit = min(deadline, time.monotonic() + PROBE_TIMEOUT)
            answer = self._ask(http_request(path, self.spec.model, fields), limit)
            status = http_status(answer)
            if status:
                self.last_answer = f"{status} to {path}: {http_body(answer)}"
            if status != 400:
                return status == 200
        return False

    def _ask(self, request: bytes, deadline: float) -> bytes:
        """The answer to a request over the engine's socket, b'' while nobody answers."""
        answer = b""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.setblocking(False)
            try:
                connection.connect(self.spec.socket)
                connection.send(request)  # a few hundred bytes fit into an empty socket buffer
                while len(answer) < TAIL_BYTES and time.monotonic() < deadline:
                    self._pause(deadline - time.monotonic(), connection.fileno())
                    part = _receive(connection)
                    if part == b"":
                        break
                    answer += part or b""
            except OSError:
                return b""
        return answer

    # From any end to nothing.

    def _end(self, ending: Ending) -> int:
        if ending.error:
            say(f"{self.spec.program}: {ending.error}")
        self._stop_engine()
        self._sweep_tree()
        if self.file.superseded():
            return ending.status
        self._sweep_marked()
        self._remove_socket()
        if self.left_behind:
            say(f"{self.spec.program}: ended {self.left_behind} processes that the engine left behind")
        if self.stop_wanted:
            ending = stopped()
            ending.error = "supervisord ended without stopping it" if self._orphaned() else None
        self.file.exit = self._exit_record(ending)
        self._enter(ending.state, ending.error)
        return ending.status

    def _stop_engine(self) -> None:
        """SIGTERM to the main process alone: it drains its workers, which would drop their requests on a signal."""
        if self.engine == 0 or self.engine_status is not None:
            return
        kill(self.engine, signal.SIGTERM)
        begin = time.monotonic()
        while self._reap() and self.engine_status is None:
            limit = min(self.spec.stop_timeout, ORPHAN_STOP_SECONDS) if self._orphaned() else self.spec.stop_timeout
            left = begin + limit - time.monotonic()
            if left <= 0:
                say(f"{self.spec.program}: the engine did not stop within {limit:g} s and is killed")
                return
            self._sleep(left)

    def _sweep_tree(self) -> None:
        """End every process below us; as a subreaper we are the parent of all that the engine left."""
        left = [pid for pid in descendants(os.getpid()) if pid != self.engine]
        self.left_behind += len(left)
        if self.engine_status is not None:
            for pid in left:
                kill(pid, signal.SIGTERM)
            self._await_tree(TERM_SECONDS)
        deadline = time.monotonic() + KILL_SECONDS
        while self._reap() and time.monotonic() < deadline:
            for pid in descendants(os.getpid()):
                kill(pid, signal.SIGKILL)
            self._await_tree(0.2)
        if self._reap():
            stuck = ", ".join(map(str, descendants(os.getpid())))
            say(f"{self.spec.program}: still there {KILL_SECONDS:g} s after SIGKILL: {stuck}")

    def _await_tree(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._reap() and time.monotonic() < deadline:
            self._sleep(deadline - time.monotonic())

    def _sweep_marked(self) -> None:
        """End processes with our mark that are not below us: what a killed guard left."""
        deadline = time.monotonic() + KILL_SECONDS
        while (left := marked(self.spec.mark)) and time.monotonic() < deadline:
            self.left_behind = max(self.left_behind, len(left))
            for pid in left:
                kill(pid, signal.SIGKILL)
            self._sleep(0.05)

    def _exit_record(self, ending: Ending) -> dict[str, object] | None:
        """How the engine ended by itself; of an earlier life while this one has nothing to tell."""
        if ending.state == "stopped":
            return None
        if self.engine_status is None:
            return self.file.exit
        code = os.waitstatus_to_exitcode(self.engine_status)
        name = signal_name(-code) if code < 0 else None
        return {"code": code if code >= 0 else None, "signal": name, "time": time.time(), "error": ending.error}

    # What the log says, what we say.

    def _start_line(self) -> str:
        return f"{self.spec.program}: starting the engine (guard {os.getpid()})"

    def _words_before(self, line: str) -> str:
        """Write `line` to the log, wait until it is there behind the engine's output, and pick the last words."""
        line = f"{self.spec.program}: {line}"
        say(line)
        deadline = time.monotonic() + LOG_SECONDS
        tail, found = self._log_tail(), ""
        while self.spec.log_file:
            before, found, _ = tail.rpartition(f"[guard] {line}")
            if found or time.monotonic() > deadline:
                break
            self._sleep(0.05)
            tail = self._log_tail()
        said = before if found else tail
        return last_words(said.rpartition(f"[guard] {self._start_line()}")[2])

    def _log_tail(self) -> str:
        try:
            with open(self.spec.log_file or os.devnull, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
                return file.read(TAIL_BYTES).decode("utf-8", "replace")
        except OSError:
            return ""

    def _enter(self, state: str, error: str | None = None) -> None:
        """A full disk must not end a service."""
        self.state = state
        try:
            self.file.write(state, self.engine if self.engine and self.engine_status is None else None, error)
        except OSError as e:
            say(f"{self.spec.program}: cannot write {os.fsdecode(self.spec.state_file)}: {e.strerror}")


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _receive(connection: socket.socket) -> bytes | None:
    """What has arrived: None when nothing, b'' when the other side closed."""
    try:
        return connection.recv(TAIL_BYTES)
    except BlockingIOError:
        return None


def main(argv: list[str]) -> int:
    """The exit status of a guard that was given ``SPEC.json -- COMMAND…``, or ``--exec -- COMMAND…`` for a tether."""
    if argv[:2] == ["--exec", "--"]:
        return tether(argv[2:])
    try:
        spec = read_spec(argv)
    except BadSpec as e:
        say(str(e))
        return DOOMED
    return Guard(spec).run()
