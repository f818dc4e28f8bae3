"""Telling somebody: ``on_event`` of llmhost.yaml, a command or a webhook, for failed, unhealthy and recovered.

It is read from ``events_file``, ``{"on_event": COMMAND or URL or null}``, whenever something happens.

Delivered by a child of its own, so that a slow receiver holds nothing up, and not more than once in
`QUIET_SECONDS` for each event of a program. What was told is kept in a file, because a guard ends with `failed` and the
next one is to say `recovered`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time

from llmhost.supervise.guarding.children import Children
from llmhost.supervise.guarding.processes import say
from llmhost.supervise.guarding.spec import Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

QUIET_SECONDS = 300.0
"""Seconds in which the same event of a program is told once."""
DELIVERY_SECONDS = 30
"""Seconds that a command or a webhook may take."""


def quiet(event: str, told: dict[str, float], now: float) -> bool:
    """Whether an event is not told: nobody may be left with ``recovered`` while a service stays down.

    `told` is when each event was told last, and ``open``, 1 until `recovered` was. An ``unhealthy`` that is not told
    now is asked for again with each try that fails; ``failed`` is not, so only its repetition is left out.
    """
    soon = 0 <= now - told.get(event, 0) < QUIET_SECONDS
    still = bool(told.get("open"))
    return soon and still if event == "failed" else soon or (still and event in told)


class Alerts:
    """The events of one program."""

    def __init__(self, spec: Spec, children: Children) -> None:
        self.spec = spec
        self.children = children
        self.path = spec.state_file + b".told"

    def trouble(self, event: str, state: str, error: str | None) -> None:
        """``failed`` or ``unhealthy``; told unless `quiet` says that it was."""
        told = self._told()
        if self._target() and not quiet(event, told, time.time()):
            self._keep({**told, event: time.time(), "open": 1})
            self._deliver(event, state, error)

    def recovered(self) -> None:
        """Told once after trouble was told."""
        told = self._told()
        if told.get("open"):
            self._keep({**told, "open": 0})
            if self._target():
                self._deliver("recovered", "ready", None)

    def _target(self) -> str:
        """A command or a URL, '' when nobody wants to know."""
        try:
            with open(self.spec.events_file or os.devnull, "rb") as file:
                return str(json.load(file)["on_event"] or "")
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def _told(self) -> dict[str, float]:
        try:
            with open(self.path, "rb") as file:
                return {str(key): float(value) for key, value in json.load(file).items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def _keep(self, told: dict[str, float]) -> None:
        try:
            with open(self.path, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                file.write(json.dumps(told).encode())
        except OSError as e:
            say(f"{self.spec.program}: cannot write {os.fsdecode(self.path)}: {e.strerror}")

    def _deliver(self, event: str, state: str, error: str | None) -> None:
        message = {
            "event": event,
            "program": self.spec.program,
            "service": self.spec.program.rpartition("-")[0],
            "state": state,
            "error": error,
            "time": time.time(),
            "host": socket.gethostname(),
        }
        target = self._target()
        self.children.start_helper(lambda: _send(target, message))


def _send(target: str, message: dict[str, Any]) -> None:
    """In the helper: post to a webhook, or become the command, which gets the message on its standard input."""
    signal.alarm(DELIVERY_SECONDS)  # survives exec
    body = json.dumps(message, ensure_ascii=False).encode()
    if target.startswith(("http://", "https://")):
        _post(target, body, str(message["program"]))
        os._exit(0)
    receive, send = os.pipe()
    os.write(send, body + b"\n")  # a pipe takes 64 KiB
    os.close(send)
    os.dup2(receive, 0)
    os.environ.update({f"LLMHOST_{key.upper()}": str(message[key] or "") for key in message})
    os.execv("/bin/sh", ["sh", "-c", target])


def _post(url: str, body: bytes, program: str) -> None:
    import urllib.request  # noqa: PLC0415  (large, and needed in this process only)

    request = urllib.request.Request(url, body, {"Content-Type": "application/json", "User-Agent": "llmhost"})
    try:
        with urllib.request.urlopen(request, timeout=DELIVERY_SECONDS / 2):
            pass
    except (OSError, ValueError) as e:  # the URL may hold a secret, so it is not repeated
        say(f"{program}: the webhook of on_event was not reached: {type(e).__name__}")
