"""Wheels that were compiled once, kept for the next engine and the next machine.

``$LLMHOST_HOME/wheels/<key>/`` holds a wheel and ``wheel.json``, which says what it fits and its SHA-256; it is written
last. Such a directory can be copied to another home as it is. ``wheels/sources/`` holds sources.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

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


def find_wheel(store: Path, wanted: WheelSpec) -> KeptWheel | None:
    """A kept wheel that fits, checked against its SHA-256. Raises EngineError for one that was altered."""
    found = next((wheel for wheel in kept_wheels(store) if wheel.fits(wanted)), None)
    if found is None:
        return None
    actual = file_sha256(found.path) if found.path.is_file() else "none: the file is missing"
    if actual != found.sha256:
        raise EngineError(
            f"the kept wheel {found.path} is not what was put there: its SHA-256 is {actual[:24]},"
            f" not {found.sha256[:24]}",
            f"copy it again from where it came from, or remove {found.folder}: it is compiled anew then",
        )
    return found


def keep_wheel(store: Path, wheel: Path, spec: WheelSpec, seconds: float) -> KeptWheel:
    """Put a wheel into the store; half of it never counts. Raises OSError."""
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
    )
    _copy(wheel, kept.path)
    data = {"format": FORMAT, **{key: value for key, value in asdict(kept).items() if key != "folder"}}
    _write(folder / RECORD, json.dumps(data, indent=1))
    return kept


def file_sha256(path: Path) -> str:
    """Of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(record: Path) -> KeptWheel | None:
    try:
        data = json.loads(record.read_bytes())
        if data.pop("format") != FORMAT or "/" in data["file"]:
            return None
        return KeptWheel(**{**data, "cuda": tuple(data["cuda"]), "archs": tuple(data["archs"])}, folder=record.parent)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


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
