"""An engine for a moment: started under a guard of its own beside everything else, and ended again."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmhost.errors import NotReadyError
from llmhost.files import RenderedFile
from llmhost.paths import Home
from llmhost.plan import Plan, ProgramPlan
from llmhost.run import while_running
from llmhost.supervise.lock import TRIAL

POLL_SECONDS = 0.5
QUEUED_SECONDS = 3600.0
"""Seconds to wait at most for other engines that start on the same GPU."""
ENDED = ("backoff", "failed", "stopped")


def try_program(
    home: Home, plan: Plan, program: ProgramPlan, spec: RenderedFile, timeout: float, told: Callable[[str], None]
) -> float:
    """Start an engine, wait until it has answered a real request of its guard, stop it; the seconds that it took.

    ``spec`` is what `llmhost.render` has for its guard. supervisord knows nothing of it. Raises NotReadyError with the
    cause when it does not become ready within ``timeout`` seconds, not counted while it waits for others that start.
    Call it with the lock of the home held.
    """
    began = time.monotonic()
    state = home.state_file(program.name)
    state.unlink(missing_ok=True)
    file = _private_file(home.run, spec.text)
    guard = (plan.tools.python, "-I", "-S", plan.tools.guard, str(file), "--", *program.argv)
    try:
        with while_running(guard, home.log_file(program.name)) as status:
            _await(state, status, timeout, told, home.log_file(program.name))
        return time.monotonic() - began
    finally:
        for leftover in (file, state, Path(program.socket)):
            leftover.unlink(missing_ok=True)


def _private_file(directory: Path, text: str) -> Path:
    handle, name = tempfile.mkstemp(dir=directory, prefix=TRIAL, suffix=".json")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return Path(name)


def _await(
    state: Path, status: Callable[[], int | None], seconds: float, told: Callable[[str], None], log: Path
) -> None:
    last = ""
    deadline = time.monotonic() + seconds
    latest = deadline + QUEUED_SECONDS
    while True:
        said = _read(state)
        now = str(said.get("state", ""))
        if now == "ready":
            return
        if now == "queued":
            deadline = min(latest, time.monotonic() + seconds)
        if now != last:
            told(now)
            last = now
        if now in ENDED or status() is not None:
            cause = said.get("error") or f"its guard ended with status {status()}"
            raise NotReadyError(f"the engine does not start: {cause}", f"its log is {log}")
        if time.monotonic() > deadline:
            raise NotReadyError("the engine is not ready in time", f"its log is {log}; raise start_timeout")
        time.sleep(POLL_SECONDS)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
