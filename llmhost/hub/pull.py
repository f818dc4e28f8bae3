"""Fetching a model: files first below a hidden directory beside its place, the whole in its place when all are right.

A pull may be interrupted at any point. The next one goes on at the byte where each file stopped, and does not read
again what has been checked.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmhost import writer
from llmhost.env.progress import Progress
from llmhost.errors import BusyError, HubError, ModelError, NotOnHubError
from llmhost.hub.remote import Hub, Reference, RemoteFile, Snapshot, from_listing, partial_path, to_listing
from llmhost.hub.select import needed
from llmhost.probe.host import free_bytes
from llmhost.probe.safetensors import read_tensors

MANIFEST = ".llmhost.json"
CHECKED = ".checked"
"""In the hidden directory: files that were found right, with their times; a line of JSON each."""

WORKERS = 4
ATTEMPTS = 3
"""Times that a file with the wrong content is fetched."""

DISK_MARGIN = 64 * 2**20
LOOK_EVERY = 0.5
"""Seconds between two looks at how much has come."""

GRACE = 2.0
"""Seconds that other transfers get to end by themselves when one has failed."""

GIB = 2**30


@dataclass(frozen=True)
class Pulled:
    """A model in its place."""

    directory: Path
    revision: str
    files: tuple[RemoteFile, ...]
    fetched: int
    """Bytes that came now; 0 when everything was there."""


def pull(
    hub: Hub,
    reference: Reference,
    models_dir: Path,
    locked: Snapshot | None,
    progress: Progress,
    *,
    everything: bool = False,
) -> Pulled:
    """Bring a model into ``models_dir/<owner>/<name>``, and make sure that it is what the hub (or the lock) says.

    ``locked`` pins the revision and the digests, unless the reference names another revision. ``everything`` takes
    files that vLLM does not need, too. Raises HubError, ModelError when the disk is too small or the files are damaged,
    and BusyError when another pull of the same model runs.
    """
    target = reference.directory(models_dir)
    pinned = locked if locked and reference.revision in (None, locked.revision) else None
    if pinned and is_complete(target, pinned.revision, everything):
        return Pulled(target, pinned.revision, read_manifest_files(target), 0)
    snapshot = _snapshot(hub, reference, pinned)
    if is_complete(target, snapshot.revision, everything):
        return Pulled(target, snapshot.revision, read_manifest_files(target), 0)
    files = snapshot.files if everything else needed(snapshot.files)
    if pinned:
        _require_same(reference, pinned, files)
    partial = target.with_name(f".{target.name}.partial")
    try:
        with _alone(target, reference):
            fetched = _Fetch(hub, reference, snapshot.revision, files, partial, target, progress).run()
            for file in files:
                if file.path.endswith(".safetensors"):
                    read_tensors(partial / file.path)
            _write_manifest(partial, reference, snapshot.revision, files, everything)
            _replace(partial, target)
    except OSError as e:
        raise _disk_error(e, target) from e
    return Pulled(target, snapshot.revision, files, fetched)


def _snapshot(hub: Hub, reference: Reference, pinned: Snapshot | None) -> Snapshot:
    if pinned is None:
        return hub.snapshot(reference.repository, reference.revision)
    try:
        return hub.snapshot(reference.repository, pinned.revision)
    except NotOnHubError as e:
        raise NotOnHubError(
            f"{reference.text}: revision {pinned.revision[:12]}, which llmhost.lock pins, cannot be had: {e.message}",
            f"copy the model from a machine that has it; or take the newest with `llmhost pull --upgrade"
            f" {reference.text}`, which pins that one in llmhost.lock",
        ) from e


def is_complete(directory: Path, revision: str, everything: bool = False) -> bool:
    """Whether a pull of that revision has put the model there; only sizes are looked at, `verify` reads the files.

    What a `verify` has found wrong (`note_wrong`) is not complete, whatever its size.
    """
    manifest = read_manifest(directory)
    if manifest is None or manifest["revision"] != revision or (everything and not manifest["everything"]):
        return False
    if manifest.get("wrong"):
        return False
    return all(_size(directory / f.path) == f.size for f in from_listing(manifest["files"]))


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """What a pull has written about the files of a model; None for a directory that was not pulled."""
    try:
        data = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        return data if {"source", "revision", "files", "everything"} <= set(data) else None
    except (OSError, ValueError, TypeError):
        return None


def read_manifest_files(directory: Path) -> tuple[RemoteFile, ...]:
    manifest = read_manifest(directory)
    return from_listing(manifest["files"]) if manifest else ()


def note_wrong(directory: Path, paths: Sequence[str]) -> None:
    """Write down which files of a pulled model are wrong (none: all are right), so that the next pull fetches them."""
    manifest = read_manifest(directory)
    if manifest is None or manifest.get("wrong", []) == list(paths):
        return
    text = json.dumps({**manifest, "wrong": list(paths)}, indent=1) + "\n"
    with suppress(OSError):  # who may not write here still wants to know what is wrong
        writer.replace_file(directory / MANIFEST, text, mode=0o644)


def _require_same(reference: Reference, pinned: Snapshot, files: Sequence[RemoteFile]) -> None:
    locked = {f.path: f for f in pinned.files}
    changed = [f.path for f in files if f.path in locked and locked[f.path] != f]
    if changed:
        raise HubError(
            f"{reference.text}: {changed[0]} is not what llmhost.lock has for revision {pinned.revision[:12]}",
            f"find out why the hub has changed it; to take it as it is now: `llmhost pull --upgrade {reference.text}`",
        )


@contextmanager
def _alone(target: Path, reference: Reference) -> Iterator[None]:
    """One pull of a model at a time; the kernel lets go when the process dies."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(target.with_name(f".{target.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"{reference.text} is being fetched already", "wait for that pull, or stop it") from None
        yield
    finally:
        os.close(fd)


class _Fetch:
    """The files of one model, several at a time."""

    def __init__(
        self,
        hub: Hub,
        reference: Reference,
        revision: str,
        files: Sequence[RemoteFile],
        partial: Path,
        target: Path,
        progress: Progress,
    ) -> None:
        self.hub, self.reference, self.revision = hub, reference, revision
        self.files, self.partial, self.target, self.progress = files, partial, target, progress
        self.step = f"fetch {reference.text}"
        self.total = sum(f.size for f in files)

    def run(self) -> int:
        self.partial.mkdir(parents=True, exist_ok=True)
        self._link_known()
        missing = [f for f in self.files if not self._is_checked(f)]
        before = self._bytes()
        self._ensure_disk(
            sum(f.size for f in missing) - sum(_size(partial_path(self.partial, f)) or 0 for f in missing)
        )
        self.progress.started(self.step)
        # The largest last would be waited for alone.
        self._fetch_all(sorted(missing, key=lambda f: -f.size))
        self.progress.finished(self.step, f"{len(self.files)} files, {self.total / GIB:.2f} GiB, checked")
        self._remove_strangers()
        return self._bytes() - before

    def _fetch_all(self, files: Sequence[RemoteFile]) -> None:
        """Several at a time, showing what has come; the first failure ends it.

        A transfer that hangs cannot be ended from outside: the threads are daemons, so that neither Ctrl-C nor a
        failure waits for it.
        """
        queue, failures, over = deque(files), list[BaseException](), threading.Event()

        def work() -> None:
            while queue and not over.is_set():
                try:
                    self._fetch(queue.popleft())
                except IndexError:
                    return
                except BaseException as e:
                    failures.append(e)
                    over.set()

        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(WORKERS, len(files)))]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads) and not over.wait(LOOK_EVERY):
                self.progress.advanced(self.step, min(self._bytes(), self.total), self.total, "bytes")
        finally:
            over.set()
            for thread in threads:
                thread.join(GRACE if failures else 0)
        if failures:
            raise failures[0]

    def _fetch(self, file: RemoteFile) -> None:
        for _ in range(ATTEMPTS):
            self.hub.fetch(self.reference.repository, self.revision, file, self.partial)
            if file.matches(self.partial / file.path):
                self._note_checked(file)
                return
            (self.partial / file.path).unlink(missing_ok=True)
        raise HubError(
            f"{self.reference.text}: {file.path} came {ATTEMPTS} times with the wrong content",
            "try again later, or from the other hub; what is right is kept",
        )

    def _ensure_disk(self, missing: int) -> None:
        free = free_bytes(self.partial)
        if free < missing + DISK_MARGIN:
            lacking = (missing + DISK_MARGIN - free) / GIB
            raise ModelError(
                f"not enough disk space for {self.reference.text}: {missing / GIB:.2f} GiB are to come and"
                f" {DISK_MARGIN / GIB:.2f} GiB are to stay free, {self.partial.parent} has {free / GIB:.2f} GiB free",
                f"free {lacking:.2f} GiB (`llmhost models prune`), or write another models_dir",
            )

    def _bytes(self) -> int:
        whole = sum(_size(self.partial / f.path) or 0 for f in self.files)
        return whole + sum(_size(partial_path(self.partial, f)) or 0 for f in self.files)

    def _link_known(self) -> None:
        """Files that a former revision in place has with the same digest need not come again."""
        known = {f.digest: f for f in read_manifest_files(self.target) if f.digest}
        for file in self.files:
            old = known.get(file.digest)
            new = self.partial / file.path
            if old and not new.exists() and old.matches(self.target / old.path):
                new.parent.mkdir(parents=True, exist_ok=True)
                os.link(self.target / old.path, new)
                self._note_checked(file)

    def _note_checked(self, file: RemoteFile) -> None:
        line = json.dumps([file.path, file.digest, (self.partial / file.path).stat().st_mtime_ns])
        with (self.partial / CHECKED).open("a", encoding="utf-8") as log:
            log.write(f"{line}\n")

    def _is_checked(self, file: RemoteFile) -> bool:
        """Whether an earlier pull has found the file right; one without such a note is read again."""
        path = self.partial / file.path
        if _size(path) != file.size:
            path.unlink(missing_ok=True)
            return False
        log = self.partial / CHECKED
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        if json.dumps([file.path, file.digest, path.stat().st_mtime_ns]) in lines:
            return True
        if file.matches(path):
            self._note_checked(file)
            return True
        path.unlink()
        return False

    def _remove_strangers(self) -> None:
        """What an earlier pull of another revision has left."""
        wanted = {self.partial / f.path for f in self.files}
        for path in sorted(self.partial.rglob("*"), reverse=True):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
            elif not path.is_dir() and path not in wanted:
                path.unlink()


def _write_manifest(
    directory: Path, reference: Reference, revision: str, files: Sequence[RemoteFile], everything: bool
) -> None:
    listing = to_listing(tuple(files))
    data = {"source": reference.text, "revision": revision, "everything": everything, "files": listing}
    (directory / MANIFEST).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _replace(partial: Path, target: Path) -> None:
    """Put the new directory in place; an engine that runs keeps the files that it has open."""
    old = target.with_name(f".{target.name}.old-{os.getpid()}-{time.time_ns()}")
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def _disk_error(error: OSError, target: Path) -> ModelError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ModelError(
            f"the disk of {target.parent} is full",
            "free some space (`llmhost models prune`) and pull again: it goes on where it stopped",
        )
    place = error.filename or target
    return ModelError(f"cannot write {place}: {error.strerror or error}", "see who owns models_dir, and `df -h`")
