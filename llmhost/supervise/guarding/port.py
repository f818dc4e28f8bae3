"""The TCP port of an engine: a stranger that has it would be asked in its place, and answer."""

from __future__ import annotations

import errno
import os
import socket

from llmhost.supervise.guarding.processes import describe, pids, read


def is_free(address: bytes) -> bool:
    """Whether a server could listen at ``host:port``; always True for the path of a unix socket, and for ''."""
    host, _, port = address.decode("utf-8", "surrogateescape").rpartition(":")
    if not host or address.startswith(b"/"):
        return True
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((host, int(port)))
        except OSError as e:
            return e.errno != errno.EADDRINUSE
    return True


def taken(address: bytes) -> str:
    """That somebody has the port, in words: with his name where he may be looked at."""
    port = int(address.rpartition(b":")[2])
    inodes = _listeners(port)
    holders = [describe(pid) for pid in pids() if inodes and inodes & _sockets(pid)]
    return f"port {port} is taken" + (f" by {holders[0]}" if holders else "")


def _listeners(port: int) -> set[str]:
    """What /proc/PID/fd calls the sockets that listen on a port: 0A is TCP_LISTEN, column 10 the inode (proc(5))."""
    lines = (read(f"/proc/net/{table}").splitlines()[1:] for table in ("tcp", "tcp6"))
    fields = [line.split() for table in lines for line in table]
    return {f"socket:[{f[9].decode()}]" for f in fields if f[3] == b"0A" and f[1].endswith(b":%04X" % port)}


def _sockets(pid: int) -> set[str]:
    found = set()
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            found.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    except OSError:  # gone, or somebody else's
        pass
    return found
