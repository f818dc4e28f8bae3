from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.gateway.running import Gateway
from tests.integration.gateway.stub import Stub
from tests.ports import free_port
from tests.unit.gateway.plans import make_service

CHINESE = "中文/模型 \"q'%5%"


@pytest.fixture
def home() -> Iterator[Path]:
    """A short path: unix sockets end at 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="lh", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def gateway(home: Path) -> Iterator[Gateway]:
    with Gateway(home) as running:
        yield running


class Suite:
    """One gateway for all tests that only ask: chat with two replicas, embedding and rerank; `down` has no engine."""

    def __init__(self, root: Path) -> None:
        self.gateway = Gateway(root)
        self.own_port, self.down_port = free_port(), free_port()
        self.services = (
            make_service(root, "chat", "chat", ("gpt-4", CHINESE, "100%"), replicas=2),
            make_service(root, "embedding", "embed", ("gte",), port=self.own_port),
            make_service(root, "rerank", "rerank", ("bge",)),
            make_service(root, "down", "rerank", ("absent",), port=self.down_port),
        )
        engines = [r for s in self.services if s.name != "down" for r in s.replicas]
        self.stubs = {r.name: Stub(Path(r.socket), r.name) for r in engines}

    def post(self, path: str, body: object, **more: object) -> httpx.Response:
        with self.gateway.client() as client:
            return client.post(path, json=body, **more)  # type: ignore[arg-type]

    def get(self, path: str) -> httpx.Response:
        with self.gateway.client() as client:
            return client.get(path)


@pytest.fixture(scope="module")
def suite() -> Iterator[Suite]:
    root = Path(tempfile.mkdtemp(prefix="lh", dir="/tmp"))
    made = Suite(root)
    try:
        with made.gateway:
            for stub in made.stubs.values():
                stub.start()
            made.gateway.start(*made.services)
            made.gateway.wait_healthy(chat=2, embedding=1, rerank=1, down=0)
            yield made
    finally:
        for stub in made.stubs.values():
            stub.stop()
        shutil.rmtree(root)
