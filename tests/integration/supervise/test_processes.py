"""What the kernel tells of sockets."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from llmhost.supervise.guarding.processes import connections
from tests.integration.workflow.conftest import place  # noqa: F401  (a fixture)

pytestmark = pytest.mark.integration


def test_a_connection_counts_from_the_moment_it_is_made(place: Path) -> None:  # noqa: F811
    """A busy engine accepts late; a stop must not overlook who is waiting for it."""
    path = str(place / "s")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        server.listen()
        assert connections(os.fsencode(path)) == 0
        client.connect(path)
        assert connections(os.fsencode(path)) == 1
        with server.accept()[0]:
            assert connections(os.fsencode(path)) == 1
        assert connections(os.fsencode(path)) == 0
