"""Who listens on a TCP address: real sockets of real processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from llmhost.errors import GatewayError
from llmhost.probe.host import port_owner

pytestmark = pytest.mark.integration

LISTEN = """
import socket, time
s = socket.socket()
s.bind(("127.0.0.1", 0))
s.listen()
print(s.getsockname()[1], flush=True)
time.sleep(60)
"""


@pytest.fixture
def listener() -> Iterator[tuple[int, int]]:
    """Another process that listens on 127.0.0.1: its pid and port."""
    with subprocess.Popen([sys.executable, "-c", LISTEN], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        yield child.pid, int(child.stdout.readline())
        child.kill()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_taken_by_another_process(listener: tuple[int, int], host: str) -> None:
    pid, port = listener
    assert port_owner(host, port) == f"{psutil.Process(pid).name()} (pid {pid})"


def test_free_after_the_owner_is_gone() -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert str(os.getpid()) in (port_owner("127.0.0.1", port) or "")
        # A connection that lingers (TIME_WAIT) does not hold the port.
        with socket.create_connection(("127.0.0.1", port)):
            connection, _ = server.accept()
            connection.close()
    assert port_owner("127.0.0.1", port) is None


def test_address_of_another_machine() -> None:
    with pytest.raises(GatewayError, match=r"192\.0\.2\.1 is not an address of this machine"):
        port_owner("192.0.2.1", 8000)


def test_no_address() -> None:
    with pytest.raises(GatewayError, match="is not an address"):
        port_owner("no host", 8000)
