"""The way between two nodes: which ports get through, how long a byte takes there and back, how many get through.

One side listens, the other one tries. Only who knows the token of this one measurement is answered.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import statistics
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

TOKEN = 32
"""Characters."""
ECHO, SINK = b"e", b"s"
ROUNDS = 20
CONNECT_SECONDS = 3.0
IDLE_SECONDS = 10.0
TEST_BYTES = 8 * 2**20
TEST_SECONDS = 1.0
BLOCK = 2**16
TAKEN = "taken"
"""Of a port: somebody listens there already, and may be asked instead."""


def listen(address: str, ports: Iterable[int]) -> dict[str, Any]:
    """Begin to listen on these ports, and on one that the kernel chooses; what the other side must know.

    ``ports`` in the answer is port -> ``""``, or why it cannot be listened on.
    """
    token = secrets.token_hex(TOKEN // 2)
    host, whose = _bindable(address)
    found: dict[str, str] = {}
    for port in ports:
        problem = ""
        try:
            _serve(_server(host, port), token)
        except OSError as e:
            problem = TAKEN if e.errno == 98 else str(e.strerror or e)
        found[str(port)] = problem
    measured = _server(host, 0)
    _serve(measured, token)
    return {"token": token, "port": measured.getsockname()[1], "ports": found, "own_address": whose}


def _bindable(address: str) -> tuple[str, bool]:
    """The address to listen on; any, where this machine has none like that (it is another one's, who forwards)."""
    try:
        _server(address, 0).close()
    except OSError:
        return ("::" if ":" in address else "0.0.0.0"), False
    return address, True


def _server(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((host, port))
        server.listen(16)
    except OSError:
        server.close()
        raise
    return server


def _serve(server: socket.socket, token: str) -> None:
    def accept() -> None:
        while True:
            connection, _ = server.accept()
            threading.Thread(target=_answer, args=(connection, token), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def _answer(connection: socket.socket, token: str) -> None:
    with connection, suppress(OSError):
        connection.settimeout(IDLE_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not hmac.compare_digest(_exactly(connection, TOKEN), token.encode()):
            return
        kind = _exactly(connection, 1)
        while kind == ECHO and (byte := connection.recv(1)):
            connection.sendall(byte)
        if kind == SINK:
            while connection.recv(BLOCK):
                pass
            connection.sendall(ECHO)


def _exactly(connection: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size and (more := connection.recv(size - len(got))):
        got += more
    return got


def reach(address: str, port: int) -> str:
    """'' when somebody listens there, else why not: ``refused``, ``no answer`` (eaten on the way), or in words."""
    try:
        socket.create_connection((address, port), CONNECT_SECONDS).close()
    except TimeoutError:
        return "no answer"
    except ConnectionRefusedError:
        return "refused"
    except OSError as e:
        return str(e.strerror or e)
    return ""


def measure(address: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """What this side finds of one that listens: seconds there and back, bytes a second; None: nothing gets through."""
    try:
        return {"seconds": _latency(address, told), "bytes_per_second": _bandwidth(address, told)}
    except OSError as e:
        return {"seconds": None, "bytes_per_second": None, "error": str(e.strerror or e)}


def _latency(address: str, told: Mapping[str, Any]) -> float:
    with _connected(address, told, ECHO) as connection:
        return statistics.median(_rounds(connection))


def _rounds(connection: socket.socket) -> Iterator[float]:
    for _ in range(ROUNDS):
        began = time.perf_counter()
        connection.sendall(ECHO)
        if not connection.recv(1):
            raise ConnectionError("it does not answer")
        yield time.perf_counter() - began


def _bandwidth(address: str, told: Mapping[str, Any]) -> float:
    """Of a few MB, or of what gets through in a second."""
    with _connected(address, told, SINK) as connection:
        block, sent, began = bytes(BLOCK), 0, time.perf_counter()
        while sent < TEST_BYTES and time.perf_counter() - began < TEST_SECONDS:
            sent += connection.send(block)
        connection.shutdown(socket.SHUT_WR)
        if not connection.recv(1):
            raise ConnectionError("it does not answer")
        return sent / (time.perf_counter() - began)


@contextmanager
def _connected(address: str, told: Mapping[str, Any], kind: bytes) -> Iterator[socket.socket]:
    with socket.create_connection((address, told["port"]), CONNECT_SECONDS) as connection:
        connection.settimeout(IDLE_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(str(told["token"]).encode() + kind)
        yield connection
