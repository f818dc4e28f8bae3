"""Telling systemd something."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import pytest

from llmhost.supervise.systemd import journal, notify
from llmhost.supervise.units import Unit


@pytest.mark.parametrize("abstract", [False, True])
def test_notify(abstract: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="lh", dir="/tmp") as place,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener,
    ):
        path = f"{place}/notify"
        listener.bind(f"\0{path}" if abstract else path)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{path}" if abstract else path)
        notify("STATUS=all is well", "EXTEND_TIMEOUT_USEC=1")
        listener.settimeout(10)
        assert listener.recv(4096) == b"STATUS=all is well\nEXTEND_TIMEOUT_USEC=1"


def test_nobody_is_told_when_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify("READY=1")


def test_where_to_look() -> None:
    unit = Unit("llmhost.service", "user", "/u", "alice", enabled=True, linger=False)
    assert journal(unit) == "journalctl --user -u llmhost.service"
    assert journal(unit._replace(scope="system")) == "journalctl -u llmhost.service"
