"""Several logs as one: merged by time, and of each only what was asked for."""

from __future__ import annotations

import heapq
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from llmhost.supervise.loglines import LEVELS, Line, read_lines
from llmhost.supervise.logs import read_logs

CONTEXT = 200
"""Lines before the last ones that are read as well: a traceback has the time and the level of what it follows."""


@dataclass(frozen=True)
class Selection:
    """What is shown; everything must be true of a line."""

    lines: int | None = 100
    """Last lines of each log that are shown of what is there already; None: all."""
    since: float | None = None
    """Unix time."""
    level: str = LEVELS[0]
    """This serious at least."""
    grep: re.Pattern[str] | None = None

    @property
    def everything(self) -> bool:
        """No line is left out for what it says: then the end of a file is enough to read."""
        return self.since is None and self.level == LEVELS[0] and self.grep is None

    def takes(self, line: Line) -> bool:
        """Whether a line is shown."""
        if self.since is not None and (line.time is None or line.time < self.since):
            return False
        if LEVELS.index(line.level) < LEVELS.index(self.level):
            return False
        return self.grep is None or bool(self.grep.search(line.text))


def view_logs(
    files: Mapping[str, Path],
    selection: Selection,
    follow: bool = False,
    ansi: bool = False,
    until: Callable[[], bool] = lambda: False,
) -> Iterator[Line]:
    """Yield the selected lines in the order of their times, then, with `follow`, new ones as they come.

    Lines of one program stay in their order, whatever their times are; what has no time goes with the line before it.
    `until` is that of `llmhost.supervise.logs.read_logs`.
    """
    last: dict[str, Line] = {}
    tail = selection.lines + CONTEXT if selection.everything and selection.lines is not None else None
    first = True
    for batch in read_logs(files, tail, follow, ansi, selection.since, until):
        picked = [_pick(program, texts, selection, last) for program, texts in batch.items()]
        if first and selection.lines is not None:
            picked = [iter(deque(lines, selection.lines)) for lines in picked]
        first = False
        yield from (line for _, line in heapq.merge(*map(_keyed, picked), key=lambda pair: pair[0]))


def _pick(program: str, texts: Iterable[str], selection: Selection, last: dict[str, Line]) -> Iterator[Line]:
    for line in read_lines(program, texts, datetime.now(), last.get(program)):
        last[program] = line
        if selection.takes(line):
            yield line


def _keyed(lines: Iterable[Line]) -> Iterator[tuple[float, Line]]:
    """With a time that never goes back."""
    latest = float("-inf")
    for line in lines:
        latest = max(latest, line.time if line.time is not None else latest)
        yield latest, line
