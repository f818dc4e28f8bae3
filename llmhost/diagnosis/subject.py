"""What the checks look at: everything that was read, at one moment."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llmhost.config import Config, Service
from llmhost.facts import EngineFacts, Interpreter, MachineFacts

UNLIMITED = 2**63 - 1


@dataclass(frozen=True)
class Limits:
    """Resource limits of this process, which what it starts inherits (setrlimit(2)); `UNLIMITED` without one."""

    files: int
    """Open files, the hard limit: supervisord raises the soft one by itself."""
    locked: int
    """Bytes of memory that may be locked, the hard limit."""
    processes: int
    """Processes and threads of the user."""
    watchers: int = UNLIMITED
    """Instances of inotify(7) for all processes of the user together."""

    @classmethod
    def read(cls) -> Limits:
        """Of this process, and of its user."""
        files, locked = _hard(resource.RLIMIT_NOFILE), _hard(resource.RLIMIT_MEMLOCK)
        return cls(files, locked, _hard(resource.RLIMIT_NPROC), _watchers())


def _watchers() -> int:
    try:
        return int(Path("/proc/sys/fs/inotify/max_user_instances").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return UNLIMITED


def _hard(limit: int) -> int:
    hard = resource.getrlimit(limit)[1]
    return UNLIMITED if hard == resource.RLIM_INFINITY else hard


@dataclass(frozen=True)
class Subject:
    """A machine, and what is to run on it."""

    facts: MachineFacts
    limits: Limits
    config: Config = field(default_factory=Config)
    engine: EngineFacts | None = None
    """None while it is not built."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Versions that the engine's import check saw: torch, transformers, vllm."""
    python: Interpreter | None = None
    """The engine's interpreter."""
    infiniband: bool = False
    """The machine has such a network."""

    @property
    def on_gpus(self) -> bool:
        """The engine computes on GPUs, or is to."""
        return self.engine.device == "cuda" if self.engine else self.config.engine.device == "cuda"

    @property
    def torch_cuda(self) -> tuple[int, int] | None:
        """The CUDA version that the engine's torch is built for."""
        return cuda_of(self.packages.get("torch", ""))

    @property
    def split(self) -> dict[str, int]:
        """Services whose engines are several processes, and how many each engine is."""
        found = {name: _processes(service) for name, service in self.config.services.items() if service.replicas}
        return {name: count for name, count in found.items() if count > 1}


def has_infiniband() -> bool:
    """Whether NCCL would find InfiniBand (or RoCE) adapters."""
    return Path("/dev/infiniband").is_dir() and bool(os.listdir("/dev/infiniband"))


def cuda_of(torch: str) -> tuple[int, int] | None:
    """(13, 0) of ``2.11.0+cu130``."""
    local = torch.partition("+")[2]
    digits = local.removeprefix("cu")
    return (int(digits[:-1]), int(digits[-1])) if local.startswith("cu") and digits[1:].isdigit() else None


def _processes(service: Service) -> int:
    """Processes of one engine, as far as llmhost.yaml says it."""
    args = {key.replace("-", "_"): value for key, value in service.args.items()}
    sizes = [args.get(f"{kind}_parallel_size") for kind in ("tensor", "pipeline", "data")]
    count = 1
    for size in sizes:
        count *= size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else 1
    asked = service.gpus
    return max(count, len(asked) if isinstance(asked, list) else asked if isinstance(asked, int) else 1)
