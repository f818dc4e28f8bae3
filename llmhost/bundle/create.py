"""`llmhost bundle create`: what a machine lacks, gathered on one that has a network."""

from __future__ import annotations

import errno
import os
import shutil
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from llmhost import __version__
from llmhost.bundle import carried
from llmhost.bundle.empty import tell_of_empty_parts
from llmhost.bundle.flash_attn import flash_attn_items
from llmhost.bundle.gather import Item, cache_items, config_items, model_items
from llmhost.bundle.links import copy_private, link_or_copy
from llmhost.bundle.own_wheel import make_own_wheel
from llmhost.bundle.pack import Pieces, pack_pieces
from llmhost.bundle.resolve import RESOLVE, Pin, download, missing, resolve
from llmhost.bundle.slim import Slimming
from llmhost.bundle.target import Target, make_target, minor, release_to_json, with_excluded
from llmhost.bundle.wheels import requirements_of, rewrite, stripped_of, unpacked_size
from llmhost.config import Config
from llmhost.config_engine import package_name
from llmhost.env.lock import HEAD
from llmhost.env.log import SetupLog
from llmhost.env.packages import NEVER_BORROWED, torch_set
from llmhost.env.pip_config import read_pip_options, uv_settings
from llmhost.env.progress import Progress
from llmhost.env.uv import Uv, find_uv
from llmhost.errors import BundleError
from llmhost.facts import MachineFacts
from llmhost.paths import Home

Part = Literal["llmhost", "engine", "flash-attn", "models", "caches"]
PARTS: tuple[Part, ...] = ("llmhost", "engine", "flash-attn", "models", "caches")
STREAMS = {"bundle": "xz", "models": "none"}
"""Weights hardly become smaller, and there are many of them."""

OWN = "choose llmhost's own packages"
COMPRESS = "pack"
LOCK = "engine.lock"
SMALL = 512 * 1024
"""Bytes of the first piece that are left for the small files beside the pieces."""

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Wish:
    """What `llmhost bundle create` was asked for."""

    output: Path
    parts: Collection[Part] = PARTS
    split: int | None = None
    """Largest piece in bytes; None: the files as they are."""
    slim: bool = False
    level: int = 9
    """Of xz; 9 takes 0.7 GiB of memory for each core."""


@dataclass
class _Content:
    """What is in the bundle so far."""

    items: list[Item] = field(default_factory=list)
    engine: dict[str, Any] | None = None
    locked: Sequence[Pin] = ()
    """What the engine on the target is made of, but for what it has."""
    left_out: list[dict[str, str]] = field(default_factory=list)
    strip: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def create_bundle(
    home: Home, facts: MachineFacts, config: Config, config_file: Path | None, wish: Wish, progress: Progress
) -> dict[str, Any]:
    """Write a bundle for a machine into ``wish.output``, which must be new, empty, or an older bundle; its manifest.

    ``home`` is that of this machine: its models and caches are taken. ``config`` and ``config_file`` are the
    llmhost.yaml for the other one. Raises BundleError, also where nothing of the chosen parts is there, and EngineError
    where something has no wheel for it. The output appears whole or not at all.
    """
    target = make_target(facts, config.engine)
    _require_replaceable(wish.output)
    work = wish.output.with_name(f".{wish.output.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    with _disk_errors(wish.output):
        (work / "contents" / "wheels").mkdir(parents=True)
        (work / "downloads").mkdir()
        try:
            with SetupLog(wish.output.with_name(f"{wish.output.name}.log")) as log:
                uv = _uv(work, log, progress)
                content = _gather(home, target, config, config_file, wish, uv)
                manifest = _write(content, target, wish, work, progress)
            _replace(work / "bundle", wish.output)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return manifest


def _require_replaceable(output: Path) -> None:
    if output.is_dir() and any(output.iterdir()) and not (output / carried.MANIFEST).is_file():
        raise BundleError(f"{output} is not empty and no bundle", "name a new directory with -o")
    if output.exists() and not output.is_dir():
        raise BundleError(f"{output} is a file", "name a new directory with -o")


@contextmanager
def _disk_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except zipfile.BadZipFile as e:
        raise BundleError(f"a downloaded wheel is damaged: {e}", "run it again, after `pip cache purge`") from e
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BundleError(f"the disk of {output} is full", "free some space, or name another place with -o") from e
        raise BundleError(f"cannot write {e.filename or output}: {e.strerror or e}", "see who owns it") from e


def _uv(work: Path, log: SetupLog, progress: Progress) -> Uv:
    settings = uv_settings(read_pip_options(), os.environ)
    for note in settings.notes:
        progress.note(note)
    return Uv(find_uv(), settings, work, log, progress, {})


def _gather(home: Home, target: Target, config: Config, config_file: Path | None, wish: Wish, uv: Uv) -> _Content:
    content = _Content()
    pins: tuple[Pin, ...] = ()
    if "engine" in wish.parts:
        pins = _engine(target, config, wish.slim, uv, content)
    if "llmhost" in wish.parts:
        _llmhost(target, pins, uv, content)
    if "flash-attn" in wish.parts and config.engine.flash_attn:
        engine = {pin.name: pin.version for pin in pins}
        content.items += flash_attn_items(home, target, config.engine.flash_attn, engine, uv)
    if "models" in wish.parts:
        content.items += model_items(home, config, target.facts, uv.progress)
    if "caches" in wish.parts:
        content.items += cache_items(home, target)
    if set(PARTS) - set(wish.parts) - {"models"}:  # whoever wishes for everything takes what there is
        tell_of_empty_parts(wish.parts, content.items, target, uv.progress)
    if config_file is not None:
        uv.progress.note(f"{config_file} goes along, with every token that stands in it")
    content.items += config_items(home, config_file)
    return content


def _engine(target: Target, config: Config, slim: bool, uv: Uv, content: _Content) -> tuple[Pin, ...]:
    """The engine's wheels; what was chosen."""
    uv.progress.started(RESOLVE)
    slimming = target.slimming() if slim else Slimming({}, {})
    asked = {package_name(text) for text in config.engine.packages}
    slimming = replace(slimming, packages={n: why for n, why in slimming.packages.items() if n not in asked})
    # What torch needs is there as torch is, in whatever versions.
    borrowed = torch_set(target.there) if target.on_system else ()
    exclude = sorted({*target.release.exclude, *slimming.packages, *borrowed})
    requirements = [target.release.requirement, *config.engine.packages]
    pins = resolve(
        requirements, target.engine_python, target, uv, prefer=target.there, exclude=exclude, torch=target.release
    )
    wanted = missing(pins, {name: v for name, v in target.there.items() if name not in NEVER_BORROWED})
    uv.progress.finished(RESOLVE, f"{len(pins)} packages, {len(pins) - len(wanted)} of them are there")
    wheels = download(wanted, target.engine_python, target, uv, uv.cwd / "downloads")
    content.items += [Item(f"wheels/{wheel.name}", wheel, "engine") for wheel in wheels]
    content.locked = wanted
    content.strip = slimming.files
    content.left_out += [{"package": name, "reason": why} for name, why in slimming.packages.items()]
    content.engine = {
        "vllm": target.release.vllm,
        "device": target.release.device,
        "release": release_to_json(with_excluded(target.release, tuple(exclude))),
        "python": minor(target.engine_python),
        "on_system": target.on_system,
        "config": config.engine.model_dump(exclude_defaults=True),
        "packages": {pin.name: pin.version for pin in pins},
        "there": sorted([*borrowed, *(pin.name for pin in pins if pin not in wanted)]),
    }
    return pins


def _llmhost(target: Target, engine: Sequence[Pin], uv: Uv, content: _Content) -> None:
    """llmhost's own wheel and those it needs; what the engine takes anyway is taken where it fits."""
    uv.progress.started(OWN)
    own = make_own_wheel(uv.cwd / "downloads", uv)
    same = minor(target.python) == minor(target.engine_python)
    prefer = {pin.name: pin.version for pin in engine} if same else {}
    pins = resolve(requirements_of(own), target.python, target, uv, prefer=prefer)
    uv.progress.finished(OWN, f"{len(pins) + 1} packages")
    there = {_normal(item.source.name) for item in content.items}
    lacking = [p for p in pins if not (same and f"{_normal(p.name)}-{p.version}" in there)]
    wheels = {own, *download(lacking, target.python, target, uv, uv.cwd / "downloads")}
    names = {f"{_normal(p.name)}-{p.version}" for p in pins}
    content.items = [
        Item(i.path, i.source, "llmhost") if _normal(i.source.name) in names and same else i for i in content.items
    ]
    content.items += [Item(f"wheels/{wheel.name}", wheel, "llmhost") for wheel in sorted(wheels)]


def _normal(wheel: str) -> str:
    """``name-version`` of a wheel's file name, as packages are compared."""
    name, *rest = wheel.split("-") if wheel.endswith(".whl") else (wheel.replace("-", "_"),)
    plain = name.lower().replace(".", "_").replace("-", "_")
    return f"{plain}-{rest[0]}" if rest else plain


def _write(content: _Content, target: Target, wish: Wish, work: Path, progress: Progress) -> dict[str, Any]:
    """Lay the files out, cut them into pieces when that is wished, and put the programs beside them."""
    progress.started(COMPRESS)
    contents, bundle = work / "contents", work / "bundle"
    files = [_lay(item, contents, wish, content.strip) for item in _unique(content.items)]
    if content.engine is not None:
        files.append(_lay_lock(content, target, files, contents))
    manifest = _manifest(content, target, files)
    if wish.split is None:
        contents.rename(bundle)
    else:
        bundle.mkdir()
        manifest |= _pieces(contents, bundle, files, wish, progress)
    _write_programs(bundle, target)
    carried.write_manifest(bundle, manifest)
    _write_sums(bundle)
    made = manifest["pieces"] or files
    progress.finished(COMPRESS, f"{len(made)} files, {sum(f['size'] for f in made) / 1e6:.0f} MB")
    return manifest


def _unique(items: Sequence[Item]) -> list[Item]:
    """Each path once, in the order in which they compress and unpack best."""
    return sorted({item.path: item for item in items}.values(), key=lambda i: (i.kind == "model", i.path))


def _lay(item: Item, contents: Path, wish: Wish, strip: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Put one file into its place in the bundle; its entry in the manifest."""
    target = contents / item.path
    target.parent.mkdir(parents=True, exist_ok=True)
    entry: dict[str, Any] = {"kind": item.kind}
    if item.kind == "cache":
        entry |= carried.stamp_of(item.source)
    if item.kind in ("llmhost", "engine"):  # downloaded for this bundle; everything else belongs to somebody
        lost = strip.get(_normal(item.source.name).partition("-")[0], {})
        if wish.split is not None or lost:
            target = rewrite(item.source, target.parent, stored=wish.split is not None, strip=lost)
            item.source.unlink()
        else:
            os.replace(item.source, target)
        entry |= {"unpacked": unpacked_size(target)}
        if gone := stripped_of(target):
            entry |= {"stripped": sorted(set(gone.values())), "files_left_out": len(gone)}
    elif item.kind == "config":
        copy_private(item.source, target)
    else:
        link_or_copy(item.source, target, link=item.kind == "model")
    path = target.relative_to(contents).as_posix()
    return {"path": path, "size": target.stat().st_size, "sha256": carried.file_sha256(target), **entry}


def _lay_lock(content: _Content, target: Target, files: list[dict[str, Any]], contents: Path) -> dict[str, Any]:
    """The packages of the engine with the sums of these very wheels, as `llmhost setup --locked` reads them."""
    sums = {_normal(f["path"].rpartition("/")[2]): f["sha256"] for f in files if f["path"].endswith(".whl")}
    release = target.release
    text = HEAD.format(
        vllm=release.vllm, device=release.device, python=minor(target.engine_python),
        torch_backend=release.torch_backend,
    )  # fmt: skip
    for pin in sorted(content.locked, key=lambda p: p.name):
        text += f"{pin.name}=={pin.version} \\\n    --hash=sha256:{sums[f'{_normal(pin.name)}-{pin.version}']}\n"
    path = contents / LOCK
    path.write_text(text, encoding="utf-8")
    return {"path": LOCK, "size": path.stat().st_size, "sha256": carried.file_sha256(path), "kind": "lock"}


def _manifest(content: _Content, target: Target, files: list[dict[str, Any]]) -> dict[str, Any]:
    manifest = {
        "format": carried.FORMAT,
        "llmhost": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "for": target.describe(),
        "engine": content.engine,
        "left_out": content.left_out,
        "files": files,
        "streams": [],
        "pieces": [],
    }
    return {**manifest, "id": carried.digest_of(manifest)[:12]}


def _pieces(
    contents: Path, bundle: Path, files: list[dict[str, Any]], wish: Wish, progress: Progress
) -> dict[str, Any]:
    total, done = sum(f["size"] for f in files), 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        progress.advanced(COMPRESS, done, total, "bytes")

    pieces, streams = [], []
    for stream, compression in STREAMS.items():
        paths = [f["path"] for f in files if (f["kind"] == "model") == (stream == "models")]
        if paths:
            level = wish.level if compression == "xz" else None
            limit = wish.split or 0
            pieces += pack_pieces(contents, paths, Pieces(bundle, limit, stream, SMALL), level, count)
            streams.append({"name": stream, "compression": compression})
    if any(f["kind"] == "config" for f in files):
        for piece in pieces:
            (bundle / piece["name"]).chmod(0o600)
    return {"pieces": pieces, "streams": streams}


def _write_programs(bundle: Path, target: Target) -> None:
    for program in ("bootstrap.py", "carried.py"):
        shutil.copyfile(HERE / program, bundle / program)
    script = (HERE / "install.sh").read_text(encoding="utf-8")
    filled = script.replace("@PYTHON@", minor(target.python)).replace("@INTERPRETER@", target.python.path)
    (bundle / "install.sh").write_text(filled, encoding="utf-8")
    (bundle / "install.sh").chmod(0o755)


def _write_sums(bundle: Path) -> None:
    """SHA256SUMS, for `sha256sum -c`."""
    names = sorted(p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file())
    lines = "".join(f"{carried.file_sha256(bundle / name)}  {name}\n" for name in names)
    (bundle / "SHA256SUMS").write_text(lines, encoding="utf-8")


def _replace(new: Path, output: Path) -> None:
    old = output.with_name(f".{output.name}.old")
    if output.exists():
        output.rename(old)
    new.rename(output)
    shutil.rmtree(old, ignore_errors=True)
