"""What the state files of guards and /proc become."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llmhost.metrics.replicas import ProcessTable, add_replicas, state_of
from llmhost.metrics.text import Page, samples

US = os.getpid()
OUR_ARGUMENT = Path(f"/proc/{os.getpid()}/cmdline").read_bytes().split(b"\0")[0].decode()
"""A word of our own command line, in the place of the spec that a guard has in its."""


def page_of(tmp_path: Path, said: object, spec: str = OUR_ARGUMENT, gpus: tuple[int, ...] = ()) -> dict[str, Any]:
    file = tmp_path / "chat-0.state.json"
    if said is not None:
        file.write_text(said if isinstance(said, str) else json.dumps(said))
    replica = {"name": "chat-0", "state_file": str(file), "guard": spec, "gpus": gpus}
    page = Page()
    add_replicas(page, [{"name": "chat", "kind": "chat", "model": "demo:chat", "replicas": [replica]}])
    found: dict[str, Any] = {}
    for name, labels, value in samples(page.render()):
        if name == "llmhost_replica_state":
            if value:
                assert "state" not in found
                found["state"] = labels["state"]
        else:
            found[name.removeprefix("llmhost_")] = (labels, value)
    return found


def test_a_living_guard_is_believed_and_its_use_is_counted(tmp_path: Path) -> None:
    found = page_of(
        tmp_path, {"state": "ready", "guard_pid": US, "restarts": 2, "since": 12.5, "exit": None}, gpus=(3,)
    )
    assert found["state"] == "ready"
    assert found["replica_restarts_total"] == ({"service": "chat", "replica": "chat-0"}, 2)
    assert found["replica_resident_memory_bytes"][1] > 2**20
    assert found["replica_cpu_seconds_total"][1] > 0
    assert found["replica_gpu"][0]["gpu"] == "3"
    assert "replica_last_exit_info" not in found


@pytest.mark.parametrize(
    ("said", "spec", "state"),
    [
        (None, OUR_ARGUMENT, "stopped"),
        ("{broken", OUR_ARGUMENT, "stopped"),
        ("[1]", OUR_ARGUMENT, "stopped"),
        ({"state": "stopped", "guard_pid": 0}, OUR_ARGUMENT, "stopped"),
        ({"state": "failed", "guard_pid": US}, OUR_ARGUMENT, "failed"),
        ({"state": "backoff", "guard_pid": US}, OUR_ARGUMENT, "backoff"),
        ({"state": "ready", "guard_pid": 2**22 + 1}, OUR_ARGUMENT, "backoff"),
        ({"state": "ready", "guard_pid": None}, OUR_ARGUMENT, "backoff"),
        ({"state": "ready", "guard_pid": US}, "/the/spec/of/another", "backoff"),
    ],
)
def test_a_guard_that_is_gone_is_believed_about_its_end_only(
    said: object, spec: str, state: str, tmp_path: Path
) -> None:
    found = page_of(tmp_path, said, spec)
    assert found["state"] == state
    assert "replica_resident_memory_bytes" not in found


def test_the_last_exit_is_told_with_its_time(tmp_path: Path) -> None:
    last = {"code": None, "signal": "SIGKILL", "time": 1700000000.5, "error": "killed"}
    found = page_of(tmp_path, {"state": "backoff", "guard_pid": 1, "restarts": 1, "exit": last})
    assert found["replica_last_exit_info"][0] == {
        "service": "chat", "replica": "chat-0", "code": "", "signal": "SIGKILL",
    }  # fmt: skip
    assert found["replica_last_exit_time_seconds"][1] == 1700000000.5


def test_an_unknown_state_is_none_of_ours() -> None:
    assert state_of({"state": "dreaming", "guard_pid": US}, OUR_ARGUMENT) == "dreaming"


def test_a_tree_of_a_process_that_is_gone_is_empty() -> None:
    assert ProcessTable().tree(2**22 + 1) == []
