"""How a build of flash-attn is planned: toolkit, architectures, jobs; and what is refused, with which remedy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmhost.env.flash_attn.plan import BuildPlan, Machine, bundled_note, plan_wheel
from llmhost.env.flash_attn.plan import plan_build as build_of_wheel
from llmhost.env.flash_attn.target import Target
from llmhost.errors import EngineError
from llmhost.facts import CudaToolkit, Gpu

GIB = 2**30
CUDA_13 = CudaToolkit("/usr/local/cuda-13.0", ("nvcc on PATH",), (13, 0), nvcc=True, headers=True, cudart=True)
TARGET = Target(
    python_version="3.12.3",
    python_tag="cp312",
    machine="x86_64",
    headers=True,
    torch="2.11.0",
    cuda=(13, 0),
    cxx11_abi=True,
    packages=dict.fromkeys(("ninja", "packaging", "setuptools", "wheel", "psutil", "einops"), "1"),
)


def gpu(*capability: int, index: int = 0, name: str = "H200") -> Gpu:
    return Gpu(index, name, 144 * GIB, 144 * GIB, (capability[0], capability[1]))


HOST = Machine((CUDA_13,), (gpu(9, 0),), 16, 120 * GIB, 60 * GIB, frozenset({"g++"}))


def plan_build(wanted: bool | str, target: Target, machine: Machine) -> BuildPlan:
    return build_of_wheel(plan_wheel(wanted, target, machine.gpus), machine)


def toolkit(version: tuple[int, int], root: str = "", found_by: str = "nvcc on PATH") -> CudaToolkit:
    name = root or f"/usr/local/cuda-{version[0]}.{version[1]}"
    return CudaToolkit(name, (found_by,), version, nvcc=True, headers=True, cudart=True)


def refused(target: Target = TARGET, machine: Machine = HOST, wanted: bool | str = True) -> tuple[str, str]:
    with pytest.raises(EngineError) as error:
        plan_build(wanted, target, machine)
    return error.value.message, error.value.hint


def test_the_plan_of_one_h200() -> None:
    plan = plan_build(True, TARGET, HOST)
    assert plan.wheel.requirement == "flash-attn==2.8.3.post2"
    assert plan.toolkit is CUDA_13
    assert plan.environment == {
        "CUDA_HOME": "/usr/local/cuda-13.0",
        "PATH": "/usr/local/cuda-13.0/bin",
        "FLASH_ATTN_CUDA_ARCHS": "90",
        "FLASH_ATTENTION_FORCE_BUILD": "TRUE",
        "MAX_JOBS": "16",
        "NVCC_THREADS": "1",
    }
    assert plan.wheel.key == "flash_attn-2.8.3.post2-cp312-torch2.11.0-cu130-abi1-sm90-x86_64"
    assert plan.missing_tools == plan.notes == ()
    assert (
        "16, the least of 16 cores, 73 objects, and 128.8 GB of free memory at 2.5 GB a job hold 51" in plan.lines()[2]
    )


@pytest.mark.parametrize(
    ("cards", "archs"),
    [
        ([(8, 0)], "80"),
        ([(8, 6), (8, 9)], "80"),
        ([(9, 0), (8, 0)], "80;90"),
        ([(10, 3)], "100"),
        ([(12, 0), (8, 9), (9, 0)], "80;90;120"),
    ],
)
def test_architectures_are_those_of_the_gpus(cards: list[tuple[int, int]], archs: str) -> None:
    machine = replace(HOST, gpus=tuple(gpu(*card, index=i) for i, card in enumerate(cards)))
    assert plan_build(True, TARGET, machine).environment["FLASH_ATTN_CUDA_ARCHS"] == archs


@pytest.mark.parametrize(
    ("cores", "gib", "archs", "jobs", "threads"),
    [
        (2, 24, 1, 2, 1),
        (16, 12, 1, 5, 1),  # memory is the limit
        (16, 2.4, 1, 1, 1),
        (128, 500, 1, 73, 1),  # never more than there are objects
        (256, 1000, 2, 73, 2),  # cores that have no object of their own
        (256, 200, 2, 73, 1),  # which memory does not allow here
    ],
)
def test_jobs_are_what_cores_memory_and_objects_allow(
    cores: int, gib: float, archs: int, jobs: int, threads: int
) -> None:
    gpus = (gpu(9, 0), gpu(8, 0, index=1))[:archs]
    plan = plan_build(True, TARGET, replace(HOST, cores=cores, memory=int(gib * GIB), gpus=gpus))
    assert (plan.jobs, plan.threads) == (jobs, threads)


def test_what_the_user_set_counts() -> None:
    plan = plan_build(True, TARGET, replace(HOST, environ={"MAX_JOBS": "3", "NVCC_THREADS": "2"}))
    assert (plan.jobs, plan.threads) == (3, 2)
    assert "3, as MAX_JOBS says" in plan.reckoning
    assert "MAX_JOBS=many" in refused(machine=replace(HOST, environ={"MAX_JOBS": "many"}))[0]


def test_the_same_version_wins_over_others_of_the_same_major() -> None:
    there = (toolkit((12, 9)), toolkit((13, 2)), toolkit((13, 0)))
    plan = plan_build(True, TARGET, replace(HOST, toolkits=there))
    assert plan.toolkit.version == (13, 0)
    assert plan.notes == ()


def test_the_same_major_does_with_a_note() -> None:
    plan = plan_build(True, TARGET, replace(HOST, toolkits=(toolkit((12, 9)), toolkit((13, 2)), toolkit((13, 1)))))
    assert plan.toolkit.version == (13, 1)
    assert "torch 2.11.0 is built with CUDA 13.0, the toolkit is 13.1" in plan.notes[0]


def test_another_major_is_refused_with_what_to_install() -> None:
    message, hint = refused(machine=replace(HOST, toolkits=(toolkit((12, 4)),)))
    assert message == (
        "flash-attn needs the compiler of CUDA 13.0, with which torch 2.11.0 is built; here is CUDA 12.4"
        " (/usr/local/cuda-12.4)"
    )
    assert "cuda-toolkit-13-0" in hint
    assert "CUDA_HOME" in hint


def test_incomplete_toolkits_are_named_with_what_they_lack() -> None:
    bare = CudaToolkit("/opt/cuda", ("CUDA_HOME",), None, nvcc=False, headers=True, cudart=False)
    pip = CudaToolkit("/v/nvidia/cu13", ("pip packages in /v",), (13, 0), nvcc=True, headers=True, cudart=False)
    message, _ = refused(machine=replace(HOST, toolkits=(bare, pip)))
    assert (
        "/opt/cuda (CUDA_HOME) lacks nvcc, libcudart.so; /v/nvidia/cu13 (pip packages in /v) lacks libcudart" in message
    )
    assert "this machine has no CUDA toolkit" in refused(machine=replace(HOST, toolkits=()))[0]


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ((), "there is no toolkit"),
        ((CudaToolkit("/opt/x", ("CUDA_HOME",), None, nvcc=False, headers=False, cudart=False),), "it lacks nvcc"),
        ((toolkit((12, 4), "/opt/x", "CUDA_HOME"),), "it is CUDA 12.4"),
    ],
)
def test_a_cuda_home_that_is_wrong_is_passed_over_and_told(named: tuple[CudaToolkit, ...], why: str) -> None:
    machine = replace(HOST, toolkits=(*named, CUDA_13), environ={"CUDA_HOME": "/opt/x"})
    plan = plan_build(True, TARGET, machine)
    assert plan.environment["CUDA_HOME"] == "/usr/local/cuda-13.0"
    assert plan.notes[0].startswith(f"CUDA_HOME=/opt/x is not used ({why}")


def test_a_cuda_home_that_is_right_needs_no_word() -> None:
    machine = replace(HOST, toolkits=(toolkit((13, 0), "/cuda", "CUDA_HOME"),), environ={"CUDA_HOME": "/cuda/"})
    assert plan_build(True, TARGET, machine).notes == ()


@pytest.mark.parametrize(
    ("target", "machine", "words"),
    [
        (replace(TARGET, cuda=None), HOST, "the engine's torch 2.11.0 is built for the CPU"),
        (replace(TARGET, headers=False), HOST, "Python.h of Python 3.12 is missing"),
        (TARGET, replace(HOST, compilers=frozenset({"ninja"})), "no C++ compiler on PATH"),
        (TARGET, replace(HOST, gpus=()), "none is to be seen"),
        (TARGET, replace(HOST, gpus=(gpu(7, 5, name="T4"),)), "no code for GPU 0 (T4, compute capability 7.5)"),
        (TARGET, replace(HOST, gpus=(gpu(11, 0, name="Thor"),)), "no code for GPU 0 (Thor"),
        (TARGET, replace(HOST, memory=2 * 10**9), "not enough memory"),
        (TARGET, replace(HOST, disk=10**9), "not enough disk space"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_done(target: Target, machine: Machine, words: str) -> None:
    message, hint = refused(target, machine)
    assert words in message
    assert hint


def test_a_gpu_too_new_for_the_toolkit() -> None:
    target = replace(TARGET, cuda=(12, 6))
    machine = replace(HOST, gpus=(gpu(12, 0),), toolkits=(toolkit((12, 6)),))
    message, hint = refused(target, machine)
    assert "CUDA 12.6 (/usr/local/cuda-12.6) has no code for these GPUs (sm_120): that began with 12.8" in message
    assert "12.8" in hint


@pytest.mark.parametrize("wanted", ["latest", "2.8; rm -rf /", "", "1.0.9", "3.0"])
def test_a_version_that_is_none(wanted: str) -> None:
    assert "engine.flash_attn" in refused(wanted=wanted)[0]


def test_what_is_missing_in_the_engine_and_what_it_has_already() -> None:
    target = replace(TARGET, packages={"ninja": "1", "setuptools": "80"}, bundled=("FA2", "FA3"), math_headers="/e/inc")
    plan = plan_build("2.8.1", target, HOST)
    assert plan.missing_tools == ("packaging", "wheel", "psutil", "einops")
    assert "vLLM brings FA2 and FA3 itself" in bundled_note(target)[0]
    assert "CPATH" not in plan.environment
    bare = plan_build("2.8.1", target, replace(HOST, bare=frozenset({CUDA_13.root})))
    assert bare.environment["CPATH"] == "/e/inc"
    assert plan.wheel.requirement == "flash-attn==2.8.1"
