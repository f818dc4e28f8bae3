"""A proxy or a mirror that answers everything with the page of its login, through the real clients of both hubs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llmhost.errors import HubError
from llmhost.hub.access import make_hub

pytestmark = pytest.mark.integration

PAGE = b"\n<!DOCTYPE html><html><body>Please log in</body></html>"


class LoginPage(BaseHTTPRequestHandler):
    content = PAGE

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(self.content)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), LoginPage) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("scheme", "variable"), [("hf", "HF_ENDPOINT"), ("modelscope", "MODELSCOPE_DOMAIN")])
def test_a_web_page_is_called_one(proxy: str, scheme: str, variable: str) -> None:
    with pytest.raises(HubError) as error:
        make_hub(scheme, proxy, None).snapshot("org/model", None)
    assert error.value.message == f"{scheme}:org/model: {proxy} answered with a web page and not with JSON"
    assert f"`curl -L {proxy}`" in error.value.hint
    assert f"HTTPS_PROXY, NO_PROXY and {variable}" in error.value.hint


@pytest.mark.parametrize("scheme", ["hf", "modelscope"])
def test_what_is_neither_json_nor_a_page(proxy: str, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoginPage, "content", b'{"cut": ')
    with pytest.raises(HubError, match="cannot fetch from"):
        make_hub(scheme, proxy, None).snapshot("org/model", None)
