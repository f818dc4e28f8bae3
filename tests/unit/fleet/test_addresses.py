"""Where this machine finds the nodes, also while the plan refuses some of them."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from llmhost import config
from llmhost.errors import ConfigError
from llmhost.facts import NodeFacts
from llmhost.fleet.addresses import find_addresses, require_addresses
from llmhost.paths import Home
from llmhost.probe.node_facts import node_to_json
from tests.machines import CPU_BOX

HOSTS = {"a.example": "10.0.0.1", "b.example": "127.0.1.1", "c.example": "127.0.1.1"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Of a machine that has `HOSTS` in /etc/hosts and no name server."""

    def known(host: str, *_: object, **__: object) -> object:
        if host not in HOSTS:
            raise OSError("Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (HOSTS[host], 0))]

    monkeypatch.setattr("socket.getaddrinfo", known)
    (tmp_path / "nodes").mkdir()
    return Home(tmp_path)


def record(home: Home, name: str, address: str) -> None:
    facts = NodeFacts(name, CPU_BOX.host, llmhost=CPU_BOX.llmhost, address=address)
    home.node_facts_file(name).write_text(json.dumps(node_to_json(facts, CPU_BOX)))


def nodes(**addresses: str) -> config.Config:
    return config.parse(json.dumps({"nodes": {name: {"address": address} for name, address in addresses.items()}}))


def test_one_that_is_refused_hides_no_other(home: Home) -> None:
    record(home, "b", "10.0.0.2")
    record(home, "d", "10.0.0.4")
    known = nodes(a="a.example", b="b.example", d="d.example")
    assert find_addresses(home, known) == {"a": "10.0.0.1", "b": "10.0.0.2", "d": "10.0.0.4"}
    more = nodes(a="a.example", b="b.example", c="c.example", d="d.example", e="e.example")
    found = {"a": "10.0.0.1", "b": "10.0.0.2", "c": "127.0.1.1", "d": "10.0.0.4", "e": ""}
    assert find_addresses(home, more) == found


def test_homes_of_one_machine(home: Home) -> None:
    every = {"a": "127.0.0.1", "b": "127.0.0.2"}
    assert find_addresses(home, nodes(**every)) == every
    assert require_addresses(home, nodes(a="127.0.0.1"), nodes(**every), "ab") == every


@pytest.mark.parametrize(("address", "why"), [("b.example", "is 127.0.1.1 here"), ("e.example", "nobody knows")])
def test_what_the_plan_would_refuse_is_refused_before(home: Home, address: str, why: str) -> None:
    before, after = nodes(a="a.example", c="c.example"), nodes(a="a.example", b=address, c="c.example")
    with pytest.raises(ConfigError, match=f"nodes.b.address: .*{why}"):
        require_addresses(home, before, after, "ab")
    assert require_addresses(home, before, after, "a") == {"a": "10.0.0.1"}  # c is not of this
    record(home, "b", "10.0.0.2")
    with pytest.raises(ConfigError):  # that was another address
        require_addresses(home, before, after, "ab")
    assert require_addresses(home, after, after, "ab") == {"a": "10.0.0.1", "b": "10.0.0.2"}
