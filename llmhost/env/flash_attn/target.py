"""What flash-attn is built for: an engine's interpreter and its torch, as the interpreter itself says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmhost.env.python import script_command
from llmhost.errors import CommandError, EngineError
from llmhost.run import capture

SCRIPT = Path(__file__).with_name("describe_engine.py")
SECONDS = 300
"""Longest time to import torch; seen: 5 s, 40 s on a cold and slow disk."""


@dataclass(frozen=True)
class Target:
    """An engine that a compiled package must fit."""

    python_version: str
    """``3.12.3``"""
    python_tag: str
    """``cp312``, as in the name of a wheel."""
    machine: str
    """``x86_64``"""
    headers: bool
    """Python.h is there."""
    torch: str
    """Version of torch without its local part; empty when it cannot be imported."""
    cuda: tuple[int, int] | None
    """``torch.version.cuda``; None for a torch without CUDA."""
    cxx11_abi: bool
    """The C++ ABI that torch was compiled with (``torch.compiled_with_cxx11_abi()``)."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Which of the packages that a build needs are installed, with versions."""
    bundled: tuple[str, ...] = ()
    """Kernels of flash-attention that the installed vLLM brings itself: FA2, FA3, FA4."""
    math_headers: str = ""
    """A directory with cusparse.h and its like that came with torch, for toolkits that lack them."""


def read_target(python: str | Path) -> Target:
    """Ask the interpreter of an engine. Raises EngineError when its torch cannot be imported."""
    try:
        done = capture(script_command(python, SCRIPT), timeout=SECONDS, check=False)
        data: dict[str, Any] = json.loads((done.stdout.strip().splitlines() or [""])[-1])
    except CommandError as e:
        raise EngineError(f"cannot ask the engine for its torch: {e.message}", e.hint) from e
    except ValueError as e:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise EngineError(f"torch cannot be imported in {python}: {last}", "build the engine anew") from e
    major, _, minor = (data["cuda"] or "").partition(".")
    cuda = (int(major), int(minor.partition(".")[0] or 0)) if major else None
    return Target(**{**data, "cuda": cuda, "bundled": tuple(data["bundled"])})
