"""Waiting until all is ready, while engines come and go."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading

import pytest

from llmhost import balancing, readiness, workflow
from llmhost.env.progress import Silent
from llmhost.errors import GatewayError
from llmhost.in_force import load_plan
from llmhost.supervise.states import ProgramState
from tests.integration.workflow.conftest import Installed, wait_for

pytestmark = pytest.mark.integration


def test_an_engine_that_ends_while_it_is_waited_for_is_waited_for_again(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = installed.home.root / "go"
    go.touch()
    installed.write(f"chat: {{model: {installed.model()}, env: {{FAKE_ENGINE: --wait-for {go}}}}}")
    installed.run("up")
    started = workflow.start(installed.home, (), Silent())
    monkeypatch.setattr(readiness, "SERVED_SECONDS", 1.0)
    seen: list[str] = []

    def on_change(state: ProgramState) -> None:
        """It dies the moment after it was seen ready, and comes back only when that has been noticed."""
        if state.name != "chat-0":
            return
        seen.append(state.state)
        if seen == ["ready"]:
            assert state.engine_pid is not None
            go.unlink()
            os.kill(state.engine_pid, signal.SIGKILL)
            wait_for(lambda: not balancing.served_of(installed.home, "chat"))
        elif state.state != "ready":
            go.touch()

    readiness.await_ready(installed.home, started.plan, started.programs, None, on_change)
    assert len(seen) > 2
    assert (seen[0], seen[-1]) == ("ready", "ready")


def test_who_gets_no_requests_is_called_by_name(installed: Installed) -> None:
    installed.write(f"chat: {{model: {installed.model()}}}")
    installed.run("up")
    installed.run("stop", "chat")
    wait_for(lambda: not balancing.served_of(installed.home, "chat"))
    with pytest.raises(GatewayError, match="no requests to chat-0,"):
        balancing.await_served(installed.home, load_plan(installed.home), {"chat-0"}, 0)


def test_start_and_restart_say_what_they_did(installed: Installed) -> None:
    installed.write(f"chat: {{model: {installed.model()}}}")
    installed.run("up")
    assert installed.run("start").stdout == "gateway, chat-0: ready already\n"
    assert installed.run("start", "--no-wait").stdout == "gateway, chat-0: running already\n"
    installed.run("stop", "chat")
    assert installed.run("start", "--no-wait").stdout.startswith("starting chat-0; `llmhost status` says")
    assert installed.run("restart", "chat").stdout == "restarted chat-0\n"
    installed.run("stop")
    assert installed.run("start").stdout == "started gateway, chat-0\n"


def test_time_that_ran_out_is_said(installed: Installed) -> None:
    go = installed.home.root / "go"
    installed.write(f"chat: {{model: {installed.model()}, env: {{FAKE_ENGINE: --wait-for {go}}}}}")
    installed.run("up", "--no-wait")
    wait_for(lambda: [s["state"] for s in installed.status()["services"]] == ["loading"])
    error, hint = installed.refused("start", "--timeout", "1.5", ok=3)
    assert error == "error: not ready within 1.5 s: chat-0 is loading"
    assert "it goes on" in hint
    go.touch()


def test_check_leaves_out_what_was_stopped_on_purpose(installed: Installed) -> None:
    installed.write(f"""
        chat: {{model: {installed.model()}}}
        embedding: {{model: {installed.model("embed", "BertModel")}}}
    """)
    installed.run("up")
    installed.run("stop", "chat")
    done = installed.run("check", ok=1)  # the fake embeds everything to one vector
    assert "chat was stopped, so it is not asked (`llmhost start chat`)" in done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["embedding"]
    assert "chat" in installed.run("check", "chat", ok=1).stdout
    installed.run("stop", "embedding")
    assert installed.refused("check", ok=3)[0] == "error: every service was stopped"


def test_check_of_a_foreign_server_is_short(installed: Installed) -> None:
    page = b"HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n<!DOCTYPE html>\n<html>" + b"x" * 500
    installed.write(f"chat: {{model: {installed.model()}}}")
    installed.run("up", "--no-wait")
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=(server, page), daemon=True).start()
        lines = installed.run("check", "--url", f"http://127.0.0.1:{server.getsockname()[1]}", ok=1).stdout.splitlines()
    assert lines[0].endswith("/v1/chat/completions answered 404: a web page, so this is no gateway")
    assert all(len(line) < 120 for line in lines)


def serve(server: socket.socket, answer: bytes) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):  # to close with something unread resets the connection
                    pass


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("stop", "chat"), "chat-0 was stopped by another command"),
        (("down",), "stopped by another command|another command stopped everything"),
    ],
)
def test_a_wait_that_another_command_ends_says_so(installed: Installed, command: tuple[str, ...], words: str) -> None:
    go = installed.home.root / "go"
    installed.write(f"chat: {{model: {installed.model()}, env: {{FAKE_ENGINE: --wait-for {go}}}}}")
    with installed.popen("up", "--timeout", "600") as waiting:
        wait_for(lambda: [s["state"] for s in installed.status()["services"]] == ["loading"])
        installed.run(*command)
        _, said = waiting.communicate(timeout=300)
    assert waiting.returncode == 3, said
    assert re.search(f"^error: .*({words})", said, re.MULTILINE), said
