"""The state file of a guard: a JSON object, replaced by rename, mode 0600.

``program``; ``state``, one of stopped queued loading ready backoff failed; ``guard_pid``; ``engine_pid`` or null;
``since``, unix time of the state; ``started``, unix time of the guard; ``restarts``, unplanned ones since the last
wanted start; ``error``, one line or null; ``exit``, how the engine last ended by itself: null or
``{"code", "signal", "time", "error"}``.
"""

from __future__ import annotations

import json
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class StateFile:
    """What this guard says about its program, and what the guard before it said."""

    def __init__(self, path: bytes, program: str) -> None:
        self.path = path
        self.program = program
        self.started = time.time()
        self.restarts, self.exit = self._former_life()

    def _former_life(self) -> tuple[int, dict[str, Any] | None]:
        """A guard that ended neither as wanted nor for good is being restarted by us."""
        former = self._read()
        try:
            if former["state"] in ("stopped", "failed"):
                return 0, None
            return int(former["restarts"]) + 1, former["exit"]
        except (ValueError, KeyError, TypeError):
            return 0, None

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

    def write(self, state: str, engine_pid: int | None, error: str | None) -> None:
        """Atomically; raises OSError, and the old content stays then."""
        data = {
            "program": self.program,
            "state": state,
            "guard_pid": os.getpid(),
            "engine_pid": engine_pid,
            "since": time.time(),
            "started": self.started,
            "restarts": self.restarts,
            "error": error,
            "exit": self.exit,
        }
        draft = self.path + b".new"
        with open(draft, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(json.dumps(data).encode())
        os.rename(draft, self.path)
