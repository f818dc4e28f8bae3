"""`pip install` of a wheel built from this repository does what the checkout does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Installation, pip_environment


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="lh", dir="/tmp"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def wheel(installation: Installation, place: Path) -> Path:
    python = str(installation.checkout / ".venv/bin/python")
    command = [
        python,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(place),
        str(installation.checkout),
    ]
    subprocess.run(command, env=pip_environment(installation), check=True, timeout=300)
    (built,) = place.glob("llmhost-*.whl")
    return built


def test_the_wheel_holds_templates_and_demo_models_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "llmhost/conf_templates/supervisord.conf.j2" in names
    assert "llmhost/systemd/llmhost.service.j2" in names
    assert "llmhost/env/releases.toml" in names
    assert {"llmhost/metrics/data/rules.yaml", "llmhost/metrics/data/dashboard.json"} <= set(names)
    assert {f"llmhost/demo/{kind}/model.safetensors" for kind in ("chat", "embed", "rerank")} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "scripts/"))]


def test_an_installed_wheel_plans_and_renders_without_the_checkout(
    wheel: Path, installation: Installation, place: Path
) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(place / "venv")], check=True, timeout=300)
    pip = [str(place / "venv/bin/python"), "-m", "pip", "install", "--quiet", str(wheel)]
    subprocess.run(pip, env=pip_environment(installation), check=True, timeout=600)
    home = place / "h"
    environment = {**os.environ, "LLMHOST_HOME": str(home)}

    def llmhost(*args: str) -> str:
        command = [str(place / "venv/bin/llmhost"), *args]
        done = subprocess.run(
            command, env=environment, cwd=place, text=True, capture_output=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    llmhost("init", "--demo")
    (home / "engines").symlink_to(installation.home / "engines")
    assert "demo-chat" in llmhost("plan")
    assert "conf/supervisord.conf" in llmhost("render")
    llmhost("render", "-o", str(place / "out"))
    assert str(place / "venv") in (place / "out/conf/supervisord.conf").read_text(encoding="utf-8")
