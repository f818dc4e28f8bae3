"""Rendered files -> disk: see what would change first, then replace each file whole."""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmhost.errors import HomeError
from llmhost.files import RenderedFile
from llmhost.paths import Home


@dataclass(frozen=True)
class FileChange:
    """``old`` is None for a new file, ``new`` is None for one that nothing renders any more."""

    path: str
    old: str | None
    new: str | None
    mode: int = 0o600

    def diff(self) -> str:
        """As a unified diff."""
        before = (self.old or "").splitlines(keepends=True)
        after = (self.new or "").splitlines(keepends=True)
        old_name, new_name = (name if text is not None else "/dev/null" for name, text in self._sides())
        return "".join(difflib.unified_diff(before, after, old_name, new_name))

    def _sides(self) -> tuple[tuple[str, str | None], tuple[str, str | None]]:
        return (f"a/{self.path}", self.old), (f"b/{self.path}", self.new)


def changes(home: Home, files: Iterable[RenderedFile]) -> tuple[FileChange, ...]:
    """What writing these files would change, in their order, then those to remove; the others are left out."""
    wanted = {f.path: f for f in files}
    found = []
    for path, file in wanted.items():
        old = _read(home.root / path)
        if old != file.text or _mode(home.root / path) != file.mode:
            found.append(FileChange(path, old, file.text, file.mode))
    on_disk = (str(p.relative_to(home.root)) for p in _rendered_files(home))
    found += [FileChange(path, _read(home.root / path), None) for path in on_disk if path not in wanted]
    return tuple(found)


def apply(home: Home, file_changes: Sequence[FileChange]) -> None:
    """Bring the changes to disk, each file by rename, so that a reader sees the old one or the new one.

    Raises HomeError when the disk is full or the home is not writable; the old files are then still whole.
    """
    for change in file_changes:
        target = home.root / change.path
        try:
            if change.new is None:
                target.unlink(missing_ok=True)
            else:
                replace_file(target, change.new, change.mode)
        except OSError as e:
            raise HomeError(
                f"cannot write {target}: {e.strerror}", "see `df -h` and the permissions of the home"
            ) from e


def replace_file(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a file under a temporary name beside it and rename it into place, synced to disk."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(handle, mode)
            file.write(text)
            file.flush()
            os.fsync(handle)
        os.replace(temporary, path)
    except BaseException as e:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(e, OSError) and e.filename is None:
            e.filename = os.fspath(path)
        raise


def read(home: Home, path: str) -> str | None:
    """The text of a rendered file, None when it is not there; ``path`` is relative to the home."""
    return _read(home.root / path)


def _rendered_files(home: Home) -> list[Path]:
    return sorted(p for p in home.conf.rglob("*") if p.is_file()) if home.conf.is_dir() else []


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777
