"""Log files, several at once: their last lines, then what is added, across rotation and whatever bytes they hold.

The files are read, not supervisord: its ``readProcessStdoutLog`` fails inside a UTF-8 character and loads whole files.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

MAX_LINE = 65536
"""Bytes of a line that are shown; the rest of a longer one is dropped."""
BLOCK = 65536
POLL_SECONDS = 0.2
MAX_BACKUPS = 20
CUT = " … (line cut)"

_SEQUENCES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours, cursor
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # titles, links, device strings
    r"|\x1b[ -/]*[0-~]?"  # what is left of escapes
    r"|\x9b[0-?]*[ -/]*[@-~]"  # the same in one C1 character
)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")


def read_logs(
    files: Mapping[str, Path],
    lines: int | None = 10,
    follow: bool = False,
    ansi: bool = False,
    since: float | None = None,
    until: Callable[[], bool] = lambda: False,
) -> Iterator[dict[str, Iterator[str]]]:
    """Yield, by label, the last `lines` lines of each file (None: all that is kept), then, with `follow`, new ones.

    Each dictionary is to be read before the next one is asked for. Rotated parts (``name.1`` …) count as the beginning
    of a file; those that were written last before `since` (unix time) are left out. A file may not exist yet, be
    renamed or truncated. Terminal sequences and control characters are taken out unless `ansi` is true. Following ends
    when `until` is true, which is asked every `POLL_SECONDS`, or when the generator is closed.
    """
    readers = {label: _Reader(path, ansi) for label, path in files.items()}
    try:
        for reader in readers.values():
            reader.seek_tail(lines, since)
        yield {label: reader.read() for label, reader in readers.items()}
        while follow and not until():
            time.sleep(POLL_SECONDS)
            yield {label: reader.read() for label, reader in readers.items()}
        yield {label: reader.flush() for label, reader in readers.items()}
    finally:
        for reader in readers.values():
            reader.close()


def clean(line: bytes, ansi: bool = False) -> str:
    """A line as text: undecodable bytes become U+FFFD, of a redrawn line (progress bars) the last state stays."""
    if line.endswith(b"\r"):
        line = line[:-1]
    text = line.rpartition(b"\r")[2].decode("utf-8", "replace")
    return text if ansi else _CONTROL.sub("", _SEQUENCES.sub("", text))


class _Reader:
    """One log file with its rotated parts; never holds more of it than a line and a block."""

    def __init__(self, path: Path, ansi: bool) -> None:
        self._path = os.fspath(path)
        self._ansi = ansi
        self._file: BinaryIO | None = None
        self._rest = b""
        self._dropping = False
        self._backlog: list[str] = []
        """Rotated parts still to be read before the file itself, oldest first."""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def seek_tail(self, lines: int | None, since: float | None) -> None:
        """Stand before the last `lines` lines, which may begin in a rotated part that is not older than `since`."""
        parts: list[str] = []
        position, missing = 0, lines
        for path in (self._path, *self._backups()):
            try:
                with open(path, "rb") as file:
                    if since is not None and path != self._path and os.fstat(file.fileno()).st_mtime < since:
                        break
                    position, found = (0, 0) if missing is None else _tail_position(file, missing)
            except FileNotFoundError:
                continue
            parts.insert(0, path)
            if missing is not None:
                missing -= found
                if missing <= 0:
                    break
        self._backlog = parts[:]
        if self._open_next():
            assert self._file is not None
            self._file.seek(position)

    def read(self) -> Iterator[str]:
        """Complete lines that have been added since."""
        while self._file is not None or self._open_next():
            assert self._file is not None
            for line in self._lines(self._file):
                yield clean(line, self._ansi)
            if not self._at_end(self._file):
                continue
            return

    def flush(self) -> Iterator[str]:
        """The last line when it has no end yet."""
        if self._rest:
            yield clean(self._rest, self._ansi)
            self._rest = b""

    def _at_end(self, file: BinaryIO) -> bool:
        """False when there is another part to go on with: the file was rotated or truncated meanwhile."""
        here = os.fstat(file.fileno())
        if not self._backlog:
            try:
                now = os.stat(self._path)
            except FileNotFoundError:
                return True
            if now.st_ino == here.st_ino and now.st_dev == here.st_dev:
                if now.st_size >= file.tell():
                    return True
                file.seek(0)
                self._rest = b""
                return False
            self._backlog = [*self._newer_backups(here.st_ino), self._path]
            if here.st_size > file.tell():  # written between our last read and the rotation
                return False
        self.close()
        return not self._open_next()

    def _open_next(self) -> bool:
        for path in (*self._backlog, *(() if self._backlog else (self._path,))):
            self._backlog = self._backlog[1:]
            try:
                self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (kept while it is followed)
            except FileNotFoundError:
                continue
            return True
        return False

    def _backups(self) -> list[str]:
        """Newest first."""
        return [path for n in range(1, MAX_BACKUPS + 1) if os.path.exists(path := f"{self._path}.{n}")]

    def _newer_backups(self, inode: int) -> list[str]:
        """The parts that were rotated away after the one that we have read, oldest first."""
        newer: list[str] = []
        for path in self._backups():
            try:
                if os.stat(path).st_ino == inode:
                    return newer[::-1]
            except FileNotFoundError:
                break
            newer.append(path)
        return []

    def _lines(self, file: BinaryIO) -> Iterator[bytes]:
        while block := file.read(BLOCK):
            *complete, rest = (self._rest + block).split(b"\n")
            for line in complete:
                if self._dropping:
                    self._dropping = False
                else:
                    yield line if len(line) <= MAX_LINE else line[:MAX_LINE] + CUT.encode()
            self._rest = b"" if self._dropping else rest
            if len(self._rest) > MAX_LINE:
                yield self._rest[:MAX_LINE] + CUT.encode()
                self._rest, self._dropping = b"", True


def _tail_position(file: BinaryIO, lines: int) -> tuple[int, int]:
    """Where the last `lines` lines begin, and how many there are from there on; reads backwards, block by block."""
    end = position = file.seek(0, os.SEEK_END)
    if end == 0 or lines <= 0:
        return end, 0
    file.seek(end - 1)
    # A line ends with \n; what follows the last one is a line, too.
    found = 0 if file.read(1) == b"\n" else 1
    breaks_wanted = lines + 1 - found
    while position > 0:
        size = min(BLOCK, position)
        position -= size
        file.seek(position)
        block = file.read(size)
        count = block.count(b"\n")
        if count >= breaks_wanted:
            at = len(block)
            for _ in range(breaks_wanted):
                at = block.rindex(b"\n", 0, at)
            return position + at + 1, lines
        breaks_wanted -= count
        found += count
    return 0, found
