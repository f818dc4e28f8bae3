"""systemd as llmhost needs it: start and stop a unit, say how it goes, tell it how long something will take."""

from __future__ import annotations

import contextlib
import os
import socket

from llmhost import run
from llmhost.errors import SupervisorError
from llmhost.supervise.units import Unit


def systemctl(unit: Unit, *words: str, timeout: float = 60) -> str:
    """Run ``systemctl [--user] …`` and return its output; raises SupervisorError with its own words.

    `timeout` in seconds.
    """
    scope = ["--user"] if unit.scope == "user" else []
    done = run.capture(["systemctl", *scope, *words], env=_environment(unit), timeout=timeout, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[0]
        raise SupervisorError(f"systemctl {' '.join([*scope, *words])}: {said}", _hint(unit, words))
    return done.stdout


def _environment(unit: Unit) -> dict[str, str]:
    """`sudo -u` leaves out where the user's manager listens."""
    runtime = f"/run/user/{os.geteuid()}"
    needed = unit.scope == "user" and "XDG_RUNTIME_DIR" not in os.environ and os.path.isdir(runtime)
    return {"XDG_RUNTIME_DIR": runtime} if needed else {}


def _hint(unit: Unit, words: tuple[str, ...]) -> str:
    if unit.scope == "system" and os.geteuid() != 0:
        return f"{unit.name} runs this home: `sudo systemctl {' '.join(words)}`"
    return f"see `{journal(unit)}`"


def journal(unit: Unit) -> str:
    """The command that shows what a unit said."""
    return f"journalctl {'--user ' if unit.scope == 'user' else ''}-u {unit.name}"


def active_state(unit: Unit) -> str:
    """``active``, ``activating`` (also while it waits for its next try), ``inactive``, ``failed`` …"""
    return systemctl(unit, "show", "--property", "ActiveState", "--value", unit.name).strip()


def main_pid(unit: Unit) -> int:
    """Process id of supervisord as systemd knows it, 0 when there is none."""
    return int(systemctl(unit, "show", "--property", "MainPID", "--value", unit.name).strip() or 0)


def notify(*lines: str) -> None:
    """sd_notify(3): tell systemd something; nothing happens when it did not start us."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.settimeout(5)
        try:
            connection.sendto("\n".join(lines).encode(), address)
        except OSError:
            return


def forget(unit: Unit) -> None:
    """Clear what systemd remembers of failures; nothing is wrong when it remembers none."""
    with contextlib.suppress(SupervisorError):
        systemctl(unit, "reset-failed", unit.name)
