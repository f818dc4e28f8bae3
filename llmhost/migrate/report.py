"""What became of every line of the old configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["became", "left out", "by hand"]
"""Translated; without meaning here; to be done by a person."""


@dataclass(frozen=True)
class Line:
    """One line of the old configuration; ``detail`` says what it became, or why it did not."""

    service: str
    source: str
    outcome: Outcome
    detail: str
    node: str = ""
    """The node whose file has it; empty without nodes."""

    @property
    def place(self) -> str:
        """Service and node, as far as there are any: ``embedding on b``."""
        return " on ".join(part for part in (self.service, self.node) if part)


@dataclass
class Draft:
    """A service of llmhost.yaml that is being written, with the report on it."""

    name: str
    keys: dict[str, Any] = field(default_factory=dict)
    args: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    profiles: tuple[str, ...] = ()
    """Services of different ones are alternatives."""
    needs: tuple[str, ...] = ()
    """Services, by their old names, that start before it."""
    node: str = ""
    """The node that its file is of; empty without nodes."""

    def became(self, source: str, detail: str) -> None:
        self.lines.append(Line(self.name, source, "became", detail, self.node))

    def left_out(self, source: str, why: str) -> None:
        self.lines.append(Line(self.name, source, "left out", why, self.node))

    def by_hand(self, source: str, what: str) -> None:
        self.lines.append(Line(self.name, source, "by hand", what, self.node))

    def to_dict(self) -> dict[str, Any]:
        """The entry below ``services:``."""
        rest = {key: value for key, value in (("args", self.args), ("env", self.env)) if value}
        return {**self.keys, **rest}


@dataclass(frozen=True)
class Imported:
    """A configuration and the report on where it comes from."""

    config: dict[str, Any]
    lines: tuple[Line, ...]
