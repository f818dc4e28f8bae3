"""How long work reports on itself; the command line shows it, everybody else passes `Silent()`."""

from __future__ import annotations

from typing import Literal, Protocol

Unit = Literal["bytes", "files", "packages", "objects"]


class Progress(Protocol):
    """A list of steps, one after the other; a step that is finished stays visible with its detail."""

    def started(self, step: str) -> None:
        """A step begins; ``step`` is a short phrase for people and names it from here on."""

    def advanced(self, step: str, done: int, total: int, unit: Unit) -> None:
        """``done`` of ``total`` so far; ``total`` may grow while a step runs."""

    def finished(self, step: str, detail: str = "") -> None:
        """The step is done; ``detail`` says what came out (``146 packages``)."""

    def note(self, text: str) -> None:
        """Something worth knowing that is no error."""


class Silent:
    """Shows nothing."""

    def started(self, step: str) -> None:
        """Nothing to show."""

    def advanced(self, step: str, done: int, total: int, unit: Unit) -> None:
        """Nothing to show."""

    def finished(self, step: str, detail: str = "") -> None:
        """Nothing to show."""

    def note(self, text: str) -> None:
        """Nothing to show."""
