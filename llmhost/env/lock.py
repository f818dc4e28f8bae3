"""The set of packages of an engine, recorded so that the very same can be installed again.

A requirements file for pip and uv: names, versions, and the hashes of their files where the index gives them. It lies
beside llmhost.yaml and is made for version control: sorted, without dates, addresses or paths. That one file is always
of the engine that counts; each build keeps its own, which is copied there when its engine is made the one that counts.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from llmhost.config import Engine
from llmhost.config_engine import unmet
from llmhost.env.manifest import read_manifest
from llmhost.env.python import normalized, read_python
from llmhost.env.releases import Release
from llmhost.env.torch_index import run_with_torch
from llmhost.env.uv import Uv
from llmhost.errors import EngineError
from llmhost.facts import Device
from llmhost.paths import Home

OWN = "engine.lock"
"""In a build: its packages."""
HEAD = """\
# The packages of the engine, for `llmhost setup --locked`. Written by llmhost; keep it beside llmhost.yaml.
# vllm: {vllm}
# device: {device}
# python: {python}
# torch-backend: {torch_backend}
"""
_write_anew = "`llmhost setup` writes one; or copy the one of the other machine again"
PINNED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==(\S+)")


@dataclass(frozen=True)
class Lock:
    """A lock file that was read."""

    path: Path
    vllm: str
    device: Device
    python: str
    """Minor version of the interpreter: ``3.12``."""
    torch_backend: str
    packages: tuple[str, ...]
    """``name==version`` of each."""
    hashed: bool
    """Every package has a hash."""
    digest: str
    """Of the whole set; equal sets have equal ones."""
    text: str = field(repr=False)
    """All of the file."""

    @property
    def python_minor(self) -> tuple[int, ...]:
        """``python`` as numbers."""
        return tuple(int(part) for part in self.python.split("."))


def read_lock(path: Path) -> Lock:
    """Read a lock file. Raises EngineError when there is none, or one that was not made by llmhost."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise EngineError(
            f"there is no lock file {path}: {e.strerror}",
            "`llmhost setup` writes it; copy the one of the other machine there",
        ) from e
    except UnicodeDecodeError as e:
        raise EngineError(f"{path} is damaged: it is no text in UTF-8", _write_anew) from e
    head = dict(re.findall(r"^# ([a-z-]+): (\S*)$", text, re.MULTILINE))
    entries = _entries(text)
    if not {"vllm", "device", "python"} <= head.keys() or head["device"] not in ("cpu", "cuda") or not entries:
        raise EngineError(f"{path} is not the lock file of an engine", _write_anew)
    if not re.fullmatch(r"\d+\.\d+", head["python"]):
        raise EngineError(f"{path} is damaged: python: {head['python']} is no version such as 3.12", _write_anew)
    device: Device = "cuda" if head["device"] == "cuda" else "cpu"
    return Lock(
        path, head["vllm"], device, head["python"], head.get("torch-backend", ""), tuple(entries),
        all(entries.values()), _digest(tuple(entries)), text,
    )  # fmt: skip


def _entries(text: str) -> dict[str, bool]:
    """``name==version`` -> has it a hash?"""
    found: dict[str, bool] = {}
    last = ""
    for line in text.splitlines():
        if pinned := PINNED.match(line):
            last = f"{pinned[1]}=={pinned[2]}"
            found[last] = "--hash=" in line
        elif last and "--hash=" in line:
            found[last] = True
    return found


def _digest(packages: tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(sorted(packages)).encode()).hexdigest()[:16]


def require_agreement(lock: Lock, engine: Engine, device: Device) -> None:
    """Raise EngineError when llmhost.yaml asks for something else; ``device`` is what its engine.device means here."""
    if engine.vllm not in (None, lock.vllm):
        raise EngineError(
            f"engine.vllm is {engine.vllm}, but {lock.path} has vLLM {lock.vllm}",
            "make them agree, or leave --locked out, and the file is written anew",
        )
    # Of an engine on top of an interpreter it has only what is not borrowed.
    asked = () if engine.system_site_packages else engine.packages
    lacking = unmet(asked, dict(package.split("==", 1) for package in lock.packages))
    if lacking:
        raise EngineError(
            f"engine.packages asks for {', '.join(lacking)}, and {lock.path} has not",
            "change it there, or leave --locked out, and the file is written anew",
        )
    if device != lock.device:
        meant = "" if engine.device == device else f", which is {device} on this machine"
        raise EngineError(
            f"engine.device is {engine.device}{meant}, but {lock.path} is of an engine for {lock.device}",
            f"write engine.device: {lock.device} in llmhost.yaml, or leave --locked out, and the file is written anew",
        )


def keep_lock(build: Path, lock: Lock) -> None:
    """What a build was installed from stays with it. Raises EngineError."""
    _replace(build / OWN, lock.text)


def publish_lock(home: Home, name: str) -> bool:
    """Make engine.lock that of this engine, which counts now; False when its packages were never recorded.

    Raises EngineError when it cannot be written.
    """
    directory = home.engine_dir(name)
    manifest = read_manifest(directory)
    try:
        text = (directory / manifest.build / OWN).read_text(encoding="utf-8") if manifest else ""
    except (OSError, UnicodeDecodeError):
        return False
    if text and not _holds(home.engine_lock, text):
        _replace(home.engine_lock, text)
    return bool(text)


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == text
    except (OSError, UnicodeDecodeError):
        return False


def record_lock(python: Path, scratch: Path, release: Release, version: str, uv: Uv, path: Path) -> Lock:
    """Write down what is installed in an environment, with hashes where the indexes give them. Raises EngineError.

    An index that cannot be asked any more costs the hashes, not the file. ``version`` is that of the interpreter.
    """
    installed = read_python(python).packages
    pinned = sorted(
        f"{name}=={package.version}" for name, package in installed.items() if package.indexed and package.own
    )
    hashes = _hashes(pinned, python, scratch, release, uv)
    body = "".join(_entry(package, hashes.get(package.partition("==")[0], [])) for package in pinned)
    minor = ".".join(version.split(".")[:2])
    head = HEAD.format(vllm=release.vllm, device=release.device, python=minor, torch_backend=release.torch_backend)
    _replace(path, head + body)
    return read_lock(path)


def _hashes(pinned: list[str], python: Path, scratch: Path, release: Release, uv: Uv) -> dict[str, list[str]]:
    """The hashes of the files of each package that fit this interpreter; of none when the indexes do not answer."""
    frozen, found = scratch / "frozen.txt", scratch / "pylock.toml"
    frozen.write_text("".join(f"{line}\n" for line in pinned))
    command = [
        "pip", "compile", str(frozen), "--no-deps", "--python", str(python), "--format", "pylock.toml",
        "--output-file", str(found), "--quiet",
    ]  # fmt: skip
    if run_with_torch(command, release, uv):
        return {}
    packages = tomllib.loads(found.read_text(encoding="utf-8")).get("packages", [])
    return {
        normalized(package["name"]): [
            f"sha256:{file['hashes']['sha256']}"
            for file in (*package.get("wheels", ()), *filter(None, [package.get("sdist")]))
            if "sha256" in file.get("hashes", {})
        ]
        for package in packages
    }


def _entry(package: str, hashes: list[str]) -> str:
    return " \\\n".join((package, *(f"    --hash={value}" for value in hashes))) + "\n"


def _replace(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as e:
        Path(temporary).unlink(missing_ok=True)
        raise EngineError(f"cannot write {path}: {e.strerror}", "see `df -h` and its owner") from e
