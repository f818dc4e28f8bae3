"""A finding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """What one look at one thing showed."""

    name: str
    """What was looked at, in a word: ``driver``, ``disk``."""
    status: Status
    """``fail``: something will not work; ``warn``: it may not, or not as well."""
    message: str
    remedy: str = ""
    """What to do about it; never empty unless it is ok."""


def ok(name: str, message: str) -> Check:
    return Check(name, "ok", message)


def warn(name: str, message: str, remedy: str) -> Check:
    return Check(name, "warn", message, remedy)


def fail(name: str, message: str, remedy: str) -> Check:
    return Check(name, "fail", message, remedy)
