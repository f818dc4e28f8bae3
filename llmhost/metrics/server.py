"""The exporter's server: one page over one unix socket, which the gateway serves at /metrics.

One request at a time. Whoever asks while a page is being made gets that page: two Prometheus cost no more than one.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time

from llmhost.metrics.nvml import Nvml
from llmhost.metrics.page import make_page, read_spec
from llmhost.metrics.text import CONTENT_TYPE

FRESH_SECONDS = 0.5
"""Age up to which a page is given out again."""
REQUEST_SECONDS = 2.0
"""Seconds for a client, which is the gateway or `llmhost top`, to say what it wants, and to take the answer."""
HEAD_LIMIT = 65536


class Server:
    """Serves the metrics of the home whose spec is at ``spec``."""

    def __init__(self, spec: str) -> None:
        self._spec = spec
        self._version = ""
        self._gpus = Nvml()
        self._page = b""
        self._made = float("-inf")

    def serve(self) -> None:
        """Never returns. Raises OSError when the socket cannot be made, ValueError when the spec is none."""
        spec = read_spec(self._spec)
        self._version, path = spec["version"], spec["socket"]
        if os.path.exists(path):  # of an exporter that was killed; supervisord runs one only
            os.unlink(path)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            os.chmod(path, 0o600)
            listener.listen(128)
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):  # the client has gone
                    self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(REQUEST_SECONDS)
        head = b""
        while b"\r\n\r\n" not in head and len(head) < HEAD_LIMIT:
            part = connection.recv(8192)
            if not part:
                return
            head += part
        method = head.partition(b" ")[0]
        status, body = self._body() if method in (b"GET", b"HEAD") else ("405 Method Not Allowed", b"")
        answer = f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(answer.encode() + b"Connection: close\r\n\r\n" + (b"" if method == b"HEAD" else body))

    def _body(self) -> tuple[str, bytes]:
        if time.monotonic() - self._made > FRESH_SECONDS:
            try:
                spec = read_spec(self._spec)
                if spec["version"] != self._version:
                    sys.exit(0)  # llmhost was upgraded: supervisord starts the new exporter
                self._page = make_page(spec, self._gpus).encode()
            except (OSError, ValueError, KeyError, TypeError) as e:
                print(f"no metrics: {type(e).__name__}: {e}", file=sys.stderr, flush=True)
                return "500 Internal Server Error", f"{self._spec} cannot be used: {e}\n".encode()
            self._made = time.monotonic()
        return "200 OK", self._page
