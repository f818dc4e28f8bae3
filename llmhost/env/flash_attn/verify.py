"""A compiled flash-attn counts when it computes attention on the GPUs of this machine."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmhost.env.flash_attn.causes import find_cause
from llmhost.env.python import script_command
from llmhost.env.uv import Uv
from llmhost.errors import BadWheelError, CommandError, EngineError
from llmhost.facts import Gpu
from llmhost.run import capture

VERIFY = "check flash-attn on the GPU"
SCRIPT = Path(__file__).with_name("verify_on_gpu.py")
LARGEST_ERROR = 1e-2
"""Relative, against 32 bits; seen on an H200: 2e-3, which is what bfloat16 has."""
SECONDS = 600
GPU_UNUSABLE = 3
"""How SCRIPT ends where torch alone cannot compute on the GPU."""
OUT_OF_MEMORY = r"OutOfMemoryError|out of memory|_ALLOC_FAILED"
DOES_NOT_LOAD = (
    r"undefined symbol|cannot open shared object|No module named 'flash_attn|no kernel image is available|"
    r"ImportError(?!.*No module named)"
)
"""What only another wheel mends; anything else (a fault of the GPU, a crash) may be different the next time."""
ENDED_FROM_OUTSIDE = (-signal.SIGHUP, -signal.SIGINT, -signal.SIGKILL, -signal.SIGTERM)


@dataclass(frozen=True)
class Verified:
    """What the check found."""

    version: str
    errors: Mapping[str, float]
    """Relative error of forward, causal, gqa, varlen and backward."""

    @property
    def error(self) -> float:
        """The largest."""
        return max(self.errors.values())


def verify(python: Path, folder: Path | None, gpus: Sequence[Gpu], uv: Uv, devices: Sequence[str] = ()) -> Verified:
    """Compare flash-attn with attention in 32 bits; ``folder`` is where it is unpacked, None: installed.

    ``devices`` are torch's names, by default the emptiest GPU of each sort. Raises BadWheelError when it cannot be
    imported, does not run, or errs by LARGEST_ERROR or more, and EngineError when that could not be found out.
    """
    uv.progress.started(VERIFY)
    env = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", **({"PYTHONPATH": str(folder)} if folder else {})}
    if not devices and gpus:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(gpu.uuid or str(gpu.index) for gpu in _one_of_each(gpus))
    try:
        done = capture(script_command(python, SCRIPT, *devices), env=env, timeout=SECONDS, check=False, cwd=Path("/"))
    except CommandError as e:
        raise EngineError(f"flash-attn cannot be checked: {e.message}", e.hint) from e
    for line in (*done.stdout.splitlines(), *done.stderr.splitlines()):
        uv.log.write(line)
    if done.returncode != 0:
        raise _failure(done.stderr.splitlines(), done.returncode, uv)
    verified = _read(done.stdout, uv)
    uv.progress.finished(VERIFY, f"largest relative error {verified.error:.1e}")
    return verified


def _read(output: str, uv: Uv) -> Verified:
    try:
        data = json.loads(output.strip().splitlines()[-1])
        verified = Verified(str(data["version"]), {str(k): float(v) for k, v in data["errors"].items()})
        if not verified.errors:
            raise ValueError("no errors")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as e:
        raise EngineError("the check of flash-attn printed nothing usable", f"the log is {uv.log.path}") from e
    wrong = [f"{name} {error:.1e}" for name, error in verified.errors.items() if not error < LARGEST_ERROR]
    if wrong:
        raise BadWheelError(
            f"flash-attn computes wrongly on this GPU: relative error of {', '.join(wrong)}; at most"
            f" {LARGEST_ERROR:.0e} is right",
            f"another version may do (engine.flash_attn: VERSION); the log is {uv.log.path}",
        )
    return verified


def _one_of_each(gpus: Sequence[Gpu]) -> list[Gpu]:
    """The GPU with most free memory of each compute capability."""
    best: dict[tuple[int, int] | None, Gpu] = {}
    for gpu in sorted(gpus, key=lambda g: g.free):
        best[gpu.capability] = gpu
    return sorted(best.values(), key=lambda g: g.index)


def _failure(lines: Sequence[str], status: int, uv: Uv) -> EngineError:
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    if re.search(OUT_OF_MEMORY, "\n".join(lines)):
        return EngineError(
            "flash-attn cannot be checked: the memory of the GPU is full",
            "stop services (`llmhost stop`) and try again",
        )
    if status == GPU_UNUSABLE:
        return EngineError(
            f"flash-attn cannot be checked: the engine's torch cannot compute on the GPU: {last}",
            f"see `nvidia-smi` and `llmhost facts` for the driver and who uses the GPU; the log is {uv.log.path}",
        )
    if status in ENDED_FROM_OUTSIDE:
        return EngineError(
            f"flash-attn cannot be checked: its check was ended by {signal.Signals(-status).name}",
            f"try again; when it was SIGKILL, the machine may be out of memory; the log is {uv.log.path}",
        )
    cause = find_cause([line for line in lines if "undefined symbol" in line or "No module named" in line], 1)
    told = cause.line if cause else last
    remedy = f"{cause.remedy}; " if cause else ""
    ended = f" (signal {-status})" if status < 0 else ""
    message = f"flash-attn does not run in the engine{ended}: {told}"
    blamed = BadWheelError if re.search(DOES_NOT_LOAD, "\n".join(lines)) else EngineError
    return blamed(message, f"{remedy}the log is {uv.log.path}")
