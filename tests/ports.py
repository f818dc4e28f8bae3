"""Ports for servers of a test."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

FIRST, LAST = 10_000, 32_000
_given: set[int] = set()


def free_port() -> int:
    """A TCP port that nobody has on this machine just now, and that this process was not given before.

    Below the range from which the kernel takes ports for clients: one of those could have it before the test does. With
    pytest-xdist each worker draws from a part of its own.
    """
    low, high = _part()
    while True:
        if len(_given) >= (high - low) // 2:
            _given.clear()  # of long ago
        port = random.SystemRandom().randrange(low, high)
        if port not in _given and _free(port):
            _given.add(port)
            return port


def _part() -> tuple[int, int]:
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    clients = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if clients < FIRST + 1000 * workers:
        clients = LAST  # clients may have any port here: that nobody has it just now must do
    size = (min(LAST, clients) - FIRST) // workers
    return FIRST + number * size, FIRST + (number + 1) * size


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a connection that has ended is in nobody's way
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
