"""Checks of GPUs, their driver, and what compiles for them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from llmhost.diagnosis.findings import Check, fail, ok, warn
from llmhost.diagnosis.subject import Subject
from llmhost.facts import CudaToolkit

GIB = 2**30
LOWEST_DRIVER = {12: "525.60.13", 13: "580.65.06"}
"""For everything of one CUDA major version:
https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html"""


OF_TRITON = ("gcc", "clang")
"""C compilers that Triton looks for where CC is not set: ``triton/runtime/build.py``."""


class Holder(NamedTuple):
    """A process that holds memory of a GPU."""

    pid: int
    gpu: int
    used: int
    name: str
    since: datetime | None
    orphan: bool
    """An engine of this home whose guard is dead."""


def check_driver(subject: Subject) -> Iterator[Check]:
    """There are GPUs, the driver answers, and is new enough for the engine."""
    facts, driver = subject.facts, subject.facts.driver
    if driver.problem:
        bad = fail if subject.on_gpus and not facts.gpus else warn  # with one GPU lost, others go on
        yield bad("driver", driver.problem, "then look again with `llmhost facts`")
    elif not facts.gpus:
        if subject.on_gpus:
            yield fail(
                "driver",
                "the engine computes on GPUs, and there is neither a GPU nor a driver here",
                "install the NVIDIA driver, or write device: cpu below engine: and run `llmhost setup`",
            )
        else:
            yield ok("driver", "no GPU: engines compute on the CPU")
        return
    if facts.gpus:
        yield from _driver_and_engine(subject)


def _driver_and_engine(subject: Subject) -> Iterator[Check]:
    driver, needed = subject.facts.driver, subject.torch_cuda
    if subject.on_gpus and needed and driver.cuda and driver.cuda[0] < needed[0]:
        lowest = LOWEST_DRIVER.get(needed[0])
        yield fail(
            "driver",
            f"the driver {driver.version} supports CUDA up to {_dotted(driver.cuda)}, and the engine's torch is built"
            f" for {_dotted(needed)}",
            f"install a driver of at least {lowest or 'that version'}, or an engine for it: `llmhost setup` takes the"
            " newest vLLM that runs when engine.vllm is not pinned",
        )
        return
    names = ", ".join(f"{gpu.name} {gpu.total / GIB:.0f} GiB" for gpu in subject.facts.gpus)
    about = f", CUDA up to {_dotted(driver.cuda)}" if driver.cuda else ""
    if subject.engine and subject.engine.device == "cpu" and subject.config.engine.device != "cpu":
        yield warn(
            "driver",
            f"there are GPUs ({names}), and the engine computes on the CPU",
            "write device: cuda (or cpu, if that is meant) below engine: and run `llmhost setup`",
        )
    elif not driver.problem:
        yield ok("driver", f"{driver.version}{about}: {names}")


def check_visibility(subject: Subject) -> Iterator[Check]:
    """What hides GPUs, or parts of them."""
    divided = [str(gpu.index) for gpu in subject.facts.gpus if gpu.mig]
    if divided:
        yield warn(
            "gpus",
            f"GPU {', '.join(divided)}: divided into MIG instances, so nothing is planned for it",
            "switch that off: `sudo nvidia-smi -mig 0`; llmhost shares GPUs out itself",
        )
    visible = subject.facts.environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and subject.facts.gpus:
        yield warn(
            "gpus",
            f"CUDA_VISIBLE_DEVICES={visible} is set, and is not what engines see: each gets the GPUs of its plan",
            "say which GPUs a service may use with services.NAME.gpus",
        )


def check_holders(holders: list[Holder]) -> Iterator[Check]:
    """Memory of GPUs that engines of this home cannot have."""
    for holder in holders:
        since = f", since {holder.since:%Y-%m-%d %H:%M}" if holder.since else ""
        size = f"{holder.used / GIB:.1f} GiB" if holder.used else "memory"
        words = f"{size} of GPU {holder.gpu} is held by {holder.name} (pid {holder.pid}{since})"
        if holder.orphan:
            yield fail("gpu-memory", f"{words}, which is left of a former life", "`llmhost doctor --sweep` ends it")
        else:
            yield warn(
                "gpu-memory", words, f"end it if it is not needed: `kill {holder.pid}`; else it is planned around"
            )


def check_toolkits(subject: Subject) -> Iterator[Check]:
    """CUDA_HOME is right where it is set; flash-attn finds what it is built with where it is wanted."""
    # Before there is an engine, what flash-attn needs is looked at with the rest of what `llmhost setup` needs.
    asked = bool(subject.config.engine.flash_attn) and subject.engine is not None
    wanted = asked and not _has_flash_attn(subject)
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        toolkit = next((t for t in subject.facts.toolkits if variable in t.found_by), None)
        if toolkit and toolkit.missing:
            yield (fail if wanted and not _matching(subject) else warn)(
                "cuda",
                f"{variable} is {subject.facts.environment.get(variable, toolkit.root)}, which lacks"
                f" {', '.join(toolkit.missing)}",
                f"unset {variable}, or point it to a whole toolkit{_list(subject)}",
            )
    if wanted:
        yield _for_flash_attn(subject)
        yield from _for_building(subject)
    elif not asked:
        none = "no toolkit" if subject.config.engine.flash_attn else "no toolkit, and none is needed"
        yield ok("cuda", f"toolkits{_list(subject)}" if _whole(subject) else none)
    else:
        yield ok("cuda", f"flash-attn {(subject.python.packages if subject.python else {})['flash-attn']} is installed")


def _for_flash_attn(subject: Subject) -> Check:
    needed, whole = subject.torch_cuda, _whole(subject)
    if needed is None:
        if whole:
            return ok("cuda", f"for flash-attn: toolkits{_list(subject)}; the engine's torch decides which")
        return fail("cuda", "flash-attn is wanted, and there is no CUDA toolkit here", _get("that torch is built for"))
    if exact := next((t for t in whole if t.version == needed), None):
        return ok("cuda", f"for flash-attn: CUDA {_dotted(needed)} in {exact.root}, as the engine's torch")
    if near := next((t for t in whole if t.version and t.version[0] == needed[0]), None):
        return warn(
            "cuda",
            f"for flash-attn: CUDA {_dotted(near.version or ())} in {near.root}, and the engine's torch is built for"
            f" {_dotted(needed)}; that works as a rule",
            _get(_dotted(needed)),
        )
    return fail(
        "cuda",
        f"flash-attn is wanted for CUDA {_dotted(needed)}, and the toolkits here are{_list(subject) or ': none'}",
        _get(_dotted(needed)),
    )


def _get(version: str) -> str:
    archive = "https://developer.nvidia.com/cuda-toolkit-archive"
    return f"install the CUDA toolkit {version} ({archive}), or leave flash_attn out"


def _for_building(subject: Subject) -> Iterator[Check]:
    if not _compilers(subject):
        yield fail("compiler", "flash-attn is wanted, and there is no C++ compiler", "install g++ (`apt install g++`)")


def check_compiler(subject: Subject) -> Iterator[Check]:
    """torch.compile and Triton compile when an engine starts: they want a compiler, and Python's headers."""
    found = _compilers(subject)
    if not found:
        yield warn(
            "compiler",
            "there is no C++ compiler, and engines compile kernels when they start",
            "install g++ (`apt install g++`), or write enforce_eager: true below args:",
        )
    elif subject.python is not None and not subject.python.headers:
        minor = _dotted(subject.python.version[:2])
        yield warn(
            "compiler",
            f"the engine's Python {minor} has no headers (Python.h), and engines compile kernels when they start",
            f'install python{minor}-dev, or let uv bring a Python: `python: "{minor}"` below engine:',
        )
    elif subject.on_gpus and not any(p.name in OF_TRITON for p in subject.facts.compilers):
        yield warn(
            "compiler",
            "there is neither gcc nor clang, with which Triton compiles when an engine starts on a GPU",
            "install one (`apt install gcc`), or name another C compiler: CC below env: of each service",
        )
    else:
        yield ok("compiler", found[0])


def _compilers(subject: Subject) -> list[str]:
    return [f"{p.name} {p.version}" for p in subject.facts.compilers if p.name not in (*OF_TRITON, "ninja")]


def _has_flash_attn(subject: Subject) -> bool:
    return subject.python is not None and "flash-attn" in subject.python.packages


def _whole(subject: Subject) -> list[CudaToolkit]:
    return [t for t in subject.facts.toolkits if t.complete]


def _matching(subject: Subject) -> bool:
    needed = subject.torch_cuda
    return any(needed is None or t.version == needed for t in _whole(subject))


def _list(subject: Subject) -> str:
    listed = ", ".join(f"{_dotted(t.version or ())} in {t.root}" for t in _whole(subject))
    return f": {listed}" if listed else ""


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
