"""Installs llmhost from the bundle that this file lies in, without a network, and then what else is in the bundle.

    python3 bootstrap.py [--home DIR] [--prefix DIR]

It travels as a program of its own and needs nothing but Python's standard library; that is why it prints and starts
programs by itself. llmhost reads bundles with the functions below, so both have the same idea of what is right.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import io
import json
import lzma
import os
import platform
import re
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MANIFEST = "bundle.json"
COMPLETE = ".complete"
"""In an installed llmhost: everything is there, it starts."""

FORMAT = 1
OLDEST_PYTHON = (3, 11)
BLOCK = 1 << 20
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

LLMHOST_GROWTH = 3
"""An installed llmhost takes about so many times the size of its wheels (they are compressed, bytecode is added)."""


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
        if not isinstance(entry["size"] + 0, int) or not re.fullmatch("[0-9a-f]{64}", entry["sha256"]):
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
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


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


class _Pieces(io.RawIOBase):
    """The pieces as one stream."""

    def __init__(self, paths: list[Path], on_bytes: Callable[[int], None]) -> None:
        self.paths, self.on_bytes = paths, on_bytes
        self.file: io.BufferedReader | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self.file is None:
                if not self.paths:
                    return 0
                self.file = self.paths.pop(0).open("rb")
            if count := self.file.readinto(buffer):
                self.on_bytes(count)
                return count
            self.file.close()
            self.file = None

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        super().close()


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
            with _Pieces([directory / name for name in names], on_bytes) as joined:
                raw = io.BufferedReader(joined, BLOCK)
                with lzma.LZMAFile(raw) if stream["compression"] == "xz" else raw as plain:
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
    with tarfile.open(fileobj=plain, mode="r|") as tar:
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
        while block := source.read(BLOCK):
            digest.update(block)
            file.write(block)
    if digest.hexdigest() != entry["sha256"]:
        temporary.unlink()
        raise BundleProblem(f"{entry['path']} in the bundle is not what its SHA-256 says", "create the bundle again")
    os.replace(temporary, path)


def unpacked_dir(home: Path, manifest: dict[str, Any]) -> Path:
    """Where the files of a bundle in pieces lie until they are installed: beside the home, on its file system."""
    return home.parent / f"{home.name}.bundle-{manifest['id']}"


def _install_llmhost(contents: Path, manifest: dict[str, Any], prefix: Path) -> Path:
    """Make an environment with llmhost below ``prefix``; it gets its name there when it is complete."""
    wheels = contents / "wheels"
    own = [contents / e["path"] for e in manifest["files"] if e["kind"] == "llmhost"]
    if not own:
        raise BundleProblem("this bundle holds no llmhost", "use `llmhost bundle install` on a machine that has it")
    version = prefix / f"llmhost-{manifest['llmhost']}-{manifest['id']}"
    if (version / COMPLETE).exists():
        return version / "bin/llmhost"
    shutil.rmtree(version, ignore_errors=True)  # half made: nobody runs from it
    require_room(prefix, LLMHOST_GROWTH * sum(p.stat().st_size for p in own), "install llmhost")
    tools = prefix / ".tools"
    uv = _unpack_uv(next(p for p in own if p.name.startswith("uv-")), tools)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("UV_", "PIP_", "PYTHON", "VIRTUAL_ENV"))}
    env = {**clean, "UV_CACHE_DIR": str(tools / "cache"), "UV_OFFLINE": "1", "UV_NO_CONFIG": "1"}
    quiet = ["--quiet", "--color", "never"]
    _run([str(uv), "venv", str(version), "--python", sys.executable, "--no-project", *quiet], env, version)
    install = ["pip", "install", "--python", str(version / "bin/python"), "--no-index", "--find-links", str(wheels)]
    _run([str(uv), *install, "--compile-bytecode", f"llmhost=={manifest['llmhost']}", *quiet], env, version)
    _run([str(version / "bin/llmhost"), "--version"], env, version)
    shutil.rmtree(tools, ignore_errors=True)
    (version / COMPLETE).touch()
    return version / "bin/llmhost"


def _unpack_uv(wheel: Path, tools: Path) -> Path:
    tools.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".data/scripts/uv"))
        with archive.open(name) as source, (tools / "uv").open("wb") as target:
            shutil.copyfileobj(source, target)
    (tools / "uv").chmod(0o755)
    return tools / "uv"


def _run(argv: list[str], env: dict[str, str], version: Path) -> None:
    if os.spawnve(os.P_WAIT, argv[0], argv, env):
        shutil.rmtree(version, ignore_errors=True)
        raise BundleProblem(f"this failed: {' '.join(argv)}", "see what it says above")


def _link(llmhost: Path, prefix: Path) -> Path:
    """Make ``prefix/bin/llmhost`` mean this one, at once for everybody."""
    link = prefix / "bin" / "llmhost"
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".llmhost.{os.getpid()}")
    temporary.symlink_to(llmhost)
    os.replace(temporary, link)
    return link


def _arguments(argv: list[str]) -> argparse.Namespace:
    root = os.geteuid() == 0
    default = "/opt/llmhost" if root else "~/.local/share/llmhost"
    parser = argparse.ArgumentParser(
        prog="bootstrap.py", description="Install llmhost from this bundle, without a network, and what else is in it."
    )
    parser.add_argument("--home", default=os.environ.get("LLMHOST_HOME") or "~/.llmhost", help="the home of llmhost")
    parser.add_argument("--prefix", default=default, help=f"where llmhost itself is installed (default: {default})")
    parser.add_argument("--verify", action="store_true", help="only say which pieces are there and right")
    parser.add_argument("--only-llmhost", action="store_true", help="install llmhost, nothing else of the bundle")
    return parser.parse_args(argv)


def _bring_contents(here: Path, manifest: dict[str, Any], home: Path) -> Path:
    """The directory with the files of the bundle."""
    total = sum(e["size"] for e in manifest["pieces"] or manifest["files"])
    print(f"==> verify {len(manifest['pieces'] or manifest['files'])} files, {total / MIB:.0f} MiB")
    require_whole(here, manifest)
    if not manifest["pieces"]:
        return here
    contents = unpacked_dir(home, manifest)
    print(f"==> unpack them to {contents}")
    unpack(here, manifest, contents, lambda _: None)
    return contents


def _verify(here: Path, manifest: dict[str, Any]) -> int:
    found = dict(problems(here, manifest))
    for entry in manifest["pieces"] or manifest["files"]:
        name = entry.get("name") or entry["path"]
        if manifest["pieces"] or name in found:
            print(f"{name}: {found.get(name, 'right')}")
    print(f"{len(found)} to be copied again: {' '.join(found)}" if found else "everything is there and right")
    return 1 if found else 0


def main(argv: list[str]) -> int:
    """Exit status 0 when everything is installed."""
    options = _arguments(argv)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # in order with what programs print
    here = Path(__file__).resolve().parent
    home, prefix = (Path(os.path.abspath(os.path.expanduser(p))) for p in (options.home, options.prefix))
    manifest = read_manifest(here)
    if options.verify:
        return _verify(here, manifest)
    require_machine(manifest)
    require_python(manifest)
    contents = _bring_contents(here, manifest, home)
    print(f"==> install llmhost {manifest['llmhost']} below {prefix}")
    try:
        link = _link(_install_llmhost(contents, manifest, prefix), prefix)
    except OSError as e:
        raise disk_problem(e, prefix) from e
    if not options.only_llmhost:
        status = os.spawnv(os.P_WAIT, link, [str(link), "--home", str(home), "bundle", "install", str(contents)])
        if status:
            return status
    if contents != here:
        shutil.rmtree(contents, ignore_errors=True)
    print(f"llmhost is installed: {link} (put {link.parent} on PATH); its home is {home}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BundleProblem as problem:
        print(f"error: {problem.message}\nhint: {problem.hint}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("error: interrupted\nhint: the same command again goes on from here", file=sys.stderr)
        sys.exit(130)
