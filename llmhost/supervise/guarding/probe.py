"""Requests that prove that an engine works: a hung vLLM still answers 200 on /health, so real ones are made."""

from __future__ import annotations

import errno
import json
import re
import select
import socket
import time

from llmhost.supervise.guarding.words import plain

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
"""Path and body of the cheapest real requests of a kind; the next one is tried when one is refused (`OTHER_FORM`)."""

OTHER_FORM = (400, 404)
"""Statuses of an engine that works and does not know this request: the next one is tried."""

CONNECT_POLL = 0.02

LONGEST_HEAD = 16384
LONGEST_ANSWER = 4 * 2**20
"""Bytes of an answer that are read: the metrics of an engine are some 100 KB."""


def http_request(path: str, model: str, fields: dict[str, Any]) -> bytes:
    """A whole HTTP/1.1 request; the server closes the connection after its answer."""
    body = json.dumps({"model": model, **fields}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def plain_request(path: str, body: str | None) -> bytes:
    """The same as somebody wrote it: GET, or POST of this JSON."""
    if body is None:
        return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    data = body.encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def http_status(answer: bytes) -> int:
    """The status of a response, 0 when it is none."""
    found = re.match(rb"HTTP/1\.[01] (\d{3})[ \r]", answer)
    return int(found[1]) if found else 0


def http_body(answer: bytes) -> str:
    """The body of a response as it was sent, for a message."""
    return answer.partition(b"\r\n\r\n")[2].decode("utf-8", "replace")


def is_whole(answer: bytes | bytearray) -> bool:
    """Whether all of a response is there, as far as its head tells how long it is."""
    head, found, _ = bytes(answer[:LONGEST_HEAD]).lower().partition(b"\r\n\r\n")
    if not found:
        return False
    if b"\r\ntransfer-encoding: chunked" in head:
        return answer.endswith(b"\r\n0\r\n\r\n")
    size = re.search(rb"\r\ncontent-length: *(\d+)", head)
    return size is not None and len(answer) - len(head) - 4 >= int(size[1])


def questions(kind: str, model: str, paths: dict[str, str]) -> list[tuple[str, bytes]]:
    """The real requests of a kind, each with its path at an engine that may call it otherwise (``paths``)."""
    found = [(paths.get(path, path), fields) for path, fields in REQUESTS.get(kind, ())]
    return [(path, http_request(path, model, fields)) for path, fields in found]


class Engine:
    """The engine at the other end of a socket, asked without ever blocking the guard.

    ``address`` is the path of a unix socket or ``host:port``, or empty: then there is nobody to ask. ``questions`` are
    whole requests with their paths; without any, it works when somebody listens.
    """

    def __init__(self, address: bytes, questions: list[tuple[str, bytes]], pause: Pause) -> None:
        self.address = address
        self.questions = questions
        self.pause = pause
        self.reached = False
        """Somebody has accepted a connection, in this life."""
        self.last_answer = ""
        """Of a request of the kind that did not work, short enough for a message; '' when there was none."""
        self.last_tokens = 0
        """Tokens that the last request which worked took."""

    def works(self, deadline: float) -> bool:
        """Whether one of the requests is answered with 2xx until then (monotonic clock)."""
        if not self.address:
            return True
        if not self.questions:
            return self._listens(deadline)
        for path, request in self.questions:
            answer = self.ask(request, deadline)
            status = http_status(answer)
            if 200 <= status < 300:
                found = re.search(rb'"total_tokens": ?(\d+)', answer)
                self.last_tokens = int(found[1]) if found else 0
                return True
            if status:
                self.last_answer = plain(f"{status} to {path}: {http_body(answer)}")
            if status not in OTHER_FORM:
                return False
        return False

    def _listens(self, deadline: float) -> bool:
        with self._socket() as connection:
            try:
                self._connect(connection, deadline)
            except OSError:
                return False
        return True

    def _socket(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX if self.address.startswith(b"/") else socket.AF_INET)
        connection.setblocking(False)
        return connection

    def _connect(self, connection: socket.socket, deadline: float) -> None:
        """Raises OSError when nobody accepts until then."""
        if self.address.startswith(b"/"):
            connection.connect(self.address)
        else:
            host, _, port = self.address.decode().rpartition(":")
            found = connection.connect_ex((host, int(port)))
            if found == errno.EINPROGRESS:
                found = self._connected(connection, deadline)
            # Where nobody listens a connection can meet itself, if the kernel chose the same port for its other end.
            if found or connection.getsockname() == connection.getpeername():
                raise OSError(found or errno.ECONNREFUSED, "connect")
        self.reached = True

    def _connected(self, connection: socket.socket, deadline: float) -> int:
        """What became of a connection over TCP: an error number, 0 when it stands."""
        poll = select.poll()
        poll.register(connection, select.POLLOUT)
        while not poll.poll(0):
            if time.monotonic() >= deadline:
                return errno.ETIMEDOUT
            self.pause(CONNECT_POLL, ())
        return connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def ask(self, request: bytes, deadline: float) -> bytes:
        """The whole answer to a request, b'' when there is none until then."""
        answer = bytearray()
        with self._socket() as connection:
            try:
                self._connect(connection, deadline)
                connection.send(request)  # what fits into an empty socket buffer
                while len(answer) < LONGEST_ANSWER:
                    if time.monotonic() >= deadline:
                        return b""
                    self.pause(deadline - time.monotonic(), (connection.fileno(),))
                    part = _receive(connection)
                    if part == b"":
                        break
                    answer += part or b""
                    if part and is_whole(answer):  # not everybody closes a connection when he is asked to
                        break
            except OSError:
                return b""
        return bytes(answer)


def _receive(connection: socket.socket) -> bytes | None:
    """What has arrived: None when nothing, b'' when the other side closed."""
    try:
        return connection.recv(65536)
    except BlockingIOError:
        return None
