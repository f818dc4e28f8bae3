"""What the names on a command line mean in the plan in force."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llmhost import workflow
from llmhost.env import Silent
from llmhost.errors import ConfigError, NotReadyError
from llmhost.homedir import claim
from llmhost.in_force import select_rolling
from llmhost.paths import Home
from llmhost.plan import stored
from llmhost.plan.types import Plan
from tests.unit.gateway.plans import make_plan, make_service


def plan_of(home: Path) -> Plan:
    """Two replicas with a Ray for one of them, a part of a model whose first one is elsewhere, and one by itself."""
    ray = replace(make_service(home, "chat-ray"), part_of="chat")
    part = replace(make_service(home, "large-rank1"), part_of="large")
    return make_plan(home, ray, make_service(home, "chat", replicas=2), part, make_service(home, "alone"))


def test_parts_do_not_restart_in_turn(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert [s.name for s in select_rolling(plan, ("chat",))] == ["chat"]
    assert [s.name for s in select_rolling(plan, ())] == ["chat", "alone"]
    for name, whole in (("chat-ray", "chat"), ("large-rank1", "large")):
        with pytest.raises(ConfigError, match=f"{name} is a part of {whole}") as e:
            select_rolling(plan, (name,))
        assert f"restart --rolling {whole}`" in e.value.hint


def test_a_rolling_restart_does_not_ask_for_two_of_a_part(tmp_path: Path) -> None:
    home = Home(tmp_path)
    claim(home)
    home.plan_file.parent.mkdir(exist_ok=True)
    home.plan_file.write_text(json.dumps(stored.to_dict(plan_of(tmp_path))))
    with pytest.raises(NotReadyError, match="the gateway is not running"):
        workflow.restart_rolling(home, ("chat",), Silent())
    with pytest.raises(ConfigError, match="alone: one replica only"):
        workflow.restart_rolling(home, (), Silent())
