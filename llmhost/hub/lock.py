"""llmhost.lock, beside llmhost.yaml: which commit of each model was fetched, with the digest of every file.

It belongs into version control together with llmhost.yaml: another machine then gets the very same models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmhost import writer
from llmhost.errors import HubError
from llmhost.hub.remote import RemoteFile, Snapshot, from_listing, to_listing

FORMAT = 1


@dataclass(frozen=True)
class Lock:
    """The file, and what it says by reference (``hf:owner/name``)."""

    path: Path
    models: dict[str, Snapshot]

    def with_model(self, reference: str, revision: str, files: tuple[RemoteFile, ...]) -> Lock:
        return Lock(self.path, {**self.models, reference: Snapshot(revision, files)})


def read_lock(path: Path) -> Lock:
    """Raises HubError when it is there and cannot be understood."""
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']}")
        models = snapshots(data["models"])
    except FileNotFoundError:
        return Lock(path, {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise HubError(f"cannot read {path}: {e}", "restore it, or remove it to take the newest models") from e
    return Lock(path, models)


def snapshots(models: Mapping[str, Any]) -> dict[str, Snapshot]:
    """From ``models`` of the file."""
    return {ref: Snapshot(m["revision"], from_listing(m["files"])) for ref, m in models.items()}


def write_lock(lock: Lock) -> None:
    """Replace the file as a whole, in an order that does not change by itself."""
    models = {
        reference: {"revision": snapshot.revision, "files": to_listing(snapshot.files)}
        for reference, snapshot in sorted(lock.models.items())
    }
    writer.replace_file(lock.path, json.dumps({"format": FORMAT, "models": models}, indent=1) + "\n", mode=0o644)
