"""New certificates reach the gateway: its keeper looks at their files once in a second.

Envoy notices only files that are renamed into place. Certificates come in other ways, too: written over, or behind a
symbolic link that now points elsewhere. So whenever one has changed, the file that lists them is renamed into place
anew, in a directory that Envoy watches, and Envoy reads them again; what does not work is refused by Envoy, and the old
one stays. Without HTTPS there is no such file; it may come and go while the gateway runs.
"""

from __future__ import annotations

import os

from llmhost.supervise.guarding.processes import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Look = tuple[Any, ...]

SECONDS = 1.0
"""How often to call `Refresher.look`."""


class Refresher:
    """Watches what the file ``listing`` names."""

    def __init__(self, listing: str) -> None:
        self._listing = listing
        self._seen = self._before = _look(listing)

    def look(self) -> None:
        """Renew the file when what it names has changed. A file that names others was just written: nothing is due."""
        now = _look(self._listing)
        # A change counts once it has settled: a key is rarely written in the same instant as its certificate.
        if now != self._seen and now == self._before:
            if _names(now) == _names(self._seen):
                _put_anew(self._listing)
            self._seen = now
        self._before = now


def _look(listing: str) -> Look:
    """What the files that are listed look like, by what changes with every way to change a file."""
    return tuple(_stat(name) for name in _named(listing))


def _names(look: Look) -> list[str]:
    return [name for name, *_ in look]


def _stat(name: str) -> Look:
    try:
        found = os.stat(name)
    except OSError:
        return (name,)
    return (name, found.st_mtime_ns, found.st_size, found.st_ino)


def _named(listing: str) -> list[str]:
    """The paths in a JSON list."""
    try:
        with open(listing, "rb") as opened:
            import json  # noqa: PLC0415 (needs memory, and few have HTTPS)

            return [str(name) for name in json.load(opened)]
    except (OSError, ValueError, TypeError):
        return []


def _put_anew(file: str) -> None:
    draft = f"{file}.anew"
    try:
        with open(file, "rb") as old:
            content = old.read()
        with open(draft, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as new:
            new.write(content)
        os.rename(draft, file)
        say(f"{', '.join(_named(file))} changed: the gateway reads it again")
    except OSError as e:
        say(f"cannot renew {file}: {e.strerror}")
