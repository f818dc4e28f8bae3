"""up, down, start, stop, restart, status, logs, check as an operator uses them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import pytest

from tests.integration.workflow.conftest import Installed, interrupt, leftovers, wait_for

pytestmark = pytest.mark.integration

ODD = "50% ; # \"double\" 'single' 通义 \\ %(here)s $HOME"


def three(installed: Installed, chat: str = "", rerank: str = "") -> None:
    installed.write(f"""
        chat: {{model: {installed.model()}, served_as: [demo, gpt-4]{chat}}}
        embedding: {{model: {installed.model("embed", "BertModel")}}}
        rerank: {{model: {installed.model("rerank", "BertForSequenceClassification")}{rerank}}}
    """)


def test_from_nothing_to_ready_and_back(installed: Installed) -> None:
    three(installed)
    done = installed.run("up")
    assert all(f"start {p}: ready" in done.stderr for p in ("chat-0", "embedding-0", "rerank-0", "gateway"))
    assert done.stdout.count("\ncurl ") == 3
    answer = httpx.post(
        f"http://127.0.0.1:{installed.port}/v1/embeddings", json={"model": "embedding", "input": ["a"]}, timeout=300
    )
    assert answer.json()["data"][0]["embedding"] == [0.6, 0.8]
    assert [s["state"] for s in installed.status()["services"]] == ["ready"] * 3
    installed.run("status")
    installed.run("down")
    assert leftovers(installed.home) == []
    assert "stopped" in installed.run("status", ok=3).stdout
    assert "nothing was running" in installed.run("down").stdout


def test_up_twice_changes_nothing_and_an_edit_restarts_one(installed: Installed) -> None:
    three(installed)
    installed.run("up")
    before = installed.pids()
    installed.run("up")
    assert installed.pids() == before
    assert "nothing would change" in installed.run("render", "--diff").stderr
    three(installed, chat=", env: {A: b}")
    assert "changed conf/guard/chat-0.json" in installed.run("render", "--diff").stdout
    installed.run("up")
    after = installed.pids()
    assert {name for name in before if before[name] != after[name]} == {"chat-0"}


def test_services_come_and_go_without_a_restart_of_the_others(installed: Installed) -> None:
    three(installed)
    installed.run("up")
    before = installed.pids()
    installed.write(f"""
        chat: {{model: {installed.model()}, served_as: [demo, gpt-4]}}
        embedding: {{model: {installed.model("embed", "BertModel")}}}
        second: {{model: {installed.model()}, replicas: 2}}
    """)
    installed.run("up")
    after = installed.pids()
    assert set(after) == {"supervisor", "gateway", "chat-0", "embedding-0", "second-0", "second-1"}
    # Another number of engines shares out the cores anew, which is in the environment of each.
    assert (after["supervisor"], after["gateway"]) == (before["supervisor"], before["gateway"])
    url = f"http://127.0.0.1:{installed.port}"
    names = {m["id"] for m in httpx.get(f"{url}/v1/models", timeout=300).json()["data"]}
    assert names == {"demo", "gpt-4", "embedding", "second"}
    assert not (installed.home.conf / "guard/rerank-0.json").exists()


def test_up_of_one_service_starts_that_one(installed: Installed) -> None:
    three(installed)
    installed.run("up", "embedding")
    states = {s["name"]: s["state"] for s in installed.status()["services"]}
    assert states == {"chat": "stopped", "embedding": "ready", "rerank": "stopped"}
    error, hint = installed.refused("up", "nobody")
    assert "there is no service nobody" in error
    assert "chat, embedding, rerank" in hint


def test_stop_start_and_restart_by_name(installed: Installed) -> None:
    three(installed)
    installed.run("up")
    before = installed.pids()
    assert "stopped rerank-0" in installed.run("stop", "rerank").stdout
    assert {s["name"]: s["state"] for s in installed.status()["services"]}["rerank"] == "stopped"
    installed.run("status", ok=3)
    installed.run("start", "rerank")
    installed.run("restart", "chat")
    after = installed.pids()
    assert {name for name in before if before[name] != after[name]} == {"rerank-0", "chat-0"}
    assert all(r["restarts"] == 0 for s in installed.status()["services"] for r in s["replicas"])


def test_stop_without_names_stops_all_but_supervisord_and_start_brings_all_back(installed: Installed) -> None:
    three(installed)
    installed.run("up")
    supervisor = installed.pids()["supervisor"]
    installed.run("stop")
    assert installed.pids() == {
        "supervisor": supervisor, "gateway": None,
        "chat-0": (None, None), "embedding-0": (None, None), "rerank-0": (None, None),
    }  # fmt: skip
    installed.run("start")
    installed.run("status")
    installed.run("down")
    installed.run("start", "chat")
    assert {s["name"]: s["state"] for s in installed.status()["services"]}["chat"] == "ready"


def test_odd_values_arrive_unchanged(installed: Installed) -> None:
    installed.home.config_file.write_text(
        json.dumps(
            {
                "gateway": {"port": installed.port},
                "services": {
                    "chat": {
                        "model": installed.model("模型 ; # 1"),
                        "served_as": [ODD],
                        "args": {"hf_overrides": {"k": [ODD, 1.5, None]}, "tool_call_parser": "hermes"},
                        "env": {"ODD": f"{ODD}\nsecond line", "FAKE_ENGINE": f"--dump {installed.home.root}/dump"},
                    }
                },
            },
            ensure_ascii=False,
        ),
        encoding="utf-8",
    )
    installed.run("up")
    dump = json.loads((installed.home.root / "dump").read_text())
    argv = dump["argv"]
    assert argv[argv.index("--served-model-name") + 1] == ODD
    assert json.loads(argv[argv.index("--hf-overrides") + 1]) == {"k": [ODD, 1.5, None]}
    assert argv[argv.index("--model") + 1].endswith("模型 ; # 1")
    assert dump["env"]["ODD"] == f"{ODD}\nsecond line"
    answer = httpx.post(
        f"http://127.0.0.1:{installed.port}/v1/chat/completions", json={"model": ODD, "messages": []}, timeout=300
    )
    assert answer.json()["model"] == ODD


def test_secrets_are_in_no_command_line_and_no_file_that_others_can_read(installed: Installed) -> None:
    three(installed, chat=", env: {HF_TOKEN: hf_verysecret}")
    installed.run("up")
    assert "hf_verysecret" not in subprocess.run(["ps", "axww"], capture_output=True, text=True, check=True).stdout
    assert "hf_verysecret" not in installed.run("plan", "--json").stdout + installed.run("render", "--diff").stdout
    for path in installed.home.root.rglob("*"):
        if path.is_file() and path.suffix not in (".yaml",) and b"hf_verysecret" in path.read_bytes():
            assert path.parent == installed.home.conf / "guard"
            assert path.stat().st_mode & 0o077 == 0


def test_an_engine_that_cannot_start_is_failed_with_its_last_words_and_the_others_are_ready(
    installed: Installed,
) -> None:
    three(installed, chat=", env: {FAKE_ENGINE: '--say \"ValueError: no such thing\" --exit-early 1'}")
    error, hint = installed.refused("up", ok=3)
    assert "chat-0 is failed (ValueError: no such thing)" in error
    assert "llmhost logs chat" in hint
    states = {s["name"]: s["state"] for s in installed.status()["services"]}
    assert states == {"chat": "failed", "embedding": "ready", "rerank": "ready"}
    assert "chat-0: ValueError: no such thing" in installed.run("status", ok=3).stdout
    three(installed)
    installed.run("up")


def test_waiting_ends_with_the_time_that_was_given(installed: Installed) -> None:
    three(installed, chat=f", env: {{FAKE_ENGINE: '--wait-for {installed.home.root}/never'}}")
    error, _ = installed.refused("up", "--timeout", "15", ok=3)
    assert "chat-0 is loading" in error
    installed.run("up", "--no-wait")


def test_a_port_that_somebody_has_is_named_with_its_owner(installed: Installed) -> None:
    three(installed)
    server = subprocess.Popen(
        ["python3", "-m", "http.server", "--bind", "127.0.0.1", str(installed.port)], stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: _listens(installed.port))
        error, hint = installed.refused("up")
    finally:
        server.kill()
        server.wait()
    assert f"port {installed.port} on 127.0.0.1 is in use by" in error
    assert f"(pid {server.pid})" in error
    assert "gateway.port" in hint
    assert not installed.home.conf.exists() or not installed.home.supervisord_conf.exists()
    installed.run("up")


def _listens(port: int) -> bool:
    try:
        httpx.get(f"http://127.0.0.1:{port}/", timeout=300)
    except httpx.HTTPError:
        return False
    return True


def test_a_second_command_at_the_same_time_waits_for_its_turn_and_says_for_whom(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    three(installed, chat=", stop_timeout: 600, env: {FAKE_ENGINE: '--children 1 --stubborn-children'}")
    installed.run("up")
    url = f"http://127.0.0.1:{installed.port}/v1/chat/completions"
    body = {"model": "demo", "messages": [], "stream": True, "fake": {"chunks": 6000, "seconds": 0.1}}
    with (
        httpx.Client(timeout=300) as client,
        client.stream("POST", url, json=body) as stream,  # which the stop waits for
        installed.popen("stop", "chat") as first,
    ):
        wait_for(lambda: installed.home.lock_file.read_text().endswith(" stop"))
        with monkeypatch.context() as patience:
            patience.setenv("LLMHOST_LOCK_TIMEOUT", "0.1")
            error, _ = installed.refused("up", ok=4)
        assert f"`llmhost stop` (pid {first.pid}) is changing" in error
        with installed.popen("start", "chat") as second:
            assert second.stderr is not None
            assert f"waiting for `llmhost stop` (pid {first.pid}) to finish" in second.stderr.readline()
            stream.close()
            _, said = second.communicate(timeout=300)
            assert second.returncode == 0, said
        assert first.poll() == 0
        _, said = first.communicate(timeout=300)
    assert "chat-0: had to end " in said
    assert {s["state"] for s in installed.status()["services"]} == {"ready"}


def test_what_was_asked_for_last_is_what_is_there(installed: Installed) -> None:
    three(installed)
    installed.run("up")
    commands = (("up",), ("restart",), ("stop", "rerank"), ("restart", "chat"), ("start", "rerank"), ("stop", "chat"))
    running = []
    for command in commands:
        running.append(installed.popen(*command))
        wait_for(lambda: _in_line(installed, running[-1]))
    for process in running:
        _, said = process.communicate(timeout=300)
        assert "Traceback" not in said
    wait_for(lambda: _states(installed) == {"chat": "stopped", "embedding": "ready", "rerank": "ready"})


def _in_line(installed: Installed, process: subprocess.Popen[str]) -> bool:
    """It has drawn its number, or is over already: what is asked for from now on comes after it."""
    turns = f"{installed.home.run}/turns/"
    try:
        files = [os.readlink(fd) for fd in Path(f"/proc/{process.pid}/fd").iterdir()]
    except FileNotFoundError:  # it is closing one, or it is over
        files = []
    return process.poll() is not None or any(file.startswith(turns) for file in files)


def _states(installed: Installed) -> dict[str, str]:
    return {s["name"]: s["state"] for s in installed.status()["services"]}


def test_doctor_finds_and_sweeps_what_a_former_life_left(installed: Installed) -> None:
    three(installed, chat=", env: {FAKE_ENGINE: '--children 2 --stubborn-children'}")
    healthy = installed.run("doctor").stdout
    assert "nothing is left" in healthy
    assert "none failed" in healthy
    installed.run("up")
    before = installed.pids()
    assert "nothing is left" in installed.run("doctor", "--sweep").stdout
    assert installed.pids() == before
    os.kill(before["supervisor"], signal.SIGSTOP)  # else it starts the guard again
    for name in reversed(before):  # supervisord last: a guard whose parent dies tidies up
        os.kill(before[name] if isinstance(before[name], int) else before[name][0], signal.SIGKILL)
    wait_for(lambda: sum("engine" in line or "api_server" in line for line in leftovers(installed.home)) == 2)
    (installed.home.run / "chat-0.state.json.new").write_text("{")
    report = json.loads(installed.run("doctor", "--json", ok=1).stdout)
    assert (report["ok"], len(report["processes"])) == (False, 2)
    assert sum(c["name"] == "leftovers" and c["status"] == "fail" for c in report["checks"]) >= 3
    names = {Path(path).name for path in report["files"]}
    assert {"supervisor.sock", "supervisord.pid", "chat-0.sock", "chat-0.state.json.new"} <= names
    error = installed.run("doctor", ok=1)
    assert "llmhost doctor --sweep" in error.stderr
    assert installed.run("doctor", "--sweep").stdout.count("killed") == 2
    assert leftovers(installed.home) == []
    assert json.loads(installed.run("doctor", "--json").stdout)["ok"] is True
    installed.run("up")


@pytest.mark.parametrize("command", ["status", "logs", "stop", "start", "check", "restart"])
def test_before_the_first_up(installed: Installed, command: str) -> None:
    if command == "status":
        assert "supervisor  stopped" in installed.run("status", ok=3).stdout
        assert installed.status()["services"] == []
    else:
        error, hint = installed.refused(command, ok=3)
        assert "nothing has been brought up" in error
        assert "llmhost up" in hint


def test_a_killed_supervisord_takes_all_along_and_up_brings_all_back(installed: Installed) -> None:
    three(installed)
    installed.run("up")
    os.kill(installed.pids()["supervisor"], signal.SIGKILL)
    wait_for(lambda: not [line for line in leftovers(installed.home) if "python" in line or "envoy" in line])
    assert installed.status()["supervisor"] == {"state": "stopped", "pid": None}
    installed.run("up")
    installed.run("status")


def test_ctrl_c_while_waiting_says_so_and_the_next_up_goes_on(installed: Installed) -> None:
    three(installed, chat=f", env: {{FAKE_ENGINE: '--wait-for {installed.home.root}/go'}}")
    with installed.popen("up") as process:
        wait_for(lambda: {s["name"]: s["state"] for s in installed.status()["services"]}.get("chat") == "loading")
        status, err = interrupt(process)
    assert status == 130
    assert "error: interrupted" in err
    assert "Traceback" not in err
    before = installed.pids()
    (installed.home.root / "go").touch()
    installed.run("up")
    assert installed.pids() == before


def test_logs_are_prefixed_and_ctrl_c_ends_following_quietly(installed: Installed) -> None:
    three(installed, chat=", env: {FAKE_ENGINE: '--say-bytes ff1b5b41e4bda00a'}")
    installed.run("up")
    lines = installed.run("logs", "chat", "gateway", "-n", "50").stdout.splitlines()
    assert any(line == "chat-0  | �你" for line in lines)
    with installed.popen("logs", "-f", "-n", "0", "embedding") as process:
        assert process.stdout is not None
        installed.run("restart", "embedding")
        assert process.stdout.readline().startswith("embedding-0 | ")
        status, err = interrupt(process)
    assert (status, err) == (130, "")


def test_logs_are_chosen_by_level_time_and_text_and_requests_have_one_of_their_own(installed: Installed) -> None:
    day = (datetime.now() - timedelta(days=1)).strftime("%m-%d")
    said = (f"ERROR {day} 10:00:00 [a.py:1] it broke", "Traceback follows", f"INFO {day} 10:00:01 [a.py:1] fine")
    faults = " ".join(f"--say '{line}'" for line in said)
    three(installed, chat=f', env: {{FAKE_ENGINE: "{faults}"}}')
    installed.run("up")
    errors = installed.run("logs", "chat", "--level", "error").stdout.splitlines()
    assert [line.partition(" | ")[2] for line in errors] == list(said[:2])
    assert "it broke" not in installed.run("logs", "chat", "--since", "1h").stdout
    guards = installed.run("logs", "--grep", r"\[guard\].*starting", "--json").stdout.splitlines()
    assert {json.loads(line)["program"] for line in guards} == {"chat-0", "embedding-0", "rerank-0"}
    assert [json.loads(line)["time"] for line in guards] == sorted(json.loads(line)["time"] for line in guards)
    answer = httpx.post(
        f"http://127.0.0.1:{installed.port}/v1/embeddings", json={"model": "embedding", "input": "secret"}, timeout=300
    )
    assert answer.status_code == 200
    wait_for(lambda: "embeddings" in installed.run("logs", "access").stdout)
    request = json.loads(installed.run("logs", "access", "--json").stdout.splitlines()[-1])["request"]
    assert (request["service"], request["path"], request["status"]) == ("embedding", "/v1/embeddings", 200)
    assert "secret" not in installed.home.log_file("access").read_text()
    assert "no regular expression" in installed.run("logs", "--grep", "(", ok=2).stderr
    assert "is no time" in installed.run("logs", "--since", "yesterday", ok=2).stderr


def test_check_says_what_is_wrong_with_an_answer(installed: Installed) -> None:
    """The fake embeds everything to one vector and says one word: a check that passed that would check nothing."""
    three(installed)
    installed.run("up")
    report = json.loads(installed.run("check", "--json", ok=1).stdout)
    assert report["ok"] is False
    by_name = {c["check"]: c for c in report["checks"]}
    assert "none of" in by_name["chat"]["detail"]
    assert "is no nearer than a stranger" in by_name["embed"]["detail"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: [p.unlink() for p in folder.iterdir()], "empty"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x10"), "safetensors"),
    ],
)
def test_a_broken_model_is_refused_before_anything_starts(installed: Installed, damage: object, message: str) -> None:
    three(installed)
    installed.run("up")
    before = installed.pids()
    damage(Path(installed.model()))  # type: ignore[operator]
    error, _ = installed.refused("up")
    assert "services.chat.model" in error
    assert message in error
    assert installed.pids() == before


def test_a_service_of_its_own_port(installed: Installed) -> None:
    from tests.ports import free_port

    own = free_port()
    three(installed, rerank=f", port: {own}")
    installed.run("up")
    body = {"query": "a", "documents": ["b", "c"]}
    answer = httpx.post(f"http://127.0.0.1:{own}/v1/rerank", json=body, timeout=300)
    assert [r["index"] for r in answer.json()["results"]] == [0, 1]


def test_another_address_for_the_gateway(installed: Installed) -> None:
    three(installed)
    installed.run("up")
    before = installed.pids()
    text = installed.home.config_file.read_text(encoding="utf-8")
    installed.home.config_file.write_text(text.replace("gateway: {", "gateway: {host: 127.0.0.2, "), encoding="utf-8")
    installed.run("up")
    assert httpx.get(f"http://127.0.0.2:{installed.port}/health", timeout=300).status_code == 200
    after = installed.pids()
    assert {name for name in before if before[name] != after[name]} == {"gateway"}


def test_two_ups_at_once_do_not_undo_each_other(installed: Installed) -> None:
    three(installed)
    with installed.popen("up") as first, installed.popen("up") as second:
        statuses = {first.wait(300), second.wait(300)}
        errors = first.communicate()[1] + second.communicate()[1]
    assert statuses <= {0, 4}
    assert 0 in statuses
    assert "Traceback" not in errors
    installed.run("up")
    installed.run("status")


def test_whoever_looks_at_the_files_is_no_supervisord(installed: Installed) -> None:
    three(installed)
    installed.run("up")
    installed.run("down")
    home = installed.home
    watcher = subprocess.Popen(["tail", "-f", str(home.supervisord_conf), str(home.log_file("supervisord"))], stdout=-3)
    try:
        installed.run("up")
        installed.run("down")
        assert watcher.poll() is None
    finally:
        watcher.kill()
        watcher.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
@pytest.mark.parametrize("command", ["status", "down", "up", "logs"])
def test_somebody_else_is_told_that_it_is_not_their_home(installed: Installed, command: str) -> None:
    three(installed)
    installed.run("up")
    installed.home.root.parent.chmod(0o755)
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *installed.command(command)]
    done = subprocess.run(as_nobody, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: this user may not look into")
    installed.run("status")


def test_output_that_goes_nowhere_and_places_that_are_gone(installed: Installed, place: Path) -> None:
    """None of it is a bug of ours, and it says what it is."""
    three(installed)
    installed.run("up")
    with open("/dev/full", "w") as full:
        done = subprocess.run(installed.command("status"), stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, "error: No space left on device")
    closed = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *installed.command("status")], check=False)
    assert closed.returncode == 0
    gone = place / "gone"
    gone.mkdir()
    command = ["sh", "-c", 'rmdir "$0"; exec "$@"', str(gone), *installed.command("status")[:-3], "--home", "here"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [*command, "status"], cwd=gone, capture_output=True, text=True, env=environment, check=False
    )  # fmt: skip
    assert done.stderr.startswith("error: here: the current directory was removed")
    assert installed.refused("--home", str(place / ("x" * 300)), "status")[0].endswith("File name too long")
    assert "there is no home directory of nobody-here" in installed.refused("--home", "~nobody-here/x", "status")[0]


def test_logs_of_one_replica_and_of_more_lines_than_there_are(installed: Installed) -> None:
    three(installed)
    installed.run("up")
    lines = installed.run("logs", "chat-0", "-n", "1000000000").stdout.splitlines()
    assert lines
    assert all(line.startswith("chat-0 | ") for line in lines)
    assert "is not in the range" in installed.run("logs", "-n", "9" * 30, ok=2).stderr
    assert "there is no log of chat-1" in installed.refused("logs", "chat-1")[0]
