"""The import gate: an environment counts as an engine when its interpreter imports what an engine imports."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmhost.env.log import SetupLog
from llmhost.env.python import script_command
from llmhost.errors import CommandError, EngineError
from llmhost.facts import Device
from llmhost.run import Completed, capture

TIMEOUT = 600
"""Seconds; seen: 9 s with compiled bytecode, 30 s without on one core, several times that on a slow disk."""

SCRIPT = Path(__file__).with_name("engine_check.py")
ENVIRONMENT = {"PYTHONDONTWRITEBYTECODE": ""}
"""What is imported here for the first time must stay compiled, whatever the user's shell says."""


@dataclass(frozen=True)
class GateReport:
    """What the new interpreter said of itself."""

    python: str
    site_packages: Path
    device: Device
    packages: dict[str, str]
    metadata: tuple[str, ...]
    """Paths of the metadata of those packages."""


def import_gate(python: Path, cwd: Path, log: SetupLog, more: Mapping[str, str] | None = None) -> GateReport:
    """Import torch, transformers and vLLM in the environment; raises EngineError with the reason when that fails.

    ``more`` is added to its environment; ``cwd`` is a directory with nothing that could be imported.
    """
    log.write("importing torch, transformers and vllm")
    try:
        environment = {**ENVIRONMENT, **(more or {})}
        done = capture(script_command(python, SCRIPT), env=environment, timeout=TIMEOUT, check=False, cwd=cwd)
    except CommandError as e:
        raise EngineError(f"the new engine's interpreter cannot be used: {e.message}", e.hint) from e
    for line in (*done.stdout.splitlines(), *done.stderr.splitlines()):
        log.write(line)
    if done.returncode != 0:
        raise _refusal(done, log)
    try:
        report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return GateReport(
            report["python"],
            Path(report["site_packages"]),
            report["device"],
            dict(report["packages"]),
            tuple(report["metadata"]),
        )
    except (ValueError, KeyError, IndexError, TypeError) as e:
        raise EngineError("the new engine's import check printed nothing usable", f"see {log.path}") from e


def _refusal(done: Completed, log: SetupLog) -> EngineError:
    reason = _reason(done)
    remedy = next((text for pattern, text in REMEDIES if re.search(pattern, reason)), "see the traceback")
    return EngineError(f"the new engine cannot import vLLM: {reason}", f"{remedy}; the log is {log.path}")


def _reason(done: Completed) -> str:
    if done.returncode < 0:
        return f"ended by {signal.Signals(-done.returncode).name}"
    lines = [line for line in done.stderr.splitlines() if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Exit)\b", line)]
    return (lines or done.stderr.strip().splitlines() or ["no output"])[-1]


REMEDIES = (
    (r"SIGILL", "this processor lacks instructions that the build needs (AVX2)"),
    (r"SIGKILL", "the machine ran out of memory: free some"),
    (
        r"undefined symbol",
        "packages of different builds are mixed: see the constraints and indexes in pip's configuration",
    ),
    (r"cannot open shared object file", "install the system library that it names"),
    (r"CXXABI|GLIBC", "this operating system is older than the build needs"),
    (r"No module named", "the index served an incomplete set: check the mirror"),
)
