"""`llmhost move`: the new node serves before the old one stops; when it does not start there, all stays as it was."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.integration.nodes.conftest import _hosts
from tests.integration.nodes.homes import Homes, make_nodes
from tests.netns import Host, wait_for

pytestmark = pytest.mark.integration

WHILE = "while not os.path.exists('stop'):"
CLIENT = """
import json, os, urllib.request
body = json.dumps({"model": "chat", "messages": []}).encode()
request = urllib.request.Request("http://127.0.0.1:8000/v1/chat/completions", body)
while not os.path.exists('stop'):
    try:
        said = urllib.request.urlopen(request, timeout=60).status
    except Exception as e:
        said = repr(e)
    print(said, flush=True)
"""


@pytest.fixture
def nodes() -> Iterator[Homes]:
    """a and b, of which a alone has the service; the gateways of both serve."""
    with _hosts() as made:
        homes = make_nodes(made, "a", "b")
        a = homes.hosts["a"]
        file = homes.home(a).config_file
        text = file.read_text(encoding="utf-8").replace("replicas: 2", "nodes: a, max_restarts: 1")
        file.write_text(text + "# the end\n", encoding="utf-8")
        homes.run(a, "up", "--all-nodes", ok=None)
        wait_for(lambda: all(asked(host) == "200" for host in homes.hosts.values()))
        yield homes


def asked(host: Host) -> str:
    once = CLIENT.replace(WHILE, "for _ in 'x':")
    return host.run("python3", "-c", once, ok=None).stdout.strip()


def config_of(homes: Homes) -> dict[str, str]:
    return {name: homes.home(host).config_file.read_text(encoding="utf-8") for name, host in homes.hosts.items()}


def running(homes: Homes) -> dict[str, list[str]]:
    """The engines that run, by node."""
    return {
        name: [r["name"] for s in node["status"]["services"] for r in s["replicas"] if r["pid"]]
        for name, node in homes.status(homes.hosts["a"]).items()
    }


def moved_while_asked(homes: Homes, *words: str) -> tuple[int, str, str, dict[str, set[str]]]:
    """Exit status, output, messages of a move, and what every gateway answered meanwhile."""
    clients = {name: host.popen("python3", "-c", CLIENT) for name, host in homes.hosts.items()}
    try:
        done = homes.hosts["a"].run(*homes.hosts["a"].llmhost("move", *words), ok=None)
    finally:
        for host in homes.hosts.values():
            (host.root / "stop").touch()
    answers = {name: set(client.communicate(timeout=60)[0].split("\n")) - {""} for name, client in clients.items()}
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr, answers


def test_every_request_to_every_gateway_is_answered_during_a_move(nodes: Homes) -> None:
    a = nodes.hosts["a"]
    before = config_of(nodes)["a"]
    told = json.loads(nodes.run(a, "move", "chat", "--to", "b", "--dry-run", "--json"))
    assert (told["replicas"], told["from"], told["to"], told["moved"]) == (["chat-0"], "a", "b", False)
    assert set(config_of(nodes).values()) == {before}

    status, out, said, answers = moved_while_asked(nodes, "chat", "--to", "b")
    assert status == 0, said
    assert answers == {"a": {"200"}, "b": {"200"}}, said
    assert out == "moved chat-0 from a to b\n"
    assert set(config_of(nodes).values()) == {before.replace("nodes: a", "nodes: b")}
    assert running(nodes) == {"a": [], "b": ["chat-0"]}
    assert "only on b already" in nodes.refused(a, "move", "chat", "--to", "b")[0]


def test_when_it_does_not_start_there_the_old_node_serves_and_the_file_is_as_before(nodes: Homes) -> None:
    a, b = nodes.hosts["a"], nodes.hosts["b"]
    before = config_of(nodes)
    placement = nodes.home(a).placement_file.read_text(encoding="utf-8")
    for module in nodes.home(b).engine_dir("default").glob("build/fake/vllm/**/*.py"):
        module.write_text("raise SystemExit('this engine is broken')\n", encoding="utf-8")
    status, _, said, answers = moved_while_asked(nodes, "chat", "--to", "b")
    assert status == 1
    assert "did not start on b: llmhost.yaml is as it was, and a serves as before" in said
    assert answers == {"a": {"200"}, "b": {"200"}}, said
    assert config_of(nodes) == before
    assert nodes.home(a).placement_file.read_text(encoding="utf-8") == placement
    assert running(nodes) == {"a": ["chat-0"], "b": []}
    assert [asked(host) for host in nodes.hosts.values()] == ["200"] * 2
