"""Servers on other hosts when `up` asks them what they serve: down, another model, another key, another authority."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llmhost import config
from llmhost.errors import ConfigError
from llmhost.probe.endpoint import check_endpoints, read_endpoints
from tests.certificates import Certificates

pytestmark = pytest.mark.integration

KEY = "sk-far"
MODELS = json.dumps({"data": [{"id": "gpt-4"}, {"id": "old"}]})


class Handler(BaseHTTPRequestHandler):
    answer = (200, MODELS)

    def do_GET(self) -> None:
        known = self.headers["Authorization"] == f"Bearer {KEY}"
        status, text = self.answer if known else (401, "{}")
        self.send_response(status if self.path == "/v1/models" else 404)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(status: int = 200, text: str = MODELS, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server that answers so; its URL."""
    handler = type("Answering", (Handler,), {"answer": (status, text)})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def down(home: Path, url: str, name: str = "gpt-4", key: str | None = KEY, more: str = "") -> list[str]:
    """Of one endpoint of a service with this name, as `up` asks it."""
    if key:
        file = home / "far.key"
        file.touch(mode=0o600)
        file.write_text(key)
    endpoint = f"{{url: '{url}'{', key_file: far.key' if key else ''}{more}}}"
    text = f"services: {{chat: {{model: /m, kind: chat, replicas: 0, served_as: ['{name}'], endpoints: [{endpoint}]}}}}"
    parsed = config.parse(text)
    return check_endpoints(parsed, read_endpoints(parsed, home))


def test_a_server_with_the_model(tmp_path: Path) -> None:
    with serving() as url:
        assert down(tmp_path, url) == []


def test_a_server_that_is_down_or_in_trouble_may_come_later(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        assert down(tmp_path, url) == [url]
    with serving(503, "") as url:
        assert down(tmp_path, url) == [url]


def test_a_server_with_another_model(tmp_path: Path) -> None:
    with serving() as url, pytest.raises(ConfigError) as raised:
        down(tmp_path, url, name="gpt-5")
    assert raised.value.message == f"services.chat.endpoints: {url} does not serve gpt-5 (it serves gpt-4, old)"
    assert "served_as" in raised.value.hint


@pytest.mark.parametrize(("key", "said"), [(None, "us without a key"), ("sk-wrong", "the key in far.key")])
def test_a_server_that_refuses_us(tmp_path: Path, key: str | None, said: str) -> None:
    with serving() as url, pytest.raises(ConfigError) as raised:
        down(tmp_path, url, key=key)
    assert raised.value.message == f"services.chat.endpoints: {url} refuses {said}"
    assert "sk-wrong" not in raised.value.hint


@pytest.mark.parametrize("text", ["<html>hello</html>", "{}", '{"data": 1}', "[]"])
def test_a_server_of_another_kind(tmp_path: Path, text: str) -> None:
    with serving(200, text) as url, pytest.raises(ConfigError, match="no OpenAI-compatible server"):
        down(tmp_path, url)


def test_https_wants_a_certificate_of_the_right_authority(tmp_path: Path) -> None:
    folders = [tmp_path / "ours", tmp_path / "another"]
    for folder in folders:
        folder.mkdir()
    certificates, other = map(Certificates, folders)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificates.certificate, certificates.key)
    with serving(tls=tls) as url:
        assert down(tmp_path, url, more=f", ca_file: {certificates.ca}") == []
        with pytest.raises(ConfigError) as raised:
            down(tmp_path, url, more=f", ca_file: {other.ca}")
    assert "certificate" in raised.value.message.lower()
    assert "ca_file" in raised.value.hint
