"""The guards of a model that spans nodes: real guards on two loopback addresses, with fake engines as its parts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmhost.supervise.guarding.probe import http_request
from llmhost.supervise.guarding.processes import read
from tests.integration.supervise.conftest import FAKE_ENGINE, PYTHON, LoneGuard, alive, marked, wait_for
from tests.ports import free_port

NODES = {"a": "127.0.0.1", "b": "127.0.0.2", "c": "127.0.0.3"}
SECRET = "0123456789abcdef0123456789abcdef"


class Parts:
    """One guard for each node, each with a directory of its own."""

    def __init__(self, place: Path, names: str) -> None:
        self.port, self.master_port = free_port(), free_port()
        self.names = list(names)
        self.guards = [self._guard(place / name, rank) for rank, name in enumerate(names)]

    def _guard(self, place: Path, rank: int) -> LoneGuard:
        place.mkdir()
        spec = {
            "program": "chat-0",
            "kind": "chat",
            "model": "fake",
            "socket": str(place / "chat-0.sock") if rank == 0 else "",
            "state_file": str(place / "chat-0.state.json"),
            "log_file": str(place / "chat-0.log"),
            "env": {"LLMHOST_PROGRAM": f"{place}:chat-0"},
            "locks": [str(place / "gpu0.lock")],
            "start_timeout": 60,
            "stop_timeout": 20,
            "group": {
                "name": "chat-0",
                "rank": rank,
                "nodes": self.names,
                "addresses": [NODES[name] for name in self.names],
                "port": self.port,
                "master_port": self.master_port,
                "secret": SECRET,
            },
        }
        return LoneGuard(place, spec)

    def start(self, rank: int, *faults: str, **spec: Any) -> subprocess.Popen[bytes]:
        guard = self.guards[rank]
        engine = [*PYTHON, str(FAKE_ENGINE), "--nnodes", str(len(self.names)), "--node-rank", str(rank)]
        engine += ["--master-addr", NODES[self.names[0]], "--master-port", str(self.master_port)]
        engine += ["--uds", guard.spec["socket"]] if rank == 0 else ["--headless"]
        return guard.start_command(*engine, *faults, **spec)

    def all_ready(self, epoch: int) -> list[dict[str, Any]]:
        return [guard.wait("ready", epoch=epoch) for guard in self.guards]

    def says(self, rank: int, words: str, state: str = "queued") -> dict[str, Any]:
        def there() -> dict[str, Any] | None:
            said = self.guards[rank].says()
            return said if said.get("state") == state and words in (said.get("error") or "") else None

        return dict(wait_for(there, 60))

    def ask(self) -> dict[str, Any]:
        answer = self.request()
        with contextlib.closing(answer):
            return dict(json.loads(answer.makefile("rb").read().partition(b"\r\n\r\n")[2]))

    def request(self, **fake: Any) -> socket.socket:
        """A question to the head's engine, whose answer is still to be read."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.guards[0].spec["socket"])
        connection.sendall(http_request("/v1/chat/completions", "fake", {"messages": [], "fake": fake}))
        return connection


@pytest.fixture
def parts(place: Path) -> Iterator[Callable[[str], Parts]]:
    made: list[Parts] = []

    def make(names: str) -> Parts:
        made.append(Parts(place, names))
        return made[-1]

    yield make
    for group in made:
        for guard in group.guards:
            guard.close()


def test_all_parts_start_together_and_one_that_dies_takes_the_others_with_it(parts: Callable[[str], Parts]) -> None:
    group = parts("abc")
    first = group.start(0)
    group.says(0, "waiting for node b and c")
    group.start(1)
    group.says(0, "waiting for node c")
    group.says(1, "waiting for node a: queued: waiting for node c")
    assert not any(marked(guard.mark) for guard in group.guards)  # nobody has begun
    group.start(2)
    before = group.all_ready(1)
    assert group.ask()["choices"][0]["message"]["content"] == "fake"
    os.kill(before[1]["engine_pid"], signal.SIGKILL)
    after = group.all_ready(2)
    assert not any(alive(said["engine_pid"]) for said in before)
    assert {said["guard_pid"] for said in before} == {said["guard_pid"] for said in after}
    assert "node b: the engine was killed by SIGKILL" in group.guards[0].log()
    assert [said["restarts"] for said in after] == [1, 1, 1]
    first.terminate()
    assert first.wait(60) == 0
    group.says(1, "waiting for node a")
    assert not any(marked(guard.mark) for guard in group.guards)


def test_the_death_of_rank_0_is_the_end_of_all(parts: Callable[[str], Parts]) -> None:
    group = parts("ab")
    guard = group.start(0)
    group.start(1)
    group.all_ready(1)
    guard.kill()
    guard.wait()
    group.says(1, "waiting for node a")
    assert not marked(group.guards[1].mark)
    said = group.guards[0].wait("ready", group.start(0))
    assert said["restarts"] == 1
    group.guards[1].wait("ready")


def test_a_guard_that_comes_anew_ends_the_life_of_its_part(parts: Callable[[str], Parts]) -> None:
    group = parts("ab")
    group.start(0)
    guard = group.start(1)
    before = group.all_ready(1)
    guard.kill()
    guard.wait()
    after = [group.guards[1].wait("ready", group.start(1)), group.guards[0].wait("ready", epoch=2)]
    assert before[0]["engine_pid"] != after[0]["engine_pid"]


def test_what_no_restart_mends_fails_the_group_with_the_name_of_the_node(parts: Callable[[str], Parts]) -> None:
    group = parts("ab")
    guards = [
        group.start(0),
        group.start(1, "--say", "api_server.py: error: unrecognized arguments: --nonsense", "--exit-early", "2"),
    ]
    failed = "node b: api_server.py: error: unrecognized arguments: --nonsense"
    group.says(0, failed, "failed")
    group.says(1, "unrecognized arguments: --nonsense", "failed")
    assert [guard.wait(60) for guard in guards] == [78, 78]
    assert not any(marked(guard.mark) for guard in group.guards)


def test_failures_are_counted_at_rank_0(parts: Callable[[str], Parts]) -> None:
    group = parts("ab")
    guards = [group.start(0, max_restarts=2), group.start(1, "--say", "NCCL error: no", "--exit-early", "1")]
    said = group.says(0, "given up after 2 failures in a row", "failed")
    assert "node b" in said["error"]
    group.says(1, "given up after 2 failures", "failed")
    assert [guard.wait(60) for guard in guards] == [78, 78]


def test_another_secret_is_named(parts: Callable[[str], Parts]) -> None:
    group = parts("ab")
    group.start(0)
    wrong = {**group.guards[1].spec["group"], "secret": "another secret of this length"}
    group.start(1, group=wrong)
    group.says(0, "waiting for node b: 127.0.0.2 has another secret")
    group.says(1, "waiting for node a: its secret is another one")
    assert not any(marked(guard.mark) for guard in group.guards)


def test_another_version_of_vllm_is_named(parts: Callable[[str], Parts]) -> None:
    group = parts("ab")
    group.start(0, group={**group.guards[0].spec["group"], "digest": "x", "vllm": "0.32.0"})
    group.start(1, group={**group.guards[1].spec["group"], "digest": "y", "vllm": "0.31.0"})
    group.says(0, "waiting for node b: it has vLLM 0.31.0, this node 0.32.0")
    group.says(1, "waiting for node a: it has vLLM 0.32.0, this node 0.31.0")
    assert not any(marked(guard.mark) for guard in group.guards)


def test_parts_that_ray_starts_try_to_reach_its_head(parts: Callable[[str], Parts]) -> None:
    group, port = parts("ab"), free_port()
    with_ray = [{**guard.spec["group"], "master_port": 0, "cluster_port": port} for guard in group.guards]
    for rank in (0, 1):
        group.start(rank, group=with_ray[rank])
    group.says(
        0, f"waiting for node b: 127.0.0.2 does not reach 127.0.0.1:{port} (connection refused); does Ray run there?"
    )
    with socket.create_server((NODES["a"], port)):
        group.all_ready(1)


def test_a_guard_that_is_not_there_and_a_port_that_is_taken_are_named(parts: Callable[[str], Parts]) -> None:
    group = parts("ab")
    with socket.create_server((NODES["a"], group.master_port)):
        group.start(0)
        group.says(0, f"port {group.master_port} is taken")
    group.says(0, f"127.0.0.2 does not connect to 127.0.0.1:{group.port}; does llmhost run there? a firewall?")
    group.start(1)
    group.all_ready(1)


def test_strangers_at_the_door_change_nothing(parts: Callable[[str], Parts]) -> None:
    group = parts("ab")
    group.start(0)
    group.start(1)
    before = group.all_ready(1)
    forged = b'{"group": "chat-0", "rank": 1, "nonce": "x"}\n{"proof": "00"}\n'
    odd = (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 20000, b"[]\n", b'{"rank": [], "group": {}}\n')
    for said in (forged, b'{"group": "chat-0", "rank": 7}\n', *odd):
        with socket.create_connection((NODES["a"], group.port)) as stranger:
            stranger.settimeout(30)
            with contextlib.suppress(ConnectionError):
                stranger.sendall(said)
                while b"proof" not in (answer := stranger.recv(4096)) and answer:
                    pass
    idle = [socket.create_connection((NODES["a"], group.port)) for _ in range(40)]
    group.ask()
    assert [guard.says()["engine_pid"] for guard in group.guards] == [said["engine_pid"] for said in before]
    for connection in idle:
        connection.close()


def test_a_stop_of_a_part_lets_requests_end_and_ends_all(parts: Callable[[str], Parts], place: Path) -> None:
    group = parts("ab")
    group.start(0)
    guard = group.start(1)
    before = group.all_ready(1)
    begun = place / "begun"
    asked = group.request(seconds=2, begun=str(begun))
    wait_for(begun.exists)
    guard.terminate()
    assert b'"fake"' in asked.makefile("rb").read()
    asked.close()
    assert guard.wait(60) == 0
    assert group.guards[1].says()["state"] == "stopped"
    group.says(0, "waiting for node b")
    assert not alive(before[0]["engine_pid"])
    assert group.guards[0].says()["failures"] == 0
    group.start(1)
    group.guards[0].wait("ready", epoch=2)


def test_a_stop_of_rank_0_lets_requests_end(parts: Callable[[str], Parts], place: Path) -> None:
    group = parts("ab")
    guard = group.start(0)
    group.start(1)
    group.all_ready(1)
    begun = place / "begun"
    asked = group.request(seconds=8, begun=str(begun))  # longer than a guard without a sign of life counts as there
    wait_for(begun.exists)
    guard.terminate()
    assert b'"fake"' in asked.makefile("rb").read()
    asked.close()
    assert guard.wait(60) == 0
    group.says(1, "waiting for node a")


def test_the_secret_is_nowhere_but_in_the_spec(parts: Callable[[str], Parts]) -> None:
    group = parts("ab")
    group.start(0)
    group.start(1)
    said = group.all_ready(1)
    for guard, state in zip(group.guards, said, strict=True):
        for pid in (state["guard_pid"], state["engine_pid"]):
            assert SECRET.encode() not in read(f"/proc/{pid}/cmdline") + read(f"/proc/{pid}/environ")
        assert SECRET not in guard.log() + json.dumps(guard.says())
