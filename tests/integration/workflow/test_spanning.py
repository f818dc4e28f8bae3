"""One model over two homes as two nodes: real supervisord, guards and Envoy, with fake engines as its parts."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

from tests.integration.workflow.conftest import Installed, wait_for
from tests.integration.workflow.test_nodes import Cluster
from tests.integration.workflow.test_nodes import cluster as cluster  # noqa: PLC0414 (a fixture)

pytestmark = pytest.mark.integration


def replicas(made: Installed) -> dict[str, dict[str, Any]]:
    return {r["name"]: r for s in made.status()["services"] for r in s["replicas"]}


def says(made: Installed, name: str, state: str, words: str = "") -> dict[str, Any]:
    def there() -> dict[str, Any] | None:
        found = replicas(made).get(name, {})
        return found if found.get("state") == state and words in (found.get("error") or "") else None

    return dict(wait_for(there, 60))


def answers(cluster: Cluster, name: str) -> bool:
    """Whether it is served through a node's gateway, which finds out a moment after the guard."""
    body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}

    def program() -> str | None:
        with cluster.client(name) as client:
            answer = client.post("/v1/chat/completions", json=body)
        return answer.json()["program"] if answer.status_code == 200 else None

    return bool(wait_for(program, 60) == "chat-0")


@pytest.fixture
def spanning(cluster: Cluster) -> Cluster:
    """A chat model over both nodes, which runs."""
    cluster.write(f"{{chat: {{model: {cluster.homes['a'].model()}, span: 2, args: {{max_model_len: 128}}}}}}")
    cluster.join()
    for made in cluster.homes.values():
        made.run("up", "--no-wait")
    says(cluster.homes["a"], "chat-0", "ready")
    says(cluster.homes["b"], "chat-rank1-0", "ready")
    return cluster


def test_a_model_on_two_nodes_is_one(spanning: Cluster) -> None:
    a, b = spanning.homes["a"], spanning.homes["b"]
    assert answers(spanning, "a")
    assert answers(spanning, "b")
    for made in (a, b):
        shown = [line.split() for line in made.run("plan").stdout.splitlines()]
        assert ["chat-0", "a"] in shown
        assert ["chat-rank1-0", "b"] in shown
    before = {**replicas(a), **replicas(b)}
    os.kill(before["chat-rank1-0"]["engine_pid"], signal.SIGKILL)
    wait_for(lambda: replicas(a)["chat-0"]["engine_pid"] not in (None, before["chat-0"]["engine_pid"]), 60)
    says(a, "chat-0", "ready")
    says(b, "chat-rank1-0", "ready")
    assert answers(spanning, "b")
    assert "node b: the engine was killed by SIGKILL" in a.home.log_file("chat-0").read_text()


def test_a_stop_and_a_start_on_either_side(spanning: Cluster) -> None:
    a, b = spanning.homes["a"], spanning.homes["b"]
    b.run("stop", "chat")  # the name of the model, also where only a part of it is
    says(b, "chat-rank1-0", "stopped")
    says(a, "chat-0", "queued", "waiting for node b")
    b.run("start", "chat", "--no-wait")
    says(a, "chat-0", "ready")
    a.run("stop", "chat")
    says(b, "chat-rank1-0", "queued", "waiting for node a")
    a.run("start", "chat", "--no-wait")
    says(b, "chat-rank1-0", "ready")
    assert answers(spanning, "a")


def test_parts_of_different_plans_do_not_start_together(spanning: Cluster) -> None:
    a, b = spanning.homes["a"], spanning.homes["b"]
    file = a.home.config_file
    file.write_text(file.read_text().replace("max_model_len: 128", "max_model_len: 64"))
    a.run("up", "--no-wait")
    says(a, "chat-0", "queued", "waiting for node b: its plan is another one")
    b.home.config_file.write_text(
        b.home.config_file.read_text().replace("max_model_len: 128", "max_model_len: 64"), encoding="utf-8"
    )
    b.run("up")
    says(a, "chat-0", "ready")
    assert answers(spanning, "b")


def test_what_is_written_and_what_is_kept_secret(spanning: Cluster) -> None:
    a, b = spanning.homes["a"], spanning.homes["b"]
    specs = [
        json.loads((made.home.root / f"conf/guard/{program}.json").read_text())
        for made, program in ((a, "chat-0"), (b, "chat-rank1-0"))
    ]
    groups = [spec["group"] for spec in specs]
    assert [g.pop("rank") for g in groups] == [0, 1]
    assert groups[0] == groups[1]
    assert groups[0]["nodes"] == ["a", "b"]
    assert groups[0]["addresses"] == ["127.0.0.1", "127.0.0.2"]
    secret = groups[0]["secret"]
    for made in (a, b):
        assert secret not in made.home.plan_file.read_text()
        assert secret not in made.run("plan", "--json").stdout
        assert secret not in (made.home.root / "conf/supervisord.conf").read_text()
    assert specs[1]["env"]["VLLM_HOST_IP"] == "127.0.0.2"
    assert specs[1]["env"]["GLOO_SOCKET_IFNAME"] == "lo"
    assert (b.home.vllm_metadata / "vllm-0.32.0+cpu.dist-info/METADATA").is_file()
    error, _ = a.refused("restart", "--surge", "chat")
    assert "spans nodes" in error
