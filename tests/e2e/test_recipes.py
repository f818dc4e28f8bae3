"""The recipes of examples/ whose engines can be had from a package index, for real, each beside a service on real vLLM.

What cannot be had here is rendered in tests/golden/test_recipes.py.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.conftest import Installation, pip_environment
from tests.ports import free_port


class Box:
    """A home with a recipe in it, and the engine of the installation."""

    def __init__(self, installation: Installation, root: Path, recipe: str) -> None:
        self.installation = installation
        self.home = root / "home"
        shutil.copytree(installation.checkout / "examples" / recipe, self.home)
        (self.home / "engines").symlink_to(installation.home / "engines")
        self.port = free_port()
        config = self.home / "llmhost.yaml"
        config.write_text(config.read_text().replace("gateway: {port: 8000}", f"gateway: {{port: {self.port}}}"))
        excludes = root / "excludes.txt"
        excludes.write_text("torchvision\n")  # docs/recipes.md, Xinference
        self.environment = {**pip_environment(installation), "UV_EXCLUDE": str(excludes)}

    def run(self, *args: str, ok: tuple[int, ...] = (0,)) -> str:
        program = str(self.installation.checkout / ".venv/bin/llmhost")
        done = subprocess.run(
            [program, "--home", str(self.home), *args], env=self.environment, text=True, capture_output=True,
            check=False, timeout=1200,
        )  # fmt: skip
        assert done.returncode in ok, f"{done.stdout}\n{done.stderr}\n{self.logs()}"
        return done.stdout

    def logs(self) -> str:
        return "\n".join(f"{log.name}\n{log.read_text()[-3000:]}" for log in sorted((self.home / "logs").glob("*.log")))

    def checks(self) -> set[tuple[str, str]]:
        """What `llmhost check` asked of each service; all of it worked."""
        report = json.loads(self.run("check", "--json"))
        assert report["ok"], report
        return {(c["service"], c["check"]) for c in report["checks"]}

    def state(self, service: str) -> dict[str, Any]:
        services = json.loads(self.run("status", "--json", ok=(0, 3)))["services"]
        return next(s["replicas"][0] for s in services if s["name"] == service)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(f"http://127.0.0.1:{self.port}{path}", json=body, timeout=300)


@pytest.fixture
def box(installation: Installation, request: pytest.FixtureRequest) -> Iterator[Box]:
    """The recipe that the test is named for, up; then down."""
    root = Path(tempfile.mkdtemp(prefix="lh", dir="/tmp"))
    try:
        made = Box(installation, root, request.node.name.removeprefix("test_"))
        made.run("setup")
        made.run("up")
        yield made
    finally:
        if (root / "home/conf").exists():
            made.run("down")
        shutil.rmtree(root)


@pytest.fixture
def client(box: Box) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{box.port}/v1", api_key="-", max_retries=0) as made:
        yield made


CAPITAL: Any = [{"role": "user", "content": "What is the capital of France?"}]


def _answer(client: openai.OpenAI, model: str) -> str:
    found = client.chat.completions.create(model=model, messages=CAPITAL, temperature=0)
    return found.choices[0].message.content or ""


def test_fastchat(box: Box, client: openai.OpenAI) -> None:
    assert {m.id for m in client.models.list()} == {"fastchat", "vllm"}
    assert "Paris" in _answer(client, "fastchat")
    assert "Paris" in _answer(client, "vllm")
    with client.chat.completions.create(model="fastchat", messages=CAPITAL, temperature=0, stream=True) as stream:
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "Paris" in "".join(pieces)
    assert len([piece for piece in pieces if piece]) > 3
    assert box.checks() >= {("fastchat", "chat"), ("fastchat", "stream"), ("chat", "chat"), ("chat", "tool")}
    _kill(box, "worker")
    assert "Paris" in _answer(client, "fastchat")
    assert not list(box.home.glob("*.log*")), "FastChat writes its logs into the home"


def _kill(box: Box, service: str) -> None:
    """Kill what a guard guards, and wait until it is back."""
    before = box.state(service)
    os.kill(before["engine_pid"], signal.SIGKILL)
    deadline = time.monotonic() + 120
    while not ((now := box.state(service))["restarts"] > before["restarts"] and now["state"] == "ready"):
        assert time.monotonic() < deadline, (now, box.logs())
        time.sleep(0.5)


def test_infinity(box: Box, client: openai.OpenAI) -> None:
    _require_meaning(client, "infinity-embed")
    documents = ["Bananas are yellow.", "Paris is the capital of France."]
    ranked = box.post(
        "/v1/rerank", model="infinity-rerank", query="What is the capital of France?", documents=documents
    )
    first, second = ranked.raise_for_status().json()["results"]
    assert (first["index"], second["index"]) == (1, 0)
    assert first["relevance_score"] > 0.5 > second["relevance_score"]
    assert "Paris" in _answer(client, "demo-chat")
    assert box.checks() >= {("embedding", "embed"), ("rerank", "rerank"), ("chat", "chat")}
    assert box.post("/v1/chat/completions", model="infinity-embed", messages=CAPITAL).status_code == 400


def _require_meaning(client: openai.OpenAI, model: str) -> None:
    """Two sentences that mean the same are nearer to each other than to a third one."""
    texts = ["How do I stop the server?", "How can I shut the server down?", "Bananas are yellow."]
    one, same, other = [d.embedding for d in client.embeddings.create(model=model, input=texts).data]
    assert len(one) == 128
    assert _cosine(one, same) > _cosine(one, other) + 0.3


def _cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def test_xinference(box: Box, client: openai.OpenAI) -> None:
    _require_meaning(client, "xinference-embed")
    assert "Paris" in _answer(client, "demo-chat")
    assert box.checks() >= {("xinference", "embed"), ("chat", "chat")}
