"""What both hubs have in common, as data."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llmhost.errors import HubError

BLOCK = 1 << 20
SCHEMES = ("hf", "modelscope")
KEPT = "what has come so far is kept"


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository; ``digest`` is the hub's own: ``sha256:…``, ``git:…`` (of a git blob), or ''."""

    path: str
    size: int
    digest: str

    def matches(self, file: Path) -> bool:
        """Whether a file has the size and the content that the hub has."""
        try:
            if file.stat().st_size != self.size:
                return False
            return not self.digest or file_digest(file, self.digest.partition(":")[0]) == self.digest
        except FileNotFoundError:
            return False


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit."""

    revision: str
    files: tuple[RemoteFile, ...]


@dataclass(frozen=True)
class Reference:
    """``hf:owner/name@revision``."""

    scheme: str
    owner: str
    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference | None:
        """None for what is no reference to a hub; raises HubError for one that is not complete."""
        scheme, _, rest = text.partition(":")
        if scheme not in SCHEMES:
            return None
        repository, at, revision = rest.partition("@")
        owner, _, name = repository.partition("/")
        parts = (owner, name)
        if not all(p and "/" not in p and "\\" not in p and not p.startswith(".") for p in parts) or (
            at and not revision
        ):
            raise HubError(
                f"{text} is not owner/name", f"write it like {scheme}:Qwen/Qwen3-8B, @revision behind it if need be"
            )
        return cls(scheme, owner, name, revision or None)

    @property
    def repository(self) -> str:
        return f"{self.owner}/{self.name}"

    @property
    def text(self) -> str:
        """Without the revision."""
        return f"{self.scheme}:{self.repository}"

    def directory(self, models_dir: Path) -> Path:
        return models_dir / self.owner / self.name


class Hub(Protocol):
    """One hub; every method raises HubError, which tells apart what a person has to do."""

    def snapshot(self, repository: str, revision: str | None) -> Snapshot:
        """The files of a repository at a branch, tag or commit; None: the newest."""

    def fetch(self, repository: str, revision: str, file: RemoteFile, directory: Path) -> None:
        """Bring one file below ``directory``; a part of it in ``partial_path`` is continued."""


def partial_path(directory: Path, file: RemoteFile) -> Path:
    """Where the part of a file that has come so far lies."""
    target = directory / file.path
    return target.with_name(f"{target.name}.incomplete")


def file_digest(file: Path, method: str) -> str:
    """``sha256:…`` or, for ``git``, the id that git gives a blob of this content."""
    digest = hashlib.sha256()
    if method == "git":
        digest = hashlib.sha1(usedforsecurity=False)
        digest.update(f"blob {file.stat().st_size}\0".encode())
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return f"{method}:{digest.hexdigest()}"


def from_listing(listing: Mapping[str, Mapping[str, object]]) -> tuple[RemoteFile, ...]:
    """Files as they stand in a manifest or in llmhost.lock."""
    return tuple(RemoteFile(p, int(str(f["size"])), str(f["digest"])) for p, f in listing.items())


def to_listing(files: tuple[RemoteFile, ...]) -> dict[str, dict[str, object]]:
    return {f.path: {"size": f.size, "digest": f.digest} for f in sorted(files, key=lambda f: f.path)}


@contextmanager
def explained(error: Callable[[Exception], Exception]) -> Iterator[None]:
    """What goes wrong inside becomes what ``error`` makes of it; what only this disk is to blame for stays."""
    try:
        yield
    except HubError:
        raise
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        raise error(e) from e
    except Exception as e:
        raise error(e) from e


def transport_error(what: str, endpoint: str, variable: str, status: int | None, error: Any) -> HubError:
    """A hub that is in the way rather than a wrong wish."""
    if status == 429:
        return HubError(f"{what}: {endpoint} says that it was asked too often", "wait a while; " + KEPT)
    if status is not None and status >= 500:
        return HubError(f"{what}: {endpoint} is in trouble (status {status})", f"try again later; {KEPT}")
    if _is_web_page(error):
        return HubError(
            f"{what}: {endpoint} answered with a web page and not with JSON",
            f"a proxy or a mirror may want a login: look at the page with `curl -L {endpoint}`, and check HTTPS_PROXY,"
            f" NO_PROXY and {variable}; {KEPT}",
        )
    cause = " ".join(str(error).split())[:200] or type(error).__name__
    hint = f"check the network, proxies (HTTPS_PROXY) and {variable}; {KEPT}"
    return HubError(f"{what}: cannot fetch from {endpoint}: {cause}", hint)


def _is_web_page(error: Any) -> bool:
    """Whether a client failed on HTML where it expected JSON; the clients' JSON libraries differ, and all keep it."""
    text = getattr(error, "doc", None)
    return isinstance(error, ValueError) and isinstance(text, str) and text.lstrip("\ufeff \t\r\n").startswith("<")
