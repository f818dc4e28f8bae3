"""New certificates reach the gateway: a small process beside Envoy that looks at their files once in a second.

Envoy notices only files that are renamed into place. Certificates come in other ways, too: written over, or behind a
symbolic link that now points elsewhere. So whenever one has changed, the file that lists them is renamed into place
anew, in a directory that Envoy watches, and Envoy reads them again; what does not work is refused by Envoy, and the old
one stays.
"""

from __future__ import annotations

import json
import os
import signal
import time

from llmhost.supervise.guarding.kernel import PR_SET_PDEATHSIG, prctl
from llmhost.supervise.guarding.processes import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Look = tuple[Any, ...]

SECONDS = 1.0


def start_refresher(files: list[str]) -> None:
    """Leave a child behind that ends together with us, also after we have become another program (exec)."""
    parent = os.getpid()
    if os.fork() != 0:
        return
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    try:
        refresh(files)
    finally:
        os._exit(1)


def refresh(files: list[str]) -> None:
    """Never returns."""
    seen = {file: look(file) for file in files}
    before = dict(seen)
    while True:
        time.sleep(SECONDS)
        for file in files:
            now = look(file)
            # A change counts once it has settled: a key is rarely written in the same instant as its certificate.
            if now != seen[file] and now == before[file]:
                seen[file] = now
                _put_anew(file)
            before[file] = now


def look(file: str) -> Look:
    """What the files that are listed in ``file`` look like, by what changes with every way to change a file."""
    return tuple(_stat(name) for name in _named(file))


def _stat(name: str) -> Look:
    try:
        found = os.stat(name)
    except OSError:
        return (name,)
    return (name, found.st_mtime_ns, found.st_size, found.st_ino)


def _named(file: str) -> list[str]:
    """The paths in a JSON list."""
    try:
        with open(file, "rb") as opened:
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
