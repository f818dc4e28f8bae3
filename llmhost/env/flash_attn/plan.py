"""Decides how flash-attn is built on a machine: which toolkit, for which GPUs, how much at once. Pure.

Facts about flash-attn are from the setup.py and the sources of 2.8.3.post2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from llmhost.env.flash_attn.target import Target
from llmhost.env.flash_attn.toolkit import choose_toolkit, require_known
from llmhost.env.releases import Release
from llmhost.errors import EngineError
from llmhost.facts import CudaToolkit, Gpu

DEFAULT_VERSION = "2.8.3.post2"
"""What ``flash_attn: true`` installs."""
OBJECTS = 73
"""Files that are compiled; each takes one nvcc (or one g++)."""
JOB_BYTES = 2_500_000_000
"""Memory of one nvcc with one thread: 38 GB were seen with 16 of them."""
CORE_SECONDS = 217.0
"""Work of one object for one architecture: 73 of them took 16.5 minutes on 16 cores."""
DISK_BYTES = 3_000_000_000
"""Room for the source, the objects and the wheel."""
ARCHS: Mapping[int, tuple[int, tuple[int, int]]] = {
    8: (80, (11, 7)),
    9: (90, (11, 8)),
    10: (100, (12, 8)),
    12: (120, (12, 8)),
}
"""Major compute capability -> what FLASH_ATTN_CUDA_ARCHS calls it, and the first CUDA that compiles it.

Machine code for 8.0 runs on 8.6 and 8.9, too, that for 10.0 on 10.3 (CUDA C++ Programming Guide, binary compatibility).
"""
TOOLS = ("ninja", "packaging", "setuptools", "wheel", "psutil", "einops")
"""What must be in the engine: its setup.py imports the first five, flash-attn itself the last."""
VERSION = re.compile(r"[0-9]+(\.[0-9]+)*((a|b|rc|\.post|\.dev)[0-9]+)?")


@dataclass(frozen=True)
class Machine:
    """What a build has to work with."""

    toolkits: tuple[CudaToolkit, ...]
    gpus: tuple[Gpu, ...]
    cores: int
    memory: int
    """Bytes that are free."""
    disk: int
    """Bytes that are free where it is built."""
    compilers: frozenset[str]
    """Names of those on PATH: ``g++``, ``c++`` …"""
    bare: frozenset[str] = frozenset()
    """Roots of toolkits without the headers of CUDA's libraries (cusparse.h …), which torch's own headers include."""
    environ: Mapping[str, str] = field(default_factory=dict)
    """The user's environment: CUDA_HOME, MAX_JOBS, NVCC_THREADS, CXX count."""


@dataclass(frozen=True)
class WheelSpec:
    """Which wheel an engine and these GPUs need."""

    version: str
    target: Target
    archs: tuple[int, ...]

    @property
    def requirement(self) -> str:
        """What the index is asked for."""
        return f"flash-attn=={self.version}"

    @property
    def key(self) -> str:
        """Everything that the wheel depends on, as the name of its directory."""
        target = self.target
        cuda = "".join(str(part) for part in target.cuda or ())
        sm = "-".join(f"sm{arch}" for arch in self.archs)
        ours = f"{target.python_tag}-torch{target.torch}-cu{cuda}-abi{int(target.cxx11_abi)}"
        return f"flash_attn-{self.version}-{ours}-{sm}-{target.machine}"


@dataclass(frozen=True)
class BuildPlan:
    """How a wheel is built; everything of it is shown before it happens."""

    wheel: WheelSpec
    toolkit: CudaToolkit
    jobs: int
    threads: int
    """Architectures that one nvcc compiles at once."""
    reckoning: str
    """How ``jobs`` came about, for a person."""
    environment: Mapping[str, str]
    """Added to the environment of the build; PATH is what stands before the present one."""
    missing_tools: tuple[str, ...]
    """Packages to install in the engine first."""
    notes: tuple[str, ...]
    seconds: float
    """About how long it takes."""

    def lines(self) -> tuple[str, ...]:
        """The plan for a person, one fact a line."""
        variables = " ".join(f"{name}={value}" for name, value in self.environment.items())
        return (
            f"{self.wheel.requirement} is compiled for {', '.join(f'sm_{arch}' for arch in self.wheel.archs)}",
            f"toolkit: {self.toolkit.root} (CUDA {dotted(self.toolkit.version)})",
            f"jobs: {self.reckoning}; about {max(1, round(self.seconds / 60))} min",
            f"environment: {variables}",
            *((f"installs {', '.join(self.missing_tools)} in the engine first",) if self.missing_tools else ()),
            *self.notes,
        )


def expected_target(release: Release, python: tuple[int, ...] | None, machine: str, *, headers: bool = True) -> Target:
    """What an engine of this release will be, as far as it shows before there is one; to judge by, not to build for.

    ``python`` is its version where that is known, ``headers`` whether its Python.h is there. The packages that a build
    needs are taken to be there: a build installs them by itself.
    """
    return Target(
        python_version=".".join(map(str, python or ())),
        python_tag=f"cp{python[0]}{python[1]}" if python else "",
        machine=machine,
        headers=headers,
        torch=release.torch.partition("+")[0],
        cuda=release.cuda,
        cxx11_abi=True,  # as all wheels of torch for Linux from 2.7 on
        packages=dict.fromkeys(TOOLS, ""),
    )


def with_own_toolkit(machine: Machine, cuda: tuple[int, int], root: str) -> Machine:
    """The same machine when an engine that brings the compiler of this CUDA version is there."""
    own = CudaToolkit(root, ("the engine",), cuda, nvcc=True, headers=True, cudart=True)
    return replace(machine, toolkits=(own, *machine.toolkits))


def plan_wheel(wanted: bool | str, target: Target, gpus: tuple[Gpu, ...]) -> WheelSpec:
    """Which wheel is wanted (a version, or True for the tested one). Raises EngineError when there can be none."""
    version = wanted_version(wanted)
    require_cuda(target)
    return WheelSpec(version, target, archs_of(gpus))


def plan_build(wheel: WheelSpec, machine: Machine) -> BuildPlan:
    """How to build a wheel on a machine. Raises EngineError, with the remedy, when that cannot work here."""
    target = wheel.target
    _require_machine(target, machine)
    toolkit, notes = choose_toolkit(require_cuda(target), target.torch, machine.toolkits, machine.environ)
    _require_compiles(toolkit, wheel.archs)
    jobs, threads, reckoning = _jobs(machine, len(wheel.archs))
    return BuildPlan(
        wheel=wheel,
        toolkit=toolkit,
        jobs=jobs,
        threads=threads,
        reckoning=reckoning,
        environment={
            **_environment(toolkit, wheel.archs, jobs, threads),
            # Only where it must be: headers of another minor version would come before those of the toolkit.
            **({"CPATH": target.math_headers} if toolkit.root in machine.bare and target.math_headers else {}),
        },
        missing_tools=tuple(name for name in TOOLS if name not in target.packages),
        notes=notes,
        seconds=OBJECTS * CORE_SECONDS * len(wheel.archs) / min(jobs * threads, machine.cores),
    )


def wanted_version(wanted: bool | str) -> str:
    """The version that ``engine.flash_attn`` means. Raises EngineError for what is none."""
    if wanted is True or wanted == "true":
        return DEFAULT_VERSION
    if not isinstance(wanted, str) or not VERSION.fullmatch(wanted):
        raise EngineError(
            f"engine.flash_attn: {wanted!r} is no version of flash-attn",
            f"write true, or one such as {DEFAULT_VERSION}",
        )
    if not wanted.startswith("2."):
        raise EngineError(
            f"engine.flash_attn: {wanted} cannot be built: llmhost builds flash-attn 2",
            f"write true, or a version such as {DEFAULT_VERSION}",
        )
    return wanted


def require_cuda(target: Target) -> tuple[int, int]:
    """The CUDA version of the engine's torch. Raises EngineError for an engine on the CPU."""
    if target.cuda is None:
        raise EngineError(
            f"flash-attn needs a GPU, and the engine's torch {target.torch} is built for the CPU",
            "leave engine.flash_attn out of llmhost.yaml, or ask for engine.device: cuda on a machine with NVIDIA GPUs",
        )
    return target.cuda


def bundled_note(target: Target) -> tuple[str, ...]:
    """What the user may have without a build."""
    if not target.bundled:
        return ()
    return (
        f"vLLM brings {' and '.join(target.bundled)} itself and serves with them; a flash-attn package is used only by"
        " code that imports flash_attn (some models with trust_remote_code, your own programs)",
    )


def archs_of(gpus: tuple[Gpu, ...]) -> tuple[int, ...]:
    """What FLASH_ATTN_CUDA_ARCHS must hold for these GPUs. Raises EngineError for one that it has no code for."""
    if not gpus:
        raise EngineError(
            "flash-attn is built for the GPUs of this machine, and none is to be seen",
            "see `llmhost facts` for the driver, or leave engine.flash_attn out of llmhost.yaml",
        )
    for gpu in gpus:
        if gpu.capability is None:
            raise EngineError(
                f"the compute capability of GPU {gpu.index} ({gpu.name}) is not known", "see `nvidia-smi`"
            )
        if gpu.capability[0] not in ARCHS:
            raise EngineError(
                f"flash-attn has no code for GPU {gpu.index} ({gpu.name}, compute capability {dotted(gpu.capability)})",
                "it runs on 8.x (Ampere, Ada), 9.x (Hopper), 10.x and 12.x (Blackwell): leave engine.flash_attn out",
            )
    return tuple(sorted({ARCHS[gpu.capability[0]][0] for gpu in gpus if gpu.capability}))


def _require_machine(target: Target, machine: Machine) -> None:
    """What every build needs, whatever the toolkit."""
    if not target.headers:
        short = ".".join(target.python_version.split(".")[:2])
        raise EngineError(
            f"flash-attn cannot be compiled: Python.h of Python {short} is missing",
            f"install python{short}-dev (Debian, Ubuntu) or python{short}-devel (Fedora, RHEL)",
        )
    if not machine.compilers & {"g++", "c++"} and not machine.environ.get("CXX"):
        raise EngineError(
            "flash-attn cannot be compiled: no C++ compiler on PATH",
            "install g++ (Debian, Ubuntu: apt install g++; Fedora, RHEL: dnf install gcc-c++)",
        )
    if machine.disk < DISK_BYTES:
        raise EngineError(
            f"not enough disk space to build flash-attn: it takes {DISK_BYTES / 1e9:.0f} GB,"
            f" the home has {machine.disk / 1e9:.1f} GB free",
            "free some, or put the home on another disk with --home or LLMHOST_HOME",
        )


def _require_compiles(toolkit: CudaToolkit, archs: tuple[int, ...]) -> None:
    version = require_known(toolkit)
    for name, first in ARCHS.values():
        if name in archs and version < first:
            raise EngineError(
                f"CUDA {dotted(version)} ({toolkit.root}) has no code for these GPUs (sm_{name}): that began with"
                f" {dotted(first)}",
                f"install the CUDA toolkit {dotted(first)} or a newer one of the same major version",
            )


def _jobs(machine: Machine, archs: int) -> tuple[int, int, str]:
    """How many objects at once, how many threads each, and why."""
    asked = _number(machine.environ, "MAX_JOBS")
    fit = int(machine.memory // JOB_BYTES)
    if fit < 1 and asked is None:
        raise EngineError(
            f"not enough memory to compile flash-attn: one job takes {JOB_BYTES / 1e9:.1f} GB,"
            f" {machine.memory / 1e9:.1f} GB are free",
            "stop services for the time of the build (`llmhost stop`), or set MAX_JOBS=1 and have swap space",
        )
    jobs = asked or min(machine.cores, fit, OBJECTS)
    spare = min(machine.cores // jobs, fit // jobs)  # cores that have no object of their own
    threads = _number(machine.environ, "NVCC_THREADS") or max(1, min(archs, spare))
    room = f"{machine.memory / 1e9:.1f} GB of free memory at {JOB_BYTES / 1e9:.1f} GB a job hold {fit}"
    if asked is not None:
        return jobs, threads, f"{jobs}, as MAX_JOBS says ({machine.cores} cores; {room})"
    return jobs, threads, f"{jobs}, the least of {machine.cores} cores, {OBJECTS} objects, and {room}"


def _number(environ: Mapping[str, str], name: str) -> int | None:
    value = environ.get(name, "")
    if not value:
        return None
    if not value.isdecimal() or int(value) < 1:
        raise EngineError(f"{name}={value} in the environment is no number from 1 on", f"correct it, or unset {name}")
    return int(value)


def _environment(toolkit: CudaToolkit, archs: tuple[int, ...], jobs: int, threads: int) -> dict[str, str]:
    return {
        "CUDA_HOME": toolkit.root,
        "PATH": f"{toolkit.root}/bin",
        "FLASH_ATTN_CUDA_ARCHS": ";".join(str(arch) for arch in archs),
        "FLASH_ATTENTION_FORCE_BUILD": "TRUE",  # else it asks GitHub for a wheel, which hangs without a network
        "MAX_JOBS": str(jobs),
        "NVCC_THREADS": str(threads),
    }


def dotted(version: tuple[int, int] | None) -> str:
    """``13.0``"""
    return ".".join(str(part) for part in version or ("?",))
