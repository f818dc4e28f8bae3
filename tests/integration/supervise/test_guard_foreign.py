"""A guard whose engine is not vLLM: a real HTTP server on a port or a socket (tests/fakes/foreign.py)."""

from __future__ import annotations

import os
import signal
import socket
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from llmhost.supervise.guarding.processes import connections
from tests.integration.supervise.conftest import PYTHON, LoneGuard, wait_for
from tests.ports import free_port

pytestmark = pytest.mark.integration

SERVER = str(Path(__file__).parents[2] / "fakes" / "foreign.py")


def request(path: str, body: str | None = None, timeout: float | None = None) -> dict[str, Any]:
    return {"path": path, "body": body, "timeout": timeout}


@pytest.fixture
def port(guard: LoneGuard) -> int:
    """Where the engine of the guard listens."""
    port = free_port()
    guard.spec |= {"kind": "embed", "socket": f"127.0.0.1:{port}", "foreign": {}, "start_timeout": 300}
    return port


def start(guard: LoneGuard, port: int, *flags: str, **spec: Any) -> Any:
    return guard.start_command(
        *PYTHON, SERVER, "--port", str(port), "--log", str(guard.place / "asked"), *flags, **spec
    )


def asked(guard: LoneGuard) -> list[str]:
    file = guard.place / "asked"
    return file.read_text().splitlines() if file.exists() else []


def test_a_real_request_over_tcp_makes_it_ready(guard: LoneGuard, port: int) -> None:
    process = start(guard, port, "--post", "/embed", foreign={"paths": {"/v1/embeddings": "/embed"}})
    guard.wait("ready", process)
    assert asked(guard) == ["POST /embed"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 0
    assert guard.says()["state"] == "stopped"


def test_what_is_written_is_asked_while_it_starts_and_afterwards(guard: LoneGuard, port: int, place: Path) -> None:
    late = place / "late"
    foreign = {"ready": request("/alive"), "health": request("/embed", '{"inputs": "hi"}')}
    process = start(guard, port, "--after", str(late), "--health", "/alive", foreign=foreign, hang_timeout=4)
    guard.wait("loading", process, error=f"nobody listens on 127.0.0.1:{port}, for GET /alive")
    late.touch()
    guard.wait("ready", process)
    wait_for(lambda: asked(guard)[:3] == ["GET /alive", "POST /embed", "POST /embed"])


def test_an_answer_that_is_no_success_is_told(guard: LoneGuard, port: int) -> None:
    start(guard, port, "--health", "/other", foreign={"ready": request("/health")}, start_timeout=12, max_restarts=1)
    error = guard.wait("failed")["error"]
    assert 'was not ready within 12 s; its last answer was 404 to /health: {"path": "/health"}' in error


LISTEN = "import socket, time; s = socket.create_server(('127.0.0.1', {port})); time.sleep(1000)"
"""Accepts connections and never answers."""


def test_a_helper_is_ready_when_somebody_listens_or_when_it_runs(guard: LoneGuard, port: int) -> None:
    process = guard.start_command(*PYTHON, "-c", LISTEN.format(port=port), kind="none")
    guard.wait("ready", process)
    process.terminate()
    process.wait(300)
    silent = guard.start_command("/bin/sleep", "1000", kind="none", socket="")
    guard.wait("ready", silent)
    os.kill(guard.says()["engine_pid"], signal.SIGKILL)
    assert guard.wait("ready", silent, restarts=1)["exit"]["signal"] == "SIGKILL"


def test_a_stranger_on_its_port_is_not_taken_for_it(guard: LoneGuard, port: int) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", port))
        stranger.listen()
        process = start(guard, port, "--health", "/health", foreign={"ready": request("/health")})
        error = guard.wait("backoff", process)["error"]
        assert error.startswith(f"port {port} is taken by ")
        assert f"({os.getpid()})" in error
        assert asked(guard) == []
    guard.wait("ready", process)


def test_requests_over_tcp_finish_before_it_is_stopped(guard: LoneGuard, port: int) -> None:
    process = start(guard, port, "--slow", "1.5", hang_timeout=0)
    guard.wait("ready", process)
    answers: list[int] = []

    def ask() -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/x", data=b"{}", timeout=300) as answer:
            answers.append(answer.status)

    client = threading.Thread(target=ask)
    client.start()
    wait_for(lambda: connections(f"127.0.0.1:{port}".encode()) == 1)
    process.send_signal(signal.SIGTERM)
    client.join()
    assert answers == [200]
    assert process.wait(300) == 0


def test_its_own_programs_come_first_and_it_is_bound_to_cores(guard: LoneGuard, port: int, place: Path) -> None:
    own = place / "bin"
    own.mkdir()
    (own / "engine").write_text(f"#!/bin/sh\nexec {' '.join(PYTHON)} {SERVER} --port {port}\n")
    (own / "engine").chmod(0o755)
    core = min(os.sched_getaffinity(0))
    # By name: the PATH of the environment that the guard makes counts for what the engine starts.
    process = guard.start_command("/bin/sh", "-c", "exec engine", foreign={"bin": str(own), "cores": [core]})
    engine = guard.wait("ready", process)["engine_pid"]
    assert os.sched_getaffinity(engine) == {core}


def test_it_waits_for_those_it_needs(guard: LoneGuard, port: int, place: Path) -> None:
    """The file that a guard of the needed service writes, which a power cut may have left behind."""
    needed = place / "other-0.state.json"
    needed.write_text('{"state": "ready", "guard_pid": 1}')
    process = start(guard, port, needs=["other"])
    guard.wait("queued", process, error="waits for other, which is stopped")
    needed.write_text(f'{{"state": "ready", "guard_pid": {os.getpid()}}}')
    guard.wait("queued", process, error="waits for other, which is stopped")
    needed.write_text('{"state": "failed", "guard_pid": 1}')
    assert guard.wait("failed", process)["error"] == "it needs other, which failed"
    assert process.wait(300) == 78
