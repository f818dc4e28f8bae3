"""What several nodes serve together changes on one node after another; a service moves when the next node has it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from itertools import groupby

import pytest

from llmhost.cli.everywhere import NOT_READY
from tests.integration.nodes.conftest import _hosts
from tests.integration.nodes.homes import Homes, make_nodes
from tests.netns import Host, wait_for

pytestmark = pytest.mark.integration

ASK = """
import json, urllib.request
body = json.dumps({"model": "chat", "messages": []}).encode()
print(urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:8000/v1/chat/completions", body)).status)
"""


@pytest.fixture
def two() -> Iterator[Homes]:
    with _hosts() as made:
        yield make_nodes(made, "a", "b")


def answers(host: Host) -> bool:
    return host.run("python3", "-c", ASK, ok=None).stdout.strip() == "200"


def rewrite(homes: Homes, host: Host, old: str, new: str) -> None:
    file = homes.home(host).config_file
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def test_an_engine_serves_until_the_node_that_it_moves_to_has_one(two: Homes) -> None:
    a, b = two.hosts["a"], two.hosts["b"]
    rewrite(two, a, "replicas: 2", "nodes: a")
    two.run(a, "up", "--all-nodes", ok=None)
    assert answers(a)
    rewrite(two, a, "nodes: a", "nodes: b")
    two.run(a, "node", "sync")
    moving = a.popen(*a.llmhost("up"))
    assert moving.stderr is not None
    assert any("wait for another host to serve chat" in line for line in moving.stderr)
    with pytest.raises(subprocess.TimeoutExpired):  # its own engine is no other host
        moving.wait(timeout=5)
    assert answers(a)
    two.run(b, "up")
    moving.communicate(timeout=120)
    assert moving.returncode == 0
    assert answers(a)
    assert answers(b)


def turns_while_answered(homes: Homes, *words: str) -> list[str]:
    """The nodes in the order in which they said something, while every request to both gateways was answered."""
    a, b = homes.hosts.values()
    doing = a.popen(*a.llmhost(*words))
    while doing.poll() is None:
        assert answers(a)
        assert answers(b)
    _, said = doing.communicate()
    assert doing.returncode == 0, said
    nodes = (line[0] for line in said.splitlines() if line[1:4] == " | " and "Welcome" not in line)
    return [node for node, _ in groupby(nodes)]


def test_nodes_that_serve_the_same_take_turns(two: Homes) -> None:
    a, b = two.hosts["a"], two.hosts["b"]
    two.run(a, "up", "--all-nodes")
    wait_for(lambda: answers(a) and answers(b))
    assert turns_while_answered(two, "restart", "--rolling", "--all-nodes") == ["a", "b"]
    rewrite(two, a, "replicas: 2", "replicas: 2, env: {A: b}")
    assert turns_while_answered(two, "up", "--all-nodes") == ["a", "b"]

    two.run(b, "stop", "chat")
    failed = a.run(*a.llmhost("restart", "--rolling", "--all-nodes"), ok=NOT_READY)
    assert "no other engine of chat serves" in failed.stderr
    assert "not touched, because of what failed: b" in failed.stderr
    assert answers(a)
