"""What has been done for a build so far, kept in it: an interrupted setup goes on behind the last whole step."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

JOURNAL = "setup.json"
ENVIRONMENT, PACKAGES = "environment", "packages"
"""The steps that an unfinished build must have behind it to be gone on with: an installer that was killed in the middle
of one of them may have left half a package."""


@dataclass(frozen=True)
class Step:
    """One finished step of a setup."""

    name: str
    detail: str
    """What came out, in words (``146 packages``)."""
    seconds: float


class Journal:
    """The steps of one build, in their order; ``order`` says what is being built, as data that JSON can hold."""

    def __init__(self, build: Path, order: dict[str, Any]) -> None:
        self.file = build / JOURNAL
        self.order = order
        self.steps: list[Step] = []

    @classmethod
    def read(cls, build: Path) -> Journal | None:
        """That of an interrupted setup; None when there is none that can be understood."""
        try:
            data = json.loads((build / JOURNAL).read_bytes())
            journal = cls(build, dict(data["order"]))
            journal.steps = [Step(**step) for step in data["steps"]]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return journal

    def has(self, name: str) -> bool:
        """Is this step finished?"""
        return any(step.name == name for step in self.steps)

    @property
    def worth_keeping(self) -> bool:
        """Everything is downloaded and installed whole."""
        return self.has(ENVIRONMENT) and self.has(PACKAGES)

    def forget(self) -> None:
        """Nothing of it is to be trusted: the next setup starts anew."""
        self.steps.clear()
        self.file.unlink(missing_ok=True)

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time a step, and record it when it ends well; what is put into the list is its detail."""
        began, detail = time.monotonic(), list[str]()
        yield detail
        self.steps.append(Step(name, ", ".join(detail), round(time.monotonic() - began, 1)))
        self._write()

    def _write(self) -> None:
        temporary = self.file.with_name(f".{JOURNAL}")
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump({"order": self.order, "steps": [asdict(step) for step in self.steps]}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.file)
