"""One command for all nodes: over ssh, in parallel; a node that is gone is shown and not waited for."""

from __future__ import annotations

import json
import signal

import pytest

from tests.integration.nodes.homes import Homes
from tests.netns import wait_for

pytestmark = pytest.mark.integration


def lines_of(text: str, node: str) -> list[str]:
    return [line for line in text.splitlines() if line.split()[:1] == [node]]


def said_by(text: str) -> list[str]:
    """Lines of all nodes, without their greetings."""
    return sorted(line for line in text.splitlines() if "Welcome" not in line)


def test_all_nodes_serve_what_is_theirs_and_tell_it_in_one_table(three: Homes) -> None:
    a, b = three.hosts["a"], three.hosts["b"]
    said = three.run(a, "up", "--all-nodes")
    for node in "abc":
        gateway, chat = lines_of(said, node)
        assert gateway.split()[1] == "gateway"
        assert chat.split()[1:5] == ["chat", "chat", "chat", "ready"]
    found = three.status(b)
    assert [name for name, node in found.items() if node["ready"]] == ["a", "b", "c"]
    replicas = [r["name"] for node in found.values() for s in node["status"]["services"] for r in s["replicas"]]
    assert sorted(replicas) == ["chat-0", "chat-1", "chat-2"]


def test_a_node_that_is_cut_off_is_shown_and_comes_back(three: Homes) -> None:
    a, c = three.hosts["a"], three.hosts["c"]
    three.run(a, "up", "--all-nodes")
    c.link(False)
    try:
        told = three.run(a, "status", "--all-nodes", ok=3)
        (gone,) = lines_of(told, "c")
        assert "unreachable" in gone
        assert "(no answer)" in gone or "(no route)" in gone
        assert f"c: {c.address} " in told
        assert all("ready" in line for line in (*lines_of(told, "a"), *lines_of(told, "b")))
        told = three.run(a, "logs", "--all-nodes", "-n", "1", ok=3)
        assert lines_of(told, "a")
        assert lines_of(told, "b")
        stopped = a.run(*a.llmhost("stop", "chat", "--all-nodes"), ok=3)
        assert "unreachable" in stopped.stderr
        assert said_by(stopped.stdout) == ["a | stopped chat-0", "b | stopped chat-1"]
    finally:
        c.link(True)
    wait_for(lambda: three.status(a)["c"]["ready"])
    three.run(a, "start", "--all-nodes")
    assert three.chat_ready(a, "a", "b", "c")


def test_a_node_that_lost_its_power_is_seen_and_brought_up_again(three: Homes) -> None:
    a, b = three.hosts["a"], three.hosts["b"]
    three.run(a, "up", "--all-nodes")
    b.cut()
    assert not three.status(a)["b"]["reachable"]
    b.boot()
    node = three.status(a)["b"]
    assert node["reachable"]
    assert node["status"]["gateway"]["state"] == "stopped"
    three.run(a, "up", "--all-nodes")
    assert three.chat_ready(a, "a", "b", "c")


def test_a_node_that_does_not_take_the_files_is_told_and_left_as_it_is(three: Homes) -> None:
    a, b = three.hosts["a"], three.hosts["b"]
    three.run(a, "down", "--all-nodes")
    three.install(b, version="0.0.1")
    try:
        done = a.run(*a.llmhost("up", "--all-nodes"), ok=1)
    finally:
        three.install(b)
    assert "b | failed: b has llmhost 0.0.1" in done.stderr
    assert "supervisord" not in b.run("ps", "ax").stdout
    three.run(a, "up", "--all-nodes")
    assert three.chat_ready(a, "a", "b", "c")


def test_logs_are_merged_and_followed_until_ctrl_c(three: Homes) -> None:
    a, b = three.hosts["a"], three.hosts["b"]
    three.run(a, "up", "--all-nodes")
    entries = [json.loads(line) for line in three.run(a, "logs", "--all-nodes", "-n", "3", "--json").splitlines()]
    assert {entry["node"] for entry in entries} == {"a", "b", "c"}
    following = a.popen(*a.llmhost("logs", "--all-nodes", "-f", "-n", "0"))
    wait_for(lambda: "logs --json" in b.run("ps", "ax").stdout)
    assert following.stdout is not None
    seen: set[str] = set()
    while {"a", "b", "c"} - seen:  # the guards ask their engines all the time
        node, program, _ = following.stdout.readline().split(" | ", 2)
        assert program == f"chat-{'abc'.index(node)}"
        seen.add(node)
    following.send_signal(signal.SIGINT)
    a.run("pkill", "-INT", "-f", "logs --all-nodes")
    following.communicate(timeout=60)
    wait_for(lambda: "logs --json" not in b.run("ps", "ax").stdout)


def test_the_doctor_of_all_nodes_finds_what_is_wrong(three: Homes) -> None:
    a, b, c = three.hosts["a"], three.hosts["b"], three.hosts["c"]
    three.run(a, "node", "sync")
    told = json.loads(three.run(a, "node", "doctor", "--json"))
    assert told["ok"], told
    assert {check["name"] for check in told["checks"]} >= {"llmhost", "vLLM", "clock", "files", "interface", "network"}
    assert sum(check["name"] == "network" for check in told["checks"]) == 6

    clock = b.root / "bin/date"
    clock.parent.mkdir(exist_ok=True)
    clock.write_text('#!/bin/sh\nexec /bin/date -d "400 seconds ago" "$@"\n', encoding="utf-8")
    clock.chmod(0o755)  # what the clock says, and nothing else, is made up: a clock belongs to the whole machine
    c.run("ip", "rule", "add", "ipproto", "tcp", "sport", "20480", "blackhole")
    three.run(a, "node", "add", "b", "--address", "b")
    c.write_hosts({"a": a.address, "b": "127.0.1.1"})
    three.run(a, "keys", "add", "stale")
    try:
        told = json.loads(three.run(a, "node", "doctor", "--json", ok=1))
    finally:
        clock.unlink()
        c.run("ip", "rule", "delete", "ipproto", "tcp", "sport", "20480")
        c.write_hosts({"a": a.address, "b": b.address})
        three.run(a, "node", "add", "b", "--address", b.address)
    wrong = {(check["name"], check["status"]): check for check in told["checks"] if check["status"] != "ok"}
    assert "the clock of b is" in wrong["clock", "fail"]["message"]
    assert "behind" in wrong["clock", "fail"]["message"]
    assert "does not reach c" in wrong["ports", "fail"]["message"]
    assert "20480 (no answer)" in wrong["ports", "fail"]["message"]
    assert "keys.json" in wrong["files", "warn"]["message"]
    assert ("name", "fail") not in wrong  # its facts say where b is, and the plan takes that
    assert not any("reach b" in check["message"] for check in told["checks"] if check["name"] == "ports")
    assert all(check["remedy"] for check in wrong.values())


def test_the_doctor_asks_where_the_plan_does(three: Homes) -> None:
    a, b, c = three.hosts["a"], three.hosts["b"], three.hosts["c"]
    three.run(a, "node", "add", "b", "--address", "b")
    b.write_hosts({"a": a.address, "c": c.address, "b": "127.0.1.1"})  # as Debian has it
    three.install(c, "0.0.9", "000000000000")
    try:
        told = json.loads(three.run(a, "node", "doctor", "--json", ok=1))
        three.run(b, "node", "sync", "--facts", ok=1)
        three.run(b, "plan")  # what it knows of itself is still where the others find it
    finally:
        three.install(c)
        b.write_hosts({"a": a.address, "b": b.address, "c": c.address})
        three.run(b, "node", "sync", "--facts")
        three.run(a, "node", "sync", "--from", "b")
        three.run(a, "node", "add", "b", "--address", b.address)
    (wrong,) = (check for check in told["checks"] if check["status"] != "ok")
    assert (wrong["name"], wrong["status"]) == ("llmhost", "fail")
    assert "0.0.9 on c" in wrong["message"]
    messages = {check["message"] for check in told["checks"] if check["name"] in ("interface", "vLLM")}
    assert messages == {f"a has {a.address} on eth0", "b has b on eth0", "0.32.0 on a, b"}


def test_a_service_that_is_not_everywhere_is_used_everywhere(three: Homes) -> None:
    a, b = three.hosts["a"], three.hosts["b"]
    file = three.home(a).config_file
    before = file.read_text(encoding="utf-8")
    added = "services:\n  only: {model: " + str(three.network.place / "model") + ", nodes: b}"
    file.write_text(before.replace("services:", added), encoding="utf-8")
    three.run(a, "up", "only", "--all-nodes")
    assert lines_of(three.run(a, "status", "--all-nodes", ok=None), "b")[1].split()[1:5] == [
        "only",
        "chat",
        "only",
        "ready",
    ]
    three.run(b, "stop", "only", "--all-nodes")
    services = {s["name"]: s["state"] for s in three.status(a)["b"]["status"]["services"]}
    assert services["only"] == "stopped"
    three.run(a, "restart", "only", "--all-nodes")
    file.write_text(before, encoding="utf-8")
    three.run(a, "up", "--all-nodes")
    assert three.chat_ready(a, "a", "b", "c")


def test_everything_is_stopped_everywhere(three: Homes) -> None:
    a, b = three.hosts["a"], three.hosts["b"]
    three.run(a, "up", "--all-nodes")
    said = three.run(a, "down", "--all-nodes")
    assert said_by(said) == [f"{node} | everything has stopped" for node in "abc"]
    assert "supervisord" not in b.run("ps", "ax").stdout
