"""`llmhost metrics` as an operator uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.metrics.conftest import ask
from tests.integration.workflow.conftest import Installed

pytestmark = pytest.mark.integration


def test_show_prints_what_the_gateway_serves(watched: Installed) -> None:
    names = {line.split("{")[0] for line in ask(watched, "/metrics").text.splitlines() if not line.startswith("#")}
    shown = watched.run("metrics", "show").stdout
    assert {line.split("{")[0].split()[0] for line in shown.splitlines() if not line.startswith("#")} == {
        name.split()[0] for name in names
    }
    states = watched.run("metrics", "show", "llmhost_replica_state{").stdout.splitlines()
    assert len(states) == 3 * 7


def test_targets_name_the_gateway(watched: Installed, tmp_path: Path) -> None:
    (entry,) = json.loads(watched.run("metrics", "targets").stdout)
    assert entry["targets"] == [f"127.0.0.1:{watched.port}"]
    (entry,) = json.loads(watched.run("metrics", "targets", "--host", "2001:db8::1").stdout)
    assert entry["targets"] == [f"[2001:db8::1]:{watched.port}"]
    file = tmp_path / "llmhost.json"
    assert watched.run("metrics", "targets", "--host", "gpu1", "-o", str(file)).stdout == f"wrote {file}\n"
    assert json.loads(file.read_text())[0]["targets"] == [f"gpu1:{watched.port}"]
    assert file.stat().st_mode & 0o777 == 0o644


def test_dashboard_and_rules_are_written(watched: Installed, tmp_path: Path) -> None:
    for command in ("dashboard", "rules"):
        file = tmp_path / command
        watched.run("metrics", command, "-o", str(file))
        assert file.read_text(encoding="utf-8") == watched.run("metrics", command).stdout


def test_what_is_wrong_is_said(installed: Installed, tmp_path: Path) -> None:
    error, hint = installed.refused("metrics", "show", ok=3)
    assert "where the metrics come from" in error
    assert "llmhost up" in hint
    installed.refused("metrics", "targets", ok=3)
    error, _ = installed.refused("metrics", "rules", "-o", str(tmp_path / "gone/rules.yaml"))
    assert str(tmp_path / "gone") in error
    error, _ = installed.refused("metrics", "rules", "-o", "/proc/rules.yaml")
    assert "/proc/rules.yaml" in error
