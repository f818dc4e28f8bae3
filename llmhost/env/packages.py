"""Puts the packages of an engine into an environment: vLLM's own set, without what is there already."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from llmhost.env.lock import Lock
from llmhost.env.python import Package, Python, normalized
from llmhost.env.releases import Release, read_releases
from llmhost.env.torch_index import may_ask_others, run_with_torch
from llmhost.env.uv import RESOLVE, Uv
from llmhost.errors import EngineError

TORCH_SET = ("torch", "triton")
"""What is borrowed together or not at all: a torch pins its triton, whatever version an index has."""

NEVER_BORROWED = ("ray",)
"""Its command is run beside the interpreter of the engine."""


def install(python: Path, scratch: Path, release: Release, more: Sequence[str], uv: Uv) -> None:
    """Install the pinned set, and ``more``. The CPU build of torch comes from the user's own index when that has it."""
    excludes = scratch / "excludes.txt"
    excludes.write_text("".join(f"{name}\n" for name in release.exclude))
    wanted = (release.requirement, *more)
    command = ["pip", "install", "--python", str(python), "--excludes", str(excludes), *wanted]
    if failure := run_with_torch(command, release, uv, follow_stages=True):
        raise failure.as_error(f"install {', '.join(wanted)}", uv.log)


def install_locked(python: Path, lock: Lock, uv: Uv) -> None:
    """Install exactly what a lock file says, every file checked against its hash where the lock has hashes of all.

    Raises EngineError, for an altered file as well.
    """
    command = ["pip", "install", "--python", str(python), "--no-deps", "-r", str(lock.path)]
    if lock.hashed:
        command.append("--require-hashes")
    failure = uv.run(command, follow_stages=True)
    if failure and failure.lacks("torch") and lock.torch_backend and may_ask_others(uv):
        failure = uv.run([*command, "--torch-backend", lock.torch_backend], follow_stages=True)
    if failure:
        raise failure.as_error(f"install what {lock.path} says", uv.log)


def install_on_top(python: Python, scratch: Path, release: Release, more: Sequence[str], uv: Uv) -> tuple[str, ...]:
    """Install what the interpreter below does not have at a fitting version; the names of what is borrowed of it.

    torch is always borrowed, never replaced, and what only torch wants is its own business. Raises EngineError when
    there is no torch, or not the one that this vLLM was built for.
    """
    below = {name: package for name, package in python.packages.items() if not package.own}
    torch = _require_torch(below, release)
    resolved = _resolve(python, below, scratch, release, more, uv)
    fitting = {name for name, version in resolved.items() if name in below and below[name].public == version}
    borrowed = fitting - {*NEVER_BORROWED}
    missing = {name: version for name, version in resolved.items() if name not in borrowed}
    wanted = scratch / "missing.txt"
    wanted.write_text("".join(f"{name}=={version}\n" for name, version in missing.items()))
    command = ["pip", "install", "--python", str(python.path), "--no-deps", "-r", str(wanted)]
    uv.log.write(f"borrowed: torch {torch.version}, {', '.join(sorted(borrowed)) or 'nothing else'}")
    if missing and (failure := uv.run(command, follow_stages=True)):
        raise failure.as_error(f"install {release.requirement} on top of {python.path}", uv.log)
    return (*torch_set(below), *sorted(borrowed))


def torch_set(there: Container[str]) -> tuple[str, ...]:
    """What belongs to the torch of an interpreter with these packages."""
    return tuple(name for name in TORCH_SET if name in there)


def _require_torch(below: Mapping[str, Package], release: Release) -> Package:
    torch = below.get("torch")
    if torch is None:
        raise EngineError(
            "engine.system_site_packages is true, but the interpreter below the environment has no torch",
            "name the one that has it as engine.python in llmhost.yaml, or leave system_site_packages out",
        )
    if release.tested and torch.public != release.torch.partition("+")[0]:
        raise EngineError(
            f"vLLM {release.vllm} is built for torch {release.torch}, and the interpreter below the environment has"
            f" torch {torch.version}, which is not replaced",
            f"{_for_that(torch.public, release)}leave engine.system_site_packages out",
        )
    return torch


def _for_that(torch: str, release: Release) -> str:
    known = (r for r in read_releases() if r.device == release.device and r.torch.partition("+")[0] == torch)
    return next((f"write engine.vllm: {r.vllm} in llmhost.yaml, which is built for that one, or " for r in known), "")


def _resolve(
    python: Python, below: Mapping[str, Package], scratch: Path, release: Release, more: Sequence[str], uv: Uv
) -> dict[str, str]:
    """Name -> version of all that vLLM and ``more`` need but torch; versions that are there already are preferred."""
    uv.progress.started(RESOLVE)
    asked, excludes, pins = scratch / "asked.txt", scratch / "excludes.txt", scratch / "resolved.txt"
    asked.write_text("".join(f"{requirement}\n" for requirement in (release.requirement, *more)))
    excludes.write_text("".join(f"{name}\n" for name in (*torch_set(below), *release.exclude)))
    # What stands in the output file already is what uv prefers.
    pins.write_text("".join(f"{name}=={package.public}\n" for name, package in below.items()))
    command = [
        "pip", "compile", str(asked), "--python", str(python.path), "--excludes", str(excludes), "--no-header",
        "--no-annotate", "--no-strip-markers", "--output-file", str(pins), "--quiet",
    ]  # fmt: skip
    if failure := uv.run(command):
        raise failure.as_error(f"resolve {', '.join((release.requirement, *more))}", uv.log)
    lines = (line.split(";")[0].split("#")[0].strip() for line in pins.read_text().splitlines())
    pairs = (line.partition("==") for line in lines if "==" in line)
    resolved = {normalized(name.partition("[")[0].strip()): version.strip() for name, _, version in pairs}
    uv.progress.finished(RESOLVE, f"{len(resolved)} packages")
    return resolved
