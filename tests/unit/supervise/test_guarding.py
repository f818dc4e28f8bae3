"""The parts of the guard that only compute."""

from __future__ import annotations

import json
import os
import select
import socket
import threading
import time
from pathlib import Path

import pytest

from llmhost.supervise.guarding.probe import Engine, http_body, http_request, http_status, is_whole, plain_request
from llmhost.supervise.guarding.spec import BadSpec, read_spec
from llmhost.supervise.guarding.state import StateFile
from llmhost.supervise.guarding.words import ERROR_CHARACTERS, last_words, outcome, plain

VLLM_CORE_FAILED = """\
(APIServer pid=4711) INFO 11-22 12:00:00 [api_server.py:1977] vLLM API server version 0.32.0
(EngineCore_DP0 pid=4800) ERROR 11-22 12:00:09 [core.py:1100] EngineCore failed to start.
(EngineCore_DP0 pid=4800) ERROR 11-22 12:00:09 [core.py:1100] Traceback (most recent call last):
(EngineCore_DP0 pid=4800) ERROR 11-22 12:00:09 [core.py:1100]   File "core.py", line 1074, in run_engine_core
(EngineCore_DP0 pid=4800) ERROR 11-22 12:00:09 [core.py:1100]     raise ValueError(
(EngineCore_DP0 pid=4800) ERROR 11-22 12:00:09 [core.py:1100] ValueError: Free memory on device (3.1/24.0 GiB) is less
(APIServer pid=4711) Traceback (most recent call last):
(APIServer pid=4711)   File "<frozen runpy>", line 198, in _run_module_as_main
(APIServer pid=4711) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""
PYDANTIC = """\
Traceback (most recent call last):
  File "arg_utils.py", line 1000, in create_model_config
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, Invalid repository ID or local directory specified: '/nowhere'. [type=value_error, input_type=ArgsKwargs]
    For further information visit https://errors.pydantic.dev/2.11/v/value_error
"""
ARGPARSE = """\
usage: api_server.py [-h] [--headless]
                     [--model MODEL]
api_server.py: error: unrecognized arguments: --no-such-flag 1
"""


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (VLLM_CORE_FAILED, "ValueError: Free memory on device (3.1/24.0 GiB) is less"),
        (
            PYDANTIC,
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig: Value error, Invalid"
            " repository ID or local directory specified: '/nowhere'. [type=value_error, input_type=ArgsKwargs]",
        ),
        (ARGPARSE, "api_server.py: error: unrecognized arguments: --no-such-flag 1"),
        ("RuntimeError: See root cause above.\n", "RuntimeError: See root cause above."),
        ("loading\n\n  \nIllegal instruction (core dumped)\n\n", "Illegal instruction (core dumped)"),
        ("torch.OutOfMemoryError: CUDA out of memory.\ncleaning up\n", "torch.OutOfMemoryError: CUDA out of memory."),
        ("/bin/python: error while loading shared libraries\n", "/bin/python: error while loading shared libraries"),
        ("\x1b[31mValueError: red\x1b[0m \x07中文\r\n", "ValueError: red 中文"),
        ("ValueError: old\n[guard] chat-0: hello\n", "ValueError: old"),
        ("ValueError: old\n2026-01-31 12:00:00 [guard] chat-0: SomeError: x\n", "ValueError: old"),
        ("", ""),
        ("\n\n", ""),
    ],
)
def test_the_line_that_says_why(log: str, words: str) -> None:
    assert last_words(log) == words


def test_words_are_bounded() -> None:
    assert len(last_words("ValueError: " + "x" * 5000)) == 300
    assert plain("a\x00b\nc\x1b[1md") == "a b c d"


@pytest.mark.parametrize(
    ("status", "words"), [(0, "exited with status 0"), (2 << 8, "exited with status 2"), (9, "was killed by SIGKILL")]
)
def test_outcomes(status: int, words: str) -> None:
    assert outcome(status) == words


def test_requests() -> None:
    text = http_request("/v1/x", "模型", {"input": "hi"})
    head, _, body = text.partition(b"\r\n\r\n")
    assert json.loads(body) == {"model": "模型", "input": "hi"}
    assert f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")


@pytest.mark.parametrize(
    ("answer", "status"), [(b"HTTP/1.1 200 OK\r\n\r\nhi", 200), (b"HTTP/1.0 503 x\r\n", 503), (b"", 0), (b"SSH-2.0", 0)]
)
def test_statuses(answer: bytes, status: int) -> None:
    assert http_status(answer) == status


def test_bodies() -> None:
    assert http_body(b"HTTP/1.1 400 no\r\nA: b\r\n\r\nwhy \xff") == "why \ufffd"


FORMER = {"state": "ready", "restarts": 2, "failures": 1, "exit": {"code": 0}, "error": None, "since": 0.0}


@pytest.mark.parametrize(
    "text",
    [None, "not json", "[1]", "{}", *(json.dumps({**FORMER, "state": state}) for state in ("stopped", "failed", "?"))],
)
def test_a_guard_that_follows_an_end_in_order_begins_anew(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "state.json"
    if text is not None:
        path.write_text(text)
    assert StateFile(bytes(path), "chat-0").former() is None


@pytest.mark.parametrize("state", ["queued", "loading", "ready", "unhealthy", "backoff"])
def test_what_a_killed_guard_left(tmp_path: Path, state: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps({**FORMER, "state": state, "error": "why"}))
    former = StateFile(bytes(path), "chat-0").former()
    assert former is not None
    assert (former.restarts, former.failures, former.exit) == (2, 1, {"code": 0})
    assert (former.ready_seconds > 0) is (state in ("ready", "unhealthy"))
    assert former.error == ("why" if state == "backoff" else None)


def test_a_clock_that_was_put_back_makes_no_negative_times(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps({**FORMER, "since": 4e9}))
    former = StateFile(bytes(path), "chat-0").former()
    assert former is not None
    assert former.ready_seconds == 0


def test_the_state_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    StateFile(bytes(path), "chat-0").write("backoff", None, "why", 12.5)
    assert path.stat().st_mode & 0o777 == 0o600
    said = json.loads(path.read_text())
    assert (said["state"], said["error"], said["retry_at"], said["killed"]) == ("backoff", "why", 12.5, [])


SPEC = {
    "program": "chat-0", "kind": "chat", "model": "m", "socket": "/s", "state_file": "/t", "log_file": None,
    "env": {"LLMHOST_PROGRAM": "x:chat-0", "A": "中\n"}, "locks": [], "start_timeout": 1, "stop_timeout": 2.5,
}  # fmt: skip


def write(directory: Path, **changes: object) -> str:
    path = directory / "spec.json"
    path.write_text(json.dumps({key: value for key, value in {**SPEC, **changes}.items() if value != "-"}))
    return str(path)


def test_a_spec(tmp_path: Path) -> None:
    spec = read_spec([write(tmp_path), "--", "/bin/x", "a b"])
    assert spec.command == [b"/bin/x", b"a b"]
    assert spec.mark == b"LLMHOST_PROGRAM=x:chat-0"
    assert spec.env[b"A"] == "中\n".encode()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"socket": "-"}, "'socket' is missing"),
        ({"kind": "paint"}, "unknown kind paint"),
        ({"start_timeout": "soon"}, "could not convert"),
        ({"env": {}}, "no LLMHOST_PROGRAM in env"),
        ({"env": []}, "not the spec of a guard"),
    ],
)
def test_a_bad_spec(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(BadSpec, match=message):
        read_spec([write(tmp_path, **changes), "--", "/bin/x"])


@pytest.mark.parametrize("argv", [[], ["x.json"], ["x.json", "--"], ["x.json", "/bin/x"]])
def test_bad_usage(argv: list[str]) -> None:
    with pytest.raises(BadSpec, match="usage"):
        read_spec(argv)


def test_no_spec(tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="No such file"):
        read_spec([str(tmp_path / "none.json"), "--", "/bin/x"])


@pytest.mark.parametrize(
    ("answer", "whole"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length:2\r\n\r\nh", False),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", False),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil it closes", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2", False),
    ],
)
def test_an_answer_is_whole_when_its_head_says_so(answer: bytes, whole: bool) -> None:
    assert is_whole(answer) is whole


def test_a_request_that_somebody_wrote_is_sent_as_it_is() -> None:
    assert plain_request("/x", None).startswith(b"GET /x HTTP/1.1\r\n")
    head, _, body = plain_request("/x", '{"a": "\u6a21"}').partition(b"\r\n\r\n")
    assert head.startswith(b"POST /x ")
    assert f"Content-Length: {len(body)}".encode() in head
    assert json.loads(body) == {"a": "\u6a21"}


def test_on_a_full_disk_a_state_goes_into_the_block_that_is_there(tmp_path: Path) -> None:
    """A directory in the place of the draft stands for a disk that takes no new file."""
    path = tmp_path / "state.json"
    file = StateFile(os.fsencode(path), "chat-0")
    file.write("ready", 7, None)
    before = path.stat()
    draft = tmp_path / "state.json.new"
    draft.mkdir()
    file.write("unhealthy", 7, "x" * 2000)
    assert file.kept
    assert json.loads(path.read_text())["state"] == "unhealthy"
    assert (path.stat().st_ino, path.stat().st_size) == (before.st_ino, before.st_size)
    with pytest.raises(OSError, match="Is a directory"):
        file.write("failed", None, "x" * 9000)
    assert not file.kept
    assert json.loads(path.read_text())["error"] == "x" * 2000  # whole, and of before
    draft.rmdir()
    file.again()
    assert file.kept
    assert json.loads(path.read_text())["error"] == "x" * 9000


def test_a_state_file_that_was_removed_is_written_again_and_that_of_another_guard_is_left(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    file = StateFile(os.fsencode(path), "chat-0")
    file.again()
    assert not path.exists()
    file.write("ready", 7, None)
    said = path.read_text()
    path.unlink()
    file.again()
    assert path.read_text() == said
    other = json.dumps({"guard_pid": 1})
    path.write_text(other)
    file.kept = False
    file.again()
    assert path.read_text() == other


def test_a_long_answer_is_told_shortly() -> None:
    """It goes to the state file and to the other guards of a group, which close on long lines."""
    body = b"no memory\r\n\x1b[31m" + b"x" * 2**20
    with socket.create_server(("127.0.0.1", 0)) as server:
        engine = Engine(b"127.0.0.1:%d" % server.getsockname()[1], [("/v1/x", plain_request("/v1/x", None))], _pause)

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(4096)  # else it is reset
                connection.sendall(b"HTTP/1.1 500 Odd\r\n\r\n" + body)

        answering = threading.Thread(target=answer)
        answering.start()
        assert not engine.works(time.monotonic() + 60)
        answering.join()
    assert engine.last_answer.startswith("500 to /v1/x: no memory xxx")
    assert len(engine.last_answer) == ERROR_CHARACTERS


def _pause(seconds: float | None, fds: tuple[int, ...]) -> list[int]:
    return select.select(fds, (), (), seconds)[0]
