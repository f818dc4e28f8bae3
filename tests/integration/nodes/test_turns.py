"""What several nodes serve together changes on one node after another; a service moves when the next node has it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.integration.nodes.conftest import _hosts
from tests.integration.nodes.homes import Homes, make_nodes
from tests.netns import Host

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
