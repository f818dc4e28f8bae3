"""Makes sure that the engine is there: a list of steps, each of which may be interrupted at any point."""

from __future__ import annotations

import os
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from llmhost import config
from llmhost.env.builds import clean_up, new_build, remove_unused, setup_lock
from llmhost.env.flags import read_flags
from llmhost.env.gate import GateReport, import_gate
from llmhost.env.log import SetupLog
from llmhost.env.manifest import Manifest, Spec, python_of, read_manifest, write_manifest
from llmhost.env.pip_config import read_pip_options, uv_settings
from llmhost.env.progress import Progress
from llmhost.env.releases import Release, choose_release, read_releases
from llmhost.env.uv import Uv, default_cache_dir, find_uv
from llmhost.errors import EngineError, LlmhostError
from llmhost.facts import EngineFacts
from llmhost.paths import Home
from llmhost.probe.host import free_bytes

CREATE = "create the Python environment"
VERIFY = "check that vLLM imports"
GIB = 2**30


def find_engine(home: Home, engine: config.Engine) -> EngineFacts | None:
    """The engine that llmhost.yaml asks for when it is built and verified, else None. Reads one small file."""
    directory = home.engine_dir(engine.name)
    manifest = read_manifest(directory)
    if manifest is None or not manifest.satisfies(Spec.of(engine)):
        return None
    # The base interpreter may have been removed since; the link in the environment then points nowhere.
    return manifest.facts(directory) if python_of(directory / manifest.build).exists() else None


def ensure_engine(
    home: Home, engine: config.Engine, progress: Progress, releases: tuple[Release, ...] | None = None
) -> EngineFacts:
    """Build the engine unless it is there; the former one stays in use until the new one has passed its import check.

    ``releases`` replaces the table of tested releases. Raises EngineError (message, log, remedy) when it cannot be
    built and BusyError when another llmhost is building it.
    """
    directory = home.engine_dir(engine.name)
    if found := find_engine(home, engine):
        clean_up(directory, home.plan_file)
        return found
    table = releases or read_releases()
    release = choose_release(Spec.of(engine).device, engine.vllm, table)
    if not release.tested:
        tested = ", ".join(r.vllm for r in table if r.device == release.device)
        progress.note(f"vLLM {release.vllm} was not tested with this llmhost (tested: {tested})")
    try:
        with setup_lock(directory):
            remove_unused(directory, home.plan_file)
            with SetupLog(home.log_file("setup")) as log:
                # Somebody may have been faster.
                return find_engine(home, engine) or _build(
                    directory, engine, release, _uv(home, directory, log, progress)
                )
    except OSError as e:
        place = f"{e.filename}: " if e.filename else ""
        raise EngineError(
            f"cannot build the engine in {directory}: {place}{e.strerror}",
            "see `df -h` and who owns the home, or put it elsewhere with --home",
        ) from e


def _build(directory: Path, engine: config.Engine, release: Release, uv: Uv) -> EngineFacts:
    started = time.monotonic()
    _ensure_disk(directory, release)
    build = new_build(directory, release)
    try:
        _ensure_venv(build, engine.python, release, uv)
        _ensure_packages(build, release, uv)
        report = _ensure_imports(build, release, uv)
        manifest = _manifest(engine, build, report, time.monotonic() - started)
        write_manifest(directory, manifest)
    except (LlmhostError, OSError):
        shutil.rmtree(build, ignore_errors=True)  # its room may be what the next attempt lacks
        raise
    uv.log.write(f"{build.name} is the engine now")
    return manifest.facts(directory)


def _uv(home: Home, directory: Path, log: SetupLog, progress: Progress) -> Uv:
    """uv with the user's settings. Its cache is on the file system of the home, so that it links instead of copying."""
    binary = find_uv()
    settings = uv_settings(read_pip_options(), os.environ)
    for note in settings.notes:
        progress.note(note)
    env = {}
    if _device(default_cache_dir(binary)) != _device(directory) and not os.environ.get("UV_CACHE_DIR"):
        env["UV_CACHE_DIR"] = str(home.cache / "uv")
    return Uv(binary, settings, directory, log, progress, env)


def _device(path: Path) -> int:
    """The file system where ``path`` is, or will be made."""
    return next(p for p in (path, *path.parents) if p.exists()).stat().st_dev


def _ensure_disk(directory: Path, release: Release) -> None:
    free = free_bytes(directory)
    if free < release.disk_bytes:
        raise EngineError(
            f"not enough disk space for the engine: {release.requirement} needs {release.disk_bytes / GIB:.1f} GiB,"
            f" {directory} has {free / GIB:.1f} GiB free",
            "free some, or put the home on another disk with --home or LLMHOST_HOME",
        )


def _ensure_venv(build: Path, python: str | None, release: Release, uv: Uv) -> None:
    uv.progress.started(CREATE)
    ours = sys.executable if release.supports(sys.version_info[:2]) else release.python_range
    asked = _interpreter(python) if python else ours
    if failure := uv.run(["venv", str(build), "--python", asked, "--no-project"]):
        raise failure.as_error(f"create a Python environment with {asked}", uv.log)
    version = _venv_version(build)
    if not release.supports(version):
        oldest, newest = (".".join(map(str, v)) for v in release.python)
        raise EngineError(
            f"engine.python {asked} is Python {'.'.join(map(str, version))}, but vLLM {release.vllm} runs on"
            f" {oldest} to {newest}",
            "name such an interpreter as engine.python in llmhost.yaml, or leave the key out",
        )
    uv.progress.finished(CREATE, f"Python {'.'.join(map(str, version))}")


def _interpreter(python: str) -> str:
    """A version as it is; a path in full, because uv does not run where the user stands."""
    return str(Path(python).expanduser().absolute()) if "/" in python else python


def _venv_version(build: Path) -> tuple[int, ...]:
    """(major, minor) from pyvenv.cfg."""
    lines = (build / "pyvenv.cfg").read_text().splitlines()
    settings = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}
    version = settings.get("version_info") or settings.get("version") or "0.0"
    return tuple(int(part) for part in version.split(".")[:2])


def _ensure_packages(build: Path, release: Release, uv: Uv) -> None:
    """Install the pinned set. The CPU build of torch comes from the user's own index when that has it."""
    excludes = build / "excludes.txt"
    excludes.write_text("".join(f"{name}\n" for name in release.exclude))
    command = ["pip", "install", "--python", str(python_of(build)), "--excludes", str(excludes), release.requirement]
    failure = uv.run(command, follow_stages=True)
    if failure and failure.lacks("torch") and not uv.settings.no_index and not os.environ.get("UV_TORCH_BACKEND"):
        uv.log.write("the indexes have no such torch: asking its own")
        failure = uv.run([*command, "--torch-backend", release.torch_backend], follow_stages=True)
    if failure:
        raise failure.as_error(f"install {release.requirement}", uv.log)


def _ensure_imports(build: Path, release: Release, uv: Uv) -> GateReport:
    uv.progress.started(VERIFY)
    report = import_gate(build, uv.log)
    if report.device != release.device:
        raise EngineError(
            f"the new engine computes on {report.device or 'nothing'}, not on {release.device}",
            f"the index served another build of vLLM or torch; the log is {uv.log.path}",
        )
    uv.progress.finished(VERIFY, ", ".join(f"{name} {version}" for name, version in report.packages.items()))
    return report


def _manifest(engine: config.Engine, build: Path, report: GateReport, seconds: float) -> Manifest:
    flags = read_flags(report.site_packages)
    return Manifest(
        spec=Spec.of(engine),
        build=build.name,
        python_version=report.python,
        packages=report.packages,
        flags=flags.flags,
        tool_call_parsers=flags.tool_call_parsers,
        reasoning_parsers=flags.reasoning_parsers,
        built_at=datetime.now(UTC).isoformat(timespec="seconds"),
        built_in=round(seconds, 1),
    )
