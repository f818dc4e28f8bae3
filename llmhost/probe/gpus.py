"""The GPUs of this machine, whoever made them: one reader for each vendor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from llmhost.probe.nvidia import Accelerators, read_nvidia

Reader = Callable[[Path], Accelerators]

READERS: Sequence[Reader] = (read_nvidia,)
"""Each returns nothing where its vendor has nothing here."""


def read_gpus(root: Path = Path("/"), readers: Sequence[Reader] = READERS) -> Accelerators:
    """What the first vendor shows that has a GPU, or at least a driver or a problem, on this machine."""
    found = [reader(root) for reader in readers]
    nothing = Accelerators()
    return next((f for f in found if f.gpus), next((f for f in found if f != nothing), nothing))
