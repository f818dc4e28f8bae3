"""Guards under a real supervisord: up, change, crash, kill, down."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from pathlib import Path

import pytest

from llmhost.errors import SupervisorError
from llmhost.gateway_address import GATEWAY_PROGRAM
from llmhost.supervise import daemon, lifecycle, owned
from llmhost.supervise.lifecycle import Actions
from llmhost.supervise.rpc import Supervisor
from llmhost.supervise.status import read_status
from tests.integration.supervise.conftest import PATIENCE, House, alive, bring_up, by_name, marked, pairs, wait_for
from tests.ports import free_port

pytestmark = pytest.mark.integration


def test_from_nothing_to_ready_to_nothing(house: House) -> None:
    for name in ("chat", "embedding", "rerank"):
        house.service(name)
    house.write(port=free_port())
    assert not daemon.is_running(house.home)
    assert daemon.ensure_running(house.home)
    assert not daemon.ensure_running(house.home)
    programs = [*house.programs(), GATEWAY_PROGRAM]
    changes: list[str] = []
    lifecycle.converge(house.home, programs)
    states = lifecycle.wait_ready(house.home, programs, PATIENCE, lambda s: changes.append(f"{s.name} {s.state}"))
    assert set(by_name(states).values()) == {"ready"}
    assert {f"{name} ready" for name in programs} <= set(changes)

    status = read_status(house.home)
    assert status.ready
    data = json.loads(json.dumps(status.to_dict()))
    assert data["supervisor"] == {"state": "running", "pid": Supervisor(house.home.supervisor_socket).pid()}
    assert data["gateway"]["state"] == "ready"
    assert alive(data["gateway"]["pid"])
    assert data["gateway"]["url"].startswith("http://127.0.0.1:")
    chat = data["services"][0]
    assert {key: chat[key] for key in chat if key != "replicas"} == {
        "name": "chat", "kind": "chat", "model": "/models/chat", "served_as": ["chat"], "state": "ready",
        "endpoints": [],
    }  # fmt: skip
    (replica,) = chat["replicas"]
    assert set(replica) == {
        "name", "state", "pid", "engine_pid", "uptime_s", "restarts", "rss_bytes", "gpus", "error", "retry_at",
    }  # fmt: skip
    assert (replica["name"], replica["state"], replica["restarts"]) == ("chat-0", "ready", 0)
    assert (replica["gpus"], replica["error"]) == ([], None)
    assert replica["uptime_s"] >= 0
    assert replica["rss_bytes"] > 10 * 2**20  # two interpreters

    asked: list[tuple[str, ...]] = []
    assert daemon.shutdown(house.home, asked.append)
    assert asked[-1] == ()
    assert house.left() == []
    assert [p.name for p in house.home.run.iterdir() if p.is_socket()] == []
    status = read_status(house.home)
    assert (status.supervisor.state, status.supervisor.pid, status.gateway.state) == ("stopped", None, "stopped")
    assert [s.state for s in status.services] == ["stopped"] * 3
    assert not status.ready
    assert not daemon.shutdown(house.home)


def test_supervisord_leaves_the_terminal_and_its_directory_is_private(house: House) -> None:
    house.home.run.mkdir(mode=0o755)
    house.write()
    daemon.ensure_running(house.home)
    pid = Supervisor(house.home.supervisor_socket).pid()
    assert os.getsid(pid) != os.getsid(0)
    assert os.readlink(f"/proc/{pid}/fd/0") == os.readlink(f"/proc/{pid}/fd/1") == "/dev/null"
    assert house.home.run.stat().st_mode & 0o777 == 0o700
    assert pid in owned.descendants(house.home)


def test_a_second_up_touches_nothing(house: House) -> None:
    house.service("chat")
    house.service("embedding")
    bring_up(house)
    before = pairs(house)
    house.write()
    assert lifecycle.converge(house.home, house.programs()) == Actions()
    assert pairs(house) == before


def test_only_the_changed_service_restarts(house: House) -> None:
    for name in ("chat", "embedding", "rerank"):
        house.service(name)
    bring_up(house)
    before = pairs(house)
    house.service("chat", "--served-model-name", "other")
    house.service("rerank", NEW="only in the environment, which supervisord does not see")
    house.service("embed2")
    house.write()
    actions = lifecycle.converge(house.home, house.programs())
    assert actions == Actions(add=("embed2-0",), restart=("chat-0", "rerank-0"), start=("embed2-0",))
    lifecycle.wait_ready(house.home, house.programs(), PATIENCE)
    after = pairs(house)
    assert after["embedding-0"] == before["embedding-0"]
    assert set(after["chat-0"] + after["rerank-0"]).isdisjoint(before["chat-0"] + before["rerank-0"])
    assert house.replicas()["chat-0"]["restarts"] == 0

    del house.services["embed2"]
    house.write()
    assert lifecycle.converge(house.home, house.programs()) == Actions(remove=("embed2-0",))
    del after["embed2-0"]
    assert pairs(house) == after
    assert marked(f"{house.home.root}:embed2-0") == []
    assert not house.home.state_file("embed2-0").exists()


def test_stop_start_restart(house: House) -> None:
    house.service("chat", replicas=2)
    house.service("rerank")
    bring_up(house)
    before = pairs(house)
    assert lifecycle.stop(house.home, ["chat-0", "chat-1"]) == ("chat-0", "chat-1")
    assert lifecycle.stop(house.home, ["chat-0"]) == ()
    assert [r["state"] for r in house.replicas().values()] == ["stopped", "stopped", "ready"]
    assert marked(f"{house.home.root}:chat") == []
    assert lifecycle.start(house.home, house.programs()) == ("chat-0", "chat-1")
    lifecycle.wait_ready(house.home, house.programs(), PATIENCE)
    assert pairs(house)["rerank-0"] == before["rerank-0"]
    lifecycle.restart(house.home, ["rerank-0"])
    lifecycle.wait_ready(house.home, house.programs(), PATIENCE)
    assert pairs(house)["rerank-0"] != before["rerank-0"]


def test_a_name_that_supervisord_does_not_know(house: House) -> None:
    house.service("chat")
    bring_up(house)
    with pytest.raises(SupervisorError, match="knows no program nobody-0"):
        lifecycle.start(house.home, ["nobody-0"])


def test_an_engine_that_ends_with_status_0_is_restarted(house: House) -> None:
    house.service("chat")
    before = bring_up(house)["chat-0"]
    with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(ConnectionError):
        connection.connect(str(house.home.engine_socket("chat-0")))
        connection.sendall(b'POST /fake/exit HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n{"code": 0}')
        connection.recv(1024)
    after = house.wait("chat-0", state="ready", restarts=1)
    assert (after["pid"], after["engine_pid"]) != (before.pid, before.engine_pid)
    lifecycle.restart(house.home, ["chat-0"])
    assert house.wait("chat-0", state="ready")["restarts"] == 0


def test_an_engine_that_never_gets_ready_fails_once(house: House) -> None:
    house.service("chat", "--say", "chat: error: unrecognized arguments: --nonsense", "--exit-early", "2")
    house.service("rerank")
    house.write()
    daemon.ensure_running(house.home)
    lifecycle.converge(house.home, house.programs())
    states = lifecycle.wait_ready(house.home, ["chat-0"], PATIENCE)
    assert (states["chat-0"].state, states["chat-0"].error) == (
        "failed", "chat: error: unrecognized arguments: --nonsense",
    )  # fmt: skip
    house.wait("rerank-0", state="ready")
    assert house.log("chat-0").count("starting the engine") == 1
    replica = house.replicas()["chat-0"]
    assert (replica["state"], replica["pid"], replica["engine_pid"]) == ("failed", None, None)
    assert replica["error"] == "chat: error: unrecognized arguments: --nonsense"
    # Mended, it is started by the next `up`.
    house.service("chat")
    house.write()
    assert lifecycle.converge(house.home, house.programs()).restart == ("chat-0",)
    assert house.wait("chat-0", state="ready")["error"] is None


def test_waiting_ends_at_its_time(house: House, place: Path) -> None:
    house.service("chat", "--wait-for", str(place / "go"))
    house.write()
    daemon.ensure_running(house.home)
    lifecycle.converge(house.home, house.programs())
    house.wait("chat-0", state="loading")
    assert by_name(lifecycle.wait_ready(house.home, ["chat-0"], 0)) == {"chat-0": "loading"}


def test_a_killed_guard_is_replaced_and_leaves_nothing(house: House) -> None:
    house.service("chat", "--children", "2", "--stubborn-children")
    before = bring_up(house)["chat-0"]
    old = marked(f"{house.home.root}:chat-0")
    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)
    after = house.wait("chat-0", state="ready", restarts=1)
    assert after["pid"] != before.pid
    assert not any(map(alive, old))


def test_everything_follows_a_killed_supervisord_and_up_brings_it_back(house: House) -> None:
    house.service("chat", "--children", "2", "--ignore-term", stop_timeout=0.5)
    house.service("rerank")
    house.write(port=free_port())
    daemon.ensure_running(house.home)
    programs = [*house.programs(), GATEWAY_PROGRAM]
    lifecycle.converge(house.home, programs)
    lifecycle.wait_ready(house.home, programs, PATIENCE)
    os.kill(Supervisor(house.home.supervisor_socket).pid(), signal.SIGKILL)
    wait_for(lambda: house.left() == [])
    assert house.home.supervisor_socket.exists()  # stale, as is the pid file
    status = read_status(house.home)
    assert (status.supervisor.state, status.gateway.state) == ("stopped", "stopped")
    assert {s.state for s in status.services} == {"stopped"}
    assert daemon.ensure_running(house.home)
    lifecycle.converge(house.home, programs)
    states = lifecycle.wait_ready(house.home, programs, PATIENCE)
    assert set(by_name(states).values()) == {"ready"}
    assert {s.restarts for s in states.values()} == {0}


def test_up_at_once_after_a_killed_supervisord(house: House) -> None:
    """The old guards are still ending their engines; they must not take the new ones for theirs."""
    house.service("chat", "--ignore-term", stop_timeout=0.5)
    bring_up(house)
    os.kill(Supervisor(house.home.supervisor_socket).pid(), signal.SIGKILL)
    bring_up(house)
    assert len(marked(f"{house.home.root}:chat-0")) == 1
    assert house.home.engine_socket("chat-0").is_socket()


def test_leftovers_of_killed_guards_are_swept_by_down(house: House) -> None:
    house.service("chat", "--children", "2", "--stubborn-children")
    bring_up(house)
    guard = house.replicas()["chat-0"]["pid"]
    os.kill(Supervisor(house.home.supervisor_socket).pid(), signal.SIGKILL)
    os.kill(guard, signal.SIGKILL)
    wait_for(lambda: len(marked(f"{house.home.root}:")) == 2)
    assert daemon.shutdown(house.home)
    assert house.left() == []


def test_down_while_loading_and_with_an_engine_that_ignores_sigterm(house: House, place: Path) -> None:
    house.service("chat", "--wait-for", str(place / "never"))
    house.service("rerank", "--ignore-term", "--children", "1", "--stubborn-children", stop_timeout=0.3)
    house.write()
    daemon.ensure_running(house.home)
    lifecycle.converge(house.home, house.programs())
    house.wait("rerank-0", state="ready")
    house.wait("chat-0", state="loading")
    daemon.shutdown(house.home)
    assert house.left() == []


def test_a_guard_that_is_not_there_is_not_believed(house: House) -> None:
    house.service("chat")
    bring_up(house)
    said = house.home.state_file("chat-0").read_text()
    lifecycle.stop(house.home, ["chat-0"])
    house.home.state_file("chat-0").write_text(said)
    assert house.replicas()["chat-0"]["state"] == "stopped"


def test_a_configuration_that_supervisord_refuses(house: House) -> None:
    house.write()
    house.home.supervisord_conf.write_text("[supervisord]\nlogfile=/no/such/directory/log\n")
    with pytest.raises(SupervisorError, match=r"supervisord did not start: Error: .*/no/such/directory"):
        daemon.ensure_running(house.home)


def test_a_broken_change_leaves_what_runs_alone(house: House) -> None:
    house.service("chat")
    bring_up(house)
    before = pairs(house)
    text = house.home.supervisord_conf.read_text()
    house.home.supervisord_conf.write_text(text.replace("autostart=false", "autostart=perhaps"))
    with pytest.raises(SupervisorError, match="cannot read its configuration"):
        lifecycle.converge(house.home, house.programs())
    assert pairs(house) == before


def test_a_supervisord_whose_socket_was_deleted_is_not_started_twice(house: House) -> None:
    house.write()
    daemon.ensure_running(house.home)
    pid = Supervisor(house.home.supervisor_socket).pid()
    house.home.supervisor_socket.unlink()
    house.home.supervisord_pid_file.unlink()
    with pytest.raises(SupervisorError, match=rf"\(pid {pid}\)"):
        daemon.ensure_running(house.home)
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not alive(pid))


def test_a_supervisord_that_is_just_shutting_down(house: House) -> None:
    house.service("chat", "--ignore-term", stop_timeout=0.5)
    bring_up(house)
    supervisor = Supervisor(house.home.supervisor_socket)
    pid = supervisor.pid()
    supervisor.shutdown()
    assert supervisor.state() == "SHUTDOWN"
    assert read_status(house.home).supervisor.state == "stopping"
    bring_up(house)
    assert supervisor.pid() != pid
