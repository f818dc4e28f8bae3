"""The log of a program, which supervisord writes: what the engine said last."""

from __future__ import annotations

import os
import time

from llmhost.supervise.guarding.causes import known_line
from llmhost.supervise.guarding.processes import say

LOG_SECONDS = 3.0
"""Seconds for the last output of the engine to reach the log file through supervisord."""
POLL_SECONDS = 0.05
TAIL_BYTES = 65536
LAST_LINES = 400
"""Lines at the end of the log of an engine that was ready in which the cause of its end is looked for."""


class LogFile:
    """`path` is None when nobody knows where the output goes."""

    def __init__(self, program: str, path: bytes | None) -> None:
        self.program = program
        self.path = path

    def start_life(self) -> None:
        """Say that the engine is started: what stands before this line is of earlier lives."""
        say(self._start_line())

    def since_start(self, line: str) -> str:
        """Write `line`, wait until it is in the log behind the engine's output; the output of this life before it."""
        line = f"{self.program}: {line}"
        say(line)
        deadline = time.monotonic() + LOG_SECONDS
        tail, before, found = self._tail(), "", ""
        while self.path:
            before, found, _ = tail.rpartition(f"[guard] {line}")
            if found or time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
            tail = self._tail()
        said = before.rpartition("\n")[0] if found else tail  # the time of `line` is no word of the engine
        return said.rpartition(f"[guard] {self._start_line()}")[2]

    def explain(self, how: str) -> str:
        """`how` an engine that was ready ended, and the line of its last output that says why, when one does."""
        lines = self.since_start(f"{how} (guard {os.getpid()})").splitlines()[-LAST_LINES:]
        why = known_line("\n".join(lines))
        return f"{how}: {why}" if why else how

    def _start_line(self) -> str:
        return f"{self.program}: starting the engine (guard {os.getpid()})"

    def _tail(self) -> str:
        try:
            with open(self.path or os.devnull, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
                return file.read(TAIL_BYTES).decode("utf-8", "replace")
        except OSError:
            return ""
