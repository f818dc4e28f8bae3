"""Plan -> files. Pure: the same plan gives the same bytes; `llmhost.writer` brings them to disk."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RenderedFile:
    """One file below the home: ``path`` is relative to it, ``mode`` its permission bits."""

    path: str
    text: str
    mode: int = 0o600
