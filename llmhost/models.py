"""The models of a home: fetched, pinned, listed, removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmhost import config as configuration
from llmhost.config import Config, Service
from llmhost.env import Progress
from llmhost.errors import ConfigError, LlmhostError, ModelError
from llmhost.facts import Kind, ModelFacts
from llmhost.homedir import claim
from llmhost.hub.access import open_hub
from llmhost.hub.lock import read_lock, write_lock
from llmhost.hub.pull import Pulled, is_complete, pull, read_manifest
from llmhost.hub.remote import Hub, Reference
from llmhost.hub.store import StoredModel, Verified, list_models, remove, verify
from llmhost.paths import Home
from llmhost.probe.model import models_directory, read_model, resolve_model
from llmhost.supervise.planfile import read_plan


@dataclass(frozen=True)
class Wanted:
    """A model to fetch, and who wants it."""

    text: str
    reference: Reference | None
    """None for a directory: it is taken as it is."""


def pull_models(
    home: Home, asked: Sequence[str], progress: Progress, *, everything: bool = False, upgrade: bool = False
) -> list[tuple[str, Pulled | None]]:
    """Fetch models by reference or by service, those of all services when none is named; None: a directory, left alone.

    The revision of llmhost.lock is taken where there is one, unless ``upgrade``; what was fetched is pinned there.
    Raises ConfigError for a name that is neither, HubError, ModelError, BusyError, and HomeError for one who must not
    write here.
    """
    claim(home)
    config = configuration.load(home.config_file) if home.config_file.exists() else Config()
    pulled: list[tuple[str, Pulled | None]] = []
    hubs: dict[str, Hub] = {}
    for wanted in _wanted(config, asked):
        if wanted.reference is None:
            pulled.append((wanted.text, None))
        else:
            done = _pull_one(home, config, wanted.reference, hubs, progress, everything=everything, upgrade=upgrade)
            pulled.append((wanted.text, done))
    return pulled


def pull_missing(home: Home, config: Config, services: Sequence[str], progress: Progress) -> None:
    """Fetch what services need and what is not here yet; hubs are not asked about anything that is here."""
    models_dir = models_directory(home, config)
    lock = read_lock(home.lock_of_models)
    hubs: dict[str, Hub] = {}
    for name, service in config.services.items():
        reference = Reference.parse(service.source)
        if reference is None or not service.replicas or (services and name not in services):
            continue
        pinned = reference.revision or (lock.models[reference.text].revision if reference.text in lock.models else None)
        place = reference.directory(models_dir)
        if place.is_dir() and (pinned is None or not _was_pulled(place) or is_complete(place, pinned)):
            continue
        try:
            _pull_one(home, config, reference, hubs, progress, everything=False, upgrade=False)
        except LlmhostError as e:
            raise type(e)(f"services.{name}.{_key(service)}: {e.message}", e.hint) from e


def _key(service: Service) -> str:
    return "model_dir" if service.is_foreign else "model"


def _was_pulled(directory: Path) -> bool:
    return read_manifest(directory) is not None


def _pull_one(
    home: Home,
    config: Config,
    reference: Reference,
    hubs: dict[str, Hub],
    progress: Progress,
    *,
    everything: bool,
    upgrade: bool,
) -> Pulled:
    lock = read_lock(home.lock_of_models)
    locked = None if upgrade else lock.models.get(reference.text)
    if reference.scheme not in hubs:
        hubs[reference.scheme] = open_hub(home, reference.scheme)
    done = pull(
        hubs[reference.scheme], reference, models_directory(home, config), locked, progress, everything=everything
    )
    if locked is None or (locked.revision, locked.files) != (done.revision, done.files):
        write_lock(read_lock(home.lock_of_models).with_model(reference.text, done.revision, done.files))
    return done


def _wanted(config: Config, asked: Sequence[str]) -> Iterator[Wanted]:
    for name in asked or [n for n, s in config.services.items() if s.replicas and s.source]:
        text = config.services[name].source if name in config.services else name
        reference = Reference.parse(text)
        if reference is None and name not in config.services:
            raise ConfigError(
                f"{name} is neither a service nor a model of a hub",
                f"llmhost.yaml has: {', '.join(config.services) or 'no services'}; a model is hf:owner/name or"
                " modelscope:owner/name",
            )
        yield Wanted(text, reference)


def stored_models(home: Home) -> list[StoredModel]:
    """Every model below models_dir, with who uses it: services of llmhost.yaml, and engines of the plan in force."""
    config = configuration.load(home.config_file) if home.config_file.exists() else Config()
    models_dir = models_directory(home, config)
    users: dict[Path, set[str]] = {}
    for name, service in config.services.items():
        if not service.source:
            continue
        reference = Reference.parse(service.source)
        path = reference.directory(models_dir) if reference else resolve_model(service.source, models_dir, home.root)
        users.setdefault(path.resolve(), set()).add(name)
    plan = read_plan(home)
    for made in (s for s in plan.services if s.model_path) if plan else ():
        users.setdefault(Path(made.model_path).resolve(), set()).add(made.name)
    return list_models(models_dir, {path: tuple(sorted(names)) for path, names in users.items()})


def find_stored(home: Home, name: str) -> StoredModel:
    """The model called ``owner/name`` (or ``hf:owner/name``); raises ModelError when it is not there."""
    reference = Reference.parse(name)
    wanted = reference.repository if reference else name
    there = [model for model in stored_models(home) if model.complete]
    found = next((model for model in there if model.name == wanted), None)
    if found is None:
        raise ModelError(f"there is no model {name} here", f"there are: {', '.join(m.name for m in there) or 'none'}")
    return found


def verify_model(model: StoredModel) -> list[Verified]:
    """Files that are not what was pulled."""
    return verify(model.directory)


def remove_model(model: StoredModel, *, force: bool = False) -> None:
    """Delete a model; raises ModelError when a service uses it, unless ``force``."""
    if model.used_by and not force:
        raise ModelError(
            f"{model.name} is used by {', '.join(model.used_by)}",
            "take it out of llmhost.yaml and run `llmhost up` first, or add --force",
        )
    try:
        remove(model)
    except OSError as e:
        raise ModelError(f"cannot delete {e.filename}: {e.strerror}", "see who owns models_dir") from e


def unused_models(home: Home) -> list[StoredModel]:
    """What nobody uses: pulled models and what interrupted pulls have left; never what somebody put there."""
    return [m for m in stored_models(home) if not m.used_by and (m.source or not m.complete)]


def read_models(home: Home, config: Config, read: Callable[..., ModelFacts] | None = None) -> dict[str, ModelFacts]:
    """The facts of every model that vLLM serves, by service name; raises ModelError naming the service.

    ``read`` reads one (home, config, reference, kind); by default only models that are here.
    """
    facts: dict[str, ModelFacts] = {}
    for name, service in config.services.items():
        if not service.replicas or service.is_foreign:
            continue
        try:
            facts[name] = (read or _read_here)(home, config, service.model, service.kind)
        except LlmhostError as e:
            raise type(e)(f"services.{name}.model: {e.message}", e.hint) from e
    return facts


def _read_here(home: Home, config: Config, reference: str, kind: Kind | None) -> ModelFacts:
    return read_model(resolve_model(reference, models_directory(home, config), home.root), kind)
