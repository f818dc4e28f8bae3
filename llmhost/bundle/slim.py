"""What a machine's GPUs have no use for: the data of ``slim.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Sequence
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


def read_slimming(
    capabilities: Sequence[tuple[int, int]],
    *,
    toolkit: bool = False,
    there: Collection[str] = (),
    file: Path = SLIM_FILE,
) -> Slimming:
    """What GPUs of these compute capabilities have no use for; nothing when they are not known.

    ``toolkit``: the machine has a complete CUDA toolkit; ``there``: packages that the engine finds on it.
    """
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    majors = {major for major, _ in capabilities}

    def counts(entry: dict[str, Any]) -> bool:
        useless = bool(majors) and majors <= set(entry["useless_on"])
        absent = entry.get("when_there", False) and entry["name"] not in there
        return useless and not absent and (toolkit or not entry.get("with_toolkit", False))

    packages = {e["name"]: e["reason"] for e in table["package"] if counts(e)}
    files: dict[str, dict[str, str]] = {}
    for entry in filter(counts, table["strip"]):
        files.setdefault(entry["wheel"], {}).update(dict.fromkeys(entry["files"], entry["reason"]))
    return Slimming(packages, files)
