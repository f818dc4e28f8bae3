"""Requests that prove that an engine works: a hung vLLM still answers 200 on /health, so real ones are made."""

from __future__ import annotations

import json
import re
import socket
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Pause = Callable[[float | None, tuple[int, ...]], list[int]]
    """Sleeps until something can be read; raises when the guard has something else to do."""

REQUESTS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    # A model without a chat template refuses chat with status 400 and still completes text.
    "chat": [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}),
        ("/v1/completions", {"prompt": "hi", "max_tokens": 1}),
    ],
    "embed": [("/v1/embeddings", {"input": "hi"})],
    "rerank": [("/v1/rerank", {"query": "hi", "documents": ["hi"]})],
}
"""Path and body of the cheapest real requests of a kind; the next one is tried when one is refused with 400."""

LONGEST_ANSWER = 4 * 2**20
"""Bytes of an answer that are read: the metrics of an engine are some 100 KB."""


def http_request(path: str, model: str, fields: dict[str, Any]) -> bytes:
    """A whole HTTP/1.1 request; the server closes the connection after its answer."""
    body = json.dumps({"model": model, **fields}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def http_status(answer: bytes) -> int:
    """The status of a response, 0 when it is none."""
    found = re.match(rb"HTTP/1\.[01] (\d{3})[ \r]", answer)
    return int(found[1]) if found else 0


def http_body(answer: bytes) -> str:
    """The body of a response as it was sent, for a message."""
    return answer.partition(b"\r\n\r\n")[2].decode("utf-8", "replace")


class Engine:
    """The engine at the other end of a socket, asked without ever blocking the guard."""

    def __init__(self, path: bytes, kind: str, model: str, pause: Pause) -> None:
        self.path = path
        self.kind = kind
        self.model = model
        self.pause = pause
        self.last_answer = ""
        """Of a request of the kind that did not work, for a message; '' when there was none."""
        self.last_tokens = 0
        """Tokens that the last request which worked took."""

    def works(self, deadline: float) -> bool:
        """Whether a real request is answered with 200 until then (monotonic clock)."""
        for path, fields in REQUESTS[self.kind]:
            answer = self.ask(http_request(path, self.model, fields), deadline)
            status = http_status(answer)
            if status == 200:
                found = re.search(rb'"total_tokens": ?(\d+)', answer)
                self.last_tokens = int(found[1]) if found else 0
                return True
            if status:
                self.last_answer = f"{status} to {path}: {http_body(answer)}"
            if status != 400:
                return False
        return False

    def ask(self, request: bytes, deadline: float) -> bytes:
        """The whole answer to a request, b'' when there is none until then."""
        answer = bytearray()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.setblocking(False)
            try:
                connection.connect(self.path)
                connection.send(request)  # a few hundred bytes fit into an empty socket buffer
                while len(answer) < LONGEST_ANSWER:
                    if time.monotonic() >= deadline:
                        return b""
                    self.pause(deadline - time.monotonic(), (connection.fileno(),))
                    part = _receive(connection)
                    if part == b"":
                        break
                    answer += part or b""
            except OSError:
                return b""
        return bytes(answer)


def _receive(connection: socket.socket) -> bytes | None:
    """What has arrived: None when nothing, b'' when the other side closed."""
    try:
        return connection.recv(65536)
    except BlockingIOError:
        return None
