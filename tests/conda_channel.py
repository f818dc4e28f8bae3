"""A conda channel in a directory (file://): the Python that runs the tests, repacked, and pip from ensurepip's wheel.

Everything else about it is real: py-rattler solves and installs from it as from any other channel.
"""

from __future__ import annotations

import bz2
import hashlib
import io
import json
import platform
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
SKIPPED = {"test", "idlelib", "tkinter", "turtledemo", "__pycache__", "site-packages", "dist-packages", "lib2to3"}
PLACEHOLDER = "/placeholder-prefix"
File = tuple[str, bytes, int]
"""Path in the environment, content, mode."""


def make_channel(out: Path) -> str:
    """Write the channel; its URL."""
    records = {"linux-64": [_python(out)], "noarch": [_pip(out)]}
    for subdir, packages in records.items():
        data = {"info": {"subdir": subdir}, "packages": dict(packages), "packages.conda": {}, "repodata_version": 1}
        (out / subdir / "repodata.json").write_text(json.dumps(data))
    return out.as_uri()


def _python(out: Path) -> tuple[str, dict[str, Any]]:
    base = Path(sys.base_prefix)
    library = base / f"lib/python{MINOR}"
    files = [(f"bin/python{MINOR}", _relocatable((base / f"bin/python{MINOR}").read_bytes(), base), 0o755)]
    for path in sorted(library.rglob("*")):
        inside = path.relative_to(library)
        wanted = path.is_file() and not SKIPPED & set(inside.parts) and not inside.parts[0].startswith("config-")
        if wanted:
            files.append((f"lib/python{MINOR}/{inside}", _relocatable(path.read_bytes(), base), 0o644))
    files += [
        (f"lib/{library.name}", _relocatable(library.read_bytes(), base), 0o755)
        for library in (base / "lib").glob("libpython*.so*")
        if not library.is_symlink()
    ]
    files.append((f"include/python{MINOR}/Python.h", b"/* stands for the headers */\n", 0o644))
    files.append((f"lib/python{MINOR}/site-packages/README.txt", b"packages go here\n", 0o644))
    links = {"bin/python": f"python{MINOR}", "bin/python3": f"python{MINOR}"}
    return _package(out, "linux-64", "python", platform.python_version(), files, links=links)


def _relocatable(data: bytes, base: Path) -> bytes:
    """A run path into the prefix that it was built for becomes one relative to the file, of the same length."""
    old = f"{base}/lib".encode() + b"\0"
    new = b"$ORIGIN/../lib\0"
    if data[:4] != b"\x7fELF" or len(new) > len(old):
        return data
    return data.replace(old, new.ljust(len(old), b"\0"))


def _pip(out: Path) -> tuple[str, dict[str, Any]]:
    wheel = next((Path(sys.base_prefix) / f"lib/python{MINOR}/ensurepip/_bundled").glob("pip-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        files = [(f"site-packages/{name}", archive.read(name), 0o644) for name in names]
    version = wheel.name.split("-")[1]
    return _package(out, "noarch", "pip", version, files, depends=["python >=3.8"], noarch="python")


def _package(
    out: Path,
    subdir: str,
    name: str,
    version: str,
    files: Iterable[File],
    *,
    links: dict[str, str] | None = None,
    depends: Iterable[str] = (),
    noarch: str = "",
) -> tuple[str, dict[str, Any]]:
    """One package (format of conda-build, .tar.bz2); its file name and its entry in the index."""
    files, links = list(files), links or {}
    index: dict[str, Any] = {
        "name": name, "version": version, "build": "0", "build_number": 0, "depends": list(depends),
        "subdir": subdir, "license": "none", "timestamp": 1_700_000_000_000,
    }  # fmt: skip
    if noarch:
        index["noarch"] = noarch
    paths = [
        {"_path": path, "path_type": "hardlink", "sha256": _sha256(data), "size_in_bytes": len(data)}
        for path, data, _ in files
    ]
    paths += [{"_path": p, "path_type": "softlink", "sha256": _sha256(b""), "size_in_bytes": 0} for p in links]
    information: dict[str, Any] = {"index": index, "paths": {"paths_version": 1, "paths": paths}, "about": {}}
    if noarch:
        information["link"] = {"noarch": {"type": noarch, "entry_points": []}, "package_metadata_version": 1}
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for key, value in information.items():
            _add(archive, f"info/{key}.json", json.dumps(value).encode(), 0o644)
        _add(archive, "info/files", "".join(f"{p['_path']}\n" for p in paths).encode(), 0o644)
        for path, data, mode in files:
            _add(archive, path, data, mode)
        for path, target in links.items():
            link = tarfile.TarInfo(path)
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
    packed = bz2.compress(raw.getvalue(), 1)
    (out / subdir).mkdir(parents=True, exist_ok=True)
    file = out / subdir / f"{name}-{version}-0.tar.bz2"
    file.write_bytes(packed)
    return file.name, {**index, "sha256": _sha256(packed), "md5": _md5(packed), "size": len(packed)}


def _add(archive: tarfile.TarFile, path: str, data: bytes, mode: int) -> None:
    member = tarfile.TarInfo(path)
    member.size, member.mode = len(data), mode
    archive.addfile(member, io.BytesIO(data))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
