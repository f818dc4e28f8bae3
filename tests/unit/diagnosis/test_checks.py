"""What the checks make of facts: status, words, remedy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from llmhost import config
from llmhost.diagnosis import Check
from llmhost.diagnosis.engine import check_unbuilt
from llmhost.diagnosis.gpus import Holder, check_compiler, check_driver, check_holders, check_toolkits, check_visibility
from llmhost.diagnosis.resources import check_disk, check_limits, check_shared_memory, check_watchers
from llmhost.diagnosis.subject import UNLIMITED, Limits, Subject, cuda_of
from llmhost.env.setup import Prospect
from llmhost.errors import EngineError
from llmhost.facts import CudaToolkit, Driver, EngineFacts, Gpu, HostFacts, Interpreter, MachineFacts, Program

GIB = 2**30
MIB = 2**20
PLENTY = Limits(UNLIMITED, UNLIMITED, UNLIMITED)
GPU = Gpu(0, "NVIDIA H200", 140 * GIB, 139 * GIB, (9, 0), "GPU-1")
GXX = Program("g++", "/usr/bin/g++", "12.2.0")
CUDA_130 = CudaToolkit("/usr/local/cuda-13.0", ("/usr/local/cuda-13.0",), (13, 0), True, True, True)
CUDA_124 = CudaToolkit("/usr/local/cuda-12.4", ("/usr/local/cuda-12.4",), (12, 4), True, True, True)
FACTS = MachineFacts(
    "0.1.0", "x86_64", "Debian", "6.1", (2, 36), HostFacts((0, 1), 64 * GIB, 60 * GIB), 32 * GIB, 32 * GIB,
    {"/h": 100 * GIB}, compilers=(GXX,),
)  # fmt: skip
ENGINE = EngineFacts("default", "/h/engines/default/b/bin/python", "cuda", "0.26.0", {}, (), ())
ON_GPU = replace(FACTS, gpus=(GPU,), driver=Driver("580.159.04", (13, 0)))


def subject(text: str = "", facts: MachineFacts = FACTS, **more: object) -> Subject:
    return Subject(facts, config=config.parse(text), **{"limits": PLENTY, **more})  # type: ignore[arg-type]


def only(checks: Iterable[Check]) -> Check:
    (check,) = checks
    assert bool(check.remedy) == (check.status != "ok")
    return check


@pytest.mark.parametrize(
    ("torch", "cuda"),
    [("2.11.0+cu130", (13, 0)), ("2.9.1+cu128", (12, 8)), ("2.13.0+cpu", None), ("2.13.0", None), ("", None)],
)
def test_the_cuda_of_a_torch(torch: str, cuda: tuple[int, int] | None) -> None:
    assert cuda_of(torch) == cuda


def test_a_machine_without_a_gpu_is_fine_for_an_engine_on_the_cpu() -> None:
    assert only(check_driver(subject())).status == "ok"
    assert only(check_driver(subject("engine: {device: cuda}"))).status == "fail"


def test_a_problem_of_the_driver_matters_to_who_needs_it() -> None:
    broken = replace(FACTS, driver=Driver("", problem="the driver was upgraded: reboot"))
    assert only(check_driver(subject(facts=broken))).status == "warn"
    check = only(check_driver(subject("engine: {device: cuda}", broken)))
    assert (check.status, check.message) == ("fail", "the driver was upgraded: reboot")
    one_lost = replace(ON_GPU, driver=replace(ON_GPU.driver, problem="GPU 1: it has fallen off the bus"))
    assert only(check_driver(subject("engine: {device: cuda}", one_lost))).status == "warn"


def test_the_driver_is_new_enough_for_the_engine() -> None:
    packages = {"torch": "2.11.0+cu130"}
    check = only(check_driver(subject(facts=ON_GPU, engine=ENGINE, packages=packages)))
    assert (check.status, check.message) == ("ok", "580.159.04, CUDA up to 13.0: NVIDIA H200 140 GiB")
    # The same major version is enough.
    minor = subject(facts=ON_GPU, engine=ENGINE, packages={"torch": "2.12.0+cu132"})
    assert only(check_driver(minor)).status == "ok"
    old = replace(ON_GPU, driver=Driver("535.104.05", (12, 2)))
    check = only(check_driver(subject(facts=old, engine=ENGINE, packages=packages)))
    assert check.status == "fail"
    assert "535.104.05 supports CUDA up to 12.2, and the engine's torch is built for 13.0" in check.message
    assert "580.65.06" in check.remedy


def test_gpus_that_the_engine_does_not_use() -> None:
    engine = replace(ENGINE, device="cpu")
    assert only(check_driver(subject(facts=ON_GPU, engine=engine))).status == "warn"
    assert only(check_driver(subject("engine: {device: cpu}", ON_GPU, engine=engine))).status == "ok"


def test_what_hides_gpus() -> None:
    assert not list(check_visibility(subject(facts=ON_GPU)))
    hidden = replace(ON_GPU, gpus=(replace(GPU, mig=True),), environment={"CUDA_VISIBLE_DEVICES": ""})
    mig, visible = check_visibility(subject(facts=hidden))
    assert "GPU 0: divided into MIG instances" in mig.message
    assert "services.NAME.gpus" in visible.remedy


def test_who_holds_memory() -> None:
    since = datetime(2026, 1, 31, 12, 5, tzinfo=UTC)
    stranger, orphan = check_holders(
        [Holder(812, 0, 3 * GIB, "python", since, orphan=False), Holder(813, 1, 0, "VLLM::Worker", None, orphan=True)]
    )
    assert (stranger.status, stranger.message) == (
        "warn", "3.0 GiB of GPU 0 is held by python (pid 812, since 2026-01-31 12:05)"
    )  # fmt: skip
    assert orphan.status == "fail"
    assert "memory of GPU 1 is held by VLLM::Worker (pid 813), which is left of a former life" in orphan.message
    assert "--sweep" in orphan.remedy


FLASH = "engine: {device: cuda, flash_attn: true}"
TORCH = {"torch": "2.11.0+cu130"}


def flash(*toolkits: CudaToolkit, **more: object) -> list[Check]:
    facts = replace(ON_GPU, toolkits=toolkits, **more)  # type: ignore[arg-type]
    return list(check_toolkits(subject(FLASH, facts, engine=ENGINE, packages=TORCH)))


def test_flash_attn_wants_the_toolkit_of_torch() -> None:
    assert only(flash(CUDA_124, CUDA_130)).message.endswith("CUDA 13.0 in /usr/local/cuda-13.0, as the engine's torch")
    near = only(flash(replace(CUDA_130, version=(13, 1))))
    assert near.status == "warn"
    assert "13.1" in near.message
    other = only(flash(CUDA_124))
    assert other.status == "fail"
    assert "the toolkits here are: 12.4 in /usr/local/cuda-12.4" in other.message
    assert "toolkit 13.0" in other.remedy
    assert only(flash()).status == "fail"
    part = only(flash(replace(CUDA_130, cudart=False)))
    assert part.status == "fail"


def test_flash_attn_wants_a_compiler() -> None:
    _, compiler = flash(CUDA_130, compilers=(Program("ninja", "/usr/bin/ninja", "1.11"),))
    assert (compiler.name, compiler.status) == ("compiler", "fail")


def test_flash_attn_that_is_there_needs_nothing() -> None:
    python = Interpreter("/p", (3, 12, 3), True, {"flash-attn": "2.8.3"})
    found = only(check_toolkits(subject(FLASH, ON_GPU, engine=ENGINE, packages=TORCH, python=python)))
    assert found.message == "flash-attn 2.8.3 is installed"


def test_a_wrong_cuda_home_is_told_whatever_it_is_for() -> None:
    wrong = CudaToolkit("/opt/gone", ("CUDA_HOME",), None, False, False, False)
    facts = replace(FACTS, toolkits=(wrong, CUDA_130), environment={"CUDA_HOME": "/opt/gone"})
    told, rest = check_toolkits(subject(facts=facts))
    assert (told.status, rest.status) == ("warn", "ok")
    assert told.message == "CUDA_HOME is /opt/gone, which lacks nvcc, headers (cuda_runtime.h), libcudart.so"
    assert "13.0 in /usr/local/cuda-13.0" in told.remedy
    alone = flash(wrong, environment={"CUDA_HOME": "/opt/gone"})
    assert [check.status for check in alone] == ["fail", "fail"]


def test_kernels_want_a_compiler_and_headers() -> None:
    assert only(check_compiler(subject())).message == "g++ 12.2.0"
    assert only(check_compiler(subject(facts=replace(FACTS, compilers=())))).status == "warn"
    on_gpu = subject(facts=ON_GPU, engine=ENGINE)
    check = only(check_compiler(on_gpu))
    assert (check.status, "neither gcc nor clang" in check.message) == ("warn", True)
    gcc = replace(ON_GPU, compilers=(Program("gcc", "/usr/bin/gcc", "12.2.0"), GXX))
    assert only(check_compiler(subject(facts=gcc, engine=ENGINE))).message == "g++ 12.2.0"
    check = only(check_compiler(subject(python=Interpreter("/p", (3, 12, 3), headers=False))))
    assert check.status == "warn"
    assert "Python.h" in check.message
    assert "python3.12-dev" in check.remedy


def test_an_engine_that_is_not_built_yet() -> None:
    check = only(check_unbuilt("default", Prospect("vLLM 0.33.0 for cuda"), replaced=False))
    assert (check.status, check.message) == ("warn", "the engine default is not built yet: vLLM 0.33.0 for cuda")
    old, newest = check_unbuilt("default", Prospect("vLLM 0.19.1 for cuda", "not the newest"), replaced=True)
    assert "the engine default is not what llmhost.yaml asks for" in old.message
    assert (newest.status, newest.message) == ("ok", "not the newest")
    refused = only(check_unbuilt("default", EngineError("it needs a driver", "install one"), replaced=False))
    assert (refused.status, refused.message, refused.remedy) == ("fail", "it needs a driver", "install one")


SPLIT = "services: {chat: {model: /m, gpus: 2, replicas: 2}, e: {model: /m}}"


def test_which_engines_are_several_processes() -> None:
    text = "services: {a: {model: /m, gpus: [0, 1]}, b: {model: /m, args: {tensor-parallel-size: 4}}, c: {model: /m}}"
    assert subject(text).split == {"a": 2, "b": 4}
    assert subject(SPLIT).split == {"chat": 2}


def test_shared_memory() -> None:
    assert only(check_shared_memory(subject(SPLIT))).status == "ok"
    docker = replace(FACTS, shm_total=64 * MIB, shm_free=64 * MIB)
    check = only(check_shared_memory(subject(SPLIT, docker)))
    assert check.status == "fail"
    assert "/dev/shm has 64 MiB, and engines of chat run in several processes" in check.message
    assert "--shm-size" in check.remedy
    assert only(check_shared_memory(subject(facts=docker))).status == "ok"
    little = replace(FACTS, shm_total=GIB, shm_free=GIB)
    assert only(check_shared_memory(subject(SPLIT, little))).status == "warn"
    assert only(check_shared_memory(subject(facts=replace(FACTS, shm_total=0, shm_free=0)))).status == "fail"


def test_disks() -> None:
    assert only(check_disk(subject(), {})).message == "/h 100.0 GiB free"
    two = replace(FACTS, disk_free={"/h": 100 * GIB, "/h/models": 100 * GIB, "/tmp": 2 * GIB})
    assert [check.message for check in check_disk(subject(facts=two), {})] == [
        "/tmp has 2.0 GiB free: compile caches and logs grow"
    ]
    check = only(check_disk(subject(facts=replace(two, disk_free={"/h/models": 100 * GIB})), {"/h/models": 145 * GIB}))
    assert check.status == "fail"
    assert "models of 145.0 GiB are still to be fetched" in check.message
    assert only(check_disk(subject(facts=replace(FACTS, disk_free={"/h": MIB})), {})).status == "fail"


def test_a_gateway_that_watches_more_files_than_it_may() -> None:
    """Of each service one, of each port of its own another."""
    text = "services: {" + ", ".join(f"s{n}: {{model: /m, port: {5000 + n}}}" for n in range(10)) + "}"
    assert list(check_watchers(subject(text))) == []
    for there, status in ((57, []), (56, []), (55, ["warn"]), (28, ["warn"]), (27, ["fail"])):
        assert [c.status for c in check_watchers(subject(text, limits=replace(PLENTY, watchers=there)))] == status
    assert "about 28 files" in only(check_watchers(subject(text, limits=replace(PLENTY, watchers=20)))).message


def test_limits() -> None:
    assert only(check_limits(subject())).message == "any number of open files"
    assert only(check_limits(subject(limits=replace(PLENTY, files=1024)))).status == "fail"
    assert only(check_limits(subject(limits=replace(PLENTY, files=8192)))).status == "warn"
    assert only(check_limits(subject(limits=replace(PLENTY, processes=512)))).status == "warn"
    locked = replace(PLENTY, locked=8 * MIB)
    assert only(check_limits(subject(SPLIT, limits=locked))).status == "ok"
    assert "InfiniBand" in only(check_limits(subject(SPLIT, limits=locked, infiniband=True))).message


def test_a_home_that_others_may_write_into(tmp_path: Path) -> None:
    from llmhost.diagnosis.home import check_home
    from llmhost.homedir import claim
    from llmhost.paths import Home

    home = Home(tmp_path / "h")
    assert "not there yet" in only(check_home(home)).message
    claim(home)
    home.root.chmod(0o755)
    assert only(check_home(home)).status == "ok"
    (home.root / ".bundle-0123456789ab").mkdir()
    left = only(check_home(home))
    assert (left.status, ".bundle-0123456789ab" in left.message) == ("warn", True)
    (home.root / ".bundle-0123456789ab").rmdir()
    home.keys_file.write_text("{}")
    home.keys_file.chmod(0o644)
    home.run.chmod(0o755)
    home.root.chmod(0o777)
    world, run, keys = check_home(home)
    assert (world.status, run.status, keys.status) == ("fail", "warn", "warn")
    assert (str(home.run) in run.message, str(home.keys_file) in keys.message) == (True, True)
    home.root.chmod(0o755)
