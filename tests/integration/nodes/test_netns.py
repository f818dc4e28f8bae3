"""The hosts that other tests run on are hosts: apart from each other, and from this machine."""

from __future__ import annotations

import pytest

from tests.netns import Host, Network, wait_for

pytestmark = pytest.mark.integration


def login(host: Host, other: Host, command: str = "hostname", ok: int = 0) -> str:
    return host.run("ssh", "-oBatchMode=yes", "-oConnectTimeout=2", other.address, command, ok=ok).stdout


def test_hosts_are_apart_and_reach_each_other_through_ssh(network: Network) -> None:
    a, b = network.add("a"), network.add("b")
    login(a, b, ok=255)  # nobody knows anybody yet
    a.trust(b)
    assert login(a, b) == "b\n"
    assert login(a, b, "echo $HOME") == f"{b.root}\n"
    sleeping = b.popen("sleep", "77")
    wait_for(lambda: "sleep 77" in b.run("ps", "ax").stdout)
    assert "sleep 77" not in a.run("ps", "ax").stdout
    b.cut()
    sleeping.communicate(timeout=60)
    assert sleeping.returncode != 0
    login(a, b, ok=255)
    b.boot()
    assert login(a, b) == "b\n"


def test_a_pulled_cable_cuts_a_host_off_until_it_is_back(network: Network) -> None:
    a, b = network.add("a"), network.add("b")
    a.trust(b)
    b.link(False)
    login(a, b, ok=255)
    b.link(True)
    assert login(a, b) == "b\n"
