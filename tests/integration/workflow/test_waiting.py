"""Waiting until all is ready, while engines come and go."""

from __future__ import annotations

import os
import signal

import pytest

from llmhost import balancing, workflow
from llmhost.errors import GatewayError
from llmhost.in_force import load_plan
from llmhost.supervise.states import ProgramState
from tests.integration.workflow.conftest import Installed, wait_for

pytestmark = pytest.mark.integration


def test_an_engine_that_ends_while_it_is_waited_for_is_waited_for_again(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = installed.home.root / "go"
    go.touch()
    installed.write(f"chat: {{model: {installed.model()}, env: {{FAKE_ENGINE: --wait-for {go}}}}}")
    installed.run("up")
    started = workflow.start(installed.home, ())
    monkeypatch.setattr(workflow, "SERVED_SECONDS", 1.0)
    seen: list[str] = []

    def on_change(state: ProgramState) -> None:
        """It dies the moment after it was seen ready, and comes back only when that has been noticed."""
        if state.name != "chat-0":
            return
        seen.append(state.state)
        if seen == ["ready"]:
            assert state.engine_pid is not None
            go.unlink()
            os.kill(state.engine_pid, signal.SIGKILL)
            wait_for(lambda: not balancing.served_of(installed.home, "chat"))
        elif state.state != "ready":
            go.touch()

    workflow.await_ready(installed.home, started, None, on_change)
    assert len(seen) > 2
    assert (seen[0], seen[-1]) == ("ready", "ready")


def test_who_gets_no_requests_is_called_by_name(installed: Installed) -> None:
    installed.write(f"chat: {{model: {installed.model()}}}")
    installed.run("up")
    installed.run("stop", "chat")
    wait_for(lambda: not balancing.served_of(installed.home, "chat"))
    with pytest.raises(GatewayError, match="no requests to chat-0,"):
        balancing.await_served(installed.home, load_plan(installed.home), {"chat-0"}, 0)
