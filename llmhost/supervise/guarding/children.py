"""The processes below a guard, and everything that wakes it up."""

from __future__ import annotations

import os
import select
import signal
import time

from llmhost.supervise.guarding.group import Alone
from llmhost.supervise.guarding.kernel import PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, prctl
from llmhost.supervise.guarding.processes import descendants, kill

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LISTEN_SECONDS = 0.5
"""Longest sleep of a guard that has to give signs of life to others."""


class Children:
    """As a subreaper the guard is, in the end, the parent of all that its engine leaves."""

    def __init__(self, group: Alone) -> None:
        self.supervisor = os.getppid()
        self.engine = 0
        self.engine_status: int | None = None
        self.stop_wanted = False
        self.helpers: set[int] = set()
        """Programs that the guard itself runs (alerts, py-spy, nvidia-smi): not the engine's, so they are not swept."""
        self.group = group
        """Heard whenever we sleep, whatever for."""
        self._awaited = 0
        self._awaited_status = 0
        self._wakeup, self._wakeup_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def adopt(self) -> None:
        """Become the parent of all descendants, die with supervisord, and take signals as wishes to stop."""
        signal.set_wakeup_fd(self._wakeup_in, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only to wake us up
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if self.orphaned():  # supervisord died before the kernel knew what to tell us
            self.stop_wanted = True

    def _on_stop(self, *_: object) -> None:
        self.stop_wanted = True

    def orphaned(self) -> bool:
        """Whether supervisord is gone."""
        return os.getppid() != self.supervisor

    @property
    def engine_runs(self) -> bool:
        return self.engine != 0 and self.engine_status is None

    def sleep(self, seconds: float | None, fds: tuple[int, ...] = ()) -> list[int]:
        """Until a signal comes, `seconds` are over or one of `fds` can be read; then reap. Returns those that can.

        Sooner where other guards have to be heard or told something.
        """
        poll = select.poll()
        others = self.group.fds()
        for fd in (self._wakeup, *others, *fds):
            poll.register(fd, select.POLLIN)
        if others:
            seconds = LISTEN_SECONDS if seconds is None else min(seconds, LISTEN_SECONDS)
        woken = poll.poll(None if seconds is None else max(0, int(seconds * 1000) + 1))
        try:
            while os.read(self._wakeup, 512):
                pass
        except BlockingIOError:
            pass
        self.reap()
        self.group.turn()
        return [fd for fd, _ in woken if fd in fds]

    def reap(self) -> None:
        """Collect what has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self.helpers.clear()
                return
            if pid == 0:
                return
            self.helpers.discard(pid)
            if pid == self._awaited:
                self._awaited_status = status
            if pid == self.engine:
                self.engine_status = status

    def left(self) -> list[int]:
        """Every process below us that is not of a helper."""
        self.reap()
        return descendants(os.getpid(), without=self.helpers)

    def await_none(self, seconds: float) -> bool:
        """Wait for everything below us to end; False when `seconds` were not enough."""
        deadline = time.monotonic() + seconds
        while self.left():
            if time.monotonic() > deadline:
                return False
            self.sleep(min(0.1, max(0.0, deadline - time.monotonic())))
        return True

    def start_helper(self, run: Callable[[], None]) -> int:
        """Fork a child in a session of its own that does `run` and exits."""
        helper = os.fork()
        if helper == 0:
            try:
                os.setsid()
                signal.set_wakeup_fd(-1)
                for number in range(1, signal.NSIG):
                    if signal.getsignal(number) not in (signal.SIG_DFL, None):
                        signal.signal(number, signal.SIG_DFL)
                run()
            finally:
                os._exit(127)
        self.helpers.add(helper)
        return helper

    def output_of(self, command: list[str], seconds: float) -> bytes | None:
        """What a program prints; None when it cannot be run, fails, or takes longer than `seconds`."""
        receive, send = os.pipe2(os.O_CLOEXEC)

        def run() -> None:
            os.dup2(send, 1)
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            os.execvp(command[0], command)

        helper = self._awaited = self.start_helper(run)
        os.close(send)
        os.set_blocking(receive, False)
        output, deadline = b"", time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.sleep(deadline - time.monotonic(), (receive,))
            try:
                part = os.read(receive, 65536)
            except BlockingIOError:
                continue
            if not part:
                break
            output += part
        os.close(receive)
        return output if self.finish(helper, deadline) and self._awaited_status == 0 else None

    def finish(self, helper: int, deadline: float) -> bool:
        """Wait for a helper, kill it when its time is over; whether it ended by itself."""
        while helper in self.helpers and time.monotonic() < deadline:
            self.sleep(min(0.1, max(0.0, deadline - time.monotonic())))
        if helper not in self.helpers:
            return True
        kill(helper, signal.SIGKILL)
        self.sleep(0.1)
        return False
