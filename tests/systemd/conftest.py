"""A machine with a home on it that systemd runs. Skipped, with the reason, only where systemd-nspawn cannot run."""

from __future__ import annotations

import fcntl
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.systemd.box import PYTHON, Box, CannotRun, wait_for
from tests.systemd.inside import config

HOME = "/srv/llm"
UNIT = "llmhost.service"


class Served(Box):
    """A box with a home at `HOME`, and llmhost to use it with."""

    account = "llmhost"

    def llmhost(self, *words: str, ok: int | None = 0, user: str | None = None, home: str = HOME) -> Any:
        command = (PYTHON, "-P", "-m", "llmhost", "--home", home, *words)
        done = self.run(*command, ok=ok, user=self.account if user is None else user)
        assert "Traceback" not in done.stderr
        return done

    def make_home(self, user: str = "", home: str = HOME) -> None:
        self.run(PYTHON, "-P", "-m", "tests.systemd.inside", "make-home", home, user=user)

    def write_config(self, more: str = "", rest: str = "") -> bool:
        """llmhost.yaml with other options of the chat service, and more lines at its end; whether it is another now."""
        file = self.path(f"{HOME}/llmhost.yaml")
        old, new = file.read_text(encoding="utf-8"), config(HOME, more) + rest
        file.write_text(new, encoding="utf-8")
        return old != new

    def ask(self, path: str, **body: Any) -> tuple[int, str]:
        said = self.run(PYTHON, "-P", "-m", "tests.systemd.inside", "ask", path, json.dumps(body))
        status, text = json.loads(said.stdout)
        return status, text

    def status(self, home: str = HOME) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.llmhost("status", "--json", ok=None, user="", home=home).stdout)
        return told

    def states(self, home: str = HOME) -> dict[str, str]:
        status = self.status(home)
        return {s["name"]: s["state"] for s in status["services"]} | {"gateway": status["gateway"]["state"]}

    def await_states(self, home: str = HOME, **states: str) -> None:
        """Services that are not named must be ready."""
        wanted = {"chat": "ready", "embedding": "ready", "gateway": "ready"} | states
        wait_for(lambda: self.states(home) == wanted)

    def processes(self, user: str = "") -> str:
        return self.run("ps", "-u", user or self.account, "-o", "pid=,args=", ok=None).stdout

    def show(self, name: str, unit: str = UNIT) -> str:
        return self.run("systemctl", "show", "--property", name, "--value", unit).stdout.strip()

    def journal(self, unit: str = UNIT) -> str:
        return self.run("journalctl", "--no-pager", "-u", unit).stdout


@pytest.fixture(scope="module")
def machine() -> Iterator[Served]:
    place = Path(tempfile.mkdtemp(prefix="lhbox", dir="/tmp"))
    box = Served(place / "box")
    # One at a time: systemd in a container shares control groups with us.
    with Path("/tmp/.llmhost-systemd-test.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            try:
                box.build()
                box.boot()
            except CannotRun as e:
                pytest.skip(str(e))
            yield box
        finally:
            box.cut()
            shutil.rmtree(place, ignore_errors=True)
