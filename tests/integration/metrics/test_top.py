"""`llmhost top` on a home that works."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import threading
from typing import Any

import pytest

from tests.integration.metrics.conftest import ask
from tests.integration.workflow.conftest import TESTS, Installed, wait_for

pytestmark = pytest.mark.integration


class Load:
    """Requests, one after the other, until the block ends."""

    def __init__(self, installed: Installed) -> None:
        self._installed, self._ended = installed, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._ended.wait(0.05):
            ask(self._installed, "/v1/chat/completions", {"model": "demo", "messages": []})

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def top_json(installed: Installed, *services: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(installed.run("top", "--json", "--interval", "1", *services).stdout)
    return data


def test_figures_of_services_under_load(watched: Installed) -> None:
    with Load(watched):
        found = top_json(watched)
    chat, embedding = found["services"]
    assert found["requests_per_s"] >= chat["requests_per_s"] > 0
    assert chat["generated_tokens_per_s"] > 0
    assert chat["prompt_tokens_per_s"] > chat["generated_tokens_per_s"]  # 19 tokens read, one generated
    assert chat["ttft_p50_s"] > 0
    assert (chat["state"], chat["running"], chat["waiting"], chat["failed_per_s"]) == ("ready", 0, 0, 0)
    assert chat["memory_bytes"] == sum(r["memory_bytes"] for r in chat["replicas"])
    assert (embedding["requests_per_s"], embedding["ttft_p50_s"]) == (0, None)
    assert [s["name"] for s in top_json(watched, "embedding")["services"]] == ["embedding"]


def test_once_is_a_table_and_what_happens_without_a_terminal(watched: Installed) -> None:
    for arguments in (("--once",), ()):
        lines = watched.run("top", "--interval", "1", *arguments).stdout.splitlines()
        assert lines[0].startswith("gateway ")
        assert lines[1].split()[:3] == ["SERVICE", "STATE", "REQ/S"]
        assert [line.split()[:2] for line in lines[2:]] == [
            ["chat", "ready"], ["chat-0", "ready"], ["chat-1", "ready"], ["embedding", "ready"],
        ]  # fmt: skip


def test_live_in_a_terminal_until_ctrl_c(watched: Installed) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "150", "LINES": "40"}
    process = subprocess.Popen(
        watched.command("top", "--interval", "1"), stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
        cwd=TESTS.parent, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    shown = bytearray()
    reader = threading.Thread(target=_read_all, args=(ours, shown))
    reader.start()
    try:
        wait_for(lambda: shown.count(b"embedding") >= 2)
        process.send_signal(signal.SIGINT)
        assert process.wait(300) == 0
    finally:
        process.kill()
        process.wait()
        reader.join()
        os.close(ours)
    assert b"Traceback" not in shown


def _read_all(terminal: int, into: bytearray) -> None:
    try:
        while part := os.read(terminal, 65536):
            into += part
    except OSError:  # the other end is closed
        return


def test_what_is_wrong_is_said(installed: Installed) -> None:
    error, _ = installed.refused("top", ok=3)
    assert "nothing has been brought up" in error
    installed.write(f"chat: {{model: {installed.model()}}}")
    installed.run("up")
    error, hint = installed.refused("top", "nobody")
    assert ("no service nobody" in error, "chat" in hint) == (True, True)
    installed.run("stop")
    error, hint = installed.refused("top", "--once", ok=3)
    assert ("where the metrics come from" in error, "llmhost up" in hint) == (True, True)
