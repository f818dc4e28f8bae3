"""What commands do with a running home: talk to supervisord, follow logs, take the lock, pass an environment on."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from llmhost.errors import BusyError, SupervisorError
from llmhost.supervise import daemon, lifecycle
from llmhost.supervise.lock import home_lock
from llmhost.supervise.logview import Selection, view_logs
from llmhost.supervise.rpc import Supervisor
from llmhost.supervise.status import read_status
from tests.integration.supervise.conftest import PATIENCE, House, bring_up

pytestmark = pytest.mark.integration


def test_a_client_without_supervisord(house: House) -> None:
    with pytest.raises(SupervisorError, match="supervisord is not running"):
        Supervisor(house.home.supervisor_socket).programs()
    with socket.socket(socket.AF_UNIX) as stale:
        house.home.run.mkdir()
        stale.bind(str(house.home.supervisor_socket))
    with pytest.raises(SupervisorError, match="supervisord is not running"):
        Supervisor(house.home.supervisor_socket).pid()
    assert read_status(house.home).supervisor.state == "stopped"


def test_somebody_else_on_the_socket(house: House) -> None:
    house.home.run.mkdir()
    code = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print(flush=True)\n"
        "while True: c, _ = s.accept(); c.recv(9); c.send(b'SSH-2.0\\r\\n'); c.close()"
    )
    path = house.home.supervisor_socket
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        try:
            with pytest.raises(SupervisorError, match=r"supervisord does not answer on .*supervisor\.sock"):
                Supervisor(path).programs()
        finally:
            other.kill()
            path.unlink()


def test_logs_of_odd_engines(house: House) -> None:
    house.service("chat", "--say-bytes", b"\xff \x1b[2J\x1b[31mred\x1b[0m \xe4\xb8\xad\n".hex())
    house.service("rerank", "--say", "50% ; 模型")
    bring_up(house)
    files = {name: house.home.log_file(name) for name in house.programs()}
    lines = [(line.program, line.text) for line in view_logs(files, Selection(lines=None))]
    assert ("chat-0", "\ufffd red 中") in lines
    assert ("rerank-0", "50% ; 模型") in lines


def test_logs_across_a_rotation_by_supervisord(house: House) -> None:
    house.service("chat")
    house.write()
    text = house.home.supervisord_conf.read_text()
    house.home.supervisord_conf.write_text(text.replace("stdout_logfile_maxbytes=20MB", "stdout_logfile_maxbytes=2000"))
    daemon.ensure_running(house.home)
    lifecycle.converge(house.home, house.programs())
    lifecycle.wait_ready(house.home, house.programs(), PATIENCE)
    log = house.home.log_file("chat-0")
    seen: list[str] = []
    asked = 0

    def ask() -> bool:
        """One more request, whose line in the log says which."""
        nonlocal asked
        if asked == 100:
            return bool(seen) and "/n100 " in seen[-1]
        asked += 1
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(house.home.engine_socket("chat-0")))
            connection.sendall(f"GET /n{asked} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            while connection.recv(4096):
                pass
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmhost.supervise.logs.POLL_SECONDS", 0.01)
        for line in view_logs({"chat": log}, Selection(lines=0), follow=True, until=ask):
            seen.append(line.text)
    assert Path(f"{log}.1").exists()
    requests = [line.split("/n")[1].split()[0] for line in seen if "GET /n" in line]
    assert requests == [str(n) for n in range(1, 101)]


def test_the_lock_of_a_home_dies_with_its_holder(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMHOST_LOCK_TIMEOUT", "0.2")
    root = str(Path(__file__).parents[3])
    code = (
        f"import sys, time; sys.path.insert(0, {root!r}); from pathlib import Path; from llmhost.paths import Home\n"
        "from llmhost.supervise.lock import home_lock\n"
        "with home_lock(Home(Path(sys.argv[1])), 'up'): print(flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(house.home.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            with pytest.raises(BusyError, match=rf"`llmhost up` \(pid {holder.pid}\)"), home_lock(house.home, "down"):
                pass
        finally:
            holder.kill()
    with home_lock(house.home, "down"):
        pass


def test_environment_through_the_whole_way(house: House, place: Path) -> None:
    env = {"ODD": "100% ; # 'a' \"b\"\n模型"}
    words = ("50% ;", "a # b", "'q' \"r\"", "模型 %(here)s")
    house.service("chat", "--dump", str(place / "dump"), *words, **env)
    bring_up(house)
    seen = json.loads((place / "dump").read_text())
    assert seen["argv"][-len(words) :] == list(words)
    assert {key: seen["env"][key] for key in env} == env
