"""Members of a service on other hosts, and requests that stick to one member: the real Envoy, stubs as engines."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from llmhost.gateway import render_static
from llmhost.plan.types import EndpointPlan, ServicePlan, StickyPlan
from llmhost.run import capture
from tests.integration.gateway.running import Gateway, eventually
from tests.integration.gateway.stub import Stub
from tests.ports import free_port
from tests.unit.gateway.plans import make_service

pytestmark = pytest.mark.integration

CHAT = "/v1/chat/completions"


@dataclass
class Far(Stub):
    """A stub on a TCP port, as a server on another host."""

    port: int = 0
    context: ssl.SSLContext | None = None

    async def listen(self) -> asyncio.Server:
        return await asyncio.start_server(self.connection, "127.0.0.1", self.port, ssl=self.context)


@contextmanager
def far(name: str = "far", context: ssl.SSLContext | None = None) -> Iterator[Far]:
    with Far(Path("/nonexistent"), name, port=free_port(), context=context) as stub:
        yield stub


def endpoint(stub: Far, host: str = "127.0.0.1", key: str | None = None, ca: Path | None = None) -> EndpointPlan:
    scheme = "https" if stub.context else "http"
    return EndpointPlan(f"{scheme}://{host}:{stub.port}", "127.0.0.1", key=key, ca_file=str(ca) if ca else None)


def service_of(gateway: Gateway, *endpoints: EndpointPlan, replicas: int = 0, **more: Any) -> ServicePlan:
    return replace(
        make_service(gateway.root, "chat", "chat", ("gpt/4 %",), replicas=replicas), endpoints=endpoints, **more
    )


def test_a_server_on_another_host_takes_its_part(gateway: Gateway) -> None:
    with far() as there, gateway.client() as client:
        service = service_of(gateway, endpoint(there), replicas=1)
        with Stub(Path(service.replicas[0].socket), "near"):
            gateway.start(service)
            gateway.wait_healthy(chat=2)
            assert {client.post(CHAT, json={}).json()["stub"] for _ in range(60)} == {"near", "far"}
        assert gateway.state.healthy["chat"] >= {f"127.0.0.1:{there.port}"}
        eventually(lambda: client.post(CHAT, json={}).json().get("stub") == "far", "it serves alone")


def test_each_server_gets_its_own_key_and_no_other(gateway: Gateway) -> None:
    """The key of a client is for us: it must not reach another host, and ours must not reach a third one."""
    with far("first") as first, far("second") as second, gateway.client() as client:
        endpoints = (endpoint(first, key="sk-first"), endpoint(second))
        gateway.start(service_of(gateway, *endpoints))
        gateway.wait_healthy(chat=2)
        theirs = {"authorization": "Bearer client", "x-api-key": "client"}
        for _ in range(40):
            assert client.post(CHAT, json={}, headers=theirs).status_code == 200
        assert {s.headers.get("authorization") for s in first.asked} == {"Bearer sk-first"}
        assert {s.headers.get("authorization") for s in second.asked} == {None}
        for seen in first.asked + second.asked:
            assert "client" not in str(seen.headers.values())
            assert not [name for name in seen.headers if name.startswith("x-envoy")]


def test_a_server_gets_requests_under_its_own_name(gateway: Gateway) -> None:
    with far() as there, gateway.client() as client:
        gateway.start(service_of(gateway, endpoint(there, "localhost")))
        gateway.wait_healthy(chat=1)
        client.post(CHAT, json={})
        (seen,) = there.asked
        assert seen.headers["host"] == f"localhost:{there.port}"
        assert {s.headers["host"] for s in there.health_checks} == {"localhost"}


def test_another_gateway_is_asked_for_the_health_of_the_model(gateway: Gateway, home: Path) -> None:
    """It is up long before its engine is: no requests until that is ready, and none when it goes."""
    near = make_service(gateway.root, "far", "chat", ("gpt/4 %",))
    with Gateway(home / "second") as second, Stub(Path(near.replicas[0].socket), "engine") as engine:
        engine.healthy = False
        gateway.start(near, make_service(gateway.root, "other"))
        far_one = EndpointPlan(f"http://127.0.0.1:{gateway.port}", "127.0.0.1")
        second.start(service_of(second, far_one))
        with second.client() as client, gateway.client() as direct:
            body = {"model": "gpt/4 %"}
            assert direct.get("/health").status_code == 200
            assert direct.get("/health?model=gpt%2F4%20%25").status_code == 503
            told = direct.get("/health?model=nobody")
            assert told.status_code == 503
            assert told.json()["error"]["message"] == "The model has no engine that is ready"
            assert client.post(CHAT, json=body).status_code == 503
            engine.healthy = True
            second.wait_healthy(chat=1)
            assert client.post(CHAT, json=body).json()["stub"] == "engine"
            engine.healthy = False
            second.wait_healthy(chat=0)
            assert client.post(CHAT, json=body).headers["retry-after"]


def test_https_is_checked_against_the_name_and_the_authority(gateway: Gateway, home: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    ca, wrong_ca = home / "ca.pem", home / "wrong.pem"
    authority.cert_pem.write_to_path(ca)
    stranger.cert_pem.write_to_path(wrong_ca)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    with far(context=context) as there, far("plain") as plain, gateway.client() as client:
        for host, file, healthy in (("localhost", ca, 2), ("127.0.0.1", ca, 1), ("localhost", wrong_ca, 1)):
            gateway.process = gateway.process and (gateway.kill() or None)
            gateway.start(service_of(gateway, endpoint(there, host, ca=file), endpoint(plain)))
            gateway.wait_healthy(chat=healthy)
            answers = {client.post(CHAT, json={}).json()["stub"] for _ in range(40)}
            assert answers == ({"far", "plain"} if healthy == 2 else {"plain"})


def test_envoy_accepts_members_and_stickiness_of_every_kind(gateway: Gateway, home: Path) -> None:
    ca = home / "ca.pem"
    trustme.CA().cert_pem.write_to_path(ca)
    endpoints = (
        EndpointPlan("http://10.0.0.2:8000", "10.0.0.2", key='k"%\\'),
        EndpointPlan("https://gpu.example:443", "10.0.0.3", ca_file=str(ca)),
        EndpointPlan("https://[fd00::1]:443", "fd00::1", ca_file=str(ca)),
    )
    services = [
        replace(make_service(home, f"s{n}", replicas=n), endpoints=endpoints, sticky=sticky)
        for n, sticky in enumerate((None, StickyPlan(header="x-session"), StickyPlan(prefix=64)))
    ]
    file = home / "static.json"
    file.write_text(render_static(gateway.plan(*services)))
    done = capture([gateway.plan().tools.envoy, "--mode", "validate", "-c", file, "-l", "warn"], check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- stickiness -----------------------------------------------------------------------------------------------------


@contextmanager
def three_stubs(gateway: Gateway, sticky: StickyPlan) -> Iterator[list[Stub]]:
    service = replace(make_service(gateway.root, "chat", replicas=3), sticky=sticky)
    stubs = [Stub(Path(r.socket), r.name) for r in service.replicas]
    for stub in stubs:
        stub.start()
    try:
        gateway.start(service)
        gateway.wait_healthy(chat=3)
        yield stubs
    finally:
        for stub in stubs:
            stub.stop()


def messages(*texts: str, system: str = "You are kind.") -> list[dict[str, str]]:
    roles = ("user", "assistant")
    said = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *said]


def test_a_header_chooses_the_engine(gateway: Gateway) -> None:
    with three_stubs(gateway, StickyPlan(header="x-session-id")), gateway.client() as client:

        def who(session: str) -> set[str]:
            return {client.post(CHAT, json={}, headers={"X-Session-Id": session}).json()["stub"] for _ in range(8)}

        chosen = [who(str(n)) for n in range(30)]
        assert all(len(names) == 1 for names in chosen)
        assert {name for names in chosen for name in names} == {"chat-0", "chat-1", "chat-2"}
        without = {client.post(CHAT, json={}).json()["stub"] for _ in range(60)}
        assert without == {"chat-0", "chat-1", "chat-2"}


def test_a_conversation_stays_with_its_engine_while_it_grows(gateway: Gateway) -> None:
    with three_stubs(gateway, StickyPlan(prefix=1024)), gateway.client() as client:

        def who(**body: Any) -> str:
            answer = client.post(CHAT, json=body)
            return str(answer.json()["stub"])

        used = set()
        for number in range(30):
            first = f'Say "{number}" \\ [with] {{all}} "user" kinds, of characters: 通义'
            turns = [who(model="chat", messages=messages(first, *["more"] * n), temperature=n) for n in range(5)]
            assert len(set(turns)) == 1, turns
            used.add(turns[0])
        assert used == {"chat-0", "chat-1", "chat-2"}
        prompts = [{who(prompt=f"{n} bottles", n=k) for k in range(4)} for n in range(20)]
        assert all(len(names) == 1 for names in prompts)
        assert len(set.union(*prompts)) == 3
        questions = [{who(input=f"{n} bottles", k=k) for k in range(4)} for n in range(20)]
        assert len(set.union(*questions)) == 3


def test_what_is_behind_the_prefix_does_not_count(gateway: Gateway) -> None:
    with three_stubs(gateway, StickyPlan(prefix=64)), gateway.client() as client:
        same = {
            client.post(CHAT, json={"messages": messages(str(n), system="x" * 64)}).json()["stub"] for n in range(30)
        }
        other = {
            client.post(CHAT, json={"messages": messages("a", system=f"{n}" * 64)}).json()["stub"] for n in range(30)
        }
        assert len(same) == 1
        assert len(other) == 3


def test_a_body_that_is_no_conversation_goes_anywhere(gateway: Gateway) -> None:
    bodies: list[Any] = [{}, {"messages": 5}, {"messages": []}, {"messages": "\\"}, {"prompt": None}, {"model": "chat"}]
    with three_stubs(gateway, StickyPlan(prefix=1024)), gateway.client() as client:
        for body in bodies:
            assert client.post(CHAT, json=body).status_code == 200, body
        large = {"messages": messages("x" * 500_000)}
        assert len({client.post(CHAT, json=large).json()["stub"] for _ in range(5)}) == 1
        forged = {client.post(CHAT, json=large, headers={"x-llmhost-prefix": str(n)}).json()["stub"] for n in range(20)}
        assert len(forged) == 1


def test_a_busy_engine_passes_requests_on_and_a_missing_one_is_replaced(gateway: Gateway) -> None:
    body = {"messages": messages("hi")}
    with three_stubs(gateway, StickyPlan(prefix=1024)) as stubs, gateway.client() as client:
        chosen = client.post(CHAT, json=body).json()["stub"]
        holding = [client.stream("POST", CHAT, json={**body, "stub": {"stream": 2}}) for _ in range(9)]
        for stub in stubs:
            for _ in range(9):
                stub.release()
        for stream in holding:
            stream.__enter__()
        assert sum(bool(stub.asked) for stub in stubs) > 1, "one engine got everything"
        for stream in holding:
            stream.__exit__(None, None, None)
        next(s for s in stubs if s.name == chosen).healthy = False
        gateway.wait_healthy(chat=2)
        assert len({client.post(CHAT, json=body).json()["stub"] for _ in range(10)} - {chosen}) == 1
