"""The start locks of an engine's GPUs: two that measure the free memory at once break each other (vllm#55827).

Files are locked for the engines of one home. For those of all homes of the machine an abstract unix socket is bound:
it needs no directory that every user may write to, and the kernel frees it when its owner dies. Such names belong to a
network namespace, so containers with a network of their own do not see each other's; there the files are all there is.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time

from llmhost.supervise.guarding.ending import FAILED, Ending
from llmhost.supervise.guarding.processes import say
from llmhost.supervise.guarding.spec import Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

INTERVAL = 0.2


class StartLocks:
    """Those of one engine. All are taken in one order, files before names, so nobody waits in a circle."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self._files: list[int] = []
        self._names: list[socket.socket] = []

    def take(self, pause: Callable[[float], object], on_wait: Callable[[str], None]) -> None:
        """Wait for all of them; `pause` may raise Ending. ``on_wait`` is told when it is for another home."""
        for path in self.spec.locks:
            try:
                self._files.append(_open(path))
                while not _try_lock(self._files[-1]):
                    pause(INTERVAL)
            except OSError as e:
                raise Ending(FAILED, f"cannot take the start lock {os.fsdecode(path)}: {e.strerror}") from e
        self._take_names(pause, on_wait)

    def _take_names(self, pause: Callable[[float], object], on_wait: Callable[[str], None]) -> None:
        """Any user can bind any name, so the wait for one ends: nobody keeps an engine from starting for ever."""
        deadline = time.monotonic() + self.spec.start_timeout
        for index in sorted(self.spec.gpus):
            told = False
            while not self._try_name(index):
                if not told:
                    on_wait(f"waits for an engine of another home that starts on GPU {index}")
                told = True
                if time.monotonic() > deadline:
                    say(f"{self.spec.program}: GPU {index} is still taken by another start: waited long enough")
                    break
                pause(INTERVAL)

    def _try_name(self, index: int) -> bool:
        name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            name.bind(lock_name(index))
        except OSError as e:
            name.close()
            if e.errno == errno.EADDRINUSE:
                return False
            say(f"{self.spec.program}: no start lock of the machine for GPU {index}: {e.strerror}")
        else:
            self._names.append(name)
        return True

    def release(self) -> None:
        """Let go of whatever is held."""
        while self._names:
            self._names.pop().close()
        while self._files:
            os.close(self._files.pop())


def lock_name(index: int) -> bytes:
    """Of a GPU, by the index that nvidia-smi gives it."""
    return b"\0llmhost-gpu-%d" % index


def _open(path: bytes) -> int:
    """Also on a disk that is read-only since it had an error: what is there can be locked."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as e:
        if e.errno != errno.EROFS:
            raise
        return os.open(path, os.O_RDONLY)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
