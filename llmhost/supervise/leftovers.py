"""What a former life of a home left: processes that nobody watches, and files that mean nothing any more."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from llmhost.errors import HomeError
from llmhost.paths import Home
from llmhost.supervise import owned
from llmhost.supervise.guarding import processes, shm

END_SECONDS = 10.0
"""Seconds for a killed process to go away."""

_DRAFT = re.compile(r"\.state\.json\.new$|^\..+\.[a-z0-9_]{8}$")
"""Half-written files: of a guard's state, and of `llmhost.writer.replace_file`."""


@dataclass(frozen=True)
class Leftovers:
    """Processes by id with what they are, and files."""

    processes: dict[int, str]
    files: tuple[Path, ...]

    def __bool__(self) -> bool:
        return bool(self.processes or self.files)


def find(home: Home) -> Leftovers:
    """Everything of this home that does not belong to the supervisord that runs, if one does.

    Call it with the lock of the home held: a command that is at work makes files, too.
    """
    ours = owned.descendants(home)
    lost = [pid for pid in owned.everything(home) if pid not in ours]
    memory = shm.left(owned.recorded_memory(home) | shm.segments(lost), without=lost)
    files = (*_files(home), *(Path(shm.FOLDER, name) for name, _ in memory))
    return Leftovers({pid: _words(pid) for pid in lost}, files)


def remove(leftovers: Leftovers) -> None:
    """Kill the processes, delete the files; raises SupervisorError for a process, HomeError for a file that stays."""
    owned.kill_all(lambda: [pid for pid in leftovers.processes if processes.running(pid)], END_SECONDS)
    for path in leftovers.files:
        try:
            path.unlink(missing_ok=True)
        except OSError as e:
            raise HomeError(f"cannot remove {path}: {e.strerror}", "see `df -h`, `dmesg` and who owns the home") from e


def _words(pid: int) -> str:
    words = processes.read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode("utf-8", "replace").strip()
    return f"{processes.title(pid)}: {words}"[:200]


def _files(home: Home) -> list[Path]:
    """Sockets that nobody listens on, a pid file without its process, drafts that were never finished."""
    found = [p for p in _entries(home.run) if p.is_socket() and not _answers(p)]
    if home.supervisord_pid_file.exists() and not owned.descendants(home):
        found.append(home.supervisord_pid_file)
    drafts = (p for directory in (home.run, home.conf) for p in _entries(directory) if _DRAFT.search(p.name))
    return sorted({*found, *drafts})


def _entries(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if not path.is_dir()] if directory.is_dir() else []


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.setblocking(False)  # a full queue is an answer, too
        try:
            connection.connect(os.fspath(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True
