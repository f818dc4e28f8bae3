"""Changes of a running home, under a client at a steady rate: nothing fails, nothing is cut."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from tests.integration.workflow.changes import ASKED, write
from tests.integration.workflow.conftest import Installed, interrupt, wait_for
from tests.steady import Steady

pytestmark = pytest.mark.integration


def steady(installed: Installed, model: str = ASKED) -> Steady:
    return Steady(installed.port, model)


def test_the_others_are_left_alone_when_a_service_comes_or_goes(installed: Installed) -> None:
    write(installed, "chat: {model: MODEL, served_as: gpt-4}\nembedding: {model: EMBED}\n", 0)
    installed.run("up")
    before = installed.pids()
    write(installed, "chat: {model: MODEL, served_as: gpt-4}\nsecond: {model: MODEL, replicas: 2}\n", 0)
    installed.run("up")
    after = installed.pids()
    assert set(after) == {"supervisor", "gateway", "chat-0", "second-0", "second-1"}
    assert after["chat-0"] == before["chat-0"]
    assert "nothing would change" in installed.run("render", "--diff").stderr
    installed.run("up", "--rebalance")
    assert installed.pids()["chat-0"] != before["chat-0"]


def test_rolling_restarts_one_at_a_time_and_a_surge_takes_another_number(installed: Installed) -> None:
    write(installed, "chat: {model: MODEL, served_as: gpt-4, replicas: 2}\nsolo: {model: MODEL}\n", 0)
    installed.run("up")
    before = installed.pids()
    said = installed.run("restart", "--rolling", "chat").stderr
    assert said.index("replace chat-0: ready") < said.index("==> replace chat-1") < said.index("replace chat-1: ready")
    installed.run("restart", "--surge", "solo")
    after = installed.pids()
    assert {n for n in before if before[n] != after.get(n)} == {"chat-0", "chat-1", "solo-0"}
    assert "solo-1" in after
    installed.run("up")
    assert installed.pids() == after
    installed.run("restart", "--surge", "solo")
    assert "solo-0" in installed.pids()


def a_long_stream(installed: Installed, until: Path) -> dict[str, object]:
    """The body of a request that is answered until a file is there."""
    return {
        "model": ASKED,
        "messages": [],
        "stream": True,
        "fake": {"chunks": 9000, "seconds": 0.1, "until": str(until)},
    }


@pytest.mark.parametrize("command", ["stop chat", "stop", "restart chat", "down"])
def test_a_late_stream_outlives_the_drain_of_its_engine(installed: Installed, place: Path, command: str) -> None:
    """A stop lets running requests finish; new ones get 503 with Retry-After meanwhile."""
    write(installed, "chat: {model: MODEL, served_as: gpt-4, stop_timeout: 600}\n", 0)
    installed.run("up")
    url = f"http://127.0.0.1:{installed.port}/v1/chat/completions"
    body = a_long_stream(installed, place / "enough")
    with httpx.Client(timeout=300) as client, client.stream("POST", url, json=body) as stream:
        pieces = stream.iter_text()
        next(pieces)
        with installed.popen(*command.split()) as stopping:
            assert stopping.stderr is not None
            assert "waiting for chat-0 to finish 1 request" in stopping.stderr.readline()
            refused = httpx.post(url, json={"model": ASKED, "messages": []}, timeout=300)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            assert refused.json()["error"]["type"] == "ServiceUnavailableError"
            (place / "enough").touch()
            assert "".join(pieces).rstrip().endswith("data: [DONE]")
            _, err = stopping.communicate(timeout=300)
    assert stopping.returncode == 0, err


def _refusal(url: str) -> httpx.Response | None:
    answer = httpx.post(url, json={"model": ASKED, "messages": []}, timeout=300)
    return answer if answer.status_code == 503 else None


def test_a_stream_longer_than_stop_timeout_is_cut(installed: Installed) -> None:
    write(installed, "chat: {model: MODEL, served_as: gpt-4, stop_timeout: 1}\n", 0)
    installed.run("up")
    url = f"http://127.0.0.1:{installed.port}/v1/chat/completions"
    body = {"model": ASKED, "messages": [], "stream": True, "fake": {"chunks": 6000, "seconds": 0.1}}
    with httpx.Client(timeout=300) as client, client.stream("POST", url, json=body) as stream:
        pieces = stream.iter_text()
        next(pieces)
        installed.run("stop", "chat")
        with pytest.raises(httpx.RemoteProtocolError):
            list(pieces)
    assert not installed.home.drained_file("chat-0").exists()  # the guard has read how much time was left


def test_ctrl_c_while_one_starts_beside_the_other_leaves_the_other_and_up_goes_on(installed: Installed) -> None:
    write(installed, "chat: {model: MODEL, served_as: gpt-4}\n", 0)
    installed.run("up")
    go = installed.home.root / "go"
    write(installed, f"assistant: {{model: MODEL, served_as: gpt-4, env: {{FAKE_ENGINE: '--wait-for {go}'}}}}\n", 0)
    with steady(installed).asking() as client:
        with installed.popen("up") as process:
            wait_for((installed.home.run / "assistant-0.state.json").exists)
            (beside,) = installed.status()["beside"]
            assert (beside["name"], beside["state"], beside["error"]) == ("assistant-0", "loading", None)
            status, err = interrupt(process)
        assert (status, "error: interrupted" in err) == (130, True)
        assert [s["name"] for s in installed.status()["services"]] == ["chat"]
        assert [r["name"] for r in installed.status()["beside"]] == ["assistant-0"]
        shown = installed.run("status").stdout
        assert "(not in force yet)" in shown
        assert "the command that started it was cut off; `llmhost up` goes on" in shown
        client.wait_for_more()
        go.touch()
        installed.run("up")
        client.wait_for_more()
    assert client.lost == []
    assert client.answered_by["assistant-0"] > 0
    there = installed.status()
    assert [s["name"] for s in there["services"]] == ["assistant"]
    assert there["beside"] == []
    go.unlink()
    write(installed, f"chat: {{model: MODEL, served_as: gpt-4, env: {{FAKE_ENGINE: '--wait-for {go}'}}}}\n", 0)
    with installed.popen("up") as process:
        wait_for(lambda: installed.status()["beside"])
        interrupt(process)
    installed.run("stop")
    assert installed.status()["beside"] == []


@pytest.mark.parametrize("command", [("stop", "chat"), ("up",)])
def test_ctrl_c_in_a_drain_puts_the_engine_back(installed: Installed, command: tuple[str, ...]) -> None:
    write(installed, "chat: {model: MODEL, served_as: gpt-4, stop_timeout: 600}\n", 0)
    installed.run("up")
    if command == ("up",):  # of an edit that wants a restart
        write(installed, "chat: {model: MODEL, served_as: gpt-4, stop_timeout: 600, env: {A: '1'}}\n", 0)
    url = f"http://127.0.0.1:{installed.port}/v1/chat/completions"
    body = {"model": ASKED, "messages": [], "stream": True, "fake": {"chunks": 6000, "seconds": 0.1}}
    with httpx.Client(timeout=300) as client, client.stream("POST", url, json=body):
        with installed.popen(*command) as stopping:
            wait_for(lambda: _refusal(url))
            status, _ = interrupt(stopping)
        assert status == 130
        wait_for(lambda: _refusal(url) is None)
        installed.run("status")


def test_an_engine_left_out_of_balancing_by_a_killed_command_is_put_back_by_start_and_up(installed: Installed) -> None:
    write(installed, "chat: {model: MODEL, served_as: gpt-4, stop_timeout: 600}\n", 0)
    installed.run("up")
    url = f"http://127.0.0.1:{installed.port}/v1/chat/completions"
    body = {"model": ASKED, "messages": [], "stream": True, "fake": {"chunks": 6000, "seconds": 0.1}}
    for command in ("start", "up"):
        with httpx.Client(timeout=300) as client, client.stream("POST", url, json=body):
            with installed.popen("stop", "chat") as stopping:
                wait_for(lambda: _refusal(url))
                stopping.kill()
            assert _refusal(url)
            (service,) = json.loads(installed.run("status", "--json", ok=3).stdout)["services"]
            assert (service["state"], service["replicas"][0]["state"]) == ("draining", "draining")
            assert "`llmhost start chat` brings it back" in installed.run("status", ok=3).stdout
            installed.run(command)
            assert _refusal(url) is None
            installed.run("status")


@pytest.mark.parametrize("command", [("start", "other"), ("restart", "other"), ("restart", "--rolling", "other")])
def test_a_command_for_another_service_brings_back_what_a_killed_one_left_out(
    installed: Installed, command: tuple[str, ...]
) -> None:
    write(
        installed, "chat: {model: MODEL, served_as: gpt-4, stop_timeout: 600}\nother: {model: MODEL, replicas: 2}\n", 0
    )
    installed.run("up")
    url = f"http://127.0.0.1:{installed.port}/v1/chat/completions"
    body = {"model": ASKED, "messages": [], "stream": True, "fake": {"chunks": 6000, "seconds": 0.1}}
    with httpx.Client(timeout=300) as client, client.stream("POST", url, json=body):
        with installed.popen("stop", "chat") as stopping:
            wait_for(lambda: _refusal(url))
            (service,) = (s for s in installed.status()["services"] if s["name"] == "chat")
            assert (service["state"], service["replicas"][0]["error"]) == ("draining", None)  # it is at work
            stopping.kill()
        installed.run(*command)
        wait_for(lambda: _refusal(url) is None)


def test_rolling_stops_at_the_first_engine_that_does_not_come_back(installed: Installed, place: Path) -> None:
    bad = place / "bad"
    env = f"env: {{FAKE_ENGINE: '--exit-early-if {bad}'}}"
    write(installed, f"chat: {{model: MODEL, served_as: gpt-4, replicas: 2, {env}}}\n", 0)
    installed.run("up")
    before = installed.pids()
    bad.touch()
    with steady(installed).asking() as client:
        error, hint = installed.refused("restart", "--rolling", ok=3)
        client.wait_for_more()
    assert "chat-0 is failed" in error
    assert "the others of its service go on" in error
    assert str(installed.home.log_file("chat-0")) in hint
    assert client.lost == []
    assert installed.pids()["chat-1"] == before["chat-1"]
    error, _ = installed.refused("restart", "--rolling", ok=3)
    assert "chat-0 is failed" in error, "the one that does not serve is tried first again"
    bad.unlink()
    installed.run("restart", "--rolling")
    assert installed.pids()["chat-1"] != before["chat-1"]


def test_what_cannot_be_done_without_loss_is_refused(installed: Installed) -> None:
    error, hint = installed.refused("restart", "--rolling", ok=3)
    assert "nothing has been brought up" in error
    write(installed, "chat: {model: MODEL}\nmore: {model: MODEL, replicas: 2}\n", 0)
    installed.run("up")
    error, hint = installed.refused("restart", "--rolling")
    assert "chat: one replica only" in error
    assert "--surge chat" in hint
    assert "use one of them" in installed.refused("restart", "--rolling", "--surge", ok=2)[0]
    assert "--no-wait" in installed.refused("restart", "--rolling", "--no-wait", ok=2)[0]
    assert "there is no service nobody" in installed.refused("restart", "--surge", "nobody")[0]
    installed.run("stop")
    error, hint = installed.refused("restart", "--rolling", "more", ok=3)
    assert "the gateway is not running" in error
    assert "llmhost start" in hint


def test_a_surge_without_room_is_refused_and_nothing_happens(installed: Installed) -> None:
    """The whole memory is taken by one engine: its KV cache is as large as two such engines do not fit."""
    folder = installed.large_model()
    installed.write(f"chat: {{model: {folder}, served_as: gpt-4}}\n")
    installed.run("up")
    before = installed.pids()
    error, hint = installed.refused("restart", "--surge", "chat")
    assert "no room for a second chat" in error
    assert "GiB of memory are missing" in error
    assert "--surge" in hint
    installed.write(f"chat: {{model: {folder}, served_as: gpt-4, env: {{A: b}}}}\n")
    assert "no room for a second chat" in installed.refused("up", "--surge")[0]
    assert installed.pids() == before
    installed.write(f"assistant: {{model: {folder}, served_as: gpt-4}}\n")
    said = installed.run("up").stderr
    assert "no memory for chat-0 beside what takes over: 503 until that is ready" in said
    assert "assistant-0" in installed.pids()


def test_two_commands_do_not_meet_in_the_middle_of_a_change(installed: Installed) -> None:
    write(installed, "chat: {model: MODEL, served_as: gpt-4, replicas: 2, env: {FAKE_ENGINE: --start-delay 1}}\n", 0)
    installed.run("up")
    with installed.popen("restart", "--rolling", "chat") as first:
        wait_for(lambda: "rolling" in installed.home.lock_file.read_text())
        assert {s["name"] for s in installed.status()["services"]} == {"chat"}
        assert f"waiting for `llmhost restart --rolling` (pid {first.pid}) to finish" in installed.run("up").stderr
        assert first.poll() == 0
        _, err = first.communicate(timeout=300)
    assert first.returncode == 0, err
