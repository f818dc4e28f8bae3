"""Sizes and soundness of safetensors files, from their headers only (no weights are read).

The format: 8 bytes little-endian header length, that many bytes of JSON (name -> dtype, shape, data_offsets), then the
tensors back to back up to the end of the file (https://huggingface.co/docs/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmhost.errors import ModelError

MAX_HEADER = 100_000_000
"""The reference implementation refuses longer headers."""
LFS_MAGIC = b"version https://git-lfs"
AGAIN = "fetch this file again: the copy is incomplete or damaged"


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file: its type as the format calls it (``BF16``), how many numbers it holds, and its bytes."""

    dtype: str
    numbers: int
    size: int


def read_tensors(file: Path) -> Mapping[str, Tensor]:
    """All tensors in the file by name. Raises ModelError when it is cut short, damaged or a git-lfs pointer."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(len(LFS_MAGIC))
            refuse_lfs_pointer(file, start)
            length = int.from_bytes(start[:8], "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise _damaged(file, size, f"its header says {length} bytes")
            stream.seek(8)
            header = json.loads(stream.read(length))
    except OSError as e:
        raise ModelError(f"cannot read {file}: {e.strerror}", "llmhost must be able to read the model's files") from e
    except ValueError as e:
        raise ModelError(f"{file} is not a safetensors file: its header is not JSON", AGAIN) from e
    return _checked_data(file, size - 8 - length, header)


def _checked_data(file: Path, data: int, header: Any) -> Mapping[str, Tensor]:
    if not isinstance(header, dict):
        raise ModelError(f"{file} is not a safetensors file: its header is not a mapping", AGAIN)
    try:
        described = {name: t for name, t in header.items() if name != "__metadata__"}
        tensors = {name: _tensor(t) for name, t in described.items()}
        expected = max((int(t["data_offsets"][1]) for t in described.values()), default=0)
    except (TypeError, KeyError, IndexError, ValueError) as e:
        raise ModelError(f"{file} is not a safetensors file: its header lacks offsets", AGAIN) from e
    if expected != data:
        raise _damaged(file, data, f"its header describes {expected}")
    return tensors


def _tensor(entry: Mapping[str, Any]) -> Tensor:
    start, end = (int(offset) for offset in entry["data_offsets"][:2])
    return Tensor(str(entry.get("dtype")), math.prod(int(n) for n in entry.get("shape", ())), end - start)


def _damaged(file: Path, size: int, expectation: str) -> ModelError:
    what = "is empty" if size == 0 else f"is cut short or damaged: it holds {size} bytes, but {expectation}"
    return ModelError(f"{file} {what}", AGAIN)


def refuse_lfs_pointer(file: Path, start: bytes) -> None:
    """Raise ModelError when ``start`` begins a git-lfs pointer: a clone made without git-lfs has no weights."""
    if start.startswith(LFS_MAGIC):
        raise ModelError(
            f"{file} is a git-lfs pointer, not the weights",
            "run `git lfs pull` in the clone, or download the files from the hub",
        )
