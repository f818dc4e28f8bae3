"""What is said about a program when supervisord and the guard's file do not agree, and what is done about changes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llmhost.paths import Home
from llmhost.supervise.lifecycle import Actions, convergence
from llmhost.supervise.rpc import Changes, ProgramInfo
from llmhost.supervise.states import read_states
from llmhost.supervise.status import read_status

LIVES = os.getpid()
"""Stands for an engine that has not ended."""
GUARD = {"guard_pid": 10, "engine_pid": LIVES, "restarts": 2, "error": None, "state": "ready"}


def info(state: str = "RUNNING", name: str = "chat-0", exit_status: int = 0, spawn_error: str = "") -> ProgramInfo:
    pid = 10 if state in ("RUNNING", "STARTING", "STOPPING") else None
    return ProgramInfo(name, state, pid, 1, exit_status, spawn_error)


@pytest.mark.parametrize(
    ("seen", "guard", "state", "error"),
    [
        (info(), GUARD, "ready", None),
        (info(), {**GUARD, "state": "loading"}, "loading", None),
        (info(), {**GUARD, "state": "unhealthy", "error": "why"}, "unhealthy", "why"),
        (info(), {**GUARD, "state": "backoff", "engine_pid": None, "error": "why"}, "backoff", "why"),
        (info(), {**GUARD, "guard_pid": 99}, "queued", None),  # of a former guard
        (info(), None, "queued", None),
        (info(), {**GUARD, "state": "dancing"}, "queued", None),
        (info("STOPPED"), GUARD, "stopped", None),
        (info("STOPPING"), GUARD, "stopped", None),
        (None, GUARD, "stopped", None),
        (info("EXITED"), {**GUARD, "state": "stopped"}, "stopped", None),
        (info("EXITED", exit_status=78), {**GUARD, "state": "failed", "error": "why"}, "failed", "why"),
        (info("EXITED", exit_status=78), GUARD, "failed", None),  # of a former guard
        (info("EXITED", exit_status=1), {**GUARD, "state": "backoff", "error": "why"}, "backoff", "why"),
        (info("EXITED", exit_status=-1), GUARD, "backoff", None),
        (info("FATAL", spawn_error="no such file"), None, "failed", "no such file"),
        (info("BACKOFF", spawn_error="no such file"), None, "backoff", "no such file"),
    ],
)
def test_supervisord_wins(
    tmp_path: Path, seen: ProgramInfo | None, guard: dict[str, Any] | None, state: str, error: str | None
) -> None:
    home = Home(tmp_path)
    home.run.mkdir()
    if guard is not None:
        home.state_file("chat-0").write_text(json.dumps(guard))
    found = read_states(home, [seen] if seen else [], ["chat-0"])["chat-0"]
    assert (found.state, found.error) == (state, error)
    assert found.engine_pid == (LIVES if state in ("ready", "loading", "unhealthy") else None)


@pytest.mark.parametrize(
    ("stopped", "ended", "state", "error"),
    [
        (False, True, "unhealthy", "the engine has ended"),  # its guard is about to say so, or cannot write it
        (True, False, "ready", "its guard (10) is stopped by a signal, so nobody watches it: `kill -CONT 10`"),
        (True, True, "unhealthy", "the engine has ended; its guard (10) is stopped by a signal"),
    ],
)
def test_a_guard_that_cannot_say_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool, ended: bool, state: str, error: str
) -> None:
    home = Home(tmp_path)
    home.run.mkdir()
    home.state_file("chat-0").write_text(json.dumps(GUARD))
    monkeypatch.setattr("llmhost.supervise.guarding.processes.state", lambda _: "T" if stopped else "S")
    monkeypatch.setattr("llmhost.supervise.guarding.processes.running", lambda _: not ended)
    found = read_states(home, [info()], ["chat-0"])["chat-0"]
    assert found.state == state
    assert str(found.error).startswith(error)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_a_broken_state_file(tmp_path: Path, text: str) -> None:
    home = Home(tmp_path)
    home.run.mkdir()
    home.state_file("chat-0").write_text(text)
    assert read_states(home, [info()], ["chat-0"])["chat-0"].state == "queued"


def test_nothing_runs_and_nothing_was_ever_planned(tmp_path: Path) -> None:
    assert read_status(Home(tmp_path / "none")).to_dict() == {
        "supervisor": {"state": "stopped", "pid": None},
        "gateway": {"state": "stopped", "url": None, "pid": None, "error": None},
        "disk": None,
        "boot": None,
        "services": [],
        "beside": [],
    }


RUNNING, STOPPED = "RUNNING", "STOPPED"


@pytest.mark.parametrize(
    ("changes", "programs", "wanted", "actions"),
    [
        (Changes(), {"a": RUNNING}, {"a"}, Actions()),
        (Changes(), {"a": RUNNING}, set(), Actions()),
        (Changes(), {"a": STOPPED, "b": "FATAL", "c": "EXITED", "d": "STOPPING"}, {"a", "b", "c", "d"},
         Actions(start=("a", "b", "c", "d"))),
        (Changes(), {"a": STOPPED, "b": "BACKOFF"}, {"b"}, Actions()),
        (Changes(added=("b", "c")), {"a": RUNNING}, {"a", "b"}, Actions(add=("b", "c"), start=("b",))),
        (Changes(changed=("b", "a")), {"a": RUNNING, "b": STOPPED}, {"b"}, Actions(restart=("a", "b"))),
        (Changes(changed=("a",)), {"a": STOPPED}, set(), Actions(refresh=("a",))),
        (Changes(removed=("a",)), {"a": RUNNING, "b": RUNNING}, {"b"}, Actions(remove=("a",))),
    ],
)  # fmt: skip
def test_only_what_changed_is_touched(
    changes: Changes, programs: dict[str, str], wanted: set[str], actions: Actions
) -> None:
    assert convergence(changes, [info(state, name) for name, state in programs.items()], wanted) == actions
    assert bool(actions) == any(vars(actions).values())
