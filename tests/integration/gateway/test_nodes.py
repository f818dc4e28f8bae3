"""Gateways of several nodes as one: the real Envoy for each node, stubs as engines."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme

from llmhost import node_identity
from llmhost.gateway import render_static
from llmhost.gateway.access import TO
from llmhost.plan.types import Limits, StickyPlan
from llmhost.run import capture
from tests.integration.gateway.nodes import CHAT, Nodes, some_nodes
from tests.integration.gateway.running import LIMIT, eventually

pytestmark = pytest.mark.integration


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with some_nodes() as made:
        yield made


def test_every_gateway_serves_from_all_nodes(nodes: Nodes) -> None:
    nodes.start(places="ab")
    for name in "abc":  # c has no engine of it at all
        assert nodes[name].answering() == {"chat-0", "chat-1"}


def test_a_node_gets_as_much_as_it_has_replicas(nodes: Nodes) -> None:
    stubs = nodes.start(places="abbb")
    nodes["a"].answering(80)
    asked = {name: len(stub.asked) for name, stub in stubs.items()}
    assert all(asked.values())
    assert asked["chat-0"] < 40


def test_a_request_of_a_gateway_is_served_there_or_nowhere(nodes: Nodes) -> None:
    """No second hop: b has no engine any more, and does not pass on to a, which has one."""
    stubs = nodes.start(places="ab")
    stubs["chat-1"].stop()
    eventually(lambda: not nodes["b"].state.healthy["chat"], "b knows")
    before = len(stubs["chat-0"].asked)
    answer = through(nodes, "b", "c")
    assert answer.status_code == 503
    assert len(stubs["chat-0"].asked) == before
    assert nodes["b"].answering(10) == {"chat-0"}  # for its own clients it does


def test_a_node_says_what_it_refuses(nodes: Nodes) -> None:
    """In the words that it has for its own clients."""
    stubs = nodes.start(places="a", limits=Limits(concurrent_requests=1))
    body = {"model": "chat", "stub": {"stream": 1}}
    with nodes["b"].client() as client, client.stream("POST", CHAT, json=body) as answer:
        refused = nodes["c"].ask()
        stubs["chat-0"].release()
        answer.read()
    assert refused.status_code == 429
    assert refused.json()["error"]["message"] == "The service 'chat' has as many requests at once as it may have"
    unknown = through(nodes, "a", "b", "other")
    assert unknown.status_code == 503
    assert unknown.json()["error"]["message"] == "The service 'other' has no engine that is ready"
    assert int(unknown.headers["retry-after"]) > 0


def test_a_request_that_ends_like_a_question_for_health_is_a_request(nodes: Nodes) -> None:
    nodes.start(places="a")
    for name in "ac":
        with nodes[name].client() as client:
            assert client.post(f"{CHAT}?tag=1&service=chat", json={"model": "chat"}).json()["stub"] == "chat-0"


def test_what_a_client_says_of_nodes_counts_for_nothing(nodes: Nodes) -> None:
    stubs = nodes.start(places="ab")
    for _ in range(20):
        assert nodes["a"].ask(**{TO: "other"}).status_code == 200
    assert all(TO not in seen.headers for stub in stubs.values() for seen in stub.asked)


def test_an_engine_that_dies_is_left_to_the_other_node(nodes: Nodes) -> None:
    stubs = nodes.start(places="ab")
    stubs["chat-0"].stop()
    assert nodes["a"].answering(30) == {"chat-1"}
    eventually(lambda: nodes["b"].answering(1) == {"chat-1"}, "b, too")
    stubs["chat-0"].start()
    eventually(lambda: "chat-0" in nodes["b"].answering(10), "it is back")


def test_a_node_that_dies_is_left_out_at_once(nodes: Nodes) -> None:
    nodes.start(places="ab")
    nodes["b"].kill()
    assert nodes["a"].answering(60) == {"chat-0"}
    assert nodes["c"].answering(20) == {"chat-0"}
    eventually(lambda: len(nodes["c"].state.healthy["chat@nodes"]) == 1, "b is out")
    nodes["b"].start(nodes["b"].service("chat", "ab"))
    eventually(lambda: nodes["c"].answering(10) == {"chat-0", "chat-1"}, "b is back")


def test_a_node_that_says_nothing_any_more_is_out_after_seconds(nodes: Nodes) -> None:
    """As behind a cable that is cut: connections stay, and nothing comes."""
    nodes.start(places="ab")
    process = nodes["b"].process
    assert process is not None
    process.send_signal(19)  # SIGSTOP
    try:
        eventually(lambda: len(nodes["a"].state.healthy["chat@nodes"]) == 1, "b is out")
        assert nodes["a"].answering(30) == {"chat-0"}
    finally:
        process.send_signal(18)  # SIGCONT
    eventually(lambda: nodes["a"].answering(10) == {"chat-0", "chat-1"}, "b is back")


def test_requests_that_belong_together_stay_together(nodes: Nodes) -> None:
    nodes.start(places="abbc", sticky=StickyPlan(header="x-session"))
    for session in map(str, range(12)):
        answers = {nodes[n].ask(**{"x-session": session}).json()["stub"] for n in "abc" for _ in range(3)}
        assert len(answers) == 1


def test_keys_are_asked_for_once_and_stay_outside(nodes: Nodes) -> None:
    for gateway in nodes.gateways.values():
        gateway.locked = True
    nodes.start(places="ab")
    assert nodes["a"].ask(authorization="Bearer sk-x").status_code == 401
    assert through(nodes, "a", "b").status_code == 200  # a node was let in where the client asked


def test_a_large_body_and_a_stream_go_through(nodes: Nodes) -> None:
    stubs = nodes.start(places="b")
    with nodes["a"].client() as client:
        large = client.post(CHAT, json={"model": "chat", "x": "y" * 900_000})
        assert large.json()["bytes"] > 900_000
        with client.stream("POST", CHAT, json={"model": "chat", "stub": {"stream": 3}}) as answer:
            pieces = answer.iter_text()
            for index in range(3):
                stubs["chat-0"].release()
                assert f"data: {index}" in next(pieces)


def test_health_of_a_model_is_that_of_all_nodes(nodes: Nodes) -> None:
    stubs = nodes.start(places="b")
    with nodes["a"].client() as client:
        assert client.get("/health?model=chat").status_code == 200
        stubs["chat-0"].stop()
        eventually(lambda: client.get("/health?model=chat").status_code == 503, "nobody serves it")


def context_of(nodes: Nodes, name: str) -> ssl.SSLContext:
    """That of a node as a client of others."""
    home = nodes["a"].home
    context = ssl.create_default_context(cafile=str(node_identity.ca_file(home)))
    context.check_hostname = False
    context.load_cert_chain(node_identity.certificate_file(home, name), node_identity.key_file(home, name))
    return context


def through(nodes: Nodes, to: str, as_node: str, service: str = "chat") -> httpx.Response:
    """A request as the gateway of a node sends it."""
    port = next(n.port for n in nodes[to].nodes if n.name == to)
    with httpx.Client(verify=context_of(nodes, as_node), timeout=LIMIT) as client:
        return client.post(f"https://127.0.0.1:{port}{CHAT}", json={"model": "chat"}, headers={TO: service})


def refused(port: int, context: ssl.SSLContext) -> bool:
    """Whether nothing of a request is answered; with TLS 1.3 a server's refusal comes after the handshake."""
    try:
        with socket.create_connection(("127.0.0.1", port), LIMIT) as plain, context.wrap_socket(plain) as tls:
            tls.sendall(f"GET /health HTTP/1.1\r\nHost: x\r\n{TO}: chat\r\n\r\n".encode())
            return tls.recv(1) == b""
    except (ssl.SSLError, ConnectionError):
        return True


def test_only_nodes_of_the_file_get_in(nodes: Nodes) -> None:
    stubs = nodes.start(places="ab")
    port = nodes["a"].nodes[0].port
    stranger = ssl.create_default_context()
    stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
    assert refused(port, stranger)
    # A certificate of another authority, for the name of a node.
    other = trustme.CA()
    other.issue_cert("b").configure_cert(stranger)
    assert refused(port, stranger)
    # A node that was removed: its certificate is still good, and its name is not in llmhost.yaml any more.
    node_identity.ensure(nodes["a"].home, "gone")
    assert refused(port, context_of(nodes, "gone"))
    assert not refused(port, context_of(nodes, "b"))
    # And without TLS.
    with socket.create_connection(("127.0.0.1", port), LIMIT) as plain:
        plain.sendall(f"GET / HTTP/1.1\r\nHost: x\r\n{TO}: chat\r\n\r\n".encode())
        assert plain.recv(1) == b""
    assert not any(s.asked for s in stubs.values())


def test_a_node_cannot_pass_for_another(nodes: Nodes) -> None:
    """Whoever has b's address and another node's certificate gets no requests."""
    home = nodes["b"].home
    for file, mine in ((node_identity.certificate_file, "c"), (node_identity.key_file, "c")):
        shutil.copy(file(nodes["a"].home, mine), file(home, "b"))
    for gateway in nodes.gateways.values():
        service = gateway.service("chat", "ab")
        for replica in service.replicas:
            nodes.engine(replica)
        gateway.start(service)
    eventually(lambda: len(nodes["a"].state.healthy["chat@nodes"]) == 1, "a serves")
    assert nodes["a"].answering(30) == {"chat-0"}


def test_unknown_service_between_gateways(nodes: Nodes) -> None:
    nodes.start(places="ab")
    answer = through(nodes, "b", "a", service="nothing")
    assert answer.status_code == 503


def test_requests_are_logged_once_on_each_node(nodes: Nodes) -> None:
    nodes.start(places="a")
    assert nodes["a"].ask().status_code == 200
    assert nodes["b"].ask().status_code == 200

    def lines(name: str) -> list[str]:
        entries = map(json.loads, nodes[name].access_log.read_text().splitlines())
        return [e["path"] for e in entries if not e["path"].startswith("/health")]

    eventually(lambda: len(lines("a")) >= 2 and len(lines("b")) >= 1, "logs are written")
    assert (len(lines("a")), len(lines("b"))) == (2, 1)


def test_envoy_reads_it_whole(nodes: Nodes, tmp_path: Path) -> None:
    gateway = nodes["a"]
    file = tmp_path / "static.json"
    file.write_text(render_static(gateway.plan(gateway.service("chat", "ab"), gateway.service("more", "c"))))
    envoy = gateway.plan().tools.envoy
    done = capture([envoy, "--mode", "validate", "--config-path", file], timeout=60, check=False)
    assert done.returncode == 0, done.stderr
