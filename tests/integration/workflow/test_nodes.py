"""Several homes on one machine as several nodes: real supervisord and Envoy, the fake engine."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from llmhost import config, node_identity
from llmhost.machine import node_facts
from llmhost.paths import Home
from llmhost.probe.node_facts import node_to_json
from tests.integration.workflow.conftest import Installed, home_in, wait_for
from tests.ports import free_port
from tests.steady import Steady

pytestmark = pytest.mark.integration

ADDRESSES = {"a": "127.0.0.1", "b": "127.0.0.2", "c": "127.0.0.3"}


@dataclass
class Cluster:
    """Homes that are nodes of one whole: the same services, and each its own address of the loopback."""

    homes: dict[str, Installed]
    port: int
    node_port: int

    def write(self, services: str) -> None:
        for name, made in self.homes.items():
            listed = ", ".join(f"{n}: {{address: {ADDRESSES[n]}, gateway_port: {self.node_port}}}" for n in self.homes)
            gateway = f"{{host: {ADDRESSES[name]}, port: {self.port}}}"
            text = f"nodes: {{{listed}}}\ngateway: {gateway}\nservices: {services}\n"
            made.home.config_file.write_text(text, encoding="utf-8")

    def join(self) -> None:
        """What `llmhost node add` does: names, facts, certificates."""
        first = self.homes["a"].home
        for name, made in self.homes.items():
            node_identity.ensure(first, name)
            made.home.node_file.write_text(f"{name}\n")
            facts, machine = node_facts(made.home, config.load(made.home.config_file), name)
            first.nodes.mkdir(exist_ok=True)
            first.node_facts_file(name).write_text(json.dumps(node_to_json(facts, machine)))
        for name in self.homes:
            self.carry(first, name)

    def carry(self, first: Home, name: str) -> None:
        home = self.homes[name].home
        if home == first:
            return
        home.node_tls.mkdir(parents=True, exist_ok=True)
        for file in (*node_identity.files_of(first, name), *first.nodes.glob("*.json")):
            shutil.copy(file, home.root / file.relative_to(first.root))

    def up(self, *names: str) -> None:
        for name in names or self.homes:
            self.homes[name].run("up", "--wait")

    def client(self, name: str) -> httpx.Client:
        return httpx.Client(base_url=f"http://{ADDRESSES[name]}:{self.port}", timeout=60, verify=False)

    def answering(self, name: str, times: int = 20) -> set[str]:
        body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
        with self.client(name) as client:
            answers = [client.post("/v1/chat/completions", json=body) for _ in range(times)]
        assert {a.status_code for a in answers} == {200}, [a.text for a in answers if a.status_code != 200][:1]
        return {a.json()["program"] for a in answers}

    def programs(self, name: str) -> list[str]:
        return [r["name"] for s in self.homes[name].status()["services"] for r in s["replicas"]]


@pytest.fixture
def cluster(place: Path) -> Iterator[Cluster]:
    with cluster_of(place, "a", "b") as made:
        yield made


@pytest.fixture
def three(place: Path) -> Iterator[Cluster]:
    with cluster_of(place, "a", "b", "c") as made:
        yield made


@contextmanager
def cluster_of(place: Path, *names: str) -> Iterator[Cluster]:
    with ExitStack() as stack:
        homes = {name: stack.enter_context(home_in(place, name)) for name in names}
        yield Cluster(homes, free_port(), free_port())


def services(cluster: Cluster, replicas: int = 2, more: str = "") -> str:
    model = cluster.homes["a"].model()
    return f"{{chat: {{model: {model}, replicas: {replicas}, args: {{max_model_len: 128}}}}{more}}}"


def kill_everything(home: Home) -> None:
    """As a power cut would: every process of a home at once, supervisord first so that nobody is started again."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                mine = str(home.root).encode()
                if mine in (entry / "cmdline").read_bytes() or mine in (entry / "environ").read_bytes():
                    pids.append(int(entry.name))
    supervisor = int(home.supervisord_pid_file.read_text())
    for pid in sorted(pids, key=lambda p: p != supervisor):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_replicas_on_two_nodes(cluster: Cluster) -> None:
    cluster.write(services(cluster))
    cluster.join()
    cluster.up()
    assert cluster.programs("a") == ["chat-0"]
    assert cluster.programs("b") == ["chat-1"]
    for name in "ab":
        assert cluster.answering(name) == {"chat-0", "chat-1"}
    shown = cluster.homes["a"].run("plan").stdout
    assert "chat-0   a" in shown
    assert "chat-1   b" in shown
    plan = json.loads(cluster.homes["b"].run("plan", "--json").stdout)
    assert plan["node"] == "b"
    assert plan["services"][0]["elsewhere"] == [{"node": "a", "replicas": ["chat-0"]}]
    status = cluster.homes["a"].status()["services"][0]
    assert (status["state"], status["nodes"]) == ("ready", [{"node": "b", "replicas": ["chat-1"], "state": "ready"}])
    assert "chat-1 on b" in cluster.homes["a"].run("status").stdout
    # Both have left the same, and plan the same again.
    texts = {made.home.placement_file.read_text() for made in cluster.homes.values()}
    assert len(texts) == 1
    before = cluster.homes["a"].pids()
    cluster.up("a")
    assert cluster.homes["a"].pids() == before


def test_a_node_that_loses_power(cluster: Cluster) -> None:
    """What had not begun goes elsewhere; and it comes back."""
    cluster.write(services(cluster))
    cluster.join()
    cluster.up()
    asked = Steady(cluster.port, "chat")
    with asked.asking():
        asked.wait_for_answer_of("chat-0")
        asked.wait_for_answer_of("chat-1")
        kill_everything(cluster.homes["b"].home)
        goal = asked.count + 100
        wait_for(lambda: asked.count >= goal, 60)
        wait_for(lambda: cluster.homes["a"].status()["services"][0]["nodes"][0]["state"] == "unhealthy")
        lost = len(asked.lost)
        goal = asked.count + 50
        wait_for(lambda: asked.count >= goal, 60)
        assert len(asked.lost) == lost, "nobody is sent there any more"
    # What was at work there is lost, and nothing else: its answer was broken off.
    assert all(text.startswith("502") for text in asked.failed), asked.failed
    assert len(asked.lost) <= asked.workers
    assert cluster.answering("a") == {"chat-0"}
    cluster.up("b")
    wait_for(lambda: cluster.answering("a") == {"chat-0", "chat-1"})


def test_a_service_moves_to_the_other_node_without_a_gap(cluster: Cluster) -> None:
    """It is started there first: then this node sends to it, and stops its own."""
    text = services(cluster, 1)
    cluster.write(text.replace("replicas: 1", "replicas: 1, nodes: a"))
    cluster.join()
    cluster.up()
    cluster.write(text.replace("replicas: 1", "replicas: 1, nodes: b"))
    asked = Steady(cluster.port, "chat")
    with asked.asking():
        asked.wait_for_answer_of("chat-0")
        cluster.up("b")
        cluster.up("a")
        asked.wait_for_more(50)
    assert asked.lost == []
    assert cluster.programs("a") == []
    assert cluster.programs("b") == ["chat-0"]


def change_while_asked(cluster: Cluster, before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Services on other nodes than before, all `up` at once, engines slow: every client of every gateway is served.

    What is written is ``name`` or ``name:names that it serves``, and the nodes, a letter each. What several have,
    before and after, is changed on all of them.
    """
    model = cluster.homes["a"].model()

    def written(service: str, nodes: str, *, again: bool) -> str:
        name, _, names = service.partition(":")
        changed = again and len(nodes) > 1 and before.get(service) == nodes
        slow = f"env: {{FAKE_ENGINE: --start-delay {4.5 if changed else 4}}}"
        places = f"replicas: {len(nodes)}, nodes: [{','.join(nodes)}]"
        return f"{name}: {{model: {model}, served_as: [{names or name}], {places}, {slow}}}"

    def write(places: Mapping[str, str], *, again: bool = False) -> None:
        cluster.write(f"{{{', '.join(written(*place, again=again) for place in places.items())}}}")

    write(before)
    cluster.join()
    cluster.up()
    models = [service.rpartition(":")[2] for service in before]
    asked = [Steady(cluster.port, model, rate=4.0, host=ADDRESSES[name]) for model in models for name in cluster.homes]
    with ExitStack() as stack:
        for client in asked:
            stack.enter_context(client.asking()).wait_for_more(2)
        write(after, again=True)
        for made in [stack.enter_context(made.popen("up")) for made in cluster.homes.values()]:
            _, said = made.communicate(timeout=300)
            assert made.returncode == 0, said
        for client in asked:
            client.wait_for_more(4)
    assert [client.lost for client in asked] == [[]] * len(asked)
    programs = {name: {p.rpartition("-")[0] for p in cluster.programs(name)} for name in cluster.homes}
    assert programs == {name: {s.partition(":")[0] for s, n in after.items() if name in n} for name in cluster.homes}


def test_nodes_that_exchange_services(three: Cluster) -> None:
    change_while_asked(three, {"one": "a", "two": "b"}, {"one": "b", "two": "a"})


def test_nodes_that_exchange_services_and_serve_another_one_together_which_changes(three: Cluster) -> None:
    before = {"one": "a", "two": "b", "pair": "ab"}
    change_while_asked(three, before, {"one": "b", "two": "a", "pair": "ab"})


def test_a_service_gets_another_name_and_serves_more(three: Cluster) -> None:
    change_while_asked(three, {"one:gpt": "a"}, {"two:new,gpt": "a"})


def test_a_service_gets_another_name_on_another_node(three: Cluster) -> None:
    change_while_asked(three, {"one:gpt": "a"}, {"two:gpt": "b"})


def test_what_serves_names_of_others_is_started_also_when_another_service_is_asked_for(cluster: Cluster) -> None:
    chat = services(cluster, 1).replace("replicas: 1", "replicas: 1, nodes: a")
    cluster.write(chat)
    cluster.join()
    cluster.up()
    model = cluster.homes["a"].model()
    cluster.write(f"{{chat: {{model: {model}, nodes: b}}, other: {{model: {model}, nodes: b}}}}")
    asked = Steady(cluster.port, "chat", host=ADDRESSES["b"])
    with asked.asking():
        asked.wait_for_answer_of("chat-0")
        cluster.homes["b"].run("up", "other")
        asked.wait_for_more(50)
    assert asked.lost == []
    assert cluster.programs("b") == ["chat-0", "other-0"]


def test_a_service_that_has_no_room_beside_another_one_goes_when_its_requests_have(cluster: Cluster) -> None:
    large = cluster.homes["a"].large_model()
    cluster.write(f"{{chat: {{model: {large}, nodes: a}}}}")
    cluster.join()
    cluster.up()
    cluster.write(f"{{chat: {{model: {large}, nodes: b}}, more: {{model: {large}, nodes: a}}}}")
    asked = Steady(cluster.port, "chat")
    with asked.asking():
        asked.wait_for_more(10)
        cluster.up("b")
        said = cluster.homes["a"].run("up").stderr
        asked.wait_for_more(20)
    assert asked.lost == []
    assert "no memory for" not in said
    assert (cluster.programs("a"), cluster.programs("b")) == (["more-0"], ["chat-0"])


def test_a_service_goes_to_two_nodes_of_which_one_has_sent_its_requests_on(three: Cluster) -> None:
    change_while_asked(three, {"one": "a", "two": "b"}, {"one": "bc", "two": "b"})


def test_one_of_two_nodes_gives_a_service_away_and_the_other_goes_on(three: Cluster) -> None:
    change_while_asked(three, {"one": "ac"}, {"one": "bc"})


def test_restart_rolling_of_one_replica_while_the_other_node_serves(cluster: Cluster) -> None:
    cluster.write(services(cluster))
    cluster.join()
    cluster.up()
    asked = Steady(cluster.port, "chat")
    with asked.asking():
        asked.wait_for_more(10)
        cluster.homes["a"].run("restart", "--rolling", "chat")
        asked.wait_for_more(20)
    assert asked.lost == []


def test_what_is_missing_is_named(cluster: Cluster) -> None:
    a = cluster.homes["a"]
    cluster.write(services(cluster))
    error, hint = a.refused("plan")
    assert "does not say which of them it is" in error
    assert "node add" in hint
    a.home.node_file.write_text("x\n")
    error, hint = a.refused("plan")
    assert "this is node 'x', and llmhost.yaml has: a, b" in error
    a.home.node_file.write_text("a\n")
    error, hint = a.refused("up")
    assert "nodes.a: its facts are missing" in error
    assert "llmhost node add" in hint
    cluster.join()
    a.home.node_facts_file("b").unlink()
    assert "nodes.b: its facts are missing" in a.refused("config", "validate")[0]
    cluster.join()
    a.home.node_facts_file("b").write_text("{}")
    assert "nodes.b: " in a.refused("plan")[0]
    cluster.join()
    node_identity.key_file(a.home, "a").unlink()
    assert "node a has no nodes/tls/a.key" in a.refused("up")[0]
    node_identity.ensure(a.home, "a")
    a.home.nodes_shared.mkdir()
    a.home.placement_file.write_text("no")
    error, hint = a.refused("plan")
    assert "placement.json is not what llmhost wrote" in error
    assert "remove it" in hint
    a.home.placement_file.unlink()
    assert a.run("plan").returncode == 0
    assert not a.home.run.exists(), "nothing was started"
