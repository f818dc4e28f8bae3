"""A home with a service that is harmed and one beside it, whose client must not notice; every fault is measured.

With ``$LLMHOST_FAULTS_RESULTS`` set to a file, what was measured is written there as JSON (`tests/faults/report.py`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI, OpenAIError

from llmhost.paths import Home
from llmhost.supervise.guarding.processes import descendants, title
from tests.integration.workflow.conftest import Installed, leftovers, make_engine
from tests.ports import free_port

PATIENCE = 300.0
"""Seconds after which a test gives up waiting; nothing is concluded from how long it took."""
HANG_TIMEOUT = 12
"""Of the service that is harmed, in seconds: five times as fast as by default."""
POLL_SECONDS = 0.01

RESULTS: list[dict[str, Any]] = []


def wait_for(what: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """The first true answer."""
    deadline = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(POLL_SECONDS)
    return answer


def record(fault: str, held: str, **seconds: float) -> None:
    """A row of the table in docs/reliability.md."""
    RESULTS.append({"fault": fault, "held": held, **{key: round(value, 3) for key, value in seconds.items()}})


@pytest.fixture(scope="session", autouse=True)
def results() -> Iterator[None]:
    yield
    if path := os.environ.get("LLMHOST_FAULTS_RESULTS"):
        Path(path).write_text(json.dumps(RESULTS, indent=1), encoding="utf-8")


class Client:
    """Asks the service beside the harmed one, all the time, as the OpenAI SDK does by default (two retries)."""

    def __init__(self, port: int) -> None:
        self.answers = 0
        self.errors: list[str] = []
        self._stop = threading.Event()
        self._client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-", timeout=300)
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            try:
                self._client.embeddings.create(model="beside", input="hi", encoding_format="float")
                self.answers += 1
            except OpenAIError as e:
                self.errors.append(f"{type(e).__name__}: {e}")

    def told(self) -> str:
        """For the table; raises AssertionError when it saw an error, or nothing."""
        assert self.errors == []
        assert self.answers
        return f"beside it {self.answers} requests, no error"

    def __enter__(self) -> Client:
        self._thread.start()
        wait_for(lambda: self.answers)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()


@dataclass
class Fault:
    """One fault from the moment at which it is done."""

    town: Town
    name: str
    begin: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    def now(self) -> None:
        self.begin = time.monotonic()

    def noticed(self, **expected: Any) -> dict[str, Any]:
        """What the guard says once it says this; noticed is when it does not say ready any more."""
        wait_for(lambda: self.town.says().get("state") not in (None, "ready"))
        self.seconds.setdefault("noticed", time.monotonic() - self.begin)
        return dict(wait_for(lambda: (said := self.town.says()).items() >= expected.items() and said))

    def recovered(self) -> dict[str, Any]:
        """What the guard says when the service answers through the gateway again."""
        wait_for(lambda: self.town.says().get("state") == "ready")
        wait_for(self.town.answers)
        self.seconds["recovered"] = time.monotonic() - self.begin
        return self.town.says()


@dataclass
class Town:
    """A home with the services `harmed` (chat) and `beside` (embed)."""

    installed: Installed

    @property
    def home(self) -> Home:
        return self.installed.home

    def write(self, faults: str = "--core", **keys: object) -> None:
        """llmhost.yaml whose harmed service has these faults."""
        settings = {"hang_timeout": HANG_TIMEOUT, "stop_timeout": 3, **keys}
        words = ", ".join(f"{key}: {value}" for key, value in settings.items())
        self.installed.write(f"""
            harmed: {{model: {self.installed.model()}, env: {{FAKE_ENGINE: '{faults}'}}, {words}}}
            beside: {{model: {self.installed.model("embed", "BertModel")}}}
        """)

    def up(self, faults: str = "--core", **keys: object) -> None:
        self.write(faults, **keys)
        self.installed.run("up")

    def says(self, program: str = "harmed-0") -> dict[str, Any]:
        """The state file of a guard."""
        try:
            said: dict[str, Any] = json.loads(self.home.state_file(program).read_text())
        except (OSError, ValueError):
            return {}
        return said

    def answers(self, model: str = "harmed", path: str = "/v1/chat/completions") -> bool:
        """Whether a service answers through the gateway."""
        try:
            body = {"model": model, "messages": [], "input": "hi"}
            return httpx.post(f"http://127.0.0.1:{self.installed.port}{path}", json=body, timeout=60).status_code == 200
        except httpx.HTTPError:
            return False

    def client(self) -> Client:
        """One that uses the other service all the time."""
        return Client(self.installed.port)

    def process(self, name: str) -> int:
        """A process of the harmed service: ``guard``, ``API server``, ``EngineCore`` or ``worker``."""
        said = self.says()
        if name in ("guard", "API server"):
            return int(said["guard_pid"] if name == "guard" else said["engine_pid"])
        start = {"EngineCore": "VLLM::EngineCor", "worker": "VLLM::Worker"}[name]
        return next(pid for pid in descendants(said["engine_pid"]) if title(pid) == start)

    def tree(self) -> list[int]:
        """Everything of the harmed engine."""
        engine = self.says()["engine_pid"]
        return [engine, *descendants(engine)]

    @contextmanager
    def fault(self, name: str, held: str) -> Iterator[Fault]:
        """Do the harm inside; the client of the other service must see no error, and nothing may be left of before."""
        wait_for(self.answers)
        before = self.tree()
        fault = Fault(self, name)
        with self.client() as beside:
            fault.now()
            yield fault
        held = f"{held}; {beside.told()}"
        assert not [pid for pid in before if Path(f"/proc/{pid}").exists() and pid in self.tree_of_home()]
        record(name, held, **fault.seconds)

    def tree_of_home(self) -> set[int]:
        """Processes that carry the mark of the harmed service and are not below its engine of now."""
        mark = f"LLMHOST_PROGRAM={self.home.root}:harmed-0".encode()
        now = set(self.tree())
        found = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) not in now:
                try:
                    environment = (entry / "environ").read_bytes()
                except OSError:
                    continue
                if mark in environment.split(b"\0"):
                    found.add(int(entry.name))
        return found


def make_town(place: Path) -> Town:
    """A home below a directory, nothing started."""
    town = Town(Installed(Home(place / "h"), free_port()))
    town.home.root.mkdir()
    make_engine(town.home)
    return town


def tear_down(town: Town) -> None:
    """`down` must leave nothing, whatever happened before."""
    subprocess.run(town.installed.command("down"), capture_output=True, timeout=300, check=True)
    assert leftovers(town.home) == []


@pytest.fixture
def place() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="lh", dir="/tmp"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    """One for all faults of a module, each of which ends with everything ready."""
    directory = Path(tempfile.mkdtemp(prefix="lh", dir="/tmp"))
    made = make_town(directory)
    yield made
    tear_down(made)
    shutil.rmtree(directory)


@pytest.fixture
def fresh(place: Path) -> Iterator[Town]:
    """A home of its own."""
    made = make_town(place)
    yield made
    tear_down(made)
