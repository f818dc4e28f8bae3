"""Which vLLM is installed how: the data of ``releases.toml``, and which of it runs on a machine. Pure but for the file.

What a machine cannot run is refused here, before anything is downloaded.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmhost.config import Engine
from llmhost.errors import EngineError
from llmhost.facts import Device, Interpreter, MachineFacts

RELEASES_FILE = Path(__file__).with_name("releases.toml")


@dataclass(frozen=True)
class Release:
    """One installable build of vLLM; see the head of ``releases.toml`` for the fields."""

    vllm: str
    device: Device
    distribution: str
    torch: str
    python: tuple[tuple[int, ...], tuple[int, ...]]
    machines: tuple[str, ...]
    disk_bytes: int
    glibc: tuple[int, ...] = ()
    exclude: tuple[str, ...] = ()
    cuda: tuple[int, int] | None = None
    driver: str = ""
    capability: tuple[int, int] | None = None
    tested: bool = True
    """False for a version that the operator pinned and the table does not have."""

    @property
    def requirement(self) -> str:
        """What the installer is asked for."""
        return f"{self.distribution}=={self.vllm}"

    @property
    def torch_backend(self) -> str:
        """The family of torch builds as uv calls it (``cpu``, ``cu130``)."""
        return f"cu{self.cuda[0]}{self.cuda[1]}" if self.cuda else self.torch.partition("+")[2]

    @property
    def python_range(self) -> str:
        """The supported Python versions as a version specifier."""
        (low_major, low), (high_major, high) = self.python
        return f">={low_major}.{low},<{high_major}.{high + 1}"

    @property
    def needs(self) -> str:
        """What it wants of the driver, for a person."""
        assert self.cuda is not None
        return f"vLLM {self.vllm} (CUDA {dotted(self.cuda)}) needs driver {self.driver} or newer"

    def supports(self, python: tuple[int, ...]) -> bool:
        """Does it run on this (major, minor) version of Python?"""
        return self.python[0] <= python[:2] <= self.python[1]


def read_releases(file: Path = RELEASES_FILE) -> tuple[Release, ...]:
    """All releases of the table, in its order."""
    return tuple(_release(entry) for entry in tomllib.loads(file.read_text(encoding="utf-8"))["release"])


def _release(entry: dict[str, Any]) -> Release:
    oldest, newest = (version_tuple(text) for text in entry["python"])
    lists = {key: tuple(entry.get(key, ())) for key in ("machines", "exclude")}
    pairs: dict[str, Any] = {key: version_tuple(entry[key]) for key in ("cuda", "capability", "glibc") if key in entry}
    fields: dict[str, Any] = {**entry, **lists, **pairs, "python": (oldest, newest)}
    return Release(**fields)


def version_tuple(text: str) -> tuple[int, ...]:
    """``0.33.0`` as numbers that compare; what follows a number (``rc1``, ``+cpu``) is left out."""
    return tuple(int(found[0]) for part in text.split(".") if (found := re.match(r"\d+", part)))


def dotted(version: tuple[int, ...]) -> str:
    """(13, 0) as ``13.0``."""
    return ".".join(map(str, version))


def choose_release(facts: MachineFacts, engine: Engine, releases: tuple[Release, ...] | None = None) -> Release:
    """The release to install: the newest one that runs on this machine, or the one that ``engine.vllm`` names.

    A pinned version that is not in the table is taken like its nearest older relative there and marked as not
    ``tested``. Raises EngineError when nothing runs here, or the pinned one does not: what it needs, what would run.
    """
    device = choose_device(facts, engine)
    every = releases or read_releases()
    known = [release for release in every if release.device == device]
    if not known:
        other = every[0].device
        raise EngineError(
            f"this machine computes on {device}, and there is only an engine for {other}",
            f"write engine.device: {other} in llmhost.yaml, or create a bundle with the facts of this machine",
        )
    if engine.vllm is not None:
        known = [_pinned(engine.vllm, known), *known]
    obstacles = [_obstacle(release, facts, engine) for release in known]
    fitting = [release for release, obstacle in zip(known, obstacles, strict=True) if not obstacle]
    if obstacles and not obstacles[0]:
        return known[0]
    if fitting and engine.vllm is None:
        return fitting[0]
    raise _refusal(device, known, obstacles, fitting, on_cpu=_runs_on_cpu(facts, engine, every))


def _runs_on_cpu(facts: MachineFacts, engine: Engine, every: tuple[Release, ...]) -> bool:
    known = [release for release in every if release.device == "cpu"]
    if engine.vllm is not None and known:
        known = [_pinned(engine.vllm, known)]
    return any(not _obstacle(release, facts, engine) for release in known)


def newer_obstacle(facts: MachineFacts, engine: Engine, vllm: str, releases: tuple[Release, ...] | None = None) -> str:
    """Why the newest known vLLM does not run on this machine, when it is newer than ``vllm``, which is taken instead.

    Empty when ``engine.vllm`` names one: that is how it is meant. Raises EngineError as `choose_device` does.
    """
    device = choose_device(facts, engine)
    newest = next((release for release in releases or read_releases() if release.device == device), None)
    if newest is None or engine.vllm is not None or version_tuple(newest.vllm) <= version_tuple(vllm):
        return ""
    obstacle = _obstacle(newest, facts, engine)
    return f"vLLM {vllm} is not the newest: {obstacle}" if obstacle else ""


def choose_device(facts: MachineFacts, engine: Engine) -> Device:
    """What the engine computes on: ``auto`` takes the GPUs that the driver shows, and never hides a broken driver.

    Raises EngineError for ``device: cuda`` without usable GPUs, and for ``auto`` where there are GPUs that cannot be
    used.
    """
    if engine.device == "cpu" or facts.gpus:
        return "cpu" if engine.device == "cpu" else "cuda"
    if facts.driver.problem:
        raise EngineError(
            f"the GPUs of this machine cannot be used: {facts.driver.problem}",
            "mend it, or write engine.device: cpu in llmhost.yaml to compute without them",
        )
    if engine.device == "cuda":
        raise EngineError(
            "engine.device is cuda, but there is no NVIDIA driver on this machine",
            "install the driver (`nvidia-smi` must show the GPUs), or write engine.device: cpu or auto in llmhost.yaml",
        )
    return "cpu"


def _pinned(vllm: str, known: list[Release]) -> Release:
    for release in known:
        if release.vllm == vllm:
            return release
    older = (release for release in known if version_tuple(release.vllm) <= version_tuple(vllm))
    return replace(next(older, known[-1]), vllm=vllm, tested=False)


def _obstacle(release: Release, facts: MachineFacts, engine: Engine) -> str:
    """Why it does not run on this machine, in words; empty when it does."""
    if facts.machine not in release.machines:
        return f"there is no vLLM {release.vllm} for {release.device} on {facts.machine} machines"
    if facts.glibc < release.glibc:
        have = f"glibc {dotted(facts.glibc)}" if facts.glibc else "another C library"
        return f"vLLM {release.vllm} needs glibc {dotted(release.glibc)} or newer, and {facts.system} has {have}"
    python = asked_python(engine, facts.interpreters)
    if python and not release.supports(python):
        oldest, newest = (dotted(v) for v in release.python)
        return f"vLLM {release.vllm} runs on Python {oldest} to {newest}, and engine.python is {dotted(python)}"
    torch = _borrowed_torch(engine, facts.interpreters)
    if torch and torch.partition("+")[0] != release.torch.partition("+")[0] and release.tested:
        return f"vLLM {release.vllm} is built for torch {release.torch}, and {engine.python} has torch {torch}"
    return _driver_obstacle(release, facts) if release.device == "cuda" else ""


def _borrowed_torch(engine: Engine, interpreters: tuple[Interpreter, ...]) -> str | None:
    """The version of the torch that is not to be replaced, when it is known."""
    if not engine.system_site_packages:
        return None
    return next((i.packages.get("torch") for i in interpreters if i.path == engine.python), None)


def _driver_obstacle(release: Release, facts: MachineFacts) -> str:
    if version_tuple(facts.driver.version) < version_tuple(release.driver):
        return f"{release.needs}, this machine has {facts.driver.version or 'one of unknown version'}"
    old = [g for g in facts.gpus if g.capability and release.capability and g.capability < release.capability]
    if old and release.capability and old[0].capability:
        return (
            f"vLLM {release.vllm} needs GPUs of compute capability {dotted(release.capability)} or above, and"
            f" {old[0].name or 'GPU'} ({old[0].index}) has {dotted(old[0].capability)}"
        )
    return ""


def asked_python(engine: Engine, interpreters: tuple[Interpreter, ...]) -> tuple[int, ...] | None:
    """(major, minor) of ``engine.python``; None when nothing is asked, or when it shows later only."""
    if engine.python is None:
        return None
    if re.fullmatch(r"\d+\.\d+(\.\d+)?", engine.python):
        return version_tuple(engine.python)[:2]
    return next((i.version[:2] for i in interpreters if i.path == engine.python), None)


def _refusal(
    device: Device, known: list[Release], obstacles: list[str], fitting: list[Release], *, on_cpu: bool
) -> EngineError:
    wanted, why = known[0], obstacles[0]
    ways = []
    if fitting:
        ways.append(f"write engine.vllm: {fitting[0].vllm} in llmhost.yaml: the newest that runs here")
    if wanted.driver and wanted.driver in why:
        ways.append(f"install driver {wanted.driver} or newer")
    if not fitting and len(known) > 1 and obstacles[-1] != why:
        ways.append(f"even the oldest known release does not run here: {obstacles[-1]}")
    if "machines" in why:
        built = ", ".join(sorted({m for release in known for m in release.machines}))
        ways.append(f"builds exist for {built}")
    if device == "cuda" and not fitting and on_cpu:
        ways.append("or compute on the CPU with engine.device: cpu")
    if "engine.python" in why:
        ways.append("name another interpreter as engine.python in llmhost.yaml, or leave the key out")
    return EngineError(why, "; ".join(ways) or "run it on a newer operating system")
