"""Waiting for the driver: a machine is up before its GPUs are."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmhost.errors import SupervisorError
from llmhost.paths import Home
from llmhost.probe import nvml
from llmhost.supervise.planfile import read_plan

GPU_SECONDS = 300.0
"""Seconds to wait for the GPUs of the plan; the machine then starts what it can."""
POLL_SECONDS = 0.5
ATTEMPTS = 3
"""How often one boot starts the unit anew because the driver came after it."""


@dataclass(frozen=True)
class Look:
    """What one look at the driver shows."""

    gpus: int
    forbidden: tuple[str, ...]


def look() -> Look:
    """Ask the driver."""
    return Look(nvml.gpu_count(), nvml.forbidden_devices())


def gpus_needed(home: Home) -> int:
    """How many GPUs the plan in force must see: up to the highest index that it uses; 0 on a CPU."""
    plan = read_plan(home)
    return max((gpu + 1 for program in plan.programs for gpu in program.gpus), default=0) if plan else 0


def await_gpus(
    home: Home,
    say: Callable[[str], None],
    *,
    seconds: float = GPU_SECONDS,
    poll: float = POLL_SECONDS,
    look: Callable[[], Look] = look,
) -> bool:
    """Wait until NVML shows the GPUs of the plan; False when `seconds` are over (and nothing is waited on a CPU).

    systemd lets a unit use the devices that existed when it started. When they appear later, this raises
    SupervisorError, so that systemd starts the unit anew; at most `ATTEMPTS` times for each boot.
    """
    needed = gpus_needed(home)
    deadline = time.monotonic() + seconds
    seen = Look(0, ())
    while needed:
        seen = look()
        if seen.forbidden and _try_again(home):
            raise SupervisorError(
                f"the driver was loaded after this unit started, which may not open {', '.join(seen.forbidden)} yet",
                "systemd starts it again by itself",
            )
        if seen.gpus >= needed:
            break
        if time.monotonic() > deadline:
            say(f"the plan needs {needed} GPUs and the driver shows {seen.gpus}: starting what can be started")
            return False
        time.sleep(poll)
    return True


def _try_again(home: Home) -> bool:
    """Whether this boot has attempts left; takes one."""
    file, boot = home.run / "boot-attempts", _boot_id()
    try:
        known, _, count = file.read_text(encoding="utf-8").partition(" ")
        used = int(count) if known == boot else 0
    except (OSError, ValueError):
        used = 0
    if used >= ATTEMPTS:
        return False
    try:
        file.write_text(f"{boot} {used + 1}", encoding="utf-8")
    except OSError:
        return False
    return True


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return "unknown"
