"""Files -> pieces: one compressed tar stream, cut where a piece is full."""

from __future__ import annotations

import hashlib
import lzma
import os
import tarfile
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

BLOCK = 48 * 2**20
"""Bytes that are compressed together: one block for each core at a time."""

MEMORY = 3 * 2**30
"""Bytes for compressing; at level 9 a block takes 0.7 GiB."""

PER_LEVEL = {6: 100 * 2**20, 7: 190 * 2**20, 8: 370 * 2**20, 9: 700 * 2**20}


class Pieces:
    """A file of limited length after the other: ``bundle.000``, ``bundle.001`` …

    The first one is by ``reserve`` bytes smaller than ``limit``, so that small files can be sent along with it.
    """

    def __init__(self, directory: Path, limit: int, stream: str, reserve: int = 0) -> None:
        self.reserve = reserve if reserve < limit // 2 else 0
        self.directory, self.limit, self.stream = directory, limit, stream
        self.made: list[dict[str, Any]] = []
        self._file: Any = None
        self._digest = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        while rest:
            if self._file is None:
                self._open()
            limit = self.limit - (0 if self.made else self.reserve)
            part = rest[: limit - self._size]
            self._file.write(part)
            self._digest.update(part)
            self._size += len(part)
            rest = rest[len(part) :]
            if self._size == limit:
                self._close()
        return len(data)

    def _open(self) -> None:
        self._file = (self.directory / f"{self.stream}.{len(self.made):03}").open("wb")
        self._digest, self._size = hashlib.sha256(), 0

    def _close(self) -> None:
        self._file.close()
        name = Path(self._file.name).name
        entry = {"name": name, "stream": self.stream, "size": self._size, "sha256": self._digest.hexdigest()}
        self.made.append(entry)
        self._file = None

    def finish(self) -> list[dict[str, Any]]:
        """Name, size and SHA-256 of every piece."""
        if self._file is not None:
            self._close()
        return self.made

    def abandon(self) -> None:
        """Close what is open; the pieces are of no use."""
        if self._file is not None:
            self._file.close()


class Compressor:
    """Writes .xz streams, one for each block, compressed on all cores (XZ allows streams to follow each other)."""

    def __init__(self, out: Pieces, level: int) -> None:
        self.out, self.level = out, level
        threads = max(1, min(len(os.sched_getaffinity(0)), MEMORY // PER_LEVEL.get(level, PER_LEVEL[6])))
        self._pool = ThreadPoolExecutor(threads)
        self._waiting: deque[Future[bytes]] = deque()
        self._most = threads + 1
        self._block = bytearray()

    def write(self, data: bytes) -> int:
        self._block += data
        if len(self._block) >= BLOCK:
            self._submit()
        return len(data)

    def _submit(self) -> None:
        block, self._block = bytes(self._block), bytearray()
        self._waiting.append(self._pool.submit(lzma.compress, block, preset=self.level))
        while len(self._waiting) >= self._most:
            self.out.write(self._waiting.popleft().result())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                if self._block:
                    self._submit()
                while self._waiting:
                    self.out.write(self._waiting.popleft().result())
        finally:
            self._pool.shutdown(cancel_futures=True)


def pack_pieces(
    root: Path, paths: Sequence[str], pieces: Pieces, level: int | None, on_bytes: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Write the files ``paths`` below ``root`` as one stream of pieces; name, size and SHA-256 of each.

    ``level`` is that of xz, None for a plain tar (what is compressed already, and models, gain nothing). ``on_bytes``
    hears how many bytes went in. Raises OSError.
    """
    try:
        with ExitStack() as stack:
            out: Any = pieces if level is None else stack.enter_context(Compressor(pieces, level))
            tar = stack.enter_context(tarfile.open(fileobj=out, mode="w|", bufsize=2**20))
            for path in paths:
                info = tarfile.TarInfo(path)
                info.size = (root / path).stat().st_size
                with (root / path).open("rb") as file:
                    tar.addfile(info, file)
                on_bytes(info.size)
        return pieces.finish()
    finally:
        pieces.abandon()
