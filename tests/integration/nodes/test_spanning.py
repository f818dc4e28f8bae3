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


def replica(homes: Homes, host: Host, name: str) -> dict[str, Any]:
    status = json.loads(homes.run(host, "status", "--json", ok=None))
    return next((r for s in status["services"] for r in s["replicas"] if r["name"] == name), {})


def says(homes: Homes, host: Host, name: str, state: str, words: str = "") -> dict[str, Any]:
    def there() -> dict[str, Any] | None:
        found = replica(homes, host, name)
        return found if found.get("state") == state and words in (found.get("error") or "") else None

    return dict(wait_for(there, PATIENCE))


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
        says(homes, a, "chat-0", "queued", f"10.77.0.2 does not connect to 10.77.0.1:{PORT + GUARD}")
        found = says(homes, b, "chat-rank1-0", "queued", f"10.77.0.1:{PORT + GUARD}: no answer; a firewall?")
        assert found["error"].startswith("waiting for node a")
    wait_for(lambda: answers(a), PATIENCE)
    with firewall(a, PORT + MASTER):
        homes.run(a, "restart", "chat", "--no-wait")
        words = f"waiting for node b: 10.77.0.2 does not reach 10.77.0.1:{PORT + MASTER} (no answer); a firewall?"
        says(homes, a, "chat-0", "queued", words)
    wait_for(lambda: answers(a), PATIENCE)
