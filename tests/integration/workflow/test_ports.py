"""A gateway that cannot listen: it is told who has the port, it is not called ready, and it is mended."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from llmhost.writer import replace_file
from tests.integration.workflow.conftest import Installed, wait_for
from tests.ports import free_port

pytestmark = pytest.mark.integration


@contextmanager
def held(port: int) -> Iterator[None]:
    """Somebody else listens there."""
    with socket.socket() as somebody:
        somebody.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        somebody.bind(("127.0.0.1", port))
        somebody.listen()
        yield


def gateway(installed: Installed) -> tuple[str, str | None]:
    status = installed.status()["gateway"]
    return status["state"], status["error"]


@contextmanager
def lost(installed: Installed, port: int) -> Iterator[None]:
    """The gateway runs, and somebody else has one of its ports."""
    lds = installed.home.gateway_conf / "lds.json"
    text = lds.read_text(encoding="utf-8")
    replace_file(lds, '{"version_info": "none", "resources": []}')
    wait_for(lambda: not _open(port))
    with held(port):
        replace_file(lds, text)
        wait_for(lambda: gateway(installed)[0] == "failed")
        yield


def healthy(port: int) -> bool:
    return httpx.get(f"http://127.0.0.1:{port}/health", timeout=300).status_code == 200


@pytest.mark.parametrize("command", [("start", "chat"), ("restart", "chat"), ("up",)])
def test_a_start_is_refused_while_somebody_has_the_port(installed: Installed, command: tuple[str, ...]) -> None:
    installed.write(f"chat: {{model: {installed.model()}}}")
    installed.run("up")
    installed.run("stop")
    with held(installed.port):
        error, hint = installed.refused(*command)
        assert f"port {installed.port} on 127.0.0.1 is in use by" in error
        assert f"(pid {os.getpid()})" in error
        assert "gateway.port" in hint
        assert gateway(installed) == ("stopped", None)
    installed.run(*command)
    assert healthy(installed.port)


@pytest.mark.parametrize("command", [("start",), ("restart",), ("up",)])
def test_a_gateway_that_could_not_bind_is_failed_until_it_is_mended(
    installed: Installed, command: tuple[str, ...]
) -> None:
    installed.write(f"chat: {{model: {installed.model()}}}")
    installed.run("up")
    engine = installed.pids()["chat-0"]
    with lost(installed, installed.port):
        assert "Address already in use" in str(gateway(installed)[1])
        assert "Address already in use" in installed.run("status", ok=3).stdout
        assert f"(pid {os.getpid()})" in installed.refused(*command)[0]
    installed.run(*command)
    assert gateway(installed) == ("ready", None)
    assert healthy(installed.port)
    if command != ("restart",):
        assert installed.pids()["chat-0"] == engine


def test_a_lost_port_of_one_service_is_in_nobodys_way(installed: Installed) -> None:
    own, other = free_port(), free_port()
    installed.write(f"chat: {{model: {installed.model()}, port: {own}}}")
    installed.run("up")
    with lost(installed, own):
        assert healthy(installed.port)
        assert installed.run("keys", "add", "somebody").stdout.strip()
        installed.run("stop", "chat")
        assert f"port {own}" in installed.refused("start", "chat")[0]
        installed.write(f"chat: {{model: {installed.model()}, port: {other}}}")
        installed.run("up")
    assert gateway(installed) == ("ready", None)
    assert healthy(other)


def _open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("command", ["start", "stop", "restart"])
def test_the_gateway_is_no_service_and_the_hint_says_what_mends_it(installed: Installed, command: str) -> None:
    installed.write(f"chat: {{model: {installed.model()}}}")
    installed.run("up", "--no-wait")
    error, hint = installed.refused(command, "gateway")
    assert "not a service" in error
    assert "llmhost up" in hint
