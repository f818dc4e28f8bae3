"""The log of an installation."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self


class SetupLog:
    """A file that only its user can read; the log of the run before is kept beside it as ``….1``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists():
            os.replace(path, path.with_name(f"{path.name}.1"))
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(handle, "w", encoding="utf-8", errors="replace", buffering=1)

    def write(self, line: str) -> None:
        """Add a line with the time of day; a full disk costs the line, not the setup."""
        with suppress(OSError):
            self._file.write(f"{time.strftime('%H:%M:%S')} {line}\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            self.write(f"ended by {kind.__name__ if kind else ''}: {error}")
        with suppress(OSError):
            self._file.close()
