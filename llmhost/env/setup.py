"""Makes sure that the engine is there: a list of steps, each of which may be interrupted at any point."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

from llmhost import config
from llmhost.env.build import Construction, make, with_flash_attn
from llmhost.env.builds import clean_up, disk_errors, new_build, remove_unused, setup_lock
from llmhost.env.current import engine_name
from llmhost.env.existing import adopt
from llmhost.env.journal import Journal
from llmhost.env.lock import Lock, publish_lock
from llmhost.env.log import SetupLog
from llmhost.env.manifest import Manifest, Spec, read_manifest, write_manifest
from llmhost.env.pip_config import read_pip_options, uv_settings
from llmhost.env.progress import Progress
from llmhost.env.releases import Release, choose_release, read_releases
from llmhost.env.uv import Uv, default_cache_dir, find_uv
from llmhost.errors import LlmhostError
from llmhost.facts import EngineFacts, MachineFacts
from llmhost.paths import Home
from llmhost.probe.machine import read_machine

PLACEHOLDER = "existing"


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
    if engine.kind != "existing" and release is None:
        release = _choose(home, _as_locked(engine, lock), progress, releases, facts)
        if lock is not None:
            release = replace(release, python=(lock.python_minor, lock.python_minor))
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
    home: Home,
    engine: config.Engine,
    progress: Progress,
    releases: tuple[Release, ...] | None,
    facts: MachineFacts | None,
) -> Release:
    table = releases or read_releases()
    release = choose_release(facts or read_machine(home), engine, table)
    if not release.tested:
        tested = ", ".join(r.vllm for r in table if r.device == release.device)
        progress.note(f"vLLM {release.vllm} was not tested with this llmhost (tested: {tested})")
    return release


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
    manifest, spec = read_manifest(construction.directory), Spec.of(construction.engine)
    if manifest is None or not spec.flash_attn or construction.lock is not None:
        return None
    enough = manifest.satisfies(replace(spec, flash_attn=False)) and manifest.is_there(construction.directory)
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
    manifest = read_manifest(construction.directory)
    for build in sorted(construction.directory.iterdir(), key=lambda path: path.name, reverse=True):
        journal = Journal.read(build)
        named = manifest is not None and manifest.build == build.name
        if journal and not named and journal.worth_keeping and journal.order == construction.order:
            construction.uv.log.write(f"going on with {build.name}: {', '.join(s.name for s in journal.steps)} done")
            return build, journal
    return None, None


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
