"""What is on this machine already and goes into a bundle: models, compile caches, llmhost.yaml."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmhost import config as configuration
from llmhost.bundle.target import Target
from llmhost.config import Config
from llmhost.env.progress import Progress
from llmhost.errors import BundleError
from llmhost.facts import EngineFacts, MachineFacts
from llmhost.hub.pull import MANIFEST, read_manifest
from llmhost.hub.remote import Reference
from llmhost.hub.store import verify
from llmhost.paths import Home
from llmhost.plan.caches import PRELOADED, cache_directory, cache_key
from llmhost.probe.model import models_directory

Kind = Literal["llmhost", "engine", "flash-attn", "model", "cache", "config"]
VERIFY_MODELS = "check models"


@dataclass(frozen=True)
class Item:
    """A file for the bundle: where it goes there, and where it is now."""

    path: str
    source: Path
    kind: Kind


def config_items(home: Home, config_file: Path | None) -> Iterator[Item]:
    """llmhost.yaml for the other machine, and which commits of models it means."""
    if config_file is not None:
        yield Item("llmhost.yaml", config_file, "config")
        lock = config_file.with_name(home.lock_of_models.name)
        if lock.is_file():
            yield Item("llmhost.lock", lock, "config")


def model_items(home: Home, config: Config, facts: MachineFacts, progress: Progress) -> Iterator[Item]:
    """The models of services from this machine's models_dir, verified; those that the other machine has stay here.

    Raises BundleError for one that is not here or is damaged.
    """
    ours = configuration.load(home.config_file) if home.config_file.exists() else Config()
    models_dir = models_directory(home, ours)
    for name, service in config.services.items():
        if service.environment:
            progress.note(f"services.{name}.environment is not in the bundle: make it on that machine yourself")
        reference = Reference.parse(service.source) if service.replicas else None
        if reference is None:
            if service.replicas and service.source and not service.source.startswith("demo:"):
                key = "model_dir" if service.is_foreign else "model"
                progress.note(f"services.{name}.{key} is a directory: copy it to that machine yourself")
        elif reference.repository in facts.models:
            progress.note(f"{reference.text} is on that machine already")
        else:
            yield from _model(reference, reference.directory(models_dir), name, progress)


def _model(reference: Reference, directory: Path, service: str, progress: Progress) -> Iterator[Item]:
    manifest = read_manifest(directory)
    if manifest is None:
        raise BundleError(
            f"services.{service}.model: {reference.text} is not on this machine ({directory})",
            f"fetch it with `llmhost pull {reference.text}`, or leave models out with --no-models",
        )
    step = f"{VERIFY_MODELS}: {reference.text}"
    progress.started(step)
    if wrong := verify(directory):
        raise BundleError(
            f"{reference.text} is damaged here: {wrong[0].path} ({wrong[0].problem})",
            f"fetch it again: `llmhost models remove {reference.repository}` and `llmhost pull {reference.text}`",
        )
    progress.finished(step, f"{len(manifest['files'])} files")
    for file in (MANIFEST, *manifest["files"]):
        yield Item(f"models/{reference.repository}/{file}", directory / file, "model")


def cache_items(home: Home, target: Target) -> Iterator[Item]:
    """Compile caches of the same vLLM for the same sort of GPU; processors differ in too many ways for theirs."""
    release = target.release
    if release.device != "cuda" or not target.capabilities:
        return
    engine = EngineFacts("", "", release.device, release.vllm, {}, (), ())
    directory = cache_directory(home, cache_key(engine, target.facts.gpus))
    for file in sorted(directory.rglob("*")):
        doubled = file.is_relative_to(directory / PRELOADED)
        if file.is_file() and not file.is_symlink() and not doubled:
            yield Item(file.relative_to(home.root).as_posix(), file, "cache")
