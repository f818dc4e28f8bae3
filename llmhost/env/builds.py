"""The builds of an engine: where they lie, who may make one, and when one can go."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psutil

from llmhost.env.manifest import MANIFEST, read_manifest
from llmhost.errors import BusyError, EngineError

GONE_SECONDS = 5.0
"""Seconds for what a killed setup left to let go of its lock."""


def new_build(directory: Path, stem: str) -> Path:
    """A path that was never used: an installer that outlived a killed setup may still write into an old one."""
    stamp = datetime.now(UTC).strftime("%Y%m%d%H%M%S%f")
    return directory / f"{stem}-{stamp[:-3]}"


@contextmanager
def setup_lock(directory: Path) -> Iterator[None]:
    """One setup of an engine at a time; the kernel lets go when the process dies. Raises BusyError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if (holder := _take(fd)) is not None:
            raise _busy(directory, holder)
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def _take(fd: int) -> str | None:
    """Take the lock; who has it (its pid as text) when that is somebody else.

    A setup that was killed may live on for a moment in a child that had not yet become another program.
    """
    deadline = time.monotonic() + GONE_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace")
        if not holder.isdecimal() or psutil.pid_exists(int(holder)) or time.monotonic() > deadline:
            return holder
        time.sleep(0.05)


def _busy(directory: Path, pid: str) -> BusyError:
    who = f"another llmhost command (pid {pid})" if pid else "another llmhost command"
    return BusyError(f"{who} is building the engine {directory.name}", "wait until it is done, or end it")


def clean_up(directory: Path, plan_file: Path) -> None:
    """Remove former builds as soon as nothing needs them any more, unless somebody is building right now."""
    if len(_builds(directory)) <= 1:
        return
    try:
        with setup_lock(directory):
            remove_unused(directory, plan_file)
    except BusyError:
        return


def remove_unused(directory: Path, plan_file: Path, keep: Path | None = None) -> None:
    """Remove builds that neither the manifest nor the plan in force names and that no process runs from, but ``keep``.

    To be called with the lock held.
    """
    manifest = read_manifest(directory)
    remove_all_but(directory, plan_file, {manifest.build} if manifest else set(), {keep.name} if keep else set())
    for leftover in directory.glob(f".{MANIFEST}.*"):
        leftover.unlink(missing_ok=True)


def remove_all_but(directory: Path, plan_file: Path, current: Collection[str], keep: Collection[str] = ()) -> None:
    """Remove builds that nobody names or runs from; ``current`` and ``keep`` are names of those that stay anyway."""
    stale = [path for path in _builds(directory) if path.name not in current]
    if stale:
        needed = _running(directory) | _named(plan_file, stale) | set(keep)
        for path in stale:
            if path.name not in needed:
                shutil.rmtree(path, ignore_errors=True)


def _builds(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.is_dir()] if directory.is_dir() else []


def _named(plan_file: Path, builds: list[Path]) -> set[str]:
    """Builds that a stopped service would be started from."""
    text = _text(plan_file)
    return {path.name for path in builds if path.name in text}


def _running(directory: Path) -> set[str]:
    """Builds that processes of this user run from: by command line and by mapped libraries (proc(5))."""
    prefixes = {f"{directory}/", f"{os.path.realpath(directory)}/"}
    used = set()
    for process in Path("/proc").glob("[0-9]*"):
        text = _text(process / "cmdline") + _text(process / "maps")
        used |= {part.partition("/")[0] for prefix in prefixes for part in text.split(prefix)[1:]}
    return used


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # not there, ended meanwhile, or somebody else's
        return ""


@contextmanager
def disk_errors(what: str, directory: Path) -> Iterator[None]:
    """Raise EngineError, with what to look at, where the disk or its permissions do not let ``what`` be built."""
    try:
        yield
    except OSError as e:
        place = f"{e.filename}: " if e.filename else ""
        raise EngineError(
            f"cannot build {what} in {directory}: {place}{e.strerror}",
            "see `df -h` and who owns the home, or put it elsewhere with --home",
        ) from e
