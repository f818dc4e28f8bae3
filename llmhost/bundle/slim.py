"""What a machine's GPUs have no use for: the data of ``slim.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SLIM_FILE = Path(__file__).with_name("slim.toml")


@dataclass(frozen=True)
class Slimming:
    """What to leave out, each with the reason."""

    packages: dict[str, str]
    files: dict[str, dict[str, str]]
    """By package: pattern of paths -> reason."""


def read_slimming(capabilities: Sequence[tuple[int, int]], file: Path = SLIM_FILE) -> Slimming:
    """What GPUs of these compute capabilities have no use for; nothing when they are not known."""
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    majors = {major for major, _ in capabilities}
    packages = {e["name"]: e["reason"] for e in table["package"] if _useless(e, majors)}
    files: dict[str, dict[str, str]] = {}
    for entry in table["strip"]:
        if _useless(entry, majors):
            files.setdefault(entry["wheel"], {}).update(dict.fromkeys(entry["files"], entry["reason"]))
    return Slimming(packages, files)


def _useless(entry: dict[str, Any], majors: set[int]) -> bool:
    return bool(majors) and majors <= set(entry["useless_on"])
