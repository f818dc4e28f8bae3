"""The steps that make an engine, in their order: room, environment, packages, import check, lock."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmhost import config
from llmhost.config_engine import package_name, unmet
from llmhost.env import conda, packages
from llmhost.env.flags import read_flags
from llmhost.env.flash_attn import ensure_flash_attn, require_possible
from llmhost.env.gate import GateReport, import_gate
from llmhost.env.journal import ENVIRONMENT, PACKAGES, Journal, Step
from llmhost.env.lock import OWN, Lock, keep_lock, record_lock
from llmhost.env.manifest import Manifest, Spec, python_of
from llmhost.env.pip_config import mask
from llmhost.env.python import read_python, see_through
from llmhost.env.releases import Release, dotted
from llmhost.env.uv import Uv
from llmhost.errors import EngineError
from llmhost.facts import Device, MachineFacts
from llmhost.paths import Home, in_user_home
from llmhost.probe.host import free_bytes
from llmhost.probe.machine import read_machine

CREATE = "create the Python environment"
VERIFY = "check that vLLM imports"
LOCK = "record the packages"
FLASH_ATTN = "flash-attn"
GIB = 2**30


@dataclass(frozen=True)
class Construction:
    """What is to be built, where, and with what."""

    home: Home
    name: str
    engine: config.Engine
    release: Release | None
    """None for an existing environment, which is as it is."""
    uv: Uv
    facts: MachineFacts | None = None
    lock: Lock | None = None

    @property
    def directory(self) -> Path:
        return self.home.engine_dir(self.name)

    @property
    def order(self) -> dict[str, Any]:
        """What decides whether an unfinished build is what is wanted."""
        release = self.release.requirement if self.release else ""
        channels = [mask(channel) for channel in self.engine.channels]
        lock = self.lock.digest if self.lock else ""
        spec = {k: v for k, v in asdict(Spec.of(self.engine)).items() if k not in ("vllm", "flash_attn")}
        packages = list(spec["packages"])  # as JSON has it
        return {**spec, "packages": packages, "requirement": release, "channels": channels, "lock": lock}

    @property
    def machine(self) -> MachineFacts:
        return self.facts or read_machine(self.home)


def make(construction: Construction, build: Path, journal: Journal) -> Manifest:
    """Do every step that is not done yet; what was made is verified and may become the engine. Raises EngineError."""
    release, uv = construction.release, construction.uv
    assert release is not None
    borrowed: tuple[str, ...] = ()
    if construction.engine.flash_attn:
        require_possible(construction.engine.flash_attn, release.device, construction.machine)
    if not journal.has(PACKAGES):
        require_takeable(construction.engine, release)
        ensure_room(construction.directory, release)
        with journal.step(ENVIRONMENT) as detail:
            detail.append(_environment(construction, build, release))
        with journal.step(PACKAGES) as detail:
            borrowed = _packages(construction, build, release)
            _require_packages(construction, build)
            detail.append(f"borrowed {', '.join(borrowed)}" if borrowed else release.requirement)
            detail.extend(construction.engine.packages)
    with journal.step(VERIFY) as detail:
        try:
            report = verify(python_of(build), build, release.device, uv)
        except EngineError:
            journal.forget()  # what does not import today does not import tomorrow
            raise
        detail.extend(f"{name} {version}" for name, version in report.packages.items())
    lock = construction.lock
    if lock is None:
        lock = _record(construction, build, release, report, journal)
    else:
        keep_lock(build, lock)
    manifest = manifest_of(construction, build, report, journal, lock.digest)
    return with_flash_attn(construction, python_of(build), manifest) if construction.engine.flash_attn else manifest


def with_flash_attn(construction: Construction, python: Path, manifest: Manifest) -> Manifest:
    """Put flash-attn into a verified engine, checked on the GPU; the error goes to the manifest. Raises EngineError."""
    wanted, began = construction.engine.flash_attn, time.monotonic()
    report = ensure_flash_attn(construction.home, python, wanted, construction.machine, construction.uv)
    errors = ", ".join(f"{name} {error:.1e}" for name, error in report.errors.items())
    detail = f"{report.version}, {report.source}; relative error: {errors}"
    step = Step(FLASH_ATTN, detail, round(time.monotonic() - began, 1))
    return replace(
        manifest,
        spec=replace(manifest.spec, flash_attn=wanted),
        packages={**manifest.packages, "flash_attn": report.version},
        steps=(*(s for s in manifest.steps if s.name != FLASH_ATTN), step),
    )


def ensure_room(directory: Path, release: Release) -> None:
    free = free_bytes(directory)
    if free < release.disk_bytes:
        raise EngineError(
            f"not enough disk space for the engine: {release.requirement} needs {release.disk_bytes / GIB:.1f} GiB,"
            f" {directory} has {free / GIB:.1f} GiB free",
            "free some, or put the home on another disk with --home or LLMHOST_HOME",
        )


def _environment(construction: Construction, build: Path, release: Release) -> str:
    uv = construction.uv
    uv.progress.started(CREATE)
    (_conda if construction.engine.kind == "conda" else _venv)(construction, build, release)
    python = read_python(python_of(build))
    require_version(python.version, release, construction.engine.python)
    if not python.headers and (release.device == "cuda" or construction.engine.flash_attn):
        raise no_headers(python.version)
    uv.progress.finished(CREATE, f"Python {dotted(python.version)}")
    return f"Python {dotted(python.version)}"


def no_headers(version: tuple[int, ...]) -> EngineError:
    """For a Python of this version without what is compiled for it."""
    return EngineError(
        f"the interpreter of the engine (Python {dotted(version)}) has no headers (Python.h), and Triton compiles for"
        " it when vLLM starts on a GPU",
        f"install them (python{dotted(version[:2])}-dev, python3-devel), or name an interpreter that has them as"
        " engine.python in llmhost.yaml",
    )


def _venv(construction: Construction, build: Path, release: Release) -> None:
    engine, uv = construction.engine, construction.uv
    ours = sys.executable if release.supports(sys.version_info[:2]) else release.python_range
    asked = interpreter_path(engine.python) if engine.python else ours
    below = ("--system-site-packages",) if engine.system_site_packages else ()
    if failure := uv.run(["venv", str(build), "--python", asked, "--no-project", *below]):
        raise failure.as_error(f"create a Python environment with {asked}", uv.log)
    require_version(_venv_version(build), release, asked)
    if engine.system_site_packages and "/" in asked:
        see_through(python_of(build), Path(asked))


def _conda(construction: Construction, build: Path, release: Release) -> None:
    conda.create(conda.find_tool(construction.machine), build, construction.engine, release, construction.uv.log)


def require_version(version: tuple[int, ...], release: Release, asked: str | None) -> None:
    if not release.supports(version):
        oldest, newest = (dotted(v) for v in release.python)
        raise EngineError(
            f"engine.python {asked or 'of conda'} is Python {dotted(version[:2])}, but vLLM {release.vllm} runs on"
            f" {oldest} to {newest}",
            "name such an interpreter as engine.python in llmhost.yaml, or leave the key out",
        )


def interpreter_path(python: str) -> str:
    """A version as it is; a path in full, because uv does not run where the user stands."""
    return str(in_user_home("engine.python", python).absolute()) if "/" in python else python


def _venv_version(build: Path) -> tuple[int, ...]:
    """(major, minor) from pyvenv.cfg."""
    lines = (build / "pyvenv.cfg").read_text().splitlines()
    settings = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}
    version = settings.get("version_info") or settings.get("version") or "0.0"
    return tuple(int(part) for part in version.split(".")[:2])


def _packages(construction: Construction, build: Path, release: Release) -> tuple[str, ...]:
    """Install them; the names of those that are borrowed of the interpreter below."""
    python, uv = python_of(build), construction.uv
    if construction.lock is not None:
        packages.install_locked(python, construction.lock, uv)
    elif construction.engine.system_site_packages:
        return packages.install_on_top(read_python(python), build, release, construction.engine.packages, uv)
    else:
        packages.install(python, build, release, construction.engine.packages, uv)
    return ()


def require_takeable(engine: config.Engine, release: Release) -> None:
    excluded = [text for text in engine.packages if package_name(text) in release.exclude]
    if excluded:
        raise EngineError(
            f"engine.packages: {', '.join(excluded)} cannot be beside vLLM {release.vllm} for {release.device}: package"
            " indexes have builds for another torch only",
            "leave it out; what needs it does not work in this engine",
        )


def _require_packages(construction: Construction, build: Path) -> None:
    """Whatever decided what was installed (a lock file, a bundle), what is asked for is there."""
    there = {name: package.version for name, package in read_python(python_of(build)).packages.items()}
    lacking = unmet(construction.engine.packages, there)
    if lacking:
        source = construction.lock.path.name if construction.lock else "the resolver"
        raise EngineError(
            f"engine.packages asks for {', '.join(lacking)}, and {source} did not bring that",
            "make llmhost.yaml and what is installed from agree",
        )


def verify(python: Path, build: Path, device: Device, uv: Uv, more: Mapping[str, str] | None = None) -> GateReport:
    """The import check; raises EngineError when something does not import, or computes on something else."""
    uv.progress.started(VERIFY)
    report = import_gate(python, build, uv.log, more)
    if report.device != device:
        raise EngineError(
            f"the new engine computes on {report.device or 'nothing'}, not on {device}",
            f"the index served another build of vLLM or torch; the log is {uv.log.path}",
        )
    uv.progress.finished(VERIFY, ", ".join(f"{name} {version}" for name, version in report.packages.items()))
    return report


def _record(construction: Construction, build: Path, release: Release, report: GateReport, journal: Journal) -> Lock:
    uv = construction.uv
    uv.progress.started(LOCK)
    with journal.step(LOCK) as detail:
        lock = record_lock(python_of(build), build, release, report.python, uv, build / OWN)
        detail.append(f"{len(lock.packages)} packages{'' if lock.hashed else ', not all with a hash'}")
    uv.progress.finished(LOCK, journal.steps[-1].detail)
    return lock


def manifest_of(
    construction: Construction, build: Path, report: GateReport, journal: Journal, lock: str, python: str = ""
) -> Manifest:
    """What is known of the build now."""
    flags = read_flags(report.site_packages)
    outside = [path for path in report.metadata if not Path(path).is_relative_to(build)]
    return Manifest(
        spec=Spec.of(construction.engine),
        build=build.name,
        python_version=report.python,
        packages=report.packages,
        flags=flags.flags,
        tool_call_parsers=flags.tool_call_parsers,
        reasoning_parsers=flags.reasoning_parsers,
        built_at=datetime.now(UTC).isoformat(timespec="seconds"),
        built_in=0,
        device=report.device,
        python=python,
        marks=tuple(outside),
        steps=tuple(journal.steps),
        lock=lock,
    )
