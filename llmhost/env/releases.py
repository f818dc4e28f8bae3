"""Which vLLM is installed how: the data of ``releases.toml``."""

from __future__ import annotations

import platform
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmhost.errors import EngineError
from llmhost.facts import Device

RELEASES_FILE = Path(__file__).with_name("releases.toml")


@dataclass(frozen=True)
class Release:
    """One installable build of vLLM; see the head of ``releases.toml`` for the fields."""

    vllm: str
    device: Device
    distribution: str
    torch: str
    python: tuple[tuple[int, ...], tuple[int, ...]]
    machines: tuple[str, ...]
    exclude: tuple[str, ...]
    disk_bytes: int
    tested: bool = True
    """False for a version that the operator pinned and the table does not have."""

    @property
    def requirement(self) -> str:
        """What the installer is asked for."""
        return f"{self.distribution}=={self.vllm}"

    @property
    def torch_backend(self) -> str:
        """The family of torch builds (``cpu``): the local part of its version."""
        return self.torch.partition("+")[2]

    @property
    def python_range(self) -> str:
        """The supported Python versions as a version specifier."""
        (low_major, low), (high_major, high) = self.python
        return f">={low_major}.{low},<{high_major}.{high + 1}"

    def supports(self, python: tuple[int, ...]) -> bool:
        """Does it run on this (major, minor) version of Python?"""
        return self.python[0] <= python[:2] <= self.python[1]


def read_releases(file: Path = RELEASES_FILE) -> tuple[Release, ...]:
    """All releases of the table, in its order."""
    return tuple(_release(entry) for entry in tomllib.loads(file.read_text(encoding="utf-8"))["release"])


def _release(entry: dict[str, Any]) -> Release:
    oldest, newest = (tuple(int(part) for part in text.split(".")) for text in entry["python"])
    lists = {key: tuple(entry[key]) for key in ("machines", "exclude")}
    return Release(**{**entry, **lists, "python": (oldest, newest)})


def choose_release(
    device: Device, vllm: str | None, releases: tuple[Release, ...], machine: str = platform.machine()
) -> Release:
    """The release for a device: the pinned one, else the newest tested one.

    A pinned version that is not in the table is installed like the newest one and marked as not ``tested``.
    Raises EngineError when this kind of machine has no build.
    """
    known = [release for release in releases if release.device == device]
    fitting = [release for release in known if machine in release.machines]
    if not fitting:
        machines = ", ".join(sorted({m for release in known for m in release.machines})) or "no machine"
        raise EngineError(f"there is no vLLM build for {device} on {machine} machines", f"builds exist for {machines}")
    if vllm is None:
        return fitting[0]
    pinned = next((release for release in fitting if release.vllm == vllm), None)
    return pinned or replace(fitting[0], vllm=vllm, tested=False)
