"""Nothing reaches an engine without a key that may use it: every path of an engine, every trick with a path."""

from __future__ import annotations

import subprocess
from pathlib import Path

import httpx
import psutil
import pytest

from tests.integration.gateway.locked import Locked
from tests.integration.gateway.running import eventually
from tests.security.conftest import exchange, statuses

pytestmark = pytest.mark.integration

ROUTES = [tuple(line.split()) for line in (Path(__file__).parent / "vllm-0.32.0-routes.txt").read_text().splitlines()]
"""Every route of vLLM 0.32.0, as its routers declare them."""

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")


def ask(locked: Locked, method: str, path: str, key: str | None, model: str = "gte") -> int:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with locked.gateway.client() as client:
        return client.request(method, path, headers=headers, json={"model": model}).status_code


@pytest.mark.parametrize("path", sorted({path for _, path in ROUTES}))
def test_every_route_of_an_engine_in_every_method(locked: Locked, path: str) -> None:
    path, before = path.replace("{response_id}", "resp_1"), locked.reached
    for method in METHODS:
        for key in (None, "sk-wrong", locked.secret[:-4]):
            expected = 200 if (path, method) in (("/health", "GET"), ("/health", "HEAD")) else 401
            assert ask(locked, method, path, key) == expected, (method, key)
    assert locked.reached == before


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_of_an_engine_with_the_key_of_another_service(locked: Locked, method: str, path: str) -> None:
    before = len(locked.stubs["embedding"].asked)
    answer = ask(locked, method.replace("WEBSOCKET", "GET"), path, locked.chat_secret)
    if path not in ("/health", "/docs", "/v1/models", "/openapi.json"):
        assert answer in (400, 403, 404, 405)
    assert len(locked.stubs["embedding"].asked) == before


@pytest.mark.parametrize(
    "path",
    [
        "//v1/embeddings", "/v1//embeddings", "/v1/embeddings/", "/v1/./embeddings", "/v1/x/../embeddings",
        "/V1/embeddings", "/v1/EMBEDDINGS", "/v1%2fembeddings", "/v1/%65mbeddings", "/v1/embeddings%00",
        "/v1/embeddings;x", "/v1/embeddings%3fx", "/health/../v1/embeddings", "/health%2f..%2fv1/embeddings",
        "/health;/v1/embeddings", "/health/", "/healthz", "/HEALTH", "/health%20", "/v1/embeddings?/health",
        "/v1/embeddings#/health", "http://x/v1/embeddings", "http://x/health/../v1/embeddings", "\\v1\\embeddings",
        "/v1/embeddings\t", "/.%2e/v1/embeddings", "/health\\..\\v1\\embeddings",
    ],
)  # fmt: skip
def test_tricks_with_paths(locked: Locked, path: str) -> None:
    body = b'{"model": "gte"}'
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    before = locked.reached
    for key in ("", "Authorization: Bearer x\r\n", f"x-api-key: {locked.chat_secret}\r\n"):
        found = statuses(exchange(locked.gateway.port, f"{head}{key}Connection: close\r\n\r\n".encode() + body))
        assert found in ([], [400], [401], [403], [404], [405]), key
    assert locked.reached == before


@pytest.mark.parametrize(
    "headers",
    [
        {"x-original-url": "/health"},
        {"x-rewrite-url": "/health"},
        {"x-envoy-original-path": "/health"},
        {"x-forwarded-for": "127.0.0.1", "x-real-ip": "127.0.0.1", "x-envoy-internal": "true"},
        {"x-envoy-force-trace": "1", "x-envoy-decorator-operation": "x"},
        {"x-http-method-override": "GET", "x-forwarded-host": "localhost", "host": "localhost"},
        {"authorization": "Basic Og=="},
        {"x-api-key": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer sk-Og=="},
        {"authorization": "Bearer " + "A" * 20_000},
        {"x-llmhost-user": "everything.1", "x-llmhost-time": "1"},
        {"x-llmhost-way": "embedding", "x-llmhost-service": "embedding", "x-llmhost-credential": "Basic Og=="},
    ],
)
def test_tricks_with_headers(locked: Locked, headers: dict[str, str]) -> None:
    before = locked.reached
    with locked.gateway.client() as client:
        assert client.post("/v1/embeddings", json={"model": "gte"}, headers=headers).status_code == 401
    assert locked.reached == before


def test_two_keys_in_one_request_are_none(locked: Locked) -> None:
    before = len(locked.stubs["embedding"].asked)
    with locked.gateway.client() as client:
        for name in ("authorization", "x-api-key"):
            values = [
                (name, f"Bearer {k}" if name == "authorization" else k) for k in (locked.chat_secret, locked.secret)
            ]
            answer = client.post("/v1/embeddings", json={"model": "gte"}, headers=values)
            assert answer.status_code == 401
    assert len(locked.stubs["embedding"].asked) == before


def test_tunnels_and_other_protocols(locked: Locked) -> None:
    port = locked.gateway.port
    upgrade = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n"
    assert statuses(exchange(port, upgrade % b"websocket")) == [403]
    assert statuses(exchange(port, upgrade % b"h2c")) in ([401], [403])
    assert statuses(exchange(port, b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n")) == [403]
    assert statuses(exchange(port, b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")) in ([401], [404])


def test_the_gateway_listens_where_it_should_and_nowhere_else(locked: Locked) -> None:
    """The admin interface is a socket of this user in a directory of this user."""
    assert locked.gateway.process is not None
    process = psutil.Process(locked.gateway.process.pid)
    listening = {c.laddr for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    ports = {locked.gateway.port, locked.services[1].port}
    assert {(str(a.ip), a.port) for a in listening} == {("127.0.0.1", port) for port in ports}
    assert locked.gateway.home.gateway_admin_socket.stat().st_mode & 0o077 == 0
    for path in ("/config_dump", "/quitquitquit", "/stats", "/clusters", "/certs", "/logging", "/runtime"):
        assert ask(locked, "GET", path, locked.secret) == 404
        assert ask(locked, "POST", path, locked.secret) == 404


def test_a_key_is_in_no_log_and_no_process(locked: Locked) -> None:
    for path in ("/v1/embeddings", "/nothing"):
        ask(locked, "POST", path, locked.secret)
    said = subprocess.run(["ps", "axwwe"], capture_output=True, text=True, check=True).stdout
    assert locked.secret not in said
    eventually(lambda: '"/nothing"' in locked.gateway.access_log.read_text(), "the access log")
    assert f'"key":"{locked.everything.name}"' in locked.gateway.access_log.read_text()
    for log in (locked.gateway.log, locked.gateway.access_log):
        assert locked.secret not in log.read_text()


def test_the_admin_interface_does_not_tell_keys(locked: Locked) -> None:
    """Envoy takes the list for sensitive and does not even tell the hashes."""
    transport = httpx.HTTPTransport(uds=str(locked.gateway.home.gateway_admin_socket))
    with httpx.Client(transport=transport, base_url="http://admin", timeout=300) as client:
        said = "".join(client.get(path).text for path in ("/config_dump", "/stats", "/clusters", "/server_info"))
    assert "llmhost.auth" in said
    assert locked.everything.digest not in said
    assert locked.secret not in said
