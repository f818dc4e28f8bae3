from __future__ import annotations

import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.gateway.locked import Locked
from tests.integration.gateway.running import LIMIT, Gateway


@pytest.fixture(scope="module")
def locked() -> Iterator[Locked]:
    """One gateway for all tests of a module; none of them changes it."""
    root = Path(tempfile.mkdtemp(prefix="lh", dir="/tmp"))
    try:
        with Gateway(root) as gateway, Locked(gateway) as made:
            yield made
    finally:
        shutil.rmtree(root)


FIRST, MORE = 5.0, 0.3
"""Seconds to wait for the first bytes of an answer, and for more of them: some requests are never answered."""


def exchange(port: int, *pieces: bytes) -> bytes:
    """Send bytes as they are, and what comes back until the gateway closes the connection or says no more."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except ConnectionError:
            pass  # the answer may be there all the same
        try:
            connection.settimeout(FIRST)
            while piece := connection.recv(65536):
                answer += piece
                connection.settimeout(MORE)
        except (ConnectionError, TimeoutError):
            pass
    return answer


def statuses(answer: bytes) -> list[int]:
    """The status of each answer in what came back."""
    return [int(found) for found in re.findall(rb"HTTP/1[.][01] ([0-9]{3}) [A-Z]", answer)]
