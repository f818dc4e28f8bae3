"""The fault suite (tests/faults), shorter, against real vLLM: what is measured there is measured here, too."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI, OpenAIError

from llmhost.supervise.guarding.processes import descendants, title
from tests.e2e.conftest import Installation

PATIENCE = 1200.0
"""Seconds for an engine to hang, be killed and load again on a slow CPU; nothing is concluded from how long it took."""
RESULTS: list[dict[str, Any]] = []


@pytest.fixture(scope="module", autouse=True)
def results() -> Iterator[None]:
    yield
    if path := os.environ.get("LLMHOST_FAULTS_RESULTS"):
        Path(f"{path}.vllm").write_text(json.dumps(RESULTS, indent=1), encoding="utf-8")


def wait_for(what: Callable[[], Any]) -> Any:
    """The first true answer."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := what()):
        assert time.monotonic() < deadline, f"waited {PATIENCE} s in vain"
        time.sleep(0.02)
    return answer


def says(installation: Installation) -> dict[str, Any]:
    """The state file of the chat engine's guard."""
    said: dict[str, Any] = json.loads((installation.home / "run/chat-0.state.json").read_text())
    return said


def answers(installation: Installation) -> bool:
    body = {"model": "demo-chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    try:
        return httpx.post(f"{installation.url}/v1/chat/completions", json=body, timeout=60).status_code == 200
    except httpx.HTTPError:
        return False


def process(installation: Installation, name: str) -> int:
    engine = int(says(installation)["engine_pid"])
    if name == "API server":
        return engine
    start = {"EngineCore": "VLLM::EngineCor", "worker": "VLLM::Worker"}[name]
    found = [pid for pid in descendants(engine) if title(pid).startswith(start)]
    if not found:
        pytest.skip(f"this vLLM runs no {name} process of its own")
    return found[0]


class Beside(threading.Thread):
    """A client of the embedding service, with the SDK's own two retries."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.errors: list[str] = []
        self.answers = 0
        self.over = threading.Event()
        self.client = OpenAI(base_url=f"{url}/v1", api_key="-")

    def run(self) -> None:
        while not self.over.wait(0.1):
            try:
                self.client.embeddings.create(model="demo-embed", input="hi")
                self.answers += 1
            except OpenAIError as e:
                self.errors.append(repr(e))

    def end(self) -> None:
        self.over.set()
        self.join()
        self.client.close()


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (signal.SIGKILL, "API server"),
        (signal.SIGKILL, "EngineCore"),
        (signal.SIGKILL, "worker"),
        (signal.SIGSTOP, "EngineCore"),
    ],
)
def test_it_is_noticed_swept_and_restarted(installation: Installation, number: signal.Signals, name: str) -> None:
    """The time of the hang watch is the default one: an idle engine that hangs is killed within a minute.

    Each fault meets the engine that the one before it left, which saves loading another.
    """
    wait_for(lambda: says(installation)["state"] == "ready" and answers(installation))
    restarts, engine = says(installation)["restarts"], int(says(installation)["engine_pid"])
    tree = [engine, *descendants(engine)]
    target, beside, seconds = process(installation, name), Beside(installation.url), {}
    beside.start()
    try:
        begin = time.monotonic()
        os.kill(target, number)
        wait_for(lambda: says(installation)["state"] != "ready")
        seconds["noticed"] = time.monotonic() - begin
        said = wait_for(lambda: (now := says(installation))["state"] == "backoff" and now)
        seconds["restarting"] = time.monotonic() - begin
        assert not any(Path(f"/proc/{pid}/environ").exists() and title(pid) for pid in tree)
        wait_for(lambda: says(installation)["state"] == "ready" and answers(installation))
        seconds["recovered"] = time.monotonic() - begin
    finally:
        beside.end()
    assert beside.errors == []
    assert says(installation)["restarts"] == restarts + 1
    fault = f"{'kill -9' if number == signal.SIGKILL else 'SIGSTOP'} of the {name}"
    pause = f"{said['retry_at'] - said['since']:.0f} s of back-off"
    held = f"restarted after {pause}; beside it {beside.answers} requests, no error"
    RESULTS.append({"fault": fault, "held": held, **{k: round(v, 3) for k, v in seconds.items()}})
