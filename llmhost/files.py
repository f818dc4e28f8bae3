"""A file that is to be written: pure data between the renderers and the writer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RenderedFile:
    """One file below the home: ``path`` is relative to it, ``mode`` its permission bits."""

    path: str
    text: str
    mode: int = 0o600
