"""What is in a bundle, and whether all of it has arrived."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmhost.bundle import carried
from llmhost.errors import BundleError


@dataclass(frozen=True)
class Checked:
    """One piece (or one file, of a bundle that is not in pieces)."""

    name: str
    size: int
    problem: str
    """missing, cut short, altered …; empty when it is right."""


@contextmanager
def told() -> Iterator[None]:
    """Problems of a bundle as errors of llmhost."""
    try:
        yield
    except carried.BundleProblem as e:
        raise BundleError(e.message, e.hint) from e


def read_bundle(directory: Path) -> dict[str, Any]:
    """Its manifest; raises BundleError when there is none that can be used."""
    with told():
        return carried.read_manifest(directory)


def check_bundle(directory: Path) -> tuple[Checked, ...]:
    """Read everything and compare it with its SHA-256."""
    manifest = read_bundle(directory)
    found = dict(carried.problems(directory, manifest))
    entries = manifest["pieces"] or manifest["files"]
    names = ((entry.get("name") or entry["path"], entry["size"]) for entry in entries)
    return tuple(Checked(name, size, found.get(name, "")) for name, size in names)
