"""Which processes hold memory of a GPU, asked of the driver: memory can come back later than a process ends."""

from __future__ import annotations

import os
import re

NVIDIA_SMI = "nvidia-smi"


def question(program: str, gpus: list[int]) -> list[str]:
    """The command that lists the processes on these GPUs, one ``pid, MiB`` a line."""
    indices = ",".join(map(str, gpus))
    return [program, "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits", "-i", indices]


def holders(answer: bytes) -> dict[int, int | None]:
    """MiB of GPU memory by process; None where the driver does not say how much."""
    found = re.findall(r"^\s*(\d+)\s*,\s*(\d+|\[.*\])\s*$", os.fsdecode(answer), re.M)
    return {int(pid): int(used) if used.isdigit() else None for pid, used in found}
