"""Faults of an engine and of what is around it: noticed, swept, started again, and nobody beside it notices."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import httpx
import pytest

from llmhost.supervise.guarding.processes import running
from tests.faults.conftest import Town, record, wait_for

pytestmark = pytest.mark.integration

BODY = {"model": "harmed", "messages": []}
PROCESSES = ("API server", "EngineCore", "worker")


@pytest.fixture(autouse=True)
def ready(town: Town) -> None:
    """Every fault begins with everything ready and an empty count of failures."""
    town.up()
    town.installed.run("restart", "harmed")


@pytest.mark.parametrize("name", PROCESSES)
def test_kill(town: Town, name: str) -> None:
    with town.fault(f"kill -9 of the {name}", "restarted after 1 s of back-off") as fault:
        os.kill(town.process(name), signal.SIGKILL)
        fault.noticed(state="backoff")
        assert fault.recovered()["restarts"] == 1


@pytest.mark.parametrize("name", PROCESSES)
def test_stop_signal(town: Town, name: str) -> None:
    """/health of the engine may go on to say 200."""
    with town.fault(f"SIGSTOP of the {name}", "unhealthy, then killed and restarted") as fault:
        os.kill(town.process(name), signal.SIGSTOP)
        fault.noticed(state="unhealthy")
        wait_for(lambda: town.says()["state"] == "backoff")
        fault.seconds["restarting"] = time.monotonic() - fault.begin
        assert fault.recovered()["restarts"] == 1


def test_hang(town: Town, place: Path) -> None:
    town.up(f"--core --hang {place}/hang")
    with town.fault("hang with 200 on /health", "unhealthy, then killed and restarted") as fault:
        (place / "hang").touch()
        fault.now()
        fault.noticed(state="unhealthy")
        wait_for(lambda: town.says()["state"] == "backoff")
        fault.seconds["restarting"] = time.monotonic() - fault.begin
        (place / "hang").unlink()
        fault.recovered()


def test_exit_0(town: Town) -> None:
    with town.fault("the engine exits with status 0", "restarted all the same") as fault:
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=str(town.home.engine_socket("harmed-0"))), timeout=300
        ) as engine:
            engine.post("http://x/fake/exit", json={"code": 0})
        assert fault.noticed(state="backoff")["exit"]["code"] == 0
        fault.recovered()


def test_exit_with_a_doomed_cause(town: Town) -> None:
    words = "api_server.py: error: unrecognized arguments: --nonsense"
    with town.fault("exit with a doomed cause", "failed with the cause in `status`, started once") as fault:
        town.write(f'--say "{words}" --exit-early 2')
        fault.now()
        error, _ = town.installed.refused("up", ok=3)
        assert f"harmed-0 is failed ({words})" in error
        fault.seconds["noticed"] = time.monotonic() - fault.begin
        log = town.home.log_file("harmed-0").read_text(errors="replace").splitlines()
        assert log.count(words) == 1
        town.up()
        fault.recovered()


def test_setsid_children_and_an_ignored_sigterm(town: Town) -> None:
    town.up("--core --children 3 --stubborn-children --ignore-term")
    with town.fault("kill -9 of an engine whose children called setsid", "children swept, restarted") as fault:
        os.kill(town.process("API server"), signal.SIGKILL)
        fault.noticed(state="backoff")
        assert len(fault.recovered()["killed"]) >= 3
    with town.client() as beside:
        begin = time.monotonic()
        said = town.installed.run("stop", "harmed").stderr
        seconds = time.monotonic() - begin
    held = f"killed after stop_timeout (3 s); `stop` says what it had to end; {beside.told()}"
    record("stop of an engine that ignores SIGTERM", held, recovered=seconds)
    assert "harmed-0: had to end " in said
    town.up()


def test_kill_of_the_guard(town: Town) -> None:
    with town.fault("kill -9 of the guard", "the engine dies with it, the next guard sweeps and restarts it") as fault:
        guard = town.process("guard")
        os.kill(guard, signal.SIGKILL)
        wait_for(lambda: town.says()["guard_pid"] != guard)
        fault.noticed(state="backoff", error="its guard was killed")
        assert fault.recovered()["restarts"] == 1


def test_kill_of_the_gateway(town: Town) -> None:
    gateway = town.installed.pids()["gateway"]
    before = town.tree()
    with town.fault("kill -9 of the gateway", "supervisord restarts it, engines do not notice") as fault:
        os.kill(gateway, signal.SIGKILL)
        wait_for(lambda: not town.answers() or not running(gateway))  # it may be back before the client looks
        fault.seconds["noticed"] = time.monotonic() - fault.begin
        wait_for(town.answers)
        fault.seconds["recovered"] = time.monotonic() - fault.begin
        assert town.tree() == before
        os.kill(town.says()["engine_pid"], signal.SIGKILL)  # else the fault would find the engine of before
        wait_for(lambda: town.says()["restarts"] == 1 and town.says()["state"] == "ready")


def test_a_socket_that_was_left_over(town: Town) -> None:
    town.installed.run("stop", "harmed")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(town.home.engine_socket("harmed-0")))
    with town.client() as beside:
        begin = time.monotonic()
        town.installed.run("start", "harmed")
        assert town.answers()
        seconds = time.monotonic() - begin
    record("socket file of a former engine", f"removed before the start; {beside.told()}", recovered=seconds)


def test_a_stop_lets_running_requests_finish(town: Town) -> None:
    """New ones are told at once to come again; on SIGTERM the fake drops everything."""
    import threading

    running: list[int] = []
    url = f"http://127.0.0.1:{town.installed.port}/v1/chat/completions"

    def ask() -> None:
        body = {"model": "harmed", "messages": [], "fake": {"seconds": 2}}
        running.append(httpx.post(url, json=body, timeout=300).status_code)

    with town.fault("stop under load", "running requests are answered, new ones get 503 with Retry-After") as fault:
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        wait_for(lambda: _running(town) == 8)
        fault.now()
        with town.installed.popen("stop", "harmed") as stop:
            refused = wait_for(lambda: (a := httpx.post(url, json=BODY, timeout=300)).status_code != 200 and a)
            assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
            assert refused.json()["error"]["type"]
            for thread in threads:
                thread.join()
            stop.communicate(timeout=300)
        fault.seconds["recovered"] = time.monotonic() - fault.begin
        assert running == [200] * 8
        town.installed.run("start", "harmed")


def _running(town: Town) -> int:
    with httpx.Client(
        transport=httpx.HTTPTransport(uds=str(town.home.engine_socket("harmed-0"))), timeout=300
    ) as engine:
        page = engine.get("http://x/metrics").text
    return int(float(page.partition("num_requests_running")[2].partition("\n")[0].rpartition(" ")[2]))
