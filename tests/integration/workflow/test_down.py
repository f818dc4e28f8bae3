"""`down` leaves no process and no socket, whatever happened before, and says what it had to do for that."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from llmhost.gateway_address import GATEWAY_PROGRAM, METRICS_PROGRAM
from llmhost.supervise import daemon, owned
from llmhost.supervise.guarding.processes import running, state
from llmhost.supervise.rpc import Supervisor
from tests.integration.workflow.conftest import Installed, leftovers, wait_for

pytestmark = pytest.mark.integration


def bring_up(installed: Installed, chat: str = "") -> dict[str, int]:
    """One service; the pids of what runs, by what it is."""
    installed.write(f"chat: {{model: {installed.model()}, stop_timeout: 5{chat}}}")
    installed.run("up")
    pids = installed.pids()
    guard, engine = pids["chat-0"]
    programs = {p.name: p.pid for p in Supervisor(installed.home.supervisor_socket).programs()}
    keeper, exporter = programs[GATEWAY_PROGRAM], programs[METRICS_PROGRAM]
    assert keeper is not None
    assert exporter is not None
    return {"supervisord": pids["supervisor"], "gateway": pids["gateway"], "guard": guard, "engine": engine,
            "keeper": keeper, "exporter": exporter}  # fmt: skip


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: state(pid) == "T")


def down(installed: Installed) -> str:
    """What it says; nothing may be left then."""
    said = installed.run("down").stderr
    assert leftovers(installed.home) == []
    assert not installed.home.supervisord_pid_file.exists()
    return said


def test_supervisord_is_stopped(installed: Installed) -> None:
    pid = bring_up(installed)["supervisord"]
    stop(pid)
    said = down(installed)
    assert f"({pid}) was stopped (SIGSTOP), and is told to go on" in said
    assert "had to end" not in said  # all of it ended in order


def test_everything_is_stopped(installed: Installed) -> None:
    pids = bring_up(installed)
    for pid in pids.values():
        stop(pid)
    said = down(installed)
    assert said.count("was stopped (SIGSTOP)") == len(pids)
    assert "had to end" not in said


def test_supervisord_hangs_for_good(installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A debugger or a broken disk holds it, say: SIGCONT does not help. Guards are told by ourselves then."""
    pid = bring_up(installed)["supervisord"]
    for name in ("ANSWER_SECONDS", "END_SECONDS"):
        monkeypatch.setattr(daemon, name, 0.5)
    stop(pid)
    said: list[str] = []
    assert daemon.shutdown(installed.home, note=said.append)
    assert said == [f"supervisord (pid {pid}) does not end by itself, and is killed"]
    assert leftovers(installed.home) == []


def test_a_guard_without_supervisord_hangs_for_good(installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped only then: the kernel wakes those up whose parent dies."""
    pids = bring_up(installed, ", env: {FAKE_ENGINE: --ignore-term}")
    os.kill(pids["supervisord"], signal.SIGKILL)
    wait_for(lambda: not running(pids["supervisord"]))
    stop(pids["guard"])
    monkeypatch.setattr(daemon, "GUARD_SECONDS", -4.0)  # of 5 s of stop_timeout, one is left
    monkeypatch.setattr(daemon, "FOLLOW_SECONDS", 1.0)
    said: list[str] = []
    assert daemon.shutdown(installed.home, note=said.append)
    (line,) = said
    assert line.startswith("had to end ")
    assert f"the guard of chat-0 ({pids['guard']})" in line
    assert leftovers(installed.home) == []


def test_supervisord_is_shutting_down_already(installed: Installed) -> None:
    """It tells one program after the other; `down` tells all that are left."""
    installed.write(f"""
        chat: {{model: {installed.model()}, replicas: 3, stop_timeout: 20, env: {{FAKE_ENGINE: --ignore-term}}}}
    """)
    installed.run("up")
    supervisor = Supervisor(installed.home.supervisor_socket)
    supervisor.shutdown()
    assert supervisor.state() == "SHUTDOWN"
    said = down(installed)
    assert "waiting for chat-0, chat-1, chat-2 to stop" in said


def test_shutting_down_and_stopped(installed: Installed) -> None:
    pids = bring_up(installed, ", env: {FAKE_ENGINE: --ignore-term}")
    Supervisor(installed.home.supervisor_socket).shutdown()
    stop(pids["supervisord"])
    stop(pids["guard"])
    down(installed)


def test_the_socket_of_supervisord_was_deleted(installed: Installed) -> None:
    bring_up(installed)
    installed.home.supervisor_socket.unlink()
    said = down(installed)
    assert "killed" not in said
    assert "had to end" not in said


def test_other_commands_tell_of_a_supervisord_that_is_stopped(installed: Installed) -> None:
    """At once, with what helps."""
    pid = bring_up(installed)["supervisord"]
    stop(pid)
    for command in ("status", "up", "start", "stop", "restart"):
        error, hint = installed.refused(command)
        assert error == f"error: supervisord (pid {pid}) is stopped by a signal, so nobody knows what runs"
        assert f"`kill -CONT {pid}`" in hint
    down(installed)


def test_who_only_looks_at_a_file_of_a_home_is_left_alone(installed: Installed) -> None:
    bring_up(installed)
    files = [installed.home.gateway_conf / "envoy.yaml", installed.home.conf / "guard/chat-0.json"]
    with subprocess.Popen(["tail", "-f", *files], stdout=subprocess.DEVNULL) as reader:
        try:
            wait_for(lambda: owned.command_line(reader.pid)[0] == b"tail")
            assert reader.pid not in owned.everything(installed.home)
            installed.run("down")
            assert reader.poll() is None
        finally:
            reader.kill()
