"""The guard by itself: one engine's life from the lock to the last process."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmhost.paths import guard_script
from llmhost.supervise import daemon, lifecycle
from llmhost.supervise.guarding.locks import lock_name
from tests.integration.supervise.conftest import (
    FAKE_ENGINE,
    PATIENCE,
    PYTHON,
    House,
    LoneGuard,
    alive,
    marked,
    wait_for,
)  # fmt: skip

pytestmark = pytest.mark.integration


@contextmanager
def held(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_held(path: Path) -> bool:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def end_engine(guard: LoneGuard, code: int) -> None:
    """Let the engine exit with this status."""
    body = json.dumps({"code": code}).encode()
    head = f"POST /fake/exit HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(ConnectionError):
        connection.connect(guard.spec["socket"])
        connection.sendall(head + body)
        connection.recv(1024)


def test_a_killed_engine_is_not_called_ready_while_what_it_left_is_ended(guard: LoneGuard) -> None:
    """It takes seconds: these children ignore SIGTERM."""
    guard.start("--children", "1", "--stubborn-children")
    engine = guard.wait("ready")["engine_pid"]
    os.kill(engine, signal.SIGKILL)
    said = guard.wait("unhealthy")
    assert (said["error"], said["engine_pid"]) == ("the engine was killed by SIGKILL", None)
    assert guard.wait("ready", restarts=1)["error"] is None


def test_a_line_of_the_guard_is_a_line_of_its_own(house: House) -> None:
    """Though the engine did not end its last one."""
    house.service("chat", "--say-bytes", b"half a line".hex(), "--exit-early", "1")
    house.write()
    daemon.ensure_running(house.home)
    lifecycle.converge(house.home, ("chat-0",))
    house.wait("chat-0", state="failed")
    lines = house.log("chat-0").splitlines()
    assert "half a line" in lines
    assert "" not in lines


def test_ready_then_a_wanted_stop(guard: LoneGuard) -> None:
    process = guard.start()
    said = guard.wait("ready")
    assert (said["program"], said["guard_pid"], said["restarts"]) == ("chat-0", process.pid, 0)
    assert (said["error"], said["exit"]) == (None, None)
    assert os.getsid(said["engine_pid"]) == said["engine_pid"] == os.getpgid(said["engine_pid"])
    assert said["since"] >= said["started"] > 0
    assert "POST /v1/chat/completions" in guard.log()
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    assert guard.says()["state"] == "stopped"
    assert guard.says()["engine_pid"] is None
    assert not Path(guard.spec["socket"]).exists()
    assert marked(guard.mark) == []


def test_it_stays_small(guard: LoneGuard) -> None:
    process = guard.start()
    guard.wait("ready")
    status = Path(f"/proc/{process.pid}/status").read_text()
    kilobytes = int(status.partition("VmRSS:")[2].split()[0])
    assert kilobytes <= 15 * 1024


def test_it_imports_nothing_heavy() -> None:
    root = Path(__file__).parents[3]
    code = (
        f"import sys; sys.path.append({str(root)!r}); import llmhost.supervise.guarding.life;"
        "print(*sorted(sys.modules))"
    )
    command = [sys.executable, "-I", "-S", "-c", code]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    ours = {name for name in loaded if name.startswith("llmhost") and ".guarding" not in name}
    assert ours == {"llmhost", "llmhost.supervise"}
    assert not loaded & {"subprocess", "ssl", "email", "http.client", "asyncio", "typing", "dataclasses", "logging"}


def test_loading_until_a_real_request_works(guard: LoneGuard, place: Path) -> None:
    lock = place / "gpu0.lock"
    guard.start("--wait-for", str(place / "go"), locks=[str(lock)])
    guard.wait("loading")
    assert is_held(lock)
    (place / "go").touch()
    guard.wait("ready")
    assert not is_held(lock)


@pytest.mark.parametrize(
    ("kind", "path"), [("embed", "/v1/embeddings"), ("rerank", "/v1/rerank"), ("chat", "/v1/chat/completions")]
)
def test_the_request_is_of_the_kind(guard: LoneGuard, kind: str, path: str) -> None:
    guard.start(kind=kind)
    guard.wait("ready")
    assert f"POST {path}" in guard.log()


def test_a_chat_model_without_a_chat_template(guard: LoneGuard) -> None:
    guard.start("--no-chat-template")
    guard.wait("ready")
    assert "POST /v1/completions" in guard.log()


def test_queued_until_both_locks_are_free(guard: LoneGuard, place: Path) -> None:
    one, two = place / "gpu0.lock", place / "gpu1.lock"
    with held(two):
        guard.start(locks=[str(one), str(two)])
        guard.wait("queued")
        wait_for(lambda: one.exists() and is_held(one))
        assert guard.says()["engine_pid"] is None
    guard.wait("ready")
    assert not is_held(one)
    assert not is_held(two)


def test_two_guards_take_turns(guard: LoneGuard, place: Path) -> None:
    locks = [str(place / "gpu0.lock")]
    first = guard.start("--wait-for", str(place / "go"), locks=locks)
    guard.wait("loading", first)
    other = {name: str(place / f"other.{name}") for name in ("socket", "state_file", "log_file")}
    second = LoneGuard(place, {**guard.spec, **other, "env": {"LLMHOST_PROGRAM": f"{place}:chat-1"}})
    try:
        second.start(locks=locks)
        second.wait("queued")
        (place / "go").touch()
        guard.wait("ready", first)
        second.wait("ready")
    finally:
        second.close()


SLOW_START = 12
"""Seconds in which an engine has started on any machine, and which a test can wait for."""
GPU = 1000 + 2 * os.getpid()
"""No machine has it or the one before it, and no test beside this one uses them."""


@contextmanager
def taken(index: int) -> Iterator[None]:
    """By the start of an engine of another home, or by anybody else on this machine."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as name:
        name.bind(lock_name(index))
        yield


def test_the_start_of_another_home_on_the_same_gpu_is_waited_for(guard: LoneGuard, place: Path) -> None:
    with taken(GPU):
        guard.start("--wait-for", str(place / "go"), gpus=[GPU - 1, GPU], gpu_probe="true")
        said = guard.wait("queued", error=f"waits for an engine of another home that starts on GPU {GPU}")
        assert said["engine_pid"] is None
    guard.wait("loading", error=None)
    for index in (GPU - 1, GPU):
        with pytest.raises(OSError, match="Address already in use"), taken(index):
            pytest.fail("it is free although the engine loads")
    (place / "go").touch()
    guard.wait("ready")
    with taken(GPU - 1), taken(GPU):
        pass  # they are free as soon as it is ready


def test_whoever_keeps_a_gpu_for_ever_keeps_no_engine_from_starting(guard: LoneGuard) -> None:
    with taken(GPU):
        guard.start(gpus=[GPU], gpu_probe="true", start_timeout=SLOW_START)
        guard.wait("ready")
    assert f"GPU {GPU} is still taken by another start" in guard.log()


def test_a_killed_guard_holds_no_gpu(guard: LoneGuard, place: Path) -> None:
    process = guard.start("--wait-for", str(place / "never"), gpus=[GPU], gpu_probe="true")
    guard.wait("loading")
    process.kill()
    process.wait()
    with taken(GPU):
        pass


def test_a_stop_while_queued(guard: LoneGuard, place: Path) -> None:
    with held(place / "lock"):
        process = guard.start(locks=[str(place / "lock")])
        guard.wait("queued")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    assert guard.says()["state"] == "stopped"
    assert "starting the engine" not in guard.log()


def test_a_lock_that_cannot_be_taken(guard: LoneGuard, place: Path) -> None:
    process = guard.start(locks=[str(place / "none" / "lock")])
    assert process.wait(PATIENCE) == 78
    assert guard.says()["error"] == f"cannot take the start lock {place}/none/lock: No such file or directory"


def test_an_engine_that_dies_before_it_is_ready_is_not_tried_again(guard: LoneGuard) -> None:
    Path(guard.spec["log_file"]).write_text("ValueError: of an earlier life\n")
    faults = ("--say", "ValueError: no such model", "--say", "bye", "--exit-early", "1")
    assert guard.start(*faults).wait(PATIENCE) == 78
    said = guard.says()
    assert (said["state"], said["error"]) == ("failed", "ValueError: no such model")
    assert said["exit"] == {"code": 1, "signal": None, "time": said["exit"]["time"], "error": said["error"]}


def test_an_engine_that_dies_without_a_word(guard: LoneGuard) -> None:
    Path(guard.spec["log_file"]).write_text("ValueError: of an earlier life\n")
    assert guard.start("--exit-early", "0").wait(PATIENCE) == 78
    words = "the engine exited with status 0 before it was ready; given up after 3 failures in a row"
    assert guard.says()["error"] == words
    assert guard.log().count("starting the engine") == 3


def test_without_a_log_file_the_outcome_is_the_error(guard: LoneGuard) -> None:
    faults = ("--say", "ValueError: x", "--exit-early", "3")
    assert guard.start(*faults, log_file=None, max_restarts=1).wait(PATIENCE) == 78
    assert guard.says()["error"].startswith("the engine exited with status 3 before it was ready; given up")


@pytest.mark.parametrize("code", [0, 1])
def test_an_engine_that_ends_after_it_was_ready_is_to_be_started_again(guard: LoneGuard, code: int) -> None:
    process = guard.start()
    before = guard.wait("ready")
    end_engine(guard, code)
    said = guard.wait("backoff")
    assert (said["error"], said["engine_pid"]) == (f"the engine exited with status {code}", None)
    assert said["retry_at"] > said["since"]
    assert said["exit"]["code"] == code
    said = guard.wait("ready")
    assert (said["restarts"], said["error"], said["exit"]["code"]) == (1, None, code)
    assert (said["guard_pid"], said["retry_at"]) == (process.pid, None)
    assert said["engine_pid"] != before["engine_pid"]


def test_a_killed_engine(guard: LoneGuard) -> None:
    guard.start()
    os.kill(guard.wait("ready")["engine_pid"], signal.SIGKILL)
    said = guard.wait("backoff")
    assert said["error"] == "the engine was killed by SIGKILL"
    assert (said["exit"]["code"], said["exit"]["signal"]) == (None, "SIGKILL")
    assert guard.wait("ready")["restarts"] == 1


def test_a_crash_loop_opens_the_circuit(guard: LoneGuard) -> None:
    process = guard.start(max_restarts=3)
    for restarts in range(3):
        said = guard.wait("ready", restarts=restarts)
        assert said["failures"] == restarts
        os.kill(said["engine_pid"], signal.SIGKILL)
    assert process.wait(PATIENCE) == 78
    said = guard.says()
    assert (said["state"], said["restarts"]) == ("failed", 2)
    assert said["error"] == "the engine was killed by SIGKILL; given up after 3 failures in a row"


def test_a_failure_that_the_machine_may_get_over_is_tried_again(guard: LoneGuard, place: Path) -> None:
    """The first start finds too little memory, the second enough."""
    words = "ValueError: Free memory on device cuda:0 (3.1/24.0 GiB) on startup is less than desired GPU memory"
    script = f'[ -e {place}/second ] && exec "$@"; touch {place}/second; echo "{words}" >&2; exit 1'
    engine = (*PYTHON, str(FAKE_ENGINE), "--uds", guard.spec["socket"])
    guard.start_command("/bin/sh", "-c", script, "sh", *engine)
    assert guard.wait("backoff")["error"] == words
    assert guard.wait("ready")["restarts"] == 1


def test_a_stop_during_back_off(guard: LoneGuard) -> None:
    process = guard.start()
    os.kill(guard.wait("ready")["engine_pid"], signal.SIGKILL)
    guard.wait("backoff")
    process.terminate()
    assert process.wait(PATIENCE) == 0
    assert (guard.says()["state"], guard.says()["retry_at"]) == ("stopped", None)


def test_restarts_are_forgotten_after_a_wanted_stop(guard: LoneGuard) -> None:
    process = guard.start()
    os.kill(guard.wait("ready", process)["engine_pid"], signal.SIGKILL)
    guard.wait("ready", restarts=1)
    process.terminate()
    process.wait(PATIENCE)
    assert guard.wait("ready", guard.start())["restarts"] == 0


def test_not_ready_in_time(guard: LoneGuard) -> None:
    process = guard.start(
        "--status", "503", "--ignore-term", start_timeout=SLOW_START, stop_timeout=0.2, max_restarts=1
    )
    assert process.wait(PATIENCE) == 78
    said = guard.says()
    assert said["state"] == "failed"
    words = f"the engine was not ready within {SLOW_START} s; its last answer was 503 to /v1/chat/comp"
    assert said["error"].startswith(words)
    assert "as the test wants it" in said["error"]
    assert marked(guard.mark) == []


def test_not_even_listening_in_time(guard: LoneGuard, place: Path) -> None:
    process = guard.start("--wait-for", str(place / "never"), start_timeout=0.5, max_restarts=2)
    assert process.wait(PATIENCE) == 78
    assert guard.says()["error"] == "the engine was not ready within 0.5 s; given up after 2 failures in a row"
    assert guard.log().count("starting the engine") == 2


def test_an_engine_that_ignores_sigterm(guard: LoneGuard) -> None:
    process = guard.start("--ignore-term", stop_timeout=0.3)
    engine = guard.wait("ready")["engine_pid"]
    process.terminate()
    assert process.wait(PATIENCE) == 0
    assert not alive(engine)
    assert "did not stop within 0.3 s and is killed" in guard.log()


@pytest.mark.parametrize("stubborn", [False, True])
def test_children_in_their_own_sessions_are_swept(guard: LoneGuard, stubborn: bool) -> None:
    process = guard.start("--children", "3", *(["--stubborn-children"] if stubborn else []))
    guard.wait("ready")
    assert len(marked(guard.mark)) == 4
    process.terminate()
    assert process.wait(PATIENCE) == 0
    assert marked(guard.mark) == []
    assert len(guard.says()["killed"]) == 3
    assert "had to end python" in guard.log()


def test_children_of_a_killed_engine_are_swept(guard: LoneGuard) -> None:
    guard.start("--children", "2", "--stubborn-children")
    before = marked(guard.mark)
    os.kill(guard.wait("ready")["engine_pid"], signal.SIGKILL)
    assert len(guard.wait("backoff")["killed"]) == 2
    assert not any(map(alive, before))


def test_a_killed_guard_takes_its_engine_along_and_the_next_one_sweeps(guard: LoneGuard) -> None:
    process = guard.start("--children", "2", "--stubborn-children")
    engine = guard.wait("ready")["engine_pid"]
    process.kill()
    process.wait()
    wait_for(lambda: not alive(engine))
    orphans = marked(guard.mark)
    assert len(orphans) == 2
    again = guard.start()
    assert guard.wait("ready", again)["restarts"] == 1
    assert not any(map(alive, orphans))


def test_a_guard_ends_its_engine_when_its_parent_is_killed(guard: LoneGuard) -> None:
    parent = guard.start("--ignore-term", "--children", "1", through=("/bin/sh", "-c", '"$@"; exit', "sh"))
    said = guard.wait("ready")
    assert said["guard_pid"] != parent.pid
    parent.kill()
    wait_for(lambda: not alive(said["guard_pid"]))
    assert marked(guard.mark) == []
    assert (guard.says()["state"], guard.says()["error"]) == ("stopped", "supervisord ended without stopping it")


def test_a_stale_socket_file(guard: LoneGuard) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(guard.spec["socket"])
    guard.start()
    guard.wait("ready")


def test_environment_and_arguments_arrive_unchanged(guard: LoneGuard, place: Path) -> None:
    env = {
        "QUOTES": "'a' \"b\"",
        "LINES": "one\ntwo\n",
        "PERCENT": "100% %(here)s",
        "SEMI": " ; # x",
        "中文": "模型 😀",
    }
    words = ["50% ;", "a # b", "'q' \"r\"", "模型", "", "a\nb"]
    guard.start("--dump", str(place / "dump"), *words, env={**guard.spec["env"], **env})
    guard.wait("ready")
    seen = json.loads((place / "dump").read_text())
    assert seen["argv"][-len(words) :] == words
    assert {key: seen["env"].get(key) for key in env} == env
    assert seen["env"]["SPT_NOENV"] == "1"  # else setproctitle would wipe out our mark in /proc/PID/environ


def test_any_locale(guard: LoneGuard, place: Path) -> None:
    guard.start("--dump", str(place / "dump"), "模型", through=("env", "LC_ALL=C", "LANG=C", "PYTHONCOERCECLOCALE=0"))
    guard.wait("ready")
    assert json.loads((place / "dump").read_text())["argv"][-1] == "模型"


def test_odd_bytes_in_the_output(guard: LoneGuard) -> None:
    raw = b"\xff\xfe\x1b[31m\x00 50% \r\nValueError: \xe4\xb8 broken\n".hex()
    assert guard.start("--say-bytes", raw, "--exit-early", "1").wait(PATIENCE) == 78
    assert guard.says()["error"] == "ValueError: \ufffd broken"


def test_an_engine_that_cannot_be_run(guard: LoneGuard, place: Path) -> None:
    assert guard.start_command(str(place / "python")).wait(PATIENCE) == 78
    assert guard.says()["error"] == f"cannot run {place}/python: No such file or directory"
    (place / "file").touch()
    assert guard.start_command(str(place / "file")).wait(PATIENCE) == 78
    assert guard.says()["error"] == f"cannot run {place}/file: Permission denied"


def test_a_spec_that_cannot_be_read(place: Path) -> None:
    (place / "spec.json").write_text("{")
    command = [*PYTHON, str(guard_script()), str(place / "spec.json"), "--", "/bin/true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert f"[guard] {place}/spec.json is not the spec of a guard" in done.stderr


def test_a_full_disk_does_not_end_an_engine(guard: LoneGuard, place: Path) -> None:
    """The state file cannot be written: the directory of it is missing."""
    guard.start(state_file=str(place / "none" / "state.json"))
    wait_for(lambda: "POST /v1/chat/completions" in guard.log())
    assert "cannot write" in guard.log()
    assert len(marked(guard.mark)) == 1


def test_exec_ties_a_command_to_its_parent(place: Path) -> None:
    script = f'"$@" & echo $! > {place}/pid; wait'
    command = (
        sys.executable,
        "-I",
        "-S",
        str(Path(__file__).parents[3] / "llmhost/supervise/guard.py"),
        "--exec",
        "--",
    )
    parent = subprocess.Popen(["/bin/sh", "-c", script, "sh", *command, "sleep", "600"])
    try:
        pid = int(wait_for(lambda: (place / "pid").exists() and (place / "pid").read_text()))
        wait_for(lambda: Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep"))
    finally:
        parent.kill()
        parent.wait()
    wait_for(lambda: not alive(pid))


def test_exec_of_nothing() -> None:
    command = [*PYTHON, str(guard_script()), "--exec", "--", "/no/such"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 127
    assert done.stderr.endswith(" [guard] cannot run /no/such: No such file or directory\n")
