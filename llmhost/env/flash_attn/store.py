"""Wheels that were compiled once, kept for the next engine and the next machine.

``$LLMHOST_HOME/wheels/<key>/`` holds a wheel and ``wheel.json``, which says what it fits, its SHA-256, and what the
check on a GPU measured; it is written last. Such a directory can be copied to another home as it is.
``wheels/sources/`` holds sources.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llmhost.env.flash_attn.plan import WheelSpec
from llmhost.errors import EngineError

FORMAT = 1
RECORD = "wheel.json"
SOURCES = "sources"


@dataclass(frozen=True)
class KeptWheel:
    """A wheel in the store; what it fits stands in the same words as in `WheelSpec` and its target."""

    version: str
    python_tag: str
    torch: str
    cuda: tuple[int, int]
    cxx11_abi: bool
    archs: tuple[int, ...]
    machine: str
    file: str
    """Its name, beside the record."""
    sha256: str
    seconds: float
    """That compiling it took."""
    folder: Path
    verified: Mapping[str, float] | None
    """Relative errors that its check on a GPU measured, by case. None: it awaits its check, as one does that an
    older llmhost kept: that came before the check. Empty: it was checked, and nobody wrote down how."""

    @property
    def path(self) -> Path:
        return self.folder / self.file

    @property
    def record(self) -> Path:
        """What says of it what stands here; the two belong together."""
        return self.folder / RECORD

    def fits(self, wanted: WheelSpec) -> bool:
        """Same version, Python, torch, CUDA, ABI and machine; it may know more GPUs than are wanted."""
        target = wanted.target
        ours = (self.version, self.python_tag, self.torch, self.cuda, self.cxx11_abi, self.machine)
        return ours == (
            wanted.version, target.python_tag, target.torch, target.cuda, target.cxx11_abi, target.machine
        ) and set(wanted.archs) <= set(self.archs)  # fmt: skip


def kept_wheels(store: Path) -> tuple[KeptWheel, ...]:
    """All that are in the store; a directory without a record that can be read holds none."""
    return tuple(filter(None, (_read(record) for record in sorted(store.glob(f"*/{RECORD}")))))


def find_wheel(store: Path, wanted: WheelSpec, *, unverified: bool = False) -> KeptWheel | None:
    """A kept wheel that fits, checked against its SHA-256. Raises EngineError for one that was altered.

    One that awaits its check on a GPU counts with ``unverified`` only, which is for who makes that check, and where no
    other fits.
    """
    fitting = [wheel for wheel in kept_wheels(store) if wheel.fits(wanted)]
    allowed = [wheel for wheel in fitting if unverified or wheel.verified is not None]
    if not allowed:
        return None
    found = min(allowed, key=lambda wheel: wheel.verified is None)
    actual = file_sha256(found.path) if found.path.is_file() else "none: the file is missing"
    if actual != found.sha256:
        raise EngineError(
            f"the kept wheel {found.path} is not what was put there: its SHA-256 is {actual[:24]},"
            f" not {found.sha256[:24]}",
            f"copy it again from where it came from, or remove {found.folder}: it is compiled anew then",
        )
    return found


def keep_wheel(store: Path, wheel: Path, spec: WheelSpec, seconds: float, *, awaits_check: bool = False) -> KeptWheel:
    """Put a wheel into the store; half of it never counts. Raises OSError.

    With ``awaits_check`` it is there for the next setup only, until `record_check`.
    """
    folder = store / spec.key
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = spec.target
    kept = KeptWheel(
        version=spec.version,
        python_tag=target.python_tag,
        torch=target.torch,
        cuda=target.cuda or (0, 0),
        cxx11_abi=target.cxx11_abi,
        archs=spec.archs,
        machine=target.machine,
        file=wheel.name,
        sha256=file_sha256(wheel),
        seconds=round(seconds, 1),
        folder=folder,
        verified=None if awaits_check else {},
    )
    _copy(wheel, kept.path)
    _write_record(kept)
    return kept


def record_check(kept: KeptWheel, errors: Mapping[str, float]) -> KeptWheel:
    """Write down what the check on a GPU measured: from now on the wheel counts for everybody. Raises OSError."""
    checked = replace(kept, verified=dict(errors))
    if checked != kept:
        _write_record(checked)
    return checked


def remove_wheel(kept: KeptWheel) -> None:
    """Take a wheel out of the store; whatever else lies in its directory stays. Raises OSError."""
    kept.record.unlink(missing_ok=True)  # first: without it nothing there counts
    kept.path.unlink(missing_ok=True)
    with suppress(OSError):
        kept.folder.rmdir()


def file_sha256(path: Path) -> str:
    """Of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(record: Path) -> KeptWheel | None:
    try:
        data = json.loads(record.read_bytes())
        if data.pop("format") != FORMAT or "/" in data["file"]:
            return None
        data |= {
            "cuda": tuple(data["cuda"]),
            "archs": tuple(data["archs"]),
            "verified": _errors(data.get("verified")),
        }
        return KeptWheel(**data, folder=record.parent)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _errors(verified: Any) -> dict[str, float] | None:
    return None if verified is None else {str(case): float(error) for case, error in verified.items()}


def _write_record(kept: KeptWheel) -> None:
    data = {"format": FORMAT, **{key: value for key, value in asdict(kept).items() if key != "folder"}}
    _write(kept.record, json.dumps(data, indent=1))


def _copy(source: Path, target: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".", delete=False) as file:
        temporary = Path(file.name)
    try:
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
