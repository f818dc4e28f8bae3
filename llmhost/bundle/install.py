"""`llmhost bundle install`: the contents of a bundle into a home, without a network."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llmhost import config as configuration
from llmhost.bundle import carried
from llmhost.bundle.links import copy_private, link_or_copy, may_link
from llmhost.bundle.show import read_bundle, told
from llmhost.bundle.target import release_from_json
from llmhost.config import Config, Engine
from llmhost.config_engine import unmet
from llmhost.env import Progress, ensure_engine, find_engine
from llmhost.env.flashinfer import place_kernels
from llmhost.env.lock import publish_lock, read_lock
from llmhost.env.releases import Release, choose_release
from llmhost.errors import BundleError
from llmhost.facts import EngineFacts
from llmhost.homedir import claim
from llmhost.paths import Home
from llmhost.probe.machine import read_essentials, read_machine
from llmhost.probe.model import models_directory

VERIFY = "verify the bundle"
UNPACK = "unpack it"
PLACE = "put files into place"
LOCK = "engine.lock"
OFFLINE = {"PIP_NO_INDEX": "1", "UV_OFFLINE": "1", "UV_PYTHON_DOWNLOADS": "never"}


@dataclass(frozen=True)
class Installed:
    """What a bundle brought."""

    wheels: int
    models: tuple[str, ...]
    caches: int
    config: bool
    """llmhost.yaml was put there: the home had none."""
    engine: EngineFacts | None


def install_bundle(home: Home, directory: Path, progress: Progress) -> Installed:
    """Verify a bundle and bring everything in it into the home; the engine is built from its wheels.

    What is there already stays as it is: llmhost.yaml, models, files with the same content, an engine of these very
    packages. May be interrupted and called again. Raises BundleError naming what is missing, damaged or does not fit
    this machine, and EngineError; then the former engine and its engine.lock go on.
    """
    manifest = read_bundle(directory)
    with told():
        carried.require_machine(manifest)
        claim(home)
        progress.started(VERIFY)
        carried.require_whole(directory, manifest)
        progress.finished(VERIFY, f"{len(manifest['pieces'] or manifest['files'])} files")
        contents = _contents(home, directory, manifest, progress)
        if manifest["engine"]:
            _require_engine(home, contents, manifest["engine"])
        done = _Placing(home, contents, manifest, progress).run()
    engine = _engine(home, contents, manifest, progress) if manifest["engine"] else None
    caches = [entry["path"] for entry in manifest["files"] if entry["kind"] == "cache"]
    if caches:
        place_kernels(home, caches, read_essentials(home).gpus, progress)
    if contents != directory:
        shutil.rmtree(contents, ignore_errors=True)
    return Installed(**done, engine=engine)


def _contents(home: Home, directory: Path, manifest: dict[str, Any], progress: Progress) -> Path:
    """The directory with the files; for a bundle in pieces a hidden one in the home."""
    contents = carried.unpacked_dir(home.root, manifest) if manifest["pieces"] else directory
    carried.sweep(home.root, contents)
    if contents == directory:
        return directory
    total, done = sum(p["size"] for p in manifest["pieces"]), 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        progress.advanced(UNPACK, done, total, "bytes")

    progress.started(UNPACK)
    carried.unpack(directory, manifest, contents, count)
    progress.finished(UNPACK, f"{len(manifest['files'])} files")
    return contents


class _Placing:
    """The files of a bundle into the directories of a home."""

    def __init__(self, home: Home, contents: Path, manifest: Mapping[str, Any], progress: Progress) -> None:
        self.home, self.contents, self.progress = home, contents, progress
        self.kinds: dict[str, list[str]] = defaultdict(list)
        for entry in manifest["files"]:
            self.kinds[entry["kind"]].append(entry["path"])
        self.entries = {entry["path"]: entry for entry in manifest["files"]}

    def run(self) -> dict[str, Any]:
        self.progress.started(PLACE)
        try:
            config = self._config()
            wheels = [*self.kinds["llmhost"], *self.kinds["engine"]]
            self._place({p: self.home.root / p for p in wheels}, link=True)
            self._place({p: self.home.wheels / p.partition("/")[2] for p in self.kinds["flash-attn"]}, link=True)
            self._caches()
            models = self._models()
        except OSError as e:
            raise carried.disk_problem(e, self.home.root) from e
        self.progress.finished(PLACE, f"{len(self.entries)} files")
        return {"wheels": len(wheels), "models": models, "caches": len(self.kinds["cache"]), "config": config}

    def _caches(self) -> None:
        """With the times they had: ninja, by which FlashInfer compiles, makes anew what looks newer than its log."""
        targets = {p: self.home.root / p for p in self.kinds["cache"]}
        self._place(targets)
        for path, target in targets.items():
            carried.restore_stamp(target, self.entries[path])

    def _config(self) -> bool:
        if self.home.config_file.exists():
            return False
        for path in self.kinds["config"]:
            copy_private(self.contents / path, self.home.root / path)
        return bool(self.kinds["config"])

    def _place(self, targets: Mapping[str, Path], *, link: bool = False) -> None:
        """Each file, whole or not at all; what is there with this content stays, what was altered is replaced.

        ``link`` for what nobody writes to: it may be the same file as in the bundle where that is ours.
        """
        left = {p: t for p, t in targets.items() if not self._is_there(p, t)}
        link = link and _same_disk(self.contents, self.home.root)
        copied = [p for p in left if not (link and may_link(self.contents / p))]
        if copied:
            carried.require_room(
                left[copied[0]], sum(self.entries[p]["size"] for p in copied), "copy the bundle's files"
            )
        for path, target in left.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(self.contents / path, target, link=link)

    def _is_there(self, path: str, target: Path) -> bool:
        entry = self.entries[path]
        if not target.is_file() or target.stat().st_size != entry["size"]:
            return False
        # The same file under two names was verified a moment ago.
        return target.samefile(self.contents / path) or carried.file_sha256(target) == entry["sha256"]

    def _models(self) -> tuple[str, ...]:
        """Each model below a hidden name first: one that is there is complete."""
        models = defaultdict(list)
        for path in self.kinds["model"]:
            models["/".join(path.split("/")[1:3])].append(path)
        config = configuration.load(self.home.config_file) if self.home.config_file.exists() else Config()
        models_dir = models_directory(self.home, config)
        for name, paths in models.items():
            target = models_dir / name
            if not target.exists():
                partial = target.with_name(f".{target.name}.bundle.partial")
                self._place({p: partial / p.split("/", 3)[3] for p in paths}, link=True)
                partial.rename(target)
        return tuple(models)


def _same_disk(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev


def _require_engine(home: Home, contents: Path, brought: Mapping[str, Any]) -> None:
    """The engine of the bundle is what will be asked for, and runs here; nothing is placed before that is known."""
    file = next((f for f in (home.config_file, contents / home.config_file.name) if f.exists()), None)
    engine = configuration.load(file).engine if file else _carried_engine(brought)
    if engine.kind != "venv":
        raise BundleError(
            f"engine.kind in {file} is {engine.kind}, and the bundle holds wheels for an environment of the kind venv",
            "write kind: venv there, or create a bundle without an engine (--only models …)",
        )
    if engine.vllm not in (None, brought["vllm"]):
        raise BundleError(
            f"{file} asks for vLLM {engine.vllm}, and the bundle has {brought['vllm']}",
            "create a bundle with --config and this llmhost.yaml, or change engine.vllm",
        )
    lacking = unmet(engine.packages, brought["packages"])
    if lacking:
        raise BundleError(
            f"{file} asks for {', '.join(lacking)} in the engine, and the bundle has not",
            "create a bundle with --config and this llmhost.yaml, or change engine.packages (executor: ray wants Ray)",
        )
    choose_release(read_machine(home), engine, (_carried_release(brought),))


def _carried_engine(brought: Mapping[str, Any]) -> Engine:
    """``engine:`` as the bundle was made for it; raises BundleError for what no llmhost.yaml could say."""
    try:
        return Engine.model_validate(brought["config"])
    except ValidationError as e:
        raise _damaged("engine.config", e) from e


def _carried_release(brought: Mapping[str, Any]) -> Release:
    try:
        return release_from_json(brought["release"])
    except ValidationError as e:
        raise _damaged("engine.release", e) from e


def _damaged(key: str, error: ValidationError) -> BundleError:
    wrong = error.errors()[0]
    place = ".".join(map(str, (key, *wrong["loc"])))
    return BundleError(
        f"{carried.MANIFEST} is damaged: {place}: {wrong['msg']}",
        f"copy {carried.MANIFEST} again, or create the bundle again with the llmhost that is to install it",
    )


def _engine(home: Home, contents: Path, manifest: Mapping[str, Any], progress: Progress) -> EngineFacts:
    """The engine that llmhost.yaml asks for, from the wheels in the home alone."""
    brought = manifest["engine"]
    written = home.config_file.exists()
    engine = configuration.load(home.config_file).engine if written else _carried_engine(brought)
    lock = read_lock(contents / LOCK)
    if find_engine(home, engine, lock) is None:
        unpacked = sum(entry.get("unpacked", 0) for entry in manifest["files"] if entry["kind"] == "engine")
        with told():
            carried.require_room(home.engines, unpacked * 5 // 4, "build the engine")  # and its bytecode
    with _offline(home.wheels):
        found = ensure_engine(home, engine, progress, lock=lock)
    publish_lock(home, found.name)
    return found


@contextmanager
def _offline(wheels: Path) -> Iterator[None]:
    """pip's configuration for this process: these wheels, no index."""
    former = dict(os.environ)
    os.environ.update({**OFFLINE, "PIP_FIND_LINKS": str(wheels)})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(former)
