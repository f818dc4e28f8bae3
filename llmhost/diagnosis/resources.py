"""Checks of disks, shared memory and limits. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from llmhost.diagnosis.findings import Check, fail, ok, warn
from llmhost.diagnosis.subject import UNLIMITED, Subject

MIB = 2**20
GIB = 2**30

LEAST_DISK = 256 * MIB
"""For logs, configuration and compile caches; below it a start fails half-way."""
LITTLE_DISK = 5 * GIB
"""A compile cache of a large model takes up to two GB, an engine beside the present one ten."""

SHM_LEAST = 128 * MIB
"""Docker gives a container 64 MiB unless told otherwise, where NCCL ends with `No space left on device`."""
SHM_QUEUE = 160 * MIB
"""vLLM: the queue from an engine to its workers, VLLM_MQ_MAX_CHUNK_BYTES_MB (16) x 10 chunks."""
SHM_WORKER = 256 * MIB
"""vLLM: the queue of answers of each worker (24 MiB x 10 chunks), and NCCL's buffers."""

FILES_LEAST = 4096
"""supervisord does not start with less (``minfds`` of supervisord.conf)."""
FILES_FEW = 16384
PROCESSES_FEW = 4096
LOCKED_LITTLE = 8 * GIB
WATCHERS = 8
"""Instances of inotify that a gateway has without services (listeners, clusters, routes, certificates) and a few more;
Envoy takes one for each file that it watches, and ends when it gets none."""


def check_disk(subject: Subject, coming: Mapping[str, int]) -> Iterator[Check]:
    """Room for logs and caches, and for what is still to come: bytes by the path of the disk (``coming``)."""
    disks = _disks(subject, coming)
    problems = [check for disk in disks for check in _disk(*disk)]
    yield from problems
    if not problems:
        yield ok("disk", ", ".join(f"{path} {_size(free)} free" for path, free, _ in disks))


def _disks(subject: Subject, coming: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """Path, free bytes and bytes that are still to come; what has exactly as much free is the same disk."""
    found: dict[int, tuple[str, int]] = {}
    for path, free in subject.facts.disk_free.items():
        first, so_far = found.get(free, (path, 0))
        found[free] = (first, so_far + coming.get(path, 0))
    return [(path, free, expected) for free, (path, expected) in found.items()]


def _disk(path: str, free: int, expected: int) -> Iterator[Check]:
    remedy = "free some (`llmhost models prune`), or put models elsewhere with models_dir"
    if free < LEAST_DISK + expected:
        what = f"models of {_size(expected)} are still to be fetched" if expected else "soon nothing can be written"
        yield fail("disk", f"{path} has {_size(free)} free, and {what}", remedy)
    elif free < LITTLE_DISK:
        yield warn("disk", f"{path} has {_size(free)} free: compile caches and logs grow", remedy)


def check_shared_memory(subject: Subject) -> Iterator[Check]:
    """/dev/shm: every engine uses some, engines of several processes talk through it."""
    total, free, split = subject.facts.shm_total, subject.facts.shm_free, subject.split
    remedy = "make it larger: `sudo mount -o remount,size=16G /dev/shm`, of a container with --shm-size or --ipc=host"
    if total == 0:
        yield fail("shm", "there is no /dev/shm, and Python needs it to run several processes", remedy)
        return
    needed = sum(
        service.replicas * (SHM_QUEUE + SHM_WORKER * split[name])
        for name, service in subject.config.services.items()
        if name in split
    )
    if split and total < SHM_LEAST:
        yield fail("shm", f"/dev/shm has {_size(total)}, and {_listed(split)} run in several processes", remedy)
    elif needed > free:
        yield warn(
            "shm", f"/dev/shm has {_size(free)} free, and {_listed(split)} may take {_size(needed)} of it", remedy
        )
    else:
        yield ok("shm", f"/dev/shm {_size(free)} free")


def check_limits(subject: Subject) -> Iterator[Check]:
    """What this shell lets processes have; a systemd unit of `llmhost enable` has limits of its own."""
    limits, fine = subject.limits, True
    raised = "raise it in /etc/security/limits.d, or start with systemd: `llmhost enable`"
    if limits.files < FILES_LEAST:
        fine = False
        yield fail("limits", f"at most {limits.files} open files (ulimit -Hn); supervisord wants {FILES_LEAST}", raised)
    elif limits.files < FILES_FEW:
        fine = False
        yield warn(
            "limits", f"at most {limits.files} open files (ulimit -Hn): too few for a thousand connections", raised
        )
    if limits.processes < PROCESSES_FEW:
        fine = False
        yield warn("limits", f"at most {limits.processes} processes and threads (ulimit -Hu)", raised)
    if subject.infiniband and subject.split and limits.locked < LOCKED_LITTLE:
        fine = False
        yield warn(
            "limits", f"at most {_size(limits.locked)} of locked memory (ulimit -Hl): InfiniBand wants more", raised
        )
    if fine:
        files = "any number of" if limits.files == UNLIMITED else limits.files
        yield ok("limits", f"{files} open files")


def check_watchers(subject: Subject) -> Iterator[Check]:
    """Whether the gateway can watch a file of members for each service, and one of routes for each port."""
    services, there = subject.config.services.values(), subject.limits.watchers
    needed = WATCHERS + len(services) + sum(s.port is not None for s in services)
    remedy = f"`sysctl fs.inotify.max_user_instances={max(1024, 4 * needed)}`, also in /etc/sysctl.d"
    told = f"the gateway watches about {needed} files, and this user may have {there} instances of inotify"
    if needed > there:
        yield fail("limits", told, remedy)
    elif needed > there // 2:
        yield warn("limits", f"{told}, other programs included", remedy)


def _listed(split: Mapping[str, int]) -> str:
    return ", ".join(f"engines of {name}" for name in split)


def _size(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"
