"""The engines of a home side by side: build, list, remove; and their caches."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from llmhost import config as configuration
from llmhost.config import Config, Engine
from llmhost.env import Progress, ensure_engine, find_engine
from llmhost.env.builds import setup_lock
from llmhost.env.current import engine_name, engine_names
from llmhost.env.flash_attn import explain_flash_attn
from llmhost.env.flashinfer import withdraw_kernels
from llmhost.env.journal import Step
from llmhost.env.lock import read_lock, require_agreement
from llmhost.env.manifest import MANIFEST, Manifest, read_manifest
from llmhost.env.releases import choose_device
from llmhost.env.setup import foresee_engine, remark_on
from llmhost.errors import EngineError
from llmhost.facts import EngineFacts
from llmhost.foreign import ensure_environments, without_vllm
from llmhost.homedir import claim, require_access
from llmhost.machine import read_running
from llmhost.paths import Home
from llmhost.probe.machine import read_essentials, read_machine
from llmhost.supervise import lifecycle
from llmhost.supervise.planfile import read_plan


@dataclass(frozen=True)
class Listed:
    """An engine of a home."""

    name: str
    current: bool
    running: bool
    """Engine processes of the plan in force run from it."""
    manifest: Manifest
    python: str
    bytes: int


@dataclass(frozen=True)
class Cache:
    """Caches of one kind of engine."""

    key: str
    path: Path
    bytes: int
    in_use: bool


def load_or_default(home: Home) -> Config:
    """llmhost.yaml, or what holds without one."""
    return configuration.load(home.config_file) if home.config_file.exists() else Config()


def setup(home: Home, progress: Progress, *, locked: bool = False, flash_attn: bool | str | None = None) -> EngineFacts:
    """Build the engine that llmhost.yaml asks for (the default one when there is no llmhost.yaml yet).

    With ``locked`` exactly the packages of engine.lock, which is of the engine that counts. ``flash_attn``
    counts instead of what llmhost.yaml says. Environments of foreign engines are built, too; without a service for
    vLLM only those. Raises EngineError, and HomeError for one who must not write here.
    """
    claim(home)
    config = load_or_default(home)
    built = without_vllm(config) or _setup_vllm(home, config, progress, locked, flash_attn)
    ensure_environments(home, config, progress)
    return built


def _setup_vllm(
    home: Home, config: Config, progress: Progress, locked: bool, flash_attn: bool | str | None
) -> EngineFacts:
    engine = _with_flash_attn(config.engine, flash_attn)
    if not locked:
        return ensure_engine(home, engine, progress)
    if engine.kind == "existing":
        raise EngineError(
            "an engine of kind: existing has no lock file: it is never changed", "leave --locked out, or use kind: venv"
        )
    lock = read_lock(home.engine_lock)
    require_agreement(lock, engine, choose_device(read_essentials(home), engine))
    if not lock.hashed:
        progress.note(f"not every package in {lock.path.name} has a hash: versions are exact, files are not checked")
    return ensure_engine(home, engine, progress, lock=lock)


def _with_flash_attn(engine: Engine, wanted: bool | str | None) -> Engine:
    if wanted is None:
        return engine
    if engine.kind == "existing":
        raise EngineError(
            "--flash-attn: an engine of kind: existing is never changed", "install flash-attn there yourself"
        )
    return engine.model_copy(update={"flash_attn": wanted})


def explain_setup(home: Home, flash_attn: bool | str | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What `setup` would do about flash-attn, one fact a line, and remarks on the engine; nothing is changed.

    ``flash_attn`` counts instead of what llmhost.yaml says. Raises LlmhostError where setup would refuse.
    """
    config, machine = load_or_default(home), read_machine(home)
    engine = _with_flash_attn(config.engine, flash_attn)
    not_asked = ("flash-attn is not asked for (engine.flash_attn, --flash-attn)",)
    there = find_engine(home, engine.model_copy(update={"flash_attn": False}))
    if there is not None:
        python, asked = Path(there.python), engine.flash_attn
        lines = explain_flash_attn(home, python, asked, machine) if asked else not_asked
        return lines, _remarks(remark_on(there, config.engine, machine))
    if without_vllm(config) is not None:
        return ("no service here needs vLLM, so no engine is built",), ()
    prospect = foresee_engine(home, engine, machine)
    remarks = _remarks(prospect.remark)
    if not engine.flash_attn:
        return not_asked, remarks
    return (f"the engine is not built yet: {prospect.what} comes first", *prospect.flash_attn), remarks


def remarks_on(home: Home, built: EngineFacts) -> tuple[str, ...]:
    """What there is to say about an engine that works."""
    return _remarks(remark_on(built, load_or_default(home).engine, read_machine(home)))


def _remarks(remark: str) -> tuple[str, ...]:
    return (remark,) if remark else ()


def steps_of(home: Home, engine: EngineFacts) -> tuple[Step, ...]:
    """What was done to build an engine."""
    manifest = read_manifest(home.engine_dir(engine.name))
    return manifest.steps if manifest else ()


def list_engines(home: Home) -> tuple[Listed, ...]:
    """Every engine that is built, by name. Raises HomeError when the home cannot be read."""
    require_access(home)
    current = engine_name(home, load_or_default(home).engine)
    return tuple(filter(None, (_listed(home, name, current) for name in engine_names(home))))


def _listed(home: Home, name: str, current: str) -> Listed | None:
    directory = home.engine_dir(name)
    manifest = read_manifest(directory)
    if manifest is None:
        return None
    python = str(manifest.interpreter(directory))
    return Listed(name, name == current, _runs_from(home, python), manifest, python, _size(directory))


def _runs_from(home: Home, python: str) -> bool:
    there = read_running(home)
    return any(program.argv[0] == python for program in there.programs)


def _size(directory: Path) -> int:
    """Bytes of the files below a directory, links not followed, files with several names once."""
    seen: dict[tuple[int, int], int] = {}
    for path in directory.rglob("*"):
        try:
            found = path.lstat()
        except OSError:
            continue
        seen[found.st_dev, found.st_ino] = found.st_size
    return sum(seen.values())


def remove(home: Home, name: str) -> None:
    """Delete an engine. Raises EngineError for the one that counts, one that runs, and one that is not there."""
    require_access(home)
    if name not in engine_names(home):
        raise EngineError(f"there is no engine {name}", f"built are: {', '.join(engine_names(home)) or 'none'}")
    directory = home.engine_dir(name)
    if name == engine_name(home, load_or_default(home).engine):
        raise EngineError(f"the engine {name} is the one in use", "choose another first, with `llmhost engine use`")
    manifest = read_manifest(directory)
    if manifest is not None and _is_needed(home, str(manifest.interpreter(directory))):
        raise EngineError(
            f"services run on the engine {name}, or would be started on it",
            "run `llmhost up`, which brings them to the other one",
        )
    try:
        with setup_lock(directory):
            (directory / MANIFEST).unlink(missing_ok=True)  # half removed it is no engine any more
            shutil.rmtree(directory)
    except OSError as e:
        raise EngineError(f"cannot remove {e.filename or directory}: {e.strerror}", "delete the rest by hand") from e


def _is_needed(home: Home, python: str) -> bool:
    """Engine processes run from it, or `llmhost start` would start some from it."""
    plan = read_plan(home)
    return _runs_from(home, python) or any(p.argv[0] == python for p in (plan.programs if plan else ()))


def list_caches(home: Home) -> tuple[Cache, ...]:
    """What engines compiled, by kind of engine."""
    require_access(home)
    if not home.engine_caches.is_dir():
        return ()
    plan = read_plan(home)
    used = f"{plan.engine.vllm_version}-{plan.engine.device}" if plan and lifecycle.running(home) else None
    return tuple(
        Cache(path.name, path, _size(path), used is not None and path.name.startswith(used))
        for path in sorted(home.engine_caches.iterdir())
        if path.is_dir()
    )


def clear_caches(home: Home, keys: tuple[str, ...]) -> tuple[Cache, ...]:
    """Delete caches (all when none is named); those of running engines are left, and not in the answer.

    Raises EngineError for a name that is not there.
    """
    found = {cache.key: cache for cache in list_caches(home)}
    for key in keys:
        if key not in found:
            raise EngineError(f"there is no cache {key}", f"there are: {', '.join(found) or 'none'}")
        if found[key].in_use:
            raise EngineError(f"engines that run use the cache {key}", "stop them first, with `llmhost stop`")
    chosen = [cache for key, cache in found.items() if (key in keys or not keys) and not cache.in_use]
    for cache in chosen:
        _withdraw(home, cache)
        shutil.rmtree(cache.path, ignore_errors=True)
    return tuple(chosen)


def _withdraw(home: Home, cache: Cache) -> None:
    try:
        withdraw_kernels(home, cache.key)
    except OSError as e:
        raise EngineError(f"cannot remove {e.filename}: {e.strerror}", "see who owns it") from e
