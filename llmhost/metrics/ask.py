"""Asks several programs over their unix sockets at the same time, with one deadline for all of them.

One loop and no threads: a program that hangs, answers slowly or not at all costs the deadline and nothing else.
"""

from __future__ import annotations

import select
import socket
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

LIMIT = 16 * 1024 * 1024
"""Bytes of one answer; a longer one counts as none."""


class _Exchange:
    """One request on its way."""

    def __init__(self, path: str, target: str) -> None:
        self.answer = bytearray()
        self._rest = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self.socket.connect(path)
        except OSError:  # also a listener whose queue is full
            self.socket.close()
            raise

    @property
    def events(self) -> int:
        return select.POLLOUT if self._rest else select.POLLIN

    def go_on(self) -> bool:
        """Send or receive what is possible; False when the exchange has ended. Raises OSError."""
        if self._rest:
            self._rest = self._rest[self.socket.send(self._rest) :]
            return True
        part = self.socket.recv(262144)
        self.answer += part
        if len(self.answer) > LIMIT:
            raise OSError("too long an answer")
        return bool(part)


def ask_all(requests: Mapping[str, tuple[str, str]], seconds: float) -> dict[str, bytes]:
    """GET each ``(socket path, target)``; the bodies of those that answered whole, with status 200, in time."""
    deadline = time.monotonic() + seconds
    poll, running, bodies = select.poll(), dict[int, tuple[str, _Exchange]](), dict[str, bytes]()
    for key, (path, target) in requests.items():
        try:
            exchange = _Exchange(path, target)
        except OSError:
            continue
        running[exchange.socket.fileno()] = key, exchange
        poll.register(exchange.socket, exchange.events)
    while running and (left := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(left * 1000):
            key, exchange = running[fd]
            try:
                if exchange.go_on():
                    poll.modify(fd, exchange.events)
                    continue
                body = body_of(bytes(exchange.answer))
            except OSError:
                body = None
            if body is not None:
                bodies[key] = body
            poll.unregister(fd)
            exchange.socket.close()
            del running[fd]
    for _, exchange in running.values():
        exchange.socket.close()
    return bodies


def body_of(answer: bytes) -> bytes | None:
    """The body of a whole HTTP/1.1 response of status 200; None for any other, and for one that was cut off."""
    head, end, body = answer.partition(b"\r\n\r\n")
    words = head.split(maxsplit=2)
    if not end or len(words) < 2 or not words[0].startswith(b"HTTP/1.") or words[1] != b"200":
        return None
    fields = [line.partition(b":") for line in head.split(b"\r\n")[1:]]
    headers = {name.strip().lower(): value.strip().lower() for name, _, value in fields}
    if headers.get(b"transfer-encoding") == b"chunked":
        return _dechunked(body)
    length = headers.get(b"content-length", b"")
    return body if not length.isdigit() or int(length) == len(body) else None


def _dechunked(body: bytes) -> bytes | None:
    parts, at = list[bytes](), 0
    while True:
        line_end = body.find(b"\r\n", at)
        try:
            size = int(body[at:line_end].partition(b";")[0], 16) if line_end >= 0 else -1
        except ValueError:
            return None
        if size < 0 or len(body) < line_end + 2 + size:
            return None
        if size == 0:
            return b"".join(parts)
        parts.append(body[line_end + 2 : line_end + 2 + size])
        at = line_end + 2 + size + 2
