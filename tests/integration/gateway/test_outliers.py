"""A member that answers /health and fails requests: left alone for a while, then tried again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.gateway.running import Gateway, eventually
from tests.integration.gateway.stub import Stub
from tests.unit.gateway.plans import make_service

pytestmark = pytest.mark.integration

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("status", [502])
def test_one_that_fails_is_left_alone_and_comes_back(gateway: Gateway, status: int) -> None:
    service = make_service(gateway.root, "chat", "chat", ("gpt-4",), replicas=2)
    good, bad = (Stub(Path(p.socket), p.name) for p in service.replicas)
    with good, bad, gateway.client() as client:
        gateway.start(service)
        gateway.wait_healthy(chat=2)
        bad.status = status

        def ejected() -> bool:
            client.post(CHAT, json={"model": "gpt-4"})
            return gateway.state.healthy["chat"] == {service.replicas[0].socket}

        eventually(ejected, "it gets no requests any more, although it says that it is healthy")
        bad.status = 200
        before = len(bad.asked)
        answers = [client.post(CHAT, json={"model": "gpt-4"}) for _ in range(20)]
        assert {(a.status_code, a.json()["stub"]) for a in answers} == {(200, good.name)}
        assert len(bad.asked) == before
        gateway.wait_healthy(chat=2)
        eventually(lambda: client.post(CHAT, json={"model": "gpt-4"}).json()["stub"] == bad.name, "it is asked again")


def test_the_last_one_is_never_left_alone(gateway: Gateway) -> None:
    """Somebody has to answer: of one member none is ejected, of two that fail one."""
    service = make_service(gateway.root, "chat", "chat", ("gpt-4",), replicas=2)
    stubs = [Stub(Path(p.socket), p.name, status=502) for p in service.replicas]
    with stubs[0], stubs[1], gateway.client() as client:
        gateway.start(service)
        gateway.wait_healthy(chat=2)

        def one_left() -> bool:
            client.post(CHAT, json={"model": "gpt-4"})
            return len(gateway.state.healthy["chat"]) == 1

        eventually(one_left, "one of them is left alone")
        for _ in range(20):
            assert client.post(CHAT, json={"model": "gpt-4"}).status_code == 502
            assert gateway.state.healthy["chat"]


def test_errors_of_the_engine_itself_are_no_reason(gateway: Gateway) -> None:
    """A 500 or a 400 may be the client's doing: one bad client must not take engines away from others."""
    service = make_service(gateway.root, "chat", "chat", ("gpt-4",), replicas=2)
    stubs = [Stub(Path(p.socket), p.name) for p in service.replicas]
    with stubs[0], stubs[1], gateway.client() as client:
        gateway.start(service)
        gateway.wait_healthy(chat=2)
        for status in (400, 500):
            stubs[1].status = status
            seen = {client.post(CHAT, json={"model": "gpt-4"}).status_code for _ in range(40)}
            assert seen == {200, status}
            assert len(gateway.state.healthy["chat"]) == 2
