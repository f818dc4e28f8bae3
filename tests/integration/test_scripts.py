"""What a newcomer runs: the last words of quickstart, and the examples where nobody answers."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("http://127.0.0.1:8000", "examples/demo.py\n"),
        ("http://127.0.0.1:8123", "examples/demo.py http://127.0.0.1:8123/v1\n"),
    ],
)
def test_quickstart_says_how_to_reach_the_demo(tmp_path: Path, url: str, line: str) -> None:
    """With stand-ins for the installation and for `llmhost`, whose own tests are elsewhere."""
    scripts, programs = tmp_path / "scripts", tmp_path / ".venv/bin"
    scripts.mkdir()
    programs.mkdir(parents=True)
    shutil.copy(ROOT / "scripts/quickstart", scripts)
    (scripts / "environment.sh").write_text("ensure_venv() { :; }\n")
    (programs / "python").symlink_to(sys.executable)
    fake = f"""[ "$1" = status ] && echo '{{"gateway": {{"url": "{url}"}}}}' || echo "llmhost $*"\n"""
    (programs / "llmhost").write_text(f"#!/bin/sh\n{fake}")
    (programs / "llmhost").chmod(0o755)
    done = subprocess.run(
        [scripts / "quickstart", "--port", "8123"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("llmhost up --demo --port 8123\nllmhost check\n")
    assert line in done.stdout


@pytest.mark.parametrize("name", ["demo.py", "langchain_demo.py"])
def test_an_example_without_a_server_says_so_in_one_line(name: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        done = subprocess.run(
            [sys.executable, ROOT / "examples" / name, url], capture_output=True, text=True, timeout=300, check=False,
            env={**os.environ, "no_proxy": "*"},
        )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: nobody answers at {url}")
