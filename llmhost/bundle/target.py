"""What a bundle is for: a machine and an engine on it, from the facts of the machine and llmhost.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from llmhost.bundle.slim import Slimming, read_slimming
from llmhost.config import Engine
from llmhost.env.releases import Release, choose_release
from llmhost.errors import BundleError
from llmhost.facts import Interpreter, MachineFacts

OLDEST_PYTHON = (3, 11)
MANYLINUX = ("2_17", "2_28", *(f"2_{minor}" for minor in range(31, 41)))
"""Versions of glibc that uv resolves for."""
LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


@dataclass(frozen=True)
class Target:
    """A machine, and the interpreters on it that llmhost and its engine are to run on."""

    facts: MachineFacts
    python: Interpreter
    """Runs llmhost."""
    engine_python: Interpreter
    release: Release
    on_system: bool
    """The engine sees the packages of its interpreter."""

    @property
    def uv_platform(self) -> str:
        """The newest platform name of uv that this machine's glibc reaches."""
        reached = [name for name in MANYLINUX if int(name[2:]) <= self.facts.glibc[1]]
        return f"{self.facts.machine}-manylinux_{(reached or MANYLINUX)[-1 if reached else 0]}"

    @property
    def pip_platforms(self) -> tuple[str, ...]:
        """Every platform tag that this machine can use (PEP 600), best first; pip matches them to the letter."""
        machine = self.facts.machine
        tags = []
        for minor in range(self.facts.glibc[1], 4, -1):
            tags.append(f"manylinux_2_{minor}_{machine}")
            if minor in LEGACY:
                tags.append(f"{LEGACY[minor]}_{machine}")
        return (*tags, f"linux_{machine}")

    @property
    def capabilities(self) -> tuple[tuple[int, int], ...]:
        """Of its GPUs, where all of them are known."""
        known = [gpu.capability for gpu in self.facts.gpus if gpu.capability]
        return tuple(sorted(set(known))) if len(known) == len(self.facts.gpus) else ()

    @property
    def there(self) -> dict[str, str]:
        """Packages that the engine finds already."""
        return dict(self.engine_python.packages) if self.on_system else {}

    def slimming(self) -> Slimming:
        """What this machine can do without."""
        toolkit = any(t.complete for t in self.facts.toolkits)
        return read_slimming(self.capabilities, toolkit=toolkit, there=self.there)

    def describe(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "machine": self.facts.machine,
            "system": self.facts.system,
            "glibc": list(self.facts.glibc),
            "python": minor(self.python),
            "interpreter": self.python.path,
            "gpus": [gpu.name for gpu in self.facts.gpus],
            "capabilities": [list(c) for c in self.capabilities],
        }


def minor(python: Interpreter) -> str:
    """``3.12``"""
    return ".".join(map(str, python.version[:2]))


def make_target(facts: MachineFacts, engine: Engine, releases: tuple[Release, ...] | None = None) -> Target:
    """Choose interpreters, device and release for a machine as `llmhost setup` there would.

    Raises BundleError for a machine that nothing can be carried to, and EngineError when no release runs on it.
    """
    if len(facts.glibc) < 2:
        raise BundleError(
            f"{facts.system or 'that machine'} has no glibc, and neither vLLM nor Envoy come as programs for another",
            "use a machine with a Linux of Debian's, Ubuntu's or Red Hat's sort",
        )
    if engine.kind != "venv":
        raise BundleError(
            f"engine.kind is {engine.kind}, and bundles hold wheels for environments of the kind venv",
            "write kind: venv in the llmhost.yaml for that machine",
        )
    python = _llmhost_python(facts)
    release = choose_release(facts, engine, releases)
    engine_python = _engine_python(facts, engine, release)
    if engine.system_site_packages and engine.python is None:
        # llmhost itself runs in an environment of its own there, so nobody could tell which one is meant.
        raise BundleError(
            "engine.system_site_packages is true, and engine.python does not say the packages of which interpreter",
            f"write engine.python: {engine_python.path} in the llmhost.yaml for that machine",
        )
    if engine.system_site_packages:
        _require_torch(engine_python, release)
    return Target(
        facts=facts,
        python=python,
        engine_python=engine_python,
        release=release,
        on_system=engine.system_site_packages,
    )


def _llmhost_python(facts: MachineFacts) -> Interpreter:
    for python in facts.interpreters:
        if python.version[:2] >= OLDEST_PYTHON:
            return python
    found = ", ".join(sorted({minor(p) for p in facts.interpreters})) or "none"
    raise BundleError(
        f"llmhost needs Python 3.11 or newer, and that machine has {found}",
        "install a newer Python there and take its facts again",
    )


def _engine_python(facts: MachineFacts, engine: Engine, release: Release) -> Interpreter:
    """The one that engine.python names, else the first that the release runs on."""
    asked = engine.python
    named = [p for p in facts.interpreters if asked in (None, p.path, minor(p))]
    fitting = [p for p in named if release.supports(p.version[:2])]
    if fitting:
        return fitting[0]
    found = ", ".join(f"{minor(p)} ({p.path})" for p in facts.interpreters) or "none"
    raise BundleError(
        f"vLLM {release.vllm} runs on Python {release.python_range}{f' (asked for: {asked})' if asked else ''}, and"
        f" that machine has {found}",
        "name another in engine.python of its llmhost.yaml, or install one there and take its facts again",
    )


def _require_torch(python: Interpreter, release: Release) -> None:
    """vLLM's compiled parts fit the torch that they were made with, and it is not replaced."""
    torch, wanted = python.packages.get("torch", ""), without_local(release.torch)
    if torch and (without_local(torch) == wanted or not release.tested):
        return
    raise BundleError(
        f"engine.system_site_packages is true, but {python.path} has {f'torch {torch}' if torch else 'no torch'}, and"
        f" vLLM {release.vllm} is made for torch {wanted}",
        "write engine.vllm: the version for that torch, or leave system_site_packages out",
    )


def without_local(version: str) -> str:
    """``2.11.0+cu130`` -> ``2.11.0``"""
    return version.partition("+")[0]


def with_excluded(release: Release, names: tuple[str, ...]) -> Release:
    """The release without further packages."""
    return replace(release, exclude=tuple(sorted({*release.exclude, *names})))


def release_to_json(release: Release) -> dict[str, Any]:
    """For the manifest; `release_from_json` reads it back."""
    return asdict(release)


def release_from_json(data: Mapping[str, Any]) -> Release:
    """A release as a manifest has it. Raises pydantic's ValidationError for what is none."""
    return TypeAdapter(Release).validate_python(data)
