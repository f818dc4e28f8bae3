"""A progress that remembers."""

from __future__ import annotations


class Recorder:
    """Keeps what a setup reports."""

    def __init__(self) -> None:
        self.events: list[tuple[str, ...]] = []
        self.notes: list[str] = []

    def started(self, step: str) -> None:
        self.events.append(("started", step))

    def advanced(self, step: str, done: int, total: int, unit: str) -> None:
        self.events.append(("advanced", step, str(done), str(total), unit))

    def finished(self, step: str, detail: str = "") -> None:
        self.events.append(("finished", step, detail))

    def note(self, text: str) -> None:
        self.notes.append(text)
