"""A guard by itself, and a home with supervisord, both with the fake engine in the place of vLLM."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llmhost import writer
from llmhost.paths import Home, guard_script
from llmhost.plan.types import EnginePlan, GatewayPlan, Plan, ProgramPlan, ServicePlan
from llmhost.probe.tools import find_tools
from llmhost.render import render
from llmhost.supervise import daemon, lifecycle
from llmhost.supervise.guarding.processes import pids, read
from llmhost.supervise.states import ProgramState
from llmhost.supervise.status import read_status

FAKE_ENGINE = Path(__file__).parents[2] / "fakes" / "engine.py"
PYTHON = (sys.executable, "-I", "-S")
PATIENCE = 300.0
"""Seconds after which a test gives up waiting; nothing is concluded from how long it took."""


def wait_for(what: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """The first true answer."""
    deadline = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.02)
    return answer


def alive(pid: int) -> bool:
    stat = read(f"/proc/{pid}/stat")
    return bool(stat) and stat.rpartition(b")")[2].split()[0] not in (b"Z", b"X")


def marked(mark: str) -> list[int]:
    """Processes with this mark, or one that begins so, in their environment."""
    start = b"LLMHOST_PROGRAM=" + mark.encode()
    return [p for p in pids() if any(v.startswith(start) for v in read(f"/proc/{p}/environ").split(b"\0")) and alive(p)]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a path that is short enough for sockets."""
    directory = Path(tempfile.mkdtemp(prefix="lh", dir="/tmp"))
    yield directory
    shutil.rmtree(directory)


@dataclass
class LoneGuard:
    """A guard that this test runs instead of supervisord."""

    place: Path
    spec: dict[str, Any]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *faults: str, through: Sequence[str] = (), **spec: Any) -> subprocess.Popen[bytes]:
        """Run it with a fake engine that has these faults; `through` is a command that runs it."""
        engine = (*PYTHON, str(FAKE_ENGINE), "--uds", self.spec["socket"], *faults)
        return self.start_command(*engine, through=through, **spec)

    def start_command(self, *command: str, through: Sequence[str] = (), **spec: Any) -> subprocess.Popen[bytes]:
        path = self.place / "spec.json"
        path.write_text(json.dumps({**self.spec, **spec}), encoding="utf-8")
        guard = (*through, *PYTHON, str(guard_script()), str(path), "--", *command)
        with open(self.spec["log_file"], "ab") as log:
            process = subprocess.Popen(guard, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    @property
    def mark(self) -> str:
        return str(self.spec["env"]["LLMHOST_PROGRAM"])

    def says(self) -> dict[str, Any]:
        try:
            said: dict[str, Any] = json.loads(Path(self.spec["state_file"]).read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return said

    def wait(self, state: str, guard: subprocess.Popen[bytes] | None = None, **also: Any) -> dict[str, Any]:
        """What the file says once it says `state` (and these), written by this guard."""

        def there() -> dict[str, Any] | None:
            said = self.says()
            ours = guard is None or said.get("guard_pid") == guard.pid
            return said if ours and said.get("state") == state and also.items() <= said.items() else None

        return dict(wait_for(there))

    def log(self) -> str:
        return Path(self.spec["log_file"]).read_text(errors="replace")

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        for pid in marked(self.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def guard(place: Path) -> Iterator[LoneGuard]:
    lone = LoneGuard(
        place,
        {
            "program": "chat-0",
            "kind": "chat",
            "model": "fake",
            "socket": str(place / "chat-0.sock"),
            "state_file": str(place / "chat-0.state.json"),
            "log_file": str(place / "chat-0.log"),
            "env": {"LLMHOST_PROGRAM": f"{place}:chat-0"},
            "locks": [],
            "start_timeout": 300,
            "stop_timeout": 20,
        },
    )
    yield lone
    lone.close()


@dataclass
class House:
    """A home whose services are fake engines."""

    home: Home
    services: dict[str, ServicePlan] = field(default_factory=dict)
    engine: Path = FAKE_ENGINE

    def service(self, name: str, *faults: str, replicas: int = 1, stop_timeout: float = 20, **env: str) -> None:
        """Add or replace a service; its kind follows from its name."""
        kind = "embed" if name.startswith("embed") else "rerank" if name.startswith("rerank") else "chat"
        programs = tuple(self._program(f"{name}-{n}", faults, env) for n in range(replicas))
        self.services[name] = ServicePlan(
            name, kind, "fake", f"/models/{name}", f"/models/{name}", (name,), None, 60, stop_timeout, programs
        )  # fmt: skip

    def _program(self, name: str, faults: Sequence[str], env: dict[str, str]) -> ProgramPlan:
        socket = str(self.home.engine_socket(name))
        argv = (*PYTHON, str(self.engine), "--uds", socket, *faults)
        mark = {"LLMHOST_PROGRAM": f"{self.home.root}:{name}"}
        return ProgramPlan(name, argv, {**env, **mark}, socket, (), (), 0, 0)

    def write(self, port: int = 0) -> None:
        """Render the plan to disk."""
        engine = EnginePlan("default", sys.executable, "cpu", "0")
        gateway = GatewayPlan("127.0.0.1", port, 2**20)
        plan = Plan(str(self.home.root), find_tools(), engine, gateway, tuple(self.services.values()))
        writer.apply(self.home, writer.changes(self.home, render(plan)))

    def programs(self) -> list[str]:
        return [r.name for s in self.services.values() for r in s.replicas]

    def replicas(self) -> dict[str, dict[str, Any]]:
        status = read_status(self.home).to_dict()
        return {r["name"]: r for s in status["services"] for r in s["replicas"]}

    def wait(self, name: str, **wanted: Any) -> dict[str, Any]:
        """The replica once it has these values."""

        def there() -> dict[str, Any] | None:
            replica = self.replicas()[name]
            return replica if wanted.items() <= replica.items() else None

        return dict(wait_for(there))

    def log(self, program: str) -> str:
        return self.home.log_file(program).read_text(errors="replace")

    def left(self) -> list[int]:
        """Processes that belong to this home."""
        name = str(self.home.root).encode()
        ours = [p for p in pids() if name in read(f"/proc/{p}/cmdline") and alive(p)]
        return sorted({*ours, *marked(f"{self.home.root}:")})


@pytest.fixture
def house(place: Path) -> Iterator[House]:
    home = Home(place / "h")
    home.root.mkdir()
    yield House(home)
    daemon.shutdown(home)
    assert House(home).left() == []


def by_name(states: dict[str, ProgramState]) -> dict[str, str]:
    return {name: state.state for name, state in states.items()}


def bring_up(house: House) -> dict[str, ProgramState]:
    """All services, without the gateway; ready."""
    house.write()
    daemon.ensure_running(house.home)
    lifecycle.converge(house.home, house.programs())
    states = lifecycle.wait_ready(house.home, house.programs(), PATIENCE)
    assert set(by_name(states).values()) == {"ready"}, states
    return states


def pairs(house: House) -> dict[str, tuple[int, int]]:
    """The pids of guard and engine of every replica."""
    return {name: (r["pid"], r["engine_pid"]) for name, r in house.replicas().items()}
