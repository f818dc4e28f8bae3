"""What the demo models do without vLLM: tests/demo/test_behaviour.py, where torch is, in the engine's environment."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from uv import find_uv_bin

from tests.e2e.conftest import REPOSITORY, Installation, pip_environment


def test_the_demo_models_behave_with_transformers(installation: Installation, tmp_path: Path) -> None:
    plan = json.loads(installation.llmhost("plan", "--json").stdout)
    python = plan["engine"]["python"]
    # Beside the engine, not in it: it must stay as setup made it.
    install = [find_uv_bin(), "pip", "install", "--quiet", "--python", python, "--target", str(tmp_path)]
    subprocess.run(
        [*install, "pytest", "pytest-timeout", "hypothesis"], check=True, env=pip_environment(installation), timeout=300
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/demo/test_behaviour.py"]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, text=True, capture_output=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
