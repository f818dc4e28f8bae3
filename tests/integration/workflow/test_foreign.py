"""Services with a command of their own, from llmhost.yaml to the answer: real supervisord, guards and Envoy, and small
real HTTP servers (tests/fakes/foreign.py) as the engines."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmhost import config
from llmhost.foreign import read_ports
from tests.integration.workflow.conftest import TESTS, Installed, home_in, wait_for

pytestmark = pytest.mark.integration

SERVER = f"{sys.executable} {TESTS}/fakes/foreign.py"


def ask(made: Installed, path: str, body: Any, status: int = 200) -> Any:
    """The answer of the gateway; the fake's answer says what it got."""
    data = body if isinstance(body, str) else json.dumps(body)
    with httpx.Client(base_url=f"http://127.0.0.1:{made.port}", trust_env=False, timeout=300) as client:
        answer = client.post(path, content=data, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    return answer.json()


def replica(made: Installed, name: str) -> dict[str, Any]:
    found = (r for s in made.status()["services"] for r in s["replicas"] if r["name"] == name)
    return next(found)


@pytest.fixture
def bare(place: Path, request: pytest.FixtureRequest) -> Any:
    """A home without vLLM: no service needs it."""
    with home_in(place) as made:
        shutil.rmtree(made.home.engines)
        yield made


def test_engines_of_all_sorts_answer_through_one_port(installed: Installed) -> None:
    installed.write(f"""
        vllm: {{model: {installed.model()}, stop_timeout: 1}}
        helper: {{command: "{SERVER} --port {{port}} --health /alive", ready: /alive, env: {{VALUE: "1"}}}}
        silent: {{command: "{SERVER}", kind: none}}
        tei:
          command: [python, {TESTS}/fakes/foreign.py, --port, "{{port}}", --helper, "{{helper.port}}"]
          environment: {{interpreter: {sys.executable}}}
          kind: embed
          served_as: [bge, gte]
          paths: {{/v1/embeddings: /embed, /v1/rerank: /rerank}}
          model_name: BAAI/bge
          stop_timeout: 1
          ready: /health
          cores: 1
          memory: 512MiB
          needs: helper
        api:
          command: "{SERVER} --uds {{uds}} --post /v1/completions"
          kind: chat
          port: {installed.port + 1}
          env: {{VALUE: "{{{{{{home}}}}}}"}}
          cores: 0
          memory: 512MiB
          stop_timeout: 1
    """)
    installed.run("up")
    told = ask(installed, "/v1/embeddings?x=1", '{"input": [{"model": "a"}], "model" : "gte", "n": "\\"model\\": 1"}')
    assert told["path"] == "/embed?x=1"
    assert told["body"] == '{"input": [{"model": "a"}], "model" : "BAAI/bge", "n": "\\"model\\": 1"}'
    assert told["host"] == "localhost"
    assert ask(installed, "/v1/rerank", {"model": "bge", "query": "q"})["path"] == "/rerank"
    assert ask(installed, "/v1/embeddings", {"input": 1})["body"] == '{"input": 1,"model":"BAAI/bge"}'
    assert told["env"]["CUDA_VISIBLE_DEVICES"] == ""
    assert told["env"]["PATH"].split(":")[0] == str(Path(sys.executable).parent)
    assert told["env"]["OMP_NUM_THREADS"] == "1"
    assert len(told["cores"]) == 1
    plan = json.loads(installed.home.plan_file.read_text())
    ports = {r["name"]: r["ports"] for s in plan["services"] for r in s["replicas"]}
    assert told["argv"][-1] == str(ports["helper-0"]["port"])
    told = ask(installed, "/v1/completions", {"model": "api", "prompt": "x"})
    assert told["env"]["VALUE"] == f"{{{installed.home.root}}}"
    assert ask(installed, "/v1/completions", {"model": "vllm", "prompt": "x"})["model"] == "vllm"
    unknown = ask(installed, "/v1/embeddings", {"model": "helper"}, 404)["error"]["message"]
    assert unknown == "The model 'helper' does not exist; models: 'vllm', 'bge', 'gte', 'api'"
    health = httpx.get(f"http://127.0.0.1:{installed.port}/health?model=bge", trust_env=False, timeout=300)
    assert health.json() == {"path": "/health?model=bge"}
    status = {s["name"]: (s["kind"], s["state"]) for s in installed.status()["services"]}
    assert status == {
        "vllm": ("chat", "ready"), "helper": ("none", "ready"), "silent": ("none", "ready"), "tei": ("embed", "ready"),
        "api": ("chat", "ready"),
    }  # fmt: skip
    assert "foreign engine with ['--port'" in installed.run("logs", "tei").stdout
    assert "keep" in installed.run("plan").stdout
    assert 'service="tei"' in installed.run("metrics", "show").stdout
    installed.run("top", "--once")
    assert ports == {r["name"]: r["ports"] for s in _planned(installed)["services"] for r in s["replicas"]}  # they stay


def _planned(made: Installed) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(made.run("plan", "--json").stdout)
    return found


def test_an_engine_that_is_killed_comes_back(bare: Installed) -> None:
    bare.write(f'e: {{command: "{SERVER} --port {{port}}", kind: embed, stop_timeout: 1}}')
    bare.run("up")
    first = ask(bare, "/v1/embeddings", {"model": "e"})["pid"]
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: replica(bare, "e-0")["restarts"] == 1)
    wait_for(lambda: replica(bare, "e-0")["state"] == "ready")
    assert wait_for(lambda: _pid_or_none(bare)) != first


def _pid_or_none(made: Installed) -> int | None:
    try:
        return int(ask(made, "/v1/embeddings", {"model": "e"})["pid"])
    except AssertionError:  # the gateway has not found out yet
        return None


def test_an_engine_that_never_listens_says_what_was_waited_for(bare: Installed) -> None:
    bare.write(f"""
        e: {{command: "{SERVER} --port {{port}} --after /nowhere", kind: embed, ready: /health, start_timeout: 1,
             max_restarts: 1}}
        w: {{command: "{SERVER}", needs: e}}
    """)
    error, _ = bare.refused("up", ok=3)
    port = json.loads(bare.home.plan_file.read_text())["services"][0]["replicas"][0]["ports"]["port"]
    assert f"nobody listens on 127.0.0.1:{port}, for GET /health" in error
    assert "its last words: foreign engine with ['--port'" in error
    assert "w-0 is failed (it needs e, which failed)" in error


def test_helpers_start_in_the_order_of_their_needs(bare: Installed, place: Path) -> None:
    late = place / "late"
    bare.write(f"""
        a: {{command: "{SERVER} --port {{port}} --after {late}", ready: /health}}
        b: {{command: "{SERVER} --port {{port}} --a {{a.port}}", needs: a, kind: chat, stop_timeout: 1}}
    """)
    bare.run("up", "--no-wait")
    assert "waits for a, which is loading" in wait_for(lambda: _waiting(bare))
    assert replica(bare, "b-0")["state"] == "queued"
    late.touch()
    bare.run("start")
    ask(bare, "/v1/chat/completions", {"model": "b"})
    bare.run("stop")
    bare.run("start", "b")  # and what it needs
    assert {s["name"]: s["state"] for s in bare.status()["services"]} == {"a": "ready", "b": "ready"}


def _waiting(made: Installed) -> str:
    error = str(replica(made, "b-0")["error"])
    return error if "loading" in error else ""


def test_a_program_that_is_not_there_is_named_before_anything_starts(bare: Installed) -> None:
    bare.write("e: {command: 'no-such-program --port {port}', kind: chat}")
    error, hint = bare.refused("up")
    assert error == "error: services.e.command: there is no program no-such-program on PATH"
    assert "environment" in hint
    bare.write("e: {command: './gone --port {port}', kind: chat}")
    assert "/gone is no program" in bare.refused("plan")[0]
    assert not bare.home.plan_file.exists()


def test_paths_that_are_not_routed_are_refused(bare: Installed) -> None:
    bare.write(f'e: {{command: "{SERVER} --port {{port}}", kind: embed, paths: {{/v1/chat/completions: /x}}}}')
    error, hint = bare.refused("up")
    assert "services.e.paths: /v1/chat/completions is not sent to a service of kind embed" in error
    assert "/v1/embeddings" in hint
    assert bare.refused("config", "validate")[0] == error
    bare.write("e: {command: 'x --port {port}', environment: {requirements: [x]}}")
    assert "needs the engine and the environments" in bare.run("config", "validate").stderr
    assert "the environment e is not built yet" in bare.refused("plan")[0]


def test_one_that_hangs_is_started_again(bare: Installed, place: Path) -> None:
    hang = place / "hang"
    bare.write(f"""
        e: {{command: "{SERVER} --uds {{uds}} --hang {hang}", kind: embed, health: {{path: /health, timeout: 1.5}},
             hang_timeout: 6, stop_timeout: 0}}
    """)
    bare.run("up")
    hang.touch()
    wait_for(lambda: "hangs" in bare.home.log_file("e-0").read_text())
    hang.unlink()
    wait_for(lambda: replica(bare, "e-0")["state"] == "ready" and replica(bare, "e-0")["restarts"] >= 1)


def test_a_change_restarts_what_changed_and_keeps_ports(bare: Installed) -> None:
    first = f'e: {{command: "{SERVER} --port {{port}}", kind: embed}}\n'
    other = 'f: {{command: "{server} --port {{port}} {more}", kind: chat}}'
    bare.write(first + other.format(server=SERVER, more=""))
    bare.run("up")
    before = bare.pids()
    bare.write(first + other.format(server=SERVER, more="--slow 0.1"))
    bare.run("up")
    after = bare.pids()
    assert before["e-0"] == after["e-0"]
    assert before["f-0"] != after["f-0"]
    error, _ = bare.refused("restart", "--surge", "f")
    assert "f listens on a TCP port" in error
    bare.write(first)
    bare.run("up")
    assert set(bare.pids()) == {"supervisor", "gateway", "e-0"}


def test_a_port_that_somebody_else_has_taken_is_given_up(bare: Installed) -> None:
    bare.write(f'e: {{command: "{SERVER} --port {{port}}", kind: embed, stop_timeout: 1}}')
    bare.run("up")
    port = _planned(bare)["services"][0]["replicas"][0]["ports"]["port"]
    bare.run("stop", "e")
    with socket.socket() as somebody:
        somebody.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        somebody.bind(("127.0.0.1", port))
        somebody.listen()
        bare.run("start", "--no-wait")
        wait_for(lambda: f"port {port} is taken by " in str(replica(bare, "e-0")["error"]))
        bare.run("up")
        assert ask(bare, "/v1/embeddings", {"model": "e"})["argv"][-1] != str(port)


def test_there_are_ports_for_all_that_stand_in_one_word(bare: Installed) -> None:
    bare.write(f'e: {{command: "x {",".join(f"{{port:p{n}}}" for n in range(20))}"}}')
    assert len(read_ports(bare.home, config.load(bare.home.config_file)).free) >= 40


def test_what_changes_serves_as_it_was_until_the_next_one_is_ready(bare: Installed, place: Path) -> None:
    """Another health path and another name of the model, and a next engine that listens long before it answers."""
    hang = place / "hang"
    line = (
        'e: {{command: "{server} --uds {{uds}} --health /{name} {more}", kind: embed, health: /{name},'
        " model_name: {name}}}"
    )
    bare.write(line.format(server=SERVER, name="old", more=""))
    bare.run("up")
    hang.touch()
    bare.write(line.format(server=SERVER, name="new", more=f"--hang {hang}"))
    change = subprocess.Popen(bare.command("up", "--surge"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for((bare.home.run / "e-1.sock").exists)
        for _ in range(30):
            assert json.loads(ask(bare, "/v1/embeddings", {"model": "e"})["body"])["model"] == "old"
            time.sleep(0.05)
        hang.unlink()
        assert change.wait(300) == 0
    finally:
        change.kill()
        change.wait()
    assert json.loads(ask(bare, "/v1/embeddings", {"model": "e"})["body"])["model"] == "new"


def test_helpers_take_turns_and_have_no_second_ones(bare: Installed, place: Path) -> None:
    """The gateway does not know them, so their guards say who serves; and who asks them is not moved."""
    own = bare.home.root / "own"
    own.mkdir()
    (own / "engine").write_text(f'#!/bin/sh\nexec {SERVER} "$@"\n')
    (own / "engine").chmod(0o755)
    bare.write("""
        pair: {command: "engine --port {port}", ready: /health, replicas: 2, env: {PATH: "{home}/own:/bin:/usr/bin"}}
        a: {command: "engine --uds {uds}", kind: chat, env: {PATH: "{home}/own:/bin:/usr/bin"}}
        b: {command: "engine --uds {uds} --other {a.uds}", kind: embed, env: {PATH: "{home}/own:/bin:/usr/bin"}}
    """)
    bare.run("up")
    before = bare.pids()
    assert "pair is a helper" in bare.refused("restart", "--surge", "pair")[0]
    assert "b-0 was given the socket of a" in bare.refused("restart", "--surge", "a")[0]
    assert bare.pids() == before
    bare.run("restart", "--rolling", "pair")
    after = bare.pids()
    assert {name for name in before if before[name] != after[name]} == {"pair-0", "pair-1"}
    assert "no service to ask" in bare.refused("check", "pair", ok=1)[0]
