"""A home, a directory of small wheels, and nothing of this machine's own pip and uv configuration."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmhost.paths import Home
from tests.integration.env.flash_attn_case import Case, check_says
from tests.integration.env.flash_attn_like import make_source
from tests.integration.env.recorder import Recorder
from tests.integration.env.wheels import make_set


@pytest.fixture
def work() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="lh", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def home(work: Path) -> Home:
    return Home(work / "home")


@pytest.fixture
def progress() -> Recorder:
    return Recorder()


@pytest.fixture
def wheels(work: Path) -> Path:
    return make_set(work / "wheels")


@pytest.fixture(autouse=True)
def own_configuration(work: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip is configured to use the small wheels only."""
    for name in os.environ:
        if name.startswith(("PIP_", "UV_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("UV_CACHE_DIR", str(work / "cache"))
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")


@pytest.fixture
def case(home: Home, work: Path, wheels: Path, progress: Recorder, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setenv("COMPILED", str(work / "compiled.txt"))
    for name in ("BREAK", "MAX_JOBS", "NVCC_THREADS", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    check_says(work, monkeypatch, 1e-3)
    make_source(wheels)
    return Case(home, work, progress)
