"""What the unit of a home asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmhost import config
from llmhost.boot.install import unit_plan
from llmhost.paths import Home
from llmhost.supervise.units import Unit

UNIT = Unit("llmhost.service", "user", "/u/llmhost.service", "llm", enabled=False, linger=False)


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        ("{}", False),
        ("gateway: {host: 0.0.0.0}", False),
        ("gateway: {host: localhost}", False),
        ("gateway: {host: 10.0.0.1}", True),
        ("nodes: {a: {address: 10.0.0.1}}", False),
        ("nodes: {a: {address: 10.0.0.1}, b: {address: 10.0.0.2}}", True),
    ],
)
def test_nodes_wait_for_the_network(tmp_path: Path, text: str, needs: bool) -> None:
    assert unit_plan(Home(tmp_path), UNIT, config.parse(text)).needs_network == needs
