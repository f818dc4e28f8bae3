"""A gateway that needs keys, before two stub engines."""

from __future__ import annotations

from pathlib import Path

import httpx

from llmhost.plan.types import ServicePlan
from tests.integration.gateway.running import Gateway
from tests.integration.gateway.stub import Stub
from tests.ports import free_port
from tests.unit.gateway.issued import issue
from tests.unit.gateway.plans import make_service


class Locked:
    """A gateway with keys: chat and embedding, embedding also on a port of its own."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.everything, self.secret = issue("everything")
        self.chat_only, self.chat_secret = issue("chat-only", ("chat",))
        self.embed_only, self.embed_secret = issue("embed-only", ("embedding",))
        gateway.keys = (self.everything, self.chat_only, self.embed_only)
        self.services: tuple[ServicePlan, ...] = (
            make_service(gateway.root, "chat", "chat", ("gpt-4",)),
            make_service(gateway.root, "embedding", "embed", ("gte",), port=free_port()),
        )
        self.stubs = {s.name: Stub(Path(s.replicas[0].socket), s.name) for s in self.services}

    def post(self, path: str, model: str | None, key: str | None = None, **headers: str) -> httpx.Response:
        bearer = {"authorization": f"Bearer {key}"} if key else {}
        with self.gateway.client() as client:
            return client.post(path, json={"model": model} if model else {}, headers={**bearer, **headers})

    def get(self, path: str, key: str | None = None, port: int | None = None) -> httpx.Response:
        with self.gateway.client(port) as client:
            return client.get(path, headers={"x-api-key": key} if key else {})

    def __enter__(self) -> Locked:
        for stub in self.stubs.values():
            stub.start()
        self.gateway.start(*self.services)
        self.gateway.wait_healthy(chat=1, embedding=1)
        return self

    def __exit__(self, *_: object) -> None:
        for stub in self.stubs.values():
            stub.stop()

    @property
    def reached(self) -> int:
        """Requests that an engine has seen."""
        return sum(len(stub.asked) for stub in self.stubs.values())
