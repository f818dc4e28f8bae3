"""The facts of a machine: as a file, of fixture trees, and the GPUs that a home may share out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llmhost.errors import FactsError, PlanError
from llmhost.facts import CudaToolkit, Driver, Gpu, GpuProcess, HostFacts, Interpreter, MachineFacts, Program
from llmhost.machine import shareable
from llmhost.probe.cuda import parse_version
from llmhost.probe.facts_file import facts_from_json, facts_to_json
from llmhost.probe.gpu_list import read_gpu_list
from llmhost.probe.interpreters import installed
from llmhost.probe.machine import without_credentials
from llmhost.probe.nvidia import _cards, _kernel_version, _missing
from llmhost.probe.pip_options import mask

GIB = 2**30
GPU = Gpu(0, "NVIDIA H200", 140 * GIB, 139 * GIB, (9, 0), "GPU-1")
FACTS = MachineFacts(
    "0.1.0", "x86_64", "Debian GNU/Linux 12", "6.1.0", (2, 36), HostFacts((0, 1), 64 * GIB, 60 * GIB), GIB, GIB,
    {"/h": GIB}, (GPU,), Driver("580.159.04", (13, 0)), (GpuProcess(1, 0, 2),),
    (CudaToolkit("/usr/local/cuda-13.0", ("CUDA_HOME",), None, False, True, False),),
    (Interpreter("/usr/bin/python3", (3, 12, 3), True, {"torch": "2.11.0+cu130"}),),
    (Program("conda", "/opt/conda/bin/conda", "24.1"),), (), Program("uv", "/u", "0.9"),
    {"index-url": "https://****@mirror/simple"}, {"HTTPS_PROXY": "http://p:3128"}, {"o/m": 5}, {"CUDA_HOME": "/x"},
)  # fmt: skip


def test_round_trip() -> None:
    assert facts_from_json(json.dumps(facts_to_json(FACTS)), "facts.json") == FACTS


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2, "llmhost": "9.9"}, "format 2.*reads format 1.*llmhost 9.9"),
        ({"format": None}, "format None"),
        ({"glibc": "2.36"}, "glibc"),
        ({"gpus": [{"index": "0"}]}, r"gpus\[0\]"),
        ({"colour": "red"}, "colour: this llmhost does not know"),
        ({"uv": {"name": "uv", "path": "/u", "version": "1", "x": 1}}, r"uv\.x"),
        ({"shm_total": None}, "shm_total"),
    ],
)
def test_what_is_not_understood_is_refused(change: dict[str, object], words: str) -> None:
    text = json.dumps({**facts_to_json(FACTS), **change})
    with pytest.raises(FactsError, match=f"facts.json.*{words}") as e:
        facts_from_json(text, "facts.json")
    assert "llmhost facts --json" in e.value.hint


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "7", json.dumps({"gpus": []})])
def test_what_is_no_facts_file(text: str) -> None:
    with pytest.raises(FactsError, match=r"f is not JSON|f holds no facts"):
        facts_from_json(text, "f")


def test_gpus_of_a_facts_file_are_planned_for(tmp_path: Path) -> None:
    file = tmp_path / "facts.json"
    file.write_text(json.dumps(facts_to_json(FACTS)))
    assert read_gpu_list(str(file)) == (GPU,)
    file.write_text(json.dumps(facts_to_json(replace(FACTS, gpus=(), driver=Driver(problem="reboot it")))))
    with pytest.raises(PlanError, match="without usable GPUs: reboot it"):
        read_gpu_list(str(file))
    file.write_text(json.dumps({**facts_to_json(FACTS), "format": 3}))
    with pytest.raises(FactsError, match="format 3"):
        read_gpu_list(str(file))


def test_our_own_engines_do_not_take_memory_away_from_us() -> None:
    gpus = (replace(GPU, free=40 * GIB), Gpu(1, "", 24 * GIB, 4 * GIB))
    processes = (GpuProcess(10, 0, 90 * GIB), GpuProcess(11, 0, 10 * GIB), GpuProcess(12, 1, 20 * GIB))
    first, second = shareable(gpus, processes, {10}, {})
    assert (first.free, second.free) == (130 * GIB, 4 * GIB)


def test_where_the_driver_does_not_say_whose_memory_it_is_the_plan_does() -> None:
    gpus = (replace(GPU, free=40 * GIB), Gpu(1, "", 24 * GIB, 23 * GIB))
    first, second = shareable(gpus, (GpuProcess(10, 0, 0),), {10}, {0: 95 * GIB, 1: 5 * GIB})
    assert (first.free, second.free) == (135 * GIB, 24 * GIB)


def test_a_toolkit_says_what_it_lacks() -> None:
    part = FACTS.toolkits[0]
    assert part.missing == ("nvcc", "libcudart.so")
    assert not part.complete
    whole = CudaToolkit("/c", ("CUDA_HOME",), (12, 4), True, True, True)
    assert whole.complete
    assert replace(whole, version=None).missing == ("an nvcc that runs",)


def test_version_of_nvcc() -> None:
    assert parse_version("Cuda compilation tools, release 12.4, V12.4.131\nBuild cuda_12.4") == (12, 4)
    assert parse_version("command not found") is None


def test_packages_by_their_metadata_directories(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for name in ("Flash_Attn-2.8.3.post2.dist-info", "torch-2.11.0+cu130.dist-info", "torch"):
        (first / name).mkdir(parents=True)
    (second / "torch-1.0.dist-info").mkdir(parents=True)
    (second / "PyYAML-6.0.1-py3.12.egg-info").touch()
    found = installed([first, tmp_path / "none", second])
    assert found == {"flash-attn": "2.8.3.post2", "torch": "2.11.0+cu130", "pyyaml": "6.0.1"}


def test_a_card_without_a_driver(tmp_path: Path) -> None:
    assert _missing(tmp_path) == ""
    device = tmp_path / "sys/bus/pci/devices/0000:3b:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030200\n")
    audio = tmp_path / "sys/bus/pci/devices/0000:3b:00.1"
    audio.mkdir()
    (audio / "vendor").write_text("0x10de\n")
    (audio / "class").write_text("0x040300\n")
    assert len(_cards(tmp_path)) == 1
    assert (
        _missing(tmp_path) == "there is an NVIDIA GPU on the PCI bus (0000:3b:00.0), but no NVIDIA driver: install one"
    )
    version = tmp_path / "proc/driver/nvidia/version"
    version.parent.mkdir(parents=True)
    version.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (root@b)\n"
        "GCC version:  gcc version 12.2.0\n"
    )
    assert _kernel_version(tmp_path) == "580.159.04"
    assert "580.159.04, but its library libnvidia-ml.so.1 is not installed" in _missing(tmp_path)


def test_no_password_is_told() -> None:
    assert mask("https://u:p@h/simple http://x@y/") == "https://****@h/simple http://****@y/"
    assert without_credentials("u:p@proxy:3128") == "****@proxy:3128"
    assert without_credentials("http://u:p@proxy:3128") == "http://****@proxy:3128"
    assert without_credentials("proxy:3128 /some@where") == "proxy:3128 /some@where"
