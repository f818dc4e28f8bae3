"""Shared memory of an engine, which outlives processes that are killed: multiprocessing's, NCCL's, torch's.

Python's resource tracker, a process of the engine, removes what the others leave, when it is let: it ignores SIGTERM
and acts when the last of them is gone, so it has to be killed last. What a tracker that was killed itself has left is
removed by name: only what a process of the engine had mapped, and only when nobody holds it any more.
"""

from __future__ import annotations

import contextlib
import json
import os
import re

from llmhost.supervise.guarding.processes import pids, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

FOLDER = "/dev/shm"
TRACKER = b"multiprocessing.resource_tracker"
TRACKER_SECONDS = 2.0
"""Seconds that a resource tracker gets when everything else has gone; it takes milliseconds."""

_OURS = re.compile(r"psm_[0-9a-f]+|sem\.mp-\w+|nccl-\w+|torch_\d+_\d+_\d+")
"""Names of memory that dies with its makers; something else may be meant to stay (a cache of keys and values, say)."""
_INODE = re.compile(rb"^\S+ \S+ \S+ \S+ (\d+) +/dev/shm/", re.MULTILINE)
"""Of a mapping in /proc/PID/maps (proc_pid_maps(5)): address, permissions, offset, device, inode, path."""

Segment = tuple[str, int]
"""Its name, and its inode: a name alone could be somebody else's by now."""


def segments(members: Iterable[int]) -> set[Segment]:
    """What these processes have mapped of the kind that should go with them."""
    # Not by the name that is mapped: glibc makes a semaphore under another one.
    mapped = {inode for pid in members for inode in _mapped(pid)}
    if not mapped:
        return set()
    with contextlib.suppress(OSError), os.scandir(FOLDER) as entries:
        return {(e.name, e.inode()) for e in entries if e.inode() in mapped and _OURS.fullmatch(e.name)}
    return set()


def killable(members: Collection[int], *, all_of_them: bool) -> list[int]:
    """Those to kill now: resource trackers only when that is wanted."""
    return [pid for pid in members if all_of_them or TRACKER not in read(f"/proc/{pid}/cmdline")]


def left(wanted: Collection[Segment], without: Collection[int] = ()) -> list[Segment]:
    """Those of `wanted` that are there, are ours, and are held by no process but `without`."""
    there = [segment for segment in wanted if _is_there(segment)]
    if not there:
        return []
    held = {inode for pid in pids() if pid not in without for inode in _held(pid)}
    return sorted(segment for segment in there if segment[1] not in held)


def remove(wanted: Collection[Segment]) -> list[str]:
    """Remove those that nobody holds; their names."""
    gone = left(wanted)
    for name, _ in gone:
        with contextlib.suppress(OSError):
            os.unlink(f"{FOLDER}/{name}")
    return [name for name, _ in gone]


def record_file(state_file: bytes) -> bytes:
    """Where a guard keeps what its engine has mapped, in case that all of them are killed."""
    return state_file.removesuffix(b".state.json") + b".shm.json"


def write_record(path: bytes, found: Collection[Segment]) -> None:
    """Raises OSError."""
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(json.dumps(sorted(found)).encode())


def read_record(path: bytes) -> set[Segment]:
    """Nothing when there is none, or it was never finished."""
    try:
        return {(str(name), int(inode)) for name, inode in json.loads(read(os.fsdecode(path)) or b"[]")}
    except (ValueError, TypeError):
        return set()


def _is_there(segment: Segment) -> bool:
    name, inode = segment
    if not _OURS.fullmatch(name):
        return False
    try:
        found = os.stat(f"{FOLDER}/{name}", follow_symlinks=False)
    except OSError:
        return False
    return found.st_ino == inode and found.st_uid == os.geteuid()


def _mapped(pid: int) -> set[int]:
    return {int(inode) for inode in _INODE.findall(read(f"/proc/{pid}/maps"))}


def _held(pid: int) -> set[int]:
    """Inodes in /dev/shm that a process has mapped or open."""
    found = _mapped(pid)
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{fd}").startswith(f"{FOLDER}/"):
                    found.add(os.stat(f"/proc/{pid}/fd/{fd}").st_ino)
    return found
