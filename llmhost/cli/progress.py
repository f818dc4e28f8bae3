"""Showing long work: moving bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llmhost.cli import console
from llmhost.env.progress import Progress, Unit

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """A progress that the user sees on stderr."""
    if not console.stderr_is_terminal():
        yield PlainProgress()
        return
    with TerminalProgress() as progress:
        yield progress


MINUTE = 60.0


class Estimate:
    """How long a step still takes, if it goes on as it went since this run began."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[float, int]] = {}

    def left(self, step: str, done: int, total: int) -> str:
        """``, about 3:20 left``; empty until there is something to reckon with."""
        began, had = self._first.setdefault(step, (time.monotonic(), done))
        seconds, came = time.monotonic() - began, done - had
        if came <= 0:
            return ""
        left = round((total - done) / came * seconds)
        return f", about {left // 60}:{left % 60:02} left"


class PlainProgress:
    """One line when a step begins and one when it ends, for logs and pipes."""

    def __init__(self) -> None:
        self._began: dict[str, float] = {}
        self._told: dict[str, float] = {}
        self._estimate = Estimate()

    def started(self, step: str) -> None:
        self._began[step] = time.monotonic()
        console.remark(f"==> {step}")

    def advanced(self, step: str, done: int, total: int, unit: Unit) -> None:
        """Without a terminal nobody watches a bar; of what takes many minutes a line a minute says that it goes on."""
        if unit != "objects":
            return
        left = self._estimate.left(step, done, total)
        now = time.monotonic()
        if now - self._told.setdefault(step, now) >= MINUTE:
            self._told[step] = now
            console.remark(f"    {done}/{total} {unit}{left}")

    def finished(self, step: str, detail: str = "") -> None:
        seconds = time.monotonic() - self._began.pop(step, time.monotonic())
        console.remark(f"    {step}: {detail or 'done'} ({seconds:.1f} s)")

    def note(self, text: str) -> None:
        console.remark(f"    {text}")


class TerminalProgress:
    """A line for each step with its time, and a bar where there is something to count."""

    def __init__(self) -> None:
        self._progress = _rich_progress()
        self._tasks: dict[str, TaskID] = {}
        self._transfers: dict[str, tuple[float, int]] = {}
        self._estimate = Estimate()

    def __enter__(self) -> TerminalProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def started(self, step: str) -> None:
        self._tasks[step] = self._progress.add_task(step, total=None, detail="")

    def advanced(self, step: str, done: int, total: int, unit: Unit) -> None:
        left = self._estimate.left(step, done, total) if unit == "objects" else ""
        counted = self._transfer(step, done, total) if unit == "bytes" else f"{done}/{total} {unit}{left}"
        self._progress.update(self._task(step), completed=done, total=total, detail=counted)

    def _transfer(self, step: str, done: int, total: int) -> str:
        """Bytes, rate since this run began (what was there before does not count), time left."""
        began, had = self._transfers.setdefault(step, (time.monotonic(), done))
        seconds, came = time.monotonic() - began, done - had
        text = f"{done / 1e6:.0f}/{total / 1e6:.0f} MB"
        if seconds < 1 or came <= 0:
            return text
        left = round((total - done) / came * seconds)
        return f"{text}, {came / seconds / 1e6:.1f} MB/s, {left // 60}:{left % 60:02} left"

    def finished(self, step: str, detail: str = "") -> None:
        self._progress.update(self._task(step), completed=1, total=1, detail=detail or "done")

    def note(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False)

    def _task(self, step: str) -> TaskID:
        if step not in self._tasks:
            self.started(step)
        return self._tasks[step]


def _rich_progress() -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    return Progress(
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[detail]}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
