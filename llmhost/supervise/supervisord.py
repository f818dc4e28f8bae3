"""supervisord, with log files that survive a full disk; started by the path of this file.

As it comes, supervisord 4.3 prints a traceback for every line that it cannot write (into systemd's journal), and a file
whose turn to be rotated comes while the disk is full stays closed, also when there is room again.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from supervisor import loggers
from supervisor.supervisord import main


class RotatingFile(loggers.RotatingFileHandler):  # type: ignore[misc]  # supervisor has no types
    """A log file that loses lines rather than its mind."""

    stream: Any

    def handleError(self) -> None:
        """Called with the error at hand: what cannot be written is lost; `llmhost status` tells why."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError()

    def doRollover(self) -> None:
        """Rotate when it is time; when that fails, go on with the file as it is."""
        try:
            super().doRollover()
        except OSError:
            if self.stream.closed:  # closing wrote the last bytes, or tried to
                with contextlib.suppress(OSError):
                    self.stream = open(self.baseFilename, "ab")  # noqa: SIM115 (kept as supervisor keeps it)

    def emit(self, record: object) -> None:
        """Write a record; a file that could not be opened again is tried again."""
        if self.stream.closed:
            try:
                self.stream = open(self.baseFilename, "ab")  # noqa: SIM115
            except OSError:
                return
        super().emit(record)


if __name__ == "__main__":
    loggers.RotatingFileHandler = RotatingFile
    main()
