"""`llmhost move`: the new node serves before the old one stops; when it does not start there, all stays as it was."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from llmhost.cli.everywhere import NOT_READY
from llmhost.paths import Home
from tests.integration.nodes.conftest import _hosts
from tests.integration.nodes.homes import Homes, make_nodes
from tests.netns import Host, wait_for

pytestmark = pytest.mark.integration

ALL_ANSWERED = {"a": {"200"}, "b": {"200"}, "c": {"200"}}
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


@pytest.fixture(scope="module")
def made() -> Iterator[Homes]:
    """Nodes a, b and c, added on a."""
    with _hosts() as network:
        yield make_nodes(network, "a", "b", "c")


@pytest.fixture
def nodes(made: Homes) -> Homes:
    """a alone has the service; the gateways of all three serve."""
    arrange(made, "nodes: a, max_restarts: 1")
    return made


def arrange(homes: Homes, chat: str, *more: str) -> None:
    """Bring the service, so written, up; ``more`` are other services."""
    a = homes.hosts["a"]
    file = homes.home(a).config_file
    services = (f"chat: {{model: {homes.network.place / 'model'}, {chat}}}", *more)
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("  tools:")]
    at = next(number for number, line in enumerate(lines) if line.startswith("  chat:"))
    lines[at : at + 1] = [f"  {service}" for service in services]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = a.run(*a.llmhost("up", "--all-nodes"), ok=None)
    assert done.returncode in (0, NOT_READY), done.stderr  # gateways may not have found each other yet
    wait_for(lambda: all(asked(host) == "200" for host in homes.hosts.values()))


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
    for host in homes.hosts.values():
        (host.root / "stop").unlink(missing_ok=True)
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
    assert answers == ALL_ANSWERED, said
    assert out == "moved chat-0 from a to b\n"
    assert set(config_of(nodes).values()) == {before.replace("nodes: a", "nodes: b")}
    assert running(nodes) == {"a": [], "b": ["chat-0"], "c": []}
    assert "only on b already" in nodes.refused(a, "move", "chat", "--to", "b")[0]


def test_when_it_does_not_start_there_the_old_node_serves_and_the_file_is_as_before(nodes: Homes) -> None:
    a, b = nodes.hosts["a"], nodes.hosts["b"]
    before = config_of(nodes)
    placement = nodes.home(a).placement_file.read_text(encoding="utf-8")
    with broken_engine(nodes.home(b)):
        status, _, said, answers = moved_while_asked(nodes, "chat", "--to", "b")
    assert status == 1
    assert "did not start on b: llmhost.yaml is as it was, and a serves as before" in said
    assert answers == ALL_ANSWERED, said
    assert config_of(nodes) == before
    assert nodes.home(a).placement_file.read_text(encoding="utf-8") == placement
    assert running(nodes) == {"a": ["chat-0"], "b": [], "c": []}
    assert [asked(host) for host in nodes.hosts.values()] == ["200"] * 3


@contextmanager
def broken_engine(home: Home) -> Iterator[None]:
    """Its modules end as soon as they are run."""
    texts = {m: m.read_text(encoding="utf-8") for m in home.engine_dir("default").glob("build/fake/vllm/**/*.py")}
    try:
        for module in texts:
            module.write_text("raise SystemExit('this engine is broken')\n", encoding="utf-8")
        yield
    finally:
        for module, text in texts.items():
            module.write_text(text, encoding="utf-8")


def test_the_share_of_one_node_moves_and_the_other_goes_on(made: Homes) -> None:
    arrange(made, "replicas: 2, nodes: [a, b]")
    assert "say whose share is to move" in made.refused(made.hosts["a"], "move", "chat", "--to", "c")[0]
    kept = running(made)["b"]
    status, out, said, answers = moved_while_asked(made, "chat", "--from", "a", "--to", "c")
    assert status == 0, said
    assert answers == ALL_ANSWERED, said
    assert out.endswith("from a to c\n")
    there = running(made)
    assert (there["a"], there["b"], len(there["c"])) == ([], kept, 1)
    assert all("nodes: [b, c]" in text for text in config_of(made).values())


def test_services_that_reach_each_other_at_the_loopback_move_together(made: Homes) -> None:
    # Another server than vLLM, with a program beside it that no gateway reaches.
    server = f"{sys.executable} -m http.server {{port}} --bind 127.0.0.1"
    helper = f"tools: {{command: '{server}', kind: none}}"
    arrange(made, "nodes: a, needs: [tools]", helper)
    status, out, said, answers = moved_while_asked(made, "chat", "--to", "b")
    assert status == 0, said
    assert answers == ALL_ANSWERED, said
    assert running(made) == {"a": [], "b": ["chat-0", "tools-0"], "c": []}
    assert out == "moved chat-0, tools-0 from a to b\n"


def test_nothing_changes_when_it_is_interrupted_before_the_other_node_serves(nodes: Homes) -> None:
    a, b = nodes.hosts["a"], nodes.hosts["b"]
    before = config_of(nodes)
    with slow_engine(nodes.home(b)), a.popen(*a.llmhost("move", "chat", "--to", "b")) as moving:
        wait_for(lambda: [r["state"] for r in nodes.status(a)["b"]["status"]["beside"]] == ["loading"])
        a.run("pkill", "-INT", "-f", "llmhost move chat")
        _, said = moving.communicate(timeout=300)
    assert moving.returncode == 130, said
    assert "Traceback" not in said
    assert "everything is put back" in said
    assert config_of(nodes) == before
    assert running(nodes) == {"a": ["chat-0"], "b": [], "c": []}
    assert [asked(host) for host in nodes.hosts.values()] == ["200"] * 3


@contextmanager
def slow_engine(home: Home) -> Iterator[None]:
    """Engines there take long to listen."""
    python = home.engine_dir("default") / "build/bin/python"
    text = python.read_text(encoding="utf-8")
    python.write_text(text.replace("exec ", "FAKE_ENGINE='--start-delay 600' exec "), encoding="utf-8")
    try:
        yield
    finally:
        python.write_text(text, encoding="utf-8")


def test_a_node_without_room_is_refused_before_anything_changes(nodes: Homes) -> None:
    a = nodes.hosts["a"]
    before = config_of(nodes)
    facts = nodes.home(a).node_facts_file("b")
    text = facts.read_text(encoding="utf-8")
    small = json.loads(text)
    small["facts"]["host"] |= {"memory_total": 2**20, "memory_available": 2**20}
    facts.write_text(json.dumps(small), encoding="utf-8")
    try:
        error, hint = nodes.refused(a, "move", "chat", "--to", "b")
    finally:
        facts.write_text(text, encoding="utf-8")
    assert "chat-0 does not fit on b" in error
    assert hint
    assert config_of(nodes) == before


def test_a_node_that_is_cut_off_is_refused_and_a_stopped_one_gives_away_what_it_does_not_serve(nodes: Homes) -> None:
    a, b = nodes.hosts["a"], nodes.hosts["b"]
    before = config_of(nodes)
    b.link(up=False)
    try:
        error, _ = nodes.refused(a, "move", "chat", "--to", "b")
    finally:
        b.link(up=True)
    assert "b" in error
    assert config_of(nodes) == before

    nodes.run(a, "down")
    status, _, said, _ = moved_while_asked(nodes, "chat", "--to", "b")
    assert status == 0, said
    assert "nothing runs on a" in said
    assert running(nodes) == {"a": [], "b": ["chat-0"], "c": []}
    assert [asked(nodes.hosts[n]) for n in "bc"] == ["200"] * 2
