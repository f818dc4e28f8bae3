"""GPUs and their driver through the real nvidia-ml-py, and what `facts`, `plan` and `doctor` make of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmhost.env.manifest import MANIFEST
from llmhost.paths import Home
from tests.integration.workflow.conftest import make_engine

pytestmark = pytest.mark.integration

GIB = 2**30
ROOT = Path(__file__).parents[3]
DEMO = "services: {chat: {model: 'demo:chat'}, embedding: {model: 'demo:embed'}}\n"


def llmhost(
    home: Path, *args: str, nvml: Path, mode: str = "ok", holders: str = "", **env: str
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(nvml), "LH_NVML": mode, "LH_NVML_HOLDERS": holders, **env}
    return subprocess.run(
        [sys.executable, "-m", "llmhost", "--home", str(home), *args],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def facts(nvml: Path, mode: str, holders: str = "", **env: str) -> Any:
    """Only what NVML tells: the whole of `llmhost facts` asks many programs, too."""
    code = (
        "import json, dataclasses; from llmhost.probe.gpus import read_gpus;"
        "print(json.dumps(dataclasses.asdict(read_gpus())))"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(nvml), "LH_NVML": mode, "LH_NVML_HOLDERS": holders, **env}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    return json.loads(done.stdout)


def test_gpus(nvml: Path) -> None:
    found = facts(nvml, "ok", "4711:0:1073741824")
    first, second = found["gpus"]
    assert first == {
        "index": 0, "name": "NVIDIA H200", "total": 24 * GIB, "free": 20 * GIB, "capability": [9, 0],
        "uuid": "GPU-1", "mig": False,
    }  # fmt: skip
    assert (second["index"], second["free"]) == (1, 24 * GIB)
    assert found["driver"] == {"version": "580.159.04", "cuda": [13, 0], "problem": ""}
    assert found["processes"] == [{"pid": 4711, "gpu": 0, "used": GIB}]


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("mismatch", "upgraded, but the former one is still loaded"),
        ("unloaded", "not loaded: `sudo modprobe nvidia`"),
        ("denied", "may not use the GPUs"),
    ],
)
def test_a_driver_that_cannot_be_used(nvml: Path, mode: str, words: str) -> None:
    found = facts(nvml, mode)
    assert found["gpus"] == []
    assert words in found["driver"]["problem"]


def test_one_gpu_is_lost_and_the_other_is_told(nvml: Path) -> None:
    found = facts(nvml, "lost")
    assert [gpu["index"] for gpu in found["gpus"]] == [0]
    assert "GPU 1: it has fallen off the bus" in found["driver"]["problem"]


def test_a_library_that_is_no_library(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("not ELF")
    assert "the library of the driver is broken" in facts(tmp_path, "ok")["driver"]["problem"]


def test_a_driver_that_hangs_does_not_hang_us(nvml: Path) -> None:
    code = "from llmhost.probe.nvidia import read_nvidia; print(read_nvidia(seconds=0.2).driver.problem)"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(nvml), "LH_NVML": "hang"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    assert "does not answer within 0.2 s" in done.stdout


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose engine computes on GPUs."""
    made = tmp_path / "h"
    made.mkdir()
    make_engine(Home(made))
    manifest = made / "engines/default" / MANIFEST
    data = json.loads(manifest.read_text())
    data["device"] = data["spec"]["device"] = "cuda"
    data["packages"]["torch"] = "2.11.0+cu130"
    manifest.write_text(json.dumps(data))
    (made / "llmhost.yaml").write_text(f"engine: {{device: cuda}}\n{DEMO}")
    return made


def checks(home: Path, nvml: Path, mode: str = "ok", holders: str = "", **env: str) -> dict[str, Any]:
    done = llmhost(home, "doctor", "--json", nvml=nvml, mode=mode, holders=holders, **env)
    assert "Traceback" not in done.stderr
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def test_the_plan_is_for_these_gpus(home: Path, nvml: Path) -> None:
    done = llmhost(home, "plan", "--json", nvml=nvml)
    assert done.returncode == 0, done.stderr
    replicas = [r for s in json.loads(done.stdout)["services"] for r in s["replicas"]]
    assert {index for r in replicas for index in r["gpus"]} <= {0, 1}
    assert sum(r["gpu_memory_bytes"] for r in replicas if r["gpus"] == [1]) <= 24 * GIB
    assert all(r["gpu_memory_bytes"] for r in replicas)


def test_a_divided_gpu_is_left_out_and_told(home: Path, nvml: Path) -> None:
    done = llmhost(home, "plan", "--json", nvml=nvml, mode="mig")
    assert {i for s in json.loads(done.stdout)["services"] for r in s["replicas"] for i in r["gpus"]} == {1}
    found = checks(home, nvml, "mig")
    assert found["gpus"]["status"] == "warn"
    assert "GPU 0: divided into MIG instances" in found["gpus"]["message"]


@pytest.mark.parametrize("command", ["up", "plan"])
def test_without_a_driver_nothing_is_started(home: Path, nvml: Path, command: str) -> None:
    done = llmhost(home, command, nvml=nvml, mode="mismatch")
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "upgraded, but the former one is still loaded" in done.stderr
    assert "llmhost doctor" in done.stderr
    assert not (home / "run/supervisord.pid").exists()


def test_doctor_names_a_driver_that_is_too_old_for_the_engine(home: Path, nvml: Path) -> None:
    found = checks(home, nvml, "old")["driver"]
    assert found["status"] == "fail"
    assert "535.104.05 supports CUDA up to 12.2, and the engine's torch is built for 13.0" in found["message"]
    assert "580.65.06" in found["remedy"]


def test_doctor_names_who_holds_memory(home: Path, nvml: Path) -> None:
    found = checks(home, nvml, holders=f"{os.getpid()}:0:{3 * GIB}", CUDA_VISIBLE_DEVICES="1")
    assert found["driver"]["status"] == "ok"
    assert f"3.0 GiB of GPU 0 is held by {Path(sys.executable).name[:6]}" in found["gpu-memory"]["message"]
    assert f"pid {os.getpid()}, since 2" in found["gpu-memory"]["message"]
    assert "CUDA_VISIBLE_DEVICES=1 is set" in found["gpus"]["message"]
