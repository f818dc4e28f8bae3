"""This machine: the CPUs and the memory that we may use, free disk, and who holds a TCP address."""

from __future__ import annotations

import errno
import math
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil

from llmhost.errors import GatewayError
from llmhost.facts import HostFacts

_UNLIMITED = 1 << 60
"""Limits from here on mean "none": cgroup v1 writes 2**63 rounded down to a page."""


def read_host(root: Path = Path("/")) -> HostFacts:
    """The CPUs and the memory (bytes) that this process may use, control group limits included.

    ``root`` is where ``proc`` and ``sys`` are looked up.
    """
    memory = psutil.virtual_memory()
    limit, used = _memory_limit(root)
    return HostFacts(
        cores=_usable(tuple(sorted(os.sched_getaffinity(0))), _cpu_quota(root)),
        memory_total=min(memory.total, limit),
        memory_available=max(0, min(memory.available, limit - used)),
    )


def _usable(cores: tuple[int, ...], quota: float) -> tuple[int, ...]:
    """As many of the allowed CPUs as the quota pays for: binding to more would only be throttled."""
    return cores[: max(1, math.floor(quota))] if math.isfinite(quota) else cores


def _cpu_quota(root: Path) -> float:
    """CPUs that the control groups grant, ``inf`` without a limit (cgroup v2 ``cpu.max``, v1 ``cpu.cfs_*_us``)."""
    quota = math.inf
    for group in _groups(root, "cpu"):
        words = (_text(group / "cpu.max") or _text(group / "cpu.cfs_quota_us")).split()
        period = words[1:2] or _text(group / "cpu.cfs_period_us").split()
        if words and period and words[0].isdigit() and int(period[0]) > 0:
            quota = min(quota, int(words[0]) / int(period[0]))
    return quota


def _memory_limit(root: Path) -> tuple[int, int]:
    """The tightest memory limit above this process in bytes, and what already counts against it."""
    tightest = (_UNLIMITED, 0)
    for group in _groups(root, "memory"):
        text = _text(group / "memory.max") or _text(group / "memory.limit_in_bytes")
        limit = int(text) if text.isdigit() else _UNLIMITED
        if limit < _UNLIMITED:
            used = int(_text(group / "memory.current") or _text(group / "memory.usage_in_bytes") or 0)
            left = limit - max(0, used - _reclaimable(group))
            if left < tightest[0] - tightest[1]:
                tightest = (limit, limit - left)
    return tightest


def _reclaimable(group: Path) -> int:
    """Page cache that the kernel gives back under pressure, in bytes."""
    stat = dict(line.split(maxsplit=1) for line in _text(group / "memory.stat").splitlines() if " " in line)
    return int(stat.get("total_inactive_file") or stat.get("inactive_file") or 0)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The directories of our control group and its ancestors, for v2 and for one v1 controller (cgroups(7))."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / (controller if controllers else "")
        own = base / path.lstrip("/")
        yield from (d for d in (own, *own.parents) if d.is_relative_to(base) and d.is_dir())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def free_bytes(path: Path) -> int:
    """Free disk space for an ordinary user where ``path`` is, or will be made."""
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free


def port_owner(host: str, port: int) -> str | None:
    """Who holds the TCP address, in words (``nginx (pid 812)``), or None when it is free.

    Raises GatewayError when this machine or this user cannot listen there at all.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )[0]
    except socket.gaierror as e:
        raise GatewayError(f"gateway.host {host!r} is not an address: {e.strerror}", "use 127.0.0.1 or 0.0.0.0") from e
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As a server does: lingering connections of a former server do not count as a taken port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as e:
            if e.errno == errno.EADDRINUSE:
                return _listener(port)
            raise _cannot_listen(host, port, e) from e
    return None


def _cannot_listen(host: str, port: int, error: OSError) -> GatewayError:
    if error.errno == errno.EADDRNOTAVAIL:
        return GatewayError(
            f"gateway.host {host} is not an address of this machine", "use 127.0.0.1, 0.0.0.0 or one of its own"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return GatewayError(f"this user may not listen on {host}:{port}", "use a gateway.port of 1024 or above")
    return GatewayError(f"cannot listen on {host}:{port}: {error.strerror}", "check gateway.host and gateway.port")


def _listener(port: int) -> str:
    """The listening process as far as this user may see it."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.Error:
        connections = []
    pids = {c.pid for c in connections if c.status == psutil.CONN_LISTEN and c.laddr[1:] == (port,) and c.pid}
    return ", ".join(_name(pid) for pid in sorted(pids)) or "a process that this user cannot see"


def _name(pid: int) -> str:
    try:
        return f"{psutil.Process(pid).name()} (pid {pid})"
    except psutil.Error:
        return f"pid {pid}"
