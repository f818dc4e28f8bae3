"""The state file of a guard: a JSON object, replaced by rename, mode 0600.

``program``; ``state``, one of stopped queued loading ready unhealthy backoff failed; ``guard_pid``; ``engine_pid`` or
null; ``since``, unix time of the state; ``started``, unix time of the guard; ``restarts``, unplanned ones since the
last wanted start; ``failures``, those in a row; ``retry_at``, unix time of the next try in state backoff, else null;
``error``, one line or null; ``epoch``, for a part of a group the number of the group's life, else 0; ``exit``, how the
engine last ended by itself: null or ``{"code", "signal", "time", "error"}``; ``killed``, what the last stop had to end,
one name each; ``trouble``, what it could not undo, or null.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time

from llmhost.supervise.guarding.processes import read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LIVING = ("queued", "loading", "ready", "unhealthy", "backoff")
"""States of a guard that has not ended in order."""
BLOCK = 4096
"""Bytes of the file at least: what is said later then finds room on a disk that is full."""


class Former:
    """What the guard before this one left when it was killed."""

    def __init__(self, data: dict[str, Any]) -> None:
        """Raises KeyError, TypeError or ValueError for a file that is none of ours."""
        self.state = str(data["state"])
        self.restarts = int(data["restarts"])
        self.failures = int(data["failures"])
        self.exit: dict[str, Any] | None = data["exit"]
        was_ready = self.state in ("ready", "unhealthy")
        self.ready_seconds = max(0.0, time.time() - float(data["since"])) if was_ready else 0.0
        self.error = data["error"] if self.state == "backoff" else None


BEST_FIRST = ("ready", "unhealthy", "loading", "queued", "backoff", "failed", "stopped")


def service_state(folder: bytes, service: str) -> str:
    """The state of a service, which is that of its best replica, by the state files in a folder.

    A state in which a guard lives is believed only of one that lives: a power cut leaves files behind.
    """
    found = {"stopped"}
    own = re.compile(rb"%s-\d+\.state\.json" % re.escape(service.encode()))
    for name in filter(own.fullmatch, os.listdir(folder)):
        try:
            with open(os.path.join(folder, name), "rb") as file:
                said = json.load(file)
            state, guard = str(said["state"]), int(said["guard_pid"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        program = name.removesuffix(b".state.json")
        lives = b"/%s.json\0" % program in read(f"/proc/{guard}/cmdline")
        found.add(state if lives or state == "failed" else "stopped")
    return next(state for state in BEST_FIRST if state in found)


class StateFile:
    """What this guard says about its program."""

    def __init__(self, path: bytes, program: str) -> None:
        self.path = path
        self.program = program
        self.started = time.time()
        self.restarts = 0
        self.failures = 0
        self.epoch = 0
        self.exit: dict[str, Any] | None = None
        self.killed: list[str] = []
        self.trouble: str | None = None
        self._text = b""
        """What was said last."""
        self.kept = True
        """It is on the disk."""

    def former(self) -> Former | None:
        """Of a guard that ended neither as wanted nor for good; None when there was none."""
        try:
            former = Former(self._read())
        except (KeyError, TypeError, ValueError):
            return None
        return former if former.state in LIVING else None

    def _read(self) -> dict[str, Any]:
        try:
            with open(self.path, "rb") as file:
                found = json.load(file)
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def superseded(self) -> bool:
        """Whether another guard has taken over: ours was cut off from a supervisord that was killed."""
        return bool(self._read().get("guard_pid", os.getpid()) != os.getpid())

    def write(self, state: str, engine_pid: int | None, error: str | None, retry_at: float | None = None) -> None:
        """Raises OSError when it cannot be kept; `again` tries then."""
        data = {
            "program": self.program,
            "state": state,
            "guard_pid": os.getpid(),
            "engine_pid": engine_pid,
            "since": time.time(),
            "started": self.started,
            "restarts": self.restarts,
            "failures": self.failures,
            "retry_at": retry_at,
            "error": error,
            "epoch": self.epoch,
            "exit": self.exit,
            "killed": self.killed,
            "trouble": self.trouble,
        }
        self._text = json.dumps(data).encode().ljust(BLOCK)
        self._keep()

    def again(self) -> None:
        """Write what could not be written, for a disk was full, or was removed since."""
        if (not self.kept or not os.path.exists(self.path)) and self._text and not self.superseded():
            with contextlib.suppress(OSError):
                self._keep()

    def _keep(self) -> None:
        """Atomically; on a full disk into the block that is there already."""
        self.kept = False
        draft = self.path + b".new"
        try:
            with open(draft, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                file.write(self._text)
            os.rename(draft, self.path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(draft)
            with open(self.path, "r+b", buffering=0) as file:
                if len(self._text) > max(BLOCK, os.fstat(file.fileno()).st_size):
                    raise
                file.write(self._text)
                file.truncate()
        self.kept = True
