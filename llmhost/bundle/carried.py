"""Bundles as they arrive: what one says of itself, whether it is whole and fits this machine, its files unpacked.

llmhost reads bundles with it, and so does ``bootstrap.py``, beside which it travels: Python's standard library only.
"""

from __future__ import annotations

import errno
import hashlib
import json
import lzma
import os
import platform
import re
import shutil
import stat
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

MANIFEST = "bundle.json"
FORMAT = 1
OLDEST_PYTHON = (3, 11)
MIB = 1 << 20
MARGIN = 256 * MIB
"""Bytes that stay free on a disk that is written to."""

VERSION = r"\d[0-9A-Za-z.+!_-]*"
WHEELS, ANY = r"wheels/[^/\0]+\.whl", r"[^\0]+"
PATHS = {
    "llmhost": WHEELS, "engine": WHEELS, "flash-attn": f"flash-attn/{ANY}", "model": f"models/[^/]+/[^/]+/{ANY}",
    "cache": f"cache/engines/{ANY}", "config": r"llmhost\.(yaml|lock)", "lock": r"engine\.lock",
}  # fmt: skip
"""Where files of a kind lie in a bundle."""


class BundleProblem(Exception):
    """Something is wrong with a bundle, or with the machine for it: what, and what to do about it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def read_manifest(directory: Path) -> dict[str, Any]:
    """What a bundle says of itself; raises BundleProblem when that is missing, damaged or of another format."""
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise BundleProblem(
                f"{path} is of format {manifest['format']}, this llmhost reads {FORMAT}",
                "create the bundle again with the llmhost that is to install it, or use the bundle's own bootstrap.py",
            )
        if manifest["digest"] != digest_of(manifest):
            raise ValueError("it does not match its own digest")
        _require_sound(manifest)
    except FileNotFoundError:
        raise BundleProblem(
            f"{directory} is no bundle: it has no {MANIFEST}", f"copy {MANIFEST} too, or name the directory it is in"
        ) from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
        why = f"it lacks {e}" if isinstance(e, KeyError) else e
        raise BundleProblem(f"{path} is damaged: {why}", f"copy {MANIFEST} again") from None
    return dict(manifest)


def _require_sound(manifest: dict[str, Any]) -> None:
    """All that is needed is there, and no name leads out of the bundle or the home; ValueError, LookupError else."""
    target, engine, pieces, files = (manifest[key] for key in ("for", "engine", "pieces", "files"))
    needed = [(target, "machine system glibc python"), *((piece, "name stream size sha256") for piece in pieces)]
    needed += [(engine, "vllm device release config")] if engine else []
    if lacking := [key for part, keys in needed for key in keys.split() if key not in part]:
        raise KeyError(lacking[0])
    plain = [(manifest["id"], "[0-9a-f]{12}"), (manifest["llmhost"], VERSION), (str(target["python"]), VERSION)]
    plain += [(piece["name"], r"[a-z]+\.\d{3,}") for piece in pieces]
    plain += [(stream["name"] + "." + stream["compression"], r"[a-z]+\.[a-z]+") for stream in manifest["streams"]]
    plain += [(file["path"], PATHS[file["kind"]]) for file in files]
    for text, pattern in plain:
        if not re.fullmatch(pattern, text) or {"", ".", ".."} & set(text.split("/")):
            raise ValueError(f"{text!r} cannot be in it")
    for entry in (*pieces, *files):
        numbers = (entry["size"], entry.get("mtime_ns", 0), entry.get("mode", 0))
        whole = all(isinstance(number, int) and 0 <= number < 1 << 63 for number in numbers)
        if not whole or not re.fullmatch("[0-9a-f]{64}", entry["sha256"]):
            raise ValueError(f"it does not say what {entry.get('path') or entry['name']} is")


def digest_of(manifest: dict[str, Any]) -> str:
    """SHA-256 of everything in a manifest but the digest itself."""
    plain = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def write_manifest(directory: Path, manifest: dict[str, Any]) -> None:
    """Write it with its digest; the file is replaced whole."""
    sealed = {**manifest, "digest": digest_of(manifest)}
    temporary = directory / f".{MANIFEST}.new"
    temporary.write_text(json.dumps(sealed, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, directory / MANIFEST)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(MIB):
            digest.update(block)
    return digest.hexdigest()


def stamp_of(path: Path) -> dict[str, int]:
    """What an entry of the manifest says of a file beside its content: nanoseconds since the epoch, permissions."""
    found = path.stat()
    return {"mtime_ns": found.st_mtime_ns, "mode": stat.S_IMODE(found.st_mode)}


def restore_stamp(path: Path, entry: dict[str, Any]) -> None:
    """Give a file the time and the permissions of its entry, where that has them; never writable for others."""
    now = stamp_of(path)
    mode = entry.get("mode", now["mode"]) & 0o755 | 0o600
    if mode != now["mode"]:
        path.chmod(mode)
    if entry.get("mtime_ns", now["mtime_ns"]) != now["mtime_ns"]:
        os.utime(path, ns=(entry["mtime_ns"], entry["mtime_ns"]))


def problems(directory: Path, manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and fault of every piece (or file, of a bundle that is not in pieces) that is not as it was made."""
    for entry in manifest["pieces"] or manifest["files"]:
        name = entry.get("name") or entry["path"]
        if fault := _fault(directory / name, entry):
            yield name, fault


def _fault(path: Path, entry: dict[str, Any]) -> str:
    try:
        size = path.stat().st_size
        if size != entry["size"]:
            return f"cut short: {size} of {entry['size']} bytes" if size < entry["size"] else "too long"
        return "" if file_sha256(path) == entry["sha256"] else "altered: its SHA-256 is wrong"
    except FileNotFoundError:
        return "missing"
    except OSError as e:
        return f"cannot be read: {e.strerror}"


def require_whole(directory: Path, manifest: dict[str, Any]) -> None:
    """Raise BundleProblem naming what is missing, cut or altered."""
    found = list(problems(directory, manifest))
    if found:
        listed = "; ".join(f"{name} is {fault}" for name, fault in found[:8])
        more = f"; and {len(found) - 8} more" if len(found) > 8 else ""
        names = " ".join(name for name, _ in found[:8])
        raise BundleProblem(f"{directory}: {listed}{more}", f"copy again: {names}")


def require_machine(manifest: dict[str, Any]) -> None:
    """Raise BundleProblem when the bundle is for another kind of machine than this one."""
    target = manifest["for"]
    glibc = tuple(int(n) for n in (platform.libc_ver()[1] or "0").split(".")[:2])
    what = f"this bundle is for {target['machine']} machines with {target['system'] or 'Linux'}"
    again = "create one with the facts of this machine"
    if platform.machine() != target["machine"]:
        raise BundleProblem(f"{what}, and this one is {platform.machine()}", again)
    if tuple(target["glibc"]) > glibc:
        wanted, here = (".".join(map(str, v)) for v in (target["glibc"], glibc))
        raise BundleProblem(f"{what} (glibc {wanted}), and this one has glibc {here}", again)


def require_python(manifest: dict[str, Any]) -> None:
    """Raise BundleProblem when llmhost in the bundle is for another Python than the one that runs this."""
    here = ".".join(map(str, sys.version_info[:3]))
    wanted = manifest["for"]["python"]
    if sys.version_info[:2] < OLDEST_PYTHON:
        raise BundleProblem(
            f"{sys.executable} is Python {here}, and llmhost needs 3.11 or newer", f"run this with python{wanted}"
        )
    if wanted != ".".join(map(str, sys.version_info[:2])):
        raise BundleProblem(
            f"this bundle is for Python {wanted}, and {sys.executable} is Python {here}",
            f"run it with python{wanted}, or create a bundle with the facts of this interpreter",
        )


def require_room(directory: Path, needed: int, what: str) -> None:
    """Raise BundleProblem when ``needed`` bytes and a margin are not free where ``directory`` is or will be."""
    place = next(p for p in (directory, *directory.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < needed + MARGIN:
        raise BundleProblem(
            f"not enough disk space to {what}: {(needed + MARGIN) / MIB:.0f} MiB are needed, {place} has"
            f" {free / MIB:.0f} MiB free",
            "free some, or install on another disk with --home and --prefix",
        )


class _Pieces:
    """The pieces as one stream, as far as lzma and tarfile read one."""

    def __init__(self, paths: list[Path], on_bytes: Callable[[int], None]) -> None:
        self.paths, self.on_bytes = paths, on_bytes
        self.file: Any = None

    def read(self, size: int) -> bytes:
        while self.file or self.paths:
            self.file = self.file or self.paths.pop(0).open("rb")
            if data := self.file.read(size):
                self.on_bytes(len(data))
                return bytes(data)
            self.close()
        return b""

    def close(self) -> None:
        if self.file:
            self.file.close()
        self.file = None


def unpack(directory: Path, manifest: dict[str, Any], target: Path, on_bytes: Callable[[int], None]) -> None:
    """Join the pieces of a bundle and write its files below ``target``, each checked; then ``target`` is a bundle.

    What an interrupted call has left is used. ``on_bytes`` hears how many bytes of the pieces were read. Raises
    BundleProblem when the disk is too small or what comes out is not what went in.
    """
    entries = {entry["path"]: entry for entry in manifest["files"]}
    if outside := [p for p in entries if p.startswith("/") or ".." in p.split("/")]:
        raise BundleProblem(f"{outside[0]} would be written outside of {target}", f"copy {MANIFEST} again")
    there = {path for path, entry in entries.items() if not _fault(target / path, entry)}
    require_room(target, sum(e["size"] for p, e in entries.items() if p not in there), "unpack the bundle")
    try:
        target.mkdir(parents=True, exist_ok=True, mode=0o700)
        left = set(entries) - there
        for stream in manifest["streams"]:
            names = [piece["name"] for piece in manifest["pieces"] if piece["stream"] == stream["name"]]
            with closing(_Pieces([directory / name for name in names], on_bytes)) as joined:
                packed: Any = joined
                with lzma.LZMAFile(packed) if stream["compression"] == "xz" else nullcontext(packed) as plain:
                    _unpack_tar(plain, entries, left, target)
        if left:
            raise BundleProblem(f"the pieces do not hold {min(left)}", "create the bundle again")
        write_manifest(target, {**manifest, "pieces": [], "streams": []})
    except (lzma.LZMAError, EOFError, tarfile.TarError) as e:
        raise BundleProblem(f"{directory} cannot be unpacked: {e}", "create the bundle again") from e
    except OSError as e:
        raise disk_problem(e, target) from e


def disk_problem(error: OSError, target: Path) -> BundleProblem:
    """What a failing disk means."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BundleProblem(f"the disk of {target} is full", "free some space; the same command goes on from there")
    return BundleProblem(
        f"cannot write {error.filename or target}: {error.strerror}", "see who owns it, or choose --home and --prefix"
    )


def _unpack_tar(plain: Any, entries: dict[str, Any], left: set[str], target: Path) -> None:
    """Write the files that are ``left`` to be written, and strike them off."""
    with tarfile.open(fileobj=plain, mode="r|", bufsize=MIB) as tar:
        for member in tar:
            if member.name not in left:
                continue
            source = tar.extractfile(member)
            if source is not None:
                _write(source, target / member.name, entries[member.name])
                left.discard(member.name)


def _write(source: Any, path: Path, entry: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    digest = hashlib.sha256()
    temporary.unlink(missing_ok=True)
    mode = 0o600 if entry.get("kind") == "config" else 0o666  # llmhost.yaml may hold tokens
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        while block := source.read(MIB):
            digest.update(block)
            file.write(block)
    if digest.hexdigest() != entry["sha256"]:
        temporary.unlink()
        raise BundleProblem(f"{entry['path']} in the bundle is not what its SHA-256 says", "create the bundle again")
    os.replace(temporary, path)


def unpacked_dir(home: Path, manifest: dict[str, Any]) -> Path:
    """Where the files of a bundle in pieces lie until they are installed: in the home, on its file system."""
    return home / f".bundle-{manifest['id']}"


def sweep(home: Path, keep: Path) -> None:
    """Remove what interrupted installations of other bundles have left in the home."""
    for left in home.glob(".bundle-*"):
        if left.resolve() != keep.resolve():
            shutil.rmtree(left, ignore_errors=True)
