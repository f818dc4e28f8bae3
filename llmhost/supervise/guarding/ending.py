"""How a life of an engine ends."""

from __future__ import annotations

from llmhost.supervise.guarding.words import plain

STOPPED, FAILED, CRASHED, BROKEN, HUNG = "stopped", "failed", "crashed", "broken", "hung"
"""Somebody wants it; trying again is pointless; it ended by itself; a part of it did; it has to be killed."""
LEFT, AGAIN = "left", "again"
"""Of a group: one of its parts was stopped on purpose; this life is over for all parts, and another one follows."""


class Ending(Exception):
    """`explained`: the cause is one that a restart can mend; what nobody knows is tried less often."""

    def __init__(self, how: str, error: str | None = None, explained: bool = True) -> None:
        super().__init__(error)
        self.how = how
        self.error = plain(error) if error else None
        self.explained = explained
