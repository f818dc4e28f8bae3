"""One file at two places, or a copy of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def may_link(source: Path) -> bool:
    """Only a file of our own: another owner could change it, or could not be kept from reading it, later."""
    return source.stat().st_uid == os.geteuid()


def link_or_copy(source: Path, target: Path, *, link: bool) -> None:
    """Put a file at ``target``, whole or not at all; with ``link`` without a copy where that can be. Raises OSError.

    Link only what nobody writes to: both names are the same file.
    """
    source = source.resolve()
    temporary = target.with_name(f".{target.name}.new")
    temporary.unlink(missing_ok=True)
    if not (link and may_link(source) and _linked(source, temporary)):
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def copy_private(source: Path, target: Path) -> None:
    """A copy that only its owner reads, from its first byte on. Raises OSError."""
    temporary = target.with_name(f".{target.name}.new")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as out, source.open("rb") as read:
        shutil.copyfileobj(read, out)
    os.replace(temporary, target)


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        return False
    return True
