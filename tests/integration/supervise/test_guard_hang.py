"""The hang watch, the end of vital processes, the stop under load, GPU memory and alerts of a guard by itself."""

from __future__ import annotations

import http.server
import json
import os
import shlex
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmhost.supervise.guarding.processes import descendants, title
from tests.integration.supervise.conftest import FAKE_ENGINE, PATIENCE, PYTHON, LoneGuard, alive, marked, wait_for

pytestmark = pytest.mark.integration

HANG_TIMEOUT = 6
"""Seconds: the counters every 0.5, a request after 1.5, at least 0.6 for an answer."""


def vital(guard: LoneGuard, name: str) -> int:
    """The process of this title below the engine."""
    engine = guard.says()["engine_pid"]
    return int(wait_for(lambda: next((p for p in descendants(engine) if title(p).startswith(name)), 0)))


@pytest.mark.parametrize("name", ["VLLM::EngineCor", "VLLM::Worker"])
def test_the_end_of_a_vital_process_is_the_end_of_the_engine(guard: LoneGuard, name: str) -> None:
    """Nobody asks for anything, so the server itself would not notice."""
    guard.start("--core", hang_timeout=0)
    before = guard.wait("ready")
    pid = vital(guard, name)
    os.kill(pid, signal.SIGKILL)
    # Each of the two ends with the other.
    assert guard.wait("backoff")["error"].startswith("the engine lost its process VLLM::")
    assert not alive(before["engine_pid"])
    assert guard.wait("ready")["restarts"] == 1


@pytest.mark.parametrize("name", ["python", "VLLM::EngineCor", "VLLM::Worker"])
def test_a_stopped_process_is_a_hang(guard: LoneGuard, name: str) -> None:
    guard.start("--core", hang_timeout=HANG_TIMEOUT)
    said = guard.wait("ready")
    os.kill(said["engine_pid"] if name == "python" else vital(guard, name), signal.SIGSTOP)
    assert "(1 of 3)" in guard.wait("unhealthy")["error"]
    assert guard.wait("backoff")["error"].startswith("the engine hangs: no ")
    assert "3 times in a row" in guard.says()["error"]
    assert not alive(said["engine_pid"])
    assert guard.wait("ready")["restarts"] == 1
    assert "state T (stopped)" in guard.log()


def test_a_hung_engine_says_200_on_health_and_is_restarted(guard: LoneGuard, place: Path) -> None:
    guard.start("--hang", str(place / "hang"), hang_timeout=HANG_TIMEOUT)
    guard.wait("ready")
    (place / "hang").touch()
    guard.wait("unhealthy")
    guard.wait("backoff")
    (place / "hang").unlink()
    guard.wait("ready", restarts=1)


def test_an_engine_that_answers_again_in_time_is_ready_again(guard: LoneGuard, place: Path) -> None:
    guard.start("--hang", str(place / "hang"), hang_timeout=4 * HANG_TIMEOUT)
    before = guard.wait("ready")
    (place / "hang").touch()
    guard.wait("unhealthy")
    (place / "hang").unlink()
    after = guard.wait("ready")
    assert (after["restarts"], after["engine_pid"], after["error"]) == (0, before["engine_pid"], None)


def test_an_engine_that_works_off_requests_is_not_hung(guard: LoneGuard, place: Path) -> None:
    """Our own requests are not answered for many deadlines, but tokens are generated all the time."""
    guard.start("--hang", str(place / "hang"), "--tokens", str(place / "tokens"), hang_timeout=HANG_TIMEOUT)
    before = guard.wait("ready")
    (place / "tokens").touch()
    (place / "hang").touch()
    looks = guard.log().count("GET /metrics") + 12
    wait_for(lambda: guard.log().count("GET /metrics") >= looks)
    assert guard.wait("ready")["engine_pid"] == before["engine_pid"]
    (place / "tokens").unlink()
    guard.wait("backoff")


def test_no_request_is_made_while_others_are_answered(guard: LoneGuard, place: Path) -> None:
    guard.start("--tokens", str(place / "tokens"), hang_timeout=HANG_TIMEOUT)
    guard.wait("ready")
    (place / "tokens").touch()

    def asked(path: str) -> int:
        return guard.log().count(path)

    looks = asked("GET /metrics") + 3
    wait_for(lambda: asked("GET /metrics") >= looks)
    before, looks = asked("POST /v1"), asked("GET /metrics") + 5
    wait_for(lambda: asked("GET /metrics") >= looks)
    assert asked("POST /v1") == before
    (place / "tokens").unlink()
    wait_for(lambda: asked("POST /v1") > before + 1)


def test_an_engine_without_numbers_gets_more_time_and_is_watched(guard: LoneGuard, place: Path) -> None:
    guard.start("--hang", str(place / "hang"), "--no-metrics", hang_timeout=HANG_TIMEOUT)
    guard.wait("ready")
    (place / "hang").touch()
    assert "within 4 s" in guard.wait("unhealthy")["error"]
    guard.wait("backoff")


def test_the_watch_is_off_for_0(guard: LoneGuard, place: Path) -> None:
    guard.start("--hang", str(place / "hang"), hang_timeout=0)
    guard.wait("ready")
    (place / "hang").touch()
    threading.Event().wait(1.5)
    assert guard.says()["state"] == "ready"
    assert "GET /metrics" not in guard.log()


def test_loading_is_never_taken_for_a_hang(guard: LoneGuard, place: Path) -> None:
    guard.start("--wait-for", str(place / "go"), hang_timeout=2)
    guard.wait("loading")
    threading.Event().wait(4)
    assert guard.says()["state"] == "loading"
    (place / "go").touch()
    assert guard.wait("ready")["restarts"] == 0


def test_the_stacks_of_a_hung_engine_are_dumped_with_py_spy(guard: LoneGuard, place: Path) -> None:
    spy = place / "py-spy"
    spy.write_text('#!/bin/sh\necho "stacks by $*"\n')
    spy.chmod(0o755)
    path = f"PATH={place}:{os.environ['PATH']}"
    guard.start("--core", "--hang", str(place / "hang"), hang_timeout=HANG_TIMEOUT, through=("env", path))
    engine = guard.wait("ready")["engine_pid"]
    core = vital(guard, "VLLM::EngineCor")
    (place / "hang").touch()
    guard.wait("backoff")
    for pid in (engine, core):
        assert f"stacks by dump --nonblocking --pid {pid}" in guard.log()


def test_running_requests_finish_and_new_ones_do_not_get_in(guard: LoneGuard) -> None:
    """The fake ends at once on SIGTERM, so it must not come before the request is answered."""
    process = guard.start()
    guard.wait("ready")
    path = guard.spec["socket"]
    body = json.dumps({"messages": [], "fake": {"seconds": 2}}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as running, socket.socket(socket.AF_UNIX) as late:
        running.connect(path)
        running.sendall(head.encode() + body)
        drained(guard, 0, time.monotonic() - 60)  # of an earlier stop
        process.terminate()
        wait_for(lambda: not Path(path).exists())
        with pytest.raises(FileNotFoundError):
            late.connect(path)
        answer = b""
        while part := running.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 200")
    assert process.wait(PATIENCE) == 0
    assert guard.says()["killed"] == []


def drained(guard: LoneGuard, left: float, at: float) -> None:
    """What a command says that has let running requests finish, until so many seconds were left."""
    Path(f"{guard.spec['state_file']}.drained").write_text(json.dumps({"left": left, "at": at}))


def test_the_time_for_stopping_is_given_once(guard: LoneGuard) -> None:
    process = guard.start(stop_timeout=600)
    guard.wait("ready")
    with socket.socket(socket.AF_UNIX) as idle:
        idle.connect(guard.spec["socket"])
        drained(guard, 0.2, time.monotonic())
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert marked(guard.mark) == []
    assert not Path(f"{guard.spec['state_file']}.drained").exists()


def test_a_connection_that_stays_ends_with_the_time_for_stopping(guard: LoneGuard) -> None:
    process = guard.start(stop_timeout=0.5)
    guard.wait("ready")
    with socket.socket(socket.AF_UNIX) as idle:
        idle.connect(guard.spec["socket"])
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert marked(guard.mark) == []


def test_an_engine_whose_last_request_has_just_ended_may_end_in_order(guard: LoneGuard) -> None:
    """The gateway keeps the connection for a few seconds, in which nobody can tell it from one with a request."""
    engine = shlex.join([*PYTHON, str(FAKE_ENGINE), "--uds", guard.spec["socket"]])
    script = f"trap 'kill $pid; echo ended in order; exit 0' TERM; {engine} & pid=$!; wait"
    process = guard.start_command("/bin/sh", "-c", script, stop_timeout=1)
    guard.wait("ready")
    with socket.socket(socket.AF_UNIX) as idle:
        idle.connect(guard.spec["socket"])
        drained(guard, 0.0, time.monotonic())
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert "ended in order" in guard.log()
    assert guard.says()["killed"] == []


def smi(place: Path, script: str) -> str:
    """Something that is run in the place of nvidia-smi."""
    path = place / "smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_a_guard_waits_for_the_gpu_memory(guard: LoneGuard, place: Path) -> None:
    """The driver lists the dead engine until the third question."""
    script = f'echo x >> {place}/asked; [ "$(wc -l < {place}/asked)" -gt 2 ] || echo "$(cat {place}/pid), 70000"'
    process = guard.start(gpus=[0, 1], gpu_probe=smi(place, script))
    (place / "pid").write_text(str(guard.wait("ready")["engine_pid"]))
    process.terminate()
    assert process.wait(PATIENCE) == 0
    assert (place / "asked").read_text().count("x") == 3
    assert guard.says()["trouble"] is None


def test_gpu_memory_that_does_not_come_back_is_told(guard: LoneGuard, place: Path) -> None:
    process = guard.start(gpus=[0], gpu_probe=smi(place, f'echo "$(cat {place}/pid), 70000"'))
    engine = guard.wait("ready")["engine_pid"]
    (place / "pid").write_text(str(engine))
    process.terminate()
    assert process.wait(PATIENCE) == 0
    assert guard.says()["trouble"] == f"GPU memory is not back after 10 s: 70000 MiB by {engine}"


@pytest.mark.parametrize("script", ["exit 9", "sleep 600"])
def test_a_driver_that_does_not_answer_holds_nothing_up(guard: LoneGuard, place: Path, script: str) -> None:
    process = guard.start(gpus=[0], gpu_probe=smi(place, script))
    guard.wait("ready")
    process.terminate()
    assert process.wait(PATIENCE) == 0
    assert "whether the GPU memory is back" in guard.log()


def events_file(place: Path, target: str | None) -> str:
    path = place / "events.json"
    path.write_text(json.dumps({"on_event": target}))
    return str(path)


def test_a_command_is_told_of_trouble_and_of_its_end(guard: LoneGuard, place: Path) -> None:
    command = f'cat >> {place}/told; echo "$LLMHOST_EVENT $LLMHOST_SERVICE" >> {place}/names'
    guard.start(events_file=events_file(place, command))
    for _ in range(2):  # the second one is not told: it is too soon
        os.kill(guard.wait("ready")["engine_pid"], signal.SIGKILL)
        guard.wait("backoff")
    guard.wait("ready", restarts=2)
    wait_for(lambda: (place / "names").exists() and (place / "names").read_text().count("\n") == 2)
    assert (place / "names").read_text().split("\n")[:2] == ["unhealthy chat", "recovered chat"]
    first = json.loads((place / "told").read_text().splitlines()[0])
    assert {key: first[key] for key in ("event", "program", "service", "state", "error")} == {
        "event": "unhealthy",
        "program": "chat-0",
        "service": "chat",
        "state": "backoff",
        "error": "the engine was killed by SIGKILL",
    }


def test_the_end_of_a_guard_is_told_by_the_next_one(guard: LoneGuard, place: Path) -> None:
    events = events_file(place, f'echo "$LLMHOST_EVENT $LLMHOST_ERROR" >> {place}/told')
    first = guard.start(events_file=events)
    guard.wait("ready")
    first.kill()
    first.wait()
    second = guard.start(events_file=events)
    guard.wait("ready", second)
    wait_for(lambda: (place / "told").exists() and (place / "told").read_text().count("\n") == 2)
    assert (place / "told").read_text().split("\n")[:2] == ["unhealthy its guard was killed", "recovered "]


def test_a_command_that_does_not_end_does_not_hold_the_guard_up(guard: LoneGuard, place: Path) -> None:
    command = f"echo $$ > {place}/pid; exec sleep 600"
    process = guard.start(events_file=events_file(place, command))
    os.kill(guard.wait("ready")["engine_pid"], signal.SIGKILL)
    guard.wait("ready", restarts=1)
    pid = int(wait_for(lambda: (place / "pid").exists() and (place / "pid").read_text()))
    assert alive(pid)  # it is not taken for something that the engine left
    process.terminate()
    assert process.wait(PATIENCE) == 0
    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Its address, and what it was told."""
    told: list[dict[str, Any]] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Hook) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/hook?token=secret", told
        server.shutdown()
        thread.join()


def test_a_webhook_is_told_of_a_failure_and_its_end(
    guard: LoneGuard, place: Path, webhook: tuple[str, list[dict[str, Any]]]
) -> None:
    url, told = webhook
    events = events_file(place, url)
    assert guard.start("--say", "ValueError: no", "--exit-early", "1", events_file=events).wait(PATIENCE) == 78
    wait_for(lambda: told)
    assert (told[0]["event"], told[0]["error"]) == ("failed", "ValueError: no")
    guard.start(events_file=events)  # mended and started again
    wait_for(lambda: len(told) == 2)
    assert told[1]["event"] == "recovered"


def test_a_webhook_that_is_not_there_is_said_without_its_address(guard: LoneGuard, place: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        events = events_file(place, f"http://127.0.0.1:{closed.getsockname()[1]}/?token=secret")
        assert guard.start("--say", "ValueError: no", "--exit-early", "1", events_file=events).wait(PATIENCE) == 78
        wait_for(lambda: "webhook of on_event was not reached" in guard.log())
    assert "secret" not in guard.log()
