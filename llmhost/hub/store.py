"""The models that are there: list, check, remove."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from llmhost.errors import LlmhostError, ModelError
from llmhost.hub.pull import note_wrong, read_manifest, read_manifest_files
from llmhost.hub.remote import RemoteFile
from llmhost.probe.model import read_model


@dataclass(frozen=True)
class StoredModel:
    """One directory below models_dir."""

    directory: Path
    name: str
    """``owner/name``."""
    size: int
    """Bytes on disk."""
    kind: str
    """chat, embed, rerank, or what is the matter."""
    source: str
    """Where it was pulled from; empty for a directory that somebody put there."""
    revision: str
    used_by: tuple[str, ...]
    complete: bool
    """False for what an interrupted pull has left."""


def list_models(models_dir: Path, used: Mapping[Path, tuple[str, ...]]) -> list[StoredModel]:
    """Everything below ``models_dir/<owner>/``; ``used`` says by directory which services use it."""
    return [_stored(directory, used) for directory in _directories(models_dir)]


def _directories(models_dir: Path) -> Iterator[Path]:
    for owner in sorted(models_dir.iterdir()) if models_dir.is_dir() else ():
        if owner.is_dir() and not owner.name.startswith("."):
            yield from (d for d in sorted(owner.iterdir()) if d.is_dir() and _is_ours(d))


def _is_ours(directory: Path) -> bool:
    """A model, or the hidden directory of a pull that was interrupted."""
    name = directory.name
    return not name.startswith(".") or name.endswith(".partial") or ".old-" in name


def _stored(directory: Path, used: Mapping[Path, tuple[str, ...]]) -> StoredModel:
    complete = not directory.name.startswith(".")
    manifest = read_manifest(directory) or {}
    name = directory.name if complete else directory.name[1:].removesuffix(".partial").partition(".old-")[0]
    return StoredModel(
        directory=directory,
        name=f"{directory.parent.name}/{name}",
        size=sum(f.stat().st_size for f in directory.rglob("*") if f.is_file()),
        kind=_kind(directory) if complete else "unfinished",
        source=str(manifest.get("source", "")),
        revision=str(manifest.get("revision", "")),
        used_by=used.get(directory.resolve(), ()) if complete else (),
        complete=complete,
    )


def _kind(directory: Path) -> str:
    try:
        return read_model(directory).kind
    except LlmhostError:
        return "?"


@dataclass(frozen=True)
class Verified:
    """One file that is not what was pulled."""

    path: str
    problem: str


def verify(directory: Path) -> list[Verified]:
    """Read every file of a pulled model and compare it with the hub's digests: the files that are wrong.

    They are written down in the model's directory, so that the next pull fetches them again and nothing else.
    Raises ModelError for a directory that was not pulled: there is nothing to compare it with.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        raise ModelError(
            f"{directory} was not pulled, so there are no digests for it", "`llmhost inspect` reads it at least"
        )
    found = [problem for file in read_manifest_files(directory) if (problem := _check(directory, file))]
    note_wrong(directory, [problem.path for problem in found])
    return found


def _check(directory: Path, file: RemoteFile) -> Verified | None:
    path = directory / file.path
    if not path.exists():
        return Verified(file.path, "missing")
    if path.stat().st_size != file.size:
        return Verified(file.path, f"{path.stat().st_size} bytes instead of {file.size}")
    return None if file.matches(path) else Verified(file.path, "its content has changed")


def remove(model: StoredModel) -> None:
    """Delete a model's directory, and its owner's when that is empty then."""
    shutil.rmtree(model.directory)
    model.directory.with_name(f".{model.directory.name}.lock").unlink(missing_ok=True)
    if not any(model.directory.parent.iterdir()):
        model.directory.parent.rmdir()
