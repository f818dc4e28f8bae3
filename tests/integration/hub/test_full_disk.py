"""A disk that fills up while a model comes: a small tmpfs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmhost.__main__ import run
from tests.fakes.hub import FakeHub, running
from tests.unit.probe.test_model import safetensors

pytestmark = pytest.mark.integration

FILES = {"config.json": b"{}", "model.safetensors": safetensors({"w": 6_000_000})}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this user may not mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("scheme", ["hf", "modelscope"])
def test_disk_that_fills_up(
    small_disk: Path, tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error is clean, and the same pull goes on when there is room."""
    home = tmp_path / "h"
    home.mkdir()
    (home / "llmhost.yaml").write_text(f"models_dir: {small_disk}\nservices: {{}}\n")
    monkeypatch.setenv("LLMHOST_HOME", str(home))
    monkeypatch.setattr("llmhost.hub.pull.DISK_MARGIN", -(1 << 40))  # as if somebody else filled it meanwhile
    with running(FakeHub({"org/model": dict(FILES)})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
        assert run(["pull", f"{scheme}:org/model"]) == 1
        error = capsys.readouterr().err
        assert f"the disk of {small_disk}/org is full" in error
        assert "Traceback" not in error
        assert not (small_disk / "org/model").exists()
        subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
        assert run(["pull", f"{scheme}:org/model"]) == 0
    assert os.stat(small_disk / "org/model/model.safetensors").st_size == len(FILES["model.safetensors"])
    # The small file may come last: it had no room either.
    ranges = [transfer[1] for transfer in hub.transfers if transfer[0].endswith("model.safetensors")]
    assert ranges[-1] not in (None, "bytes=0-")
