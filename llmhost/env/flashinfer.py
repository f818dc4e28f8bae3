"""Kernels that FlashInfer compiled elsewhere, where it loads them without compiling.

FlashInfer has ninja judge what it compiled, by paths and times of the engine's files: on another machine everything is
compiled again. Before that it looks for ``NAME/NAME.so`` in ``flashinfer/data/aot`` (JitSpec.is_aot in jit/core.py),
which its wheel leaves to others. So this becomes a link to a directory in the engine's cache, with the kernels that a
bundle brought and that this engine can load. The link is all that changes in the engine, and it is its own record:
when the cache is deleted, by whomever, it leads nowhere, and FlashInfer compiles.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from llmhost.env.current import engine_names
from llmhost.env.manifest import Manifest, read_manifest
from llmhost.env.progress import Progress
from llmhost.errors import CommandError
from llmhost.facts import Gpu
from llmhost.paths import Home
from llmhost.plan.caches import PRELOADED, cache_directory, cache_key, sorts
from llmhost.run import capture

STEP = "place FlashInfer's kernels"
OWN_KINDS = ("venv", "conda")
"""Environments that llmhost made; one of kind ``existing`` is never changed."""
AOT = Path("flashinfer/data/aot")
COMPILED = r"flashinfer/\.cache/flashinfer/{version}/{arch}/cached_ops/(?P<name>[^/]+)/(?P=name)\.so"
"""Below the directory of a cache; flashinfer/jit/env.py. FlashInfer itself adds a letter to newer architectures."""
CHECK = """\
import sys, torch, tvm_ffi
for path in sys.argv[1:]:
    try:
        tvm_ffi.load_module(path)
    except Exception as e:
        print(e, file=sys.stderr)
    else:
        print(path)
"""
"""What FlashInfer does with a compiled kernel (jit/core.py); another C library or C++ runtime shows here."""
TIMEOUT = 300


def place_kernels(home: Home, brought: Collection[str], gpus: Sequence[Gpu], progress: Progress) -> int:
    """Have the engines that llmhost built load compiled kernels instead of compiling them; how many kernels.

    ``brought`` are paths of cache files below the home. Taken are those of exactly an engine's vLLM and FlashInfer
    for exactly the sort of GPU of this machine; with several sorts none, since ``aot`` does not tell them apart. What
    cannot be placed is compiled, as ever: that is a note and no error.
    """
    capabilities = {gpu.capability for gpu in gpus}
    if len(capabilities) != 1 or None in capabilities:
        return 0
    total = 0
    for name in engine_names(home):
        manifest = read_manifest(home.engine_dir(name))
        if manifest is None or manifest.spec.kind not in OWN_KINDS or manifest.python:
            continue
        try:
            total += _place(home, name, manifest, brought, gpus, progress)
        except (OSError, CommandError) as e:
            progress.note(f"FlashInfer will compile its kernels again in the engine {name}: {e}")
    return total


def _place(
    home: Home, name: str, manifest: Manifest, brought: Collection[str], gpus: Sequence[Gpu], progress: Progress
) -> int:
    directory = home.engine_dir(name)
    cache = cache_directory(home, cache_key(manifest.facts(directory), gpus))
    for site in _site_packages(directory / manifest.build):
        link = site / AOT
        if (os.path.lexists(link) and not _is_ours(link, home)) or (site / "flashinfer_jit_cache").exists():
            continue  # somebody has compiled kernels there
        kernels = _compiled(home, cache, brought, _version(site), gpus[0])
        if not kernels:
            continue
        progress.started(STEP)
        loaded = _loadable(manifest.interpreter(directory), kernels)
        if loaded:
            _collect(loaded, cache / PRELOADED / name)
            _point(link, cache / PRELOADED / name)
        progress.finished(STEP, f"{len(loaded)} of {len(kernels)} for the engine {name}")
        return len(loaded)
    return 0


def _site_packages(build: Path) -> Iterator[Path]:
    """Where this environment itself has FlashInfer; not those of an interpreter below it."""
    found = {data.parent.parent.resolve() for data in build.glob("lib/python3*/site-packages/flashinfer/data")}
    return iter(sorted(path for path in found if path.is_relative_to(build.resolve())))


def _version(site: Path) -> str:
    """As FlashInfer names its cache after it; empty when it does not say."""
    try:
        text = (site / "flashinfer/_build_meta.py").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    found = re.search(r"""^__version__ = ["'](.+)["']$""", text, re.MULTILINE)
    return found[1] if found else ""


def _compiled(home: Home, cache: Path, brought: Collection[str], version: str, gpu: Gpu) -> dict[str, Path]:
    """Compiled kernels among what was brought, by name."""
    assert gpu.capability is not None
    arch = "{}{}[a-z]?".format(*gpu.capability)
    place = re.escape(f"{cache.relative_to(home.root).as_posix()}/")
    pattern = re.compile(place + COMPILED.format(version=re.escape(version), arch=arch))
    found = (pattern.fullmatch(path) for path in sorted(brought))
    return {match["name"]: home.root / match[0] for match in found if match}


def _loadable(python: Path, kernels: dict[str, Path]) -> dict[str, Path]:
    """Those that the engine's interpreter loads; raises CommandError when that cannot be tried, or crashes."""
    done = capture([python, "-I", "-c", CHECK, *kernels.values()], timeout=TIMEOUT)
    good = set(done.stdout.splitlines())
    return {name: path for name, path in kernels.items() if str(path) in good}


def _collect(kernels: dict[str, Path], directory: Path) -> None:
    """A directory of these, as FlashInfer looks for them; what ninja makes later does not get in."""
    new = directory.with_name(f".{directory.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    for name, path in kernels.items():
        (new / name).mkdir(parents=True)
        try:
            os.link(path, new / name / path.name)
        except OSError:  # a file system without links
            shutil.copy2(path, new / name / path.name)
    shutil.rmtree(directory, ignore_errors=True)
    new.rename(directory)


def _point(link: Path, directory: Path) -> None:
    temporary = link.with_name(f".{link.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(directory)
    os.replace(temporary, link)


def _is_ours(link: Path, home: Home) -> bool:
    """A link into the caches of this home."""
    return link.is_symlink() and _aim(link).is_relative_to(home.engine_caches.resolve())


def _aim(link: Path) -> Path:
    """Where a link leads, which need not be there."""
    return Path(os.readlink(link)).resolve()


def withdraw_kernels(home: Home, key: str) -> None:
    """Undo `place_kernels` for a cache that is cleared. Raises OSError."""
    for link, used in _links(home):
        if used == key:
            link.unlink()


def withdraw_unfit(home: Home, gpus: Sequence[Gpu]) -> None:
    """Undo `place_kernels` where this machine has got other GPUs since; nothing while it does not tell of which sort
    they are. Raises OSError."""
    if not gpus or any(gpu.capability is None for gpu in gpus):
        return
    for link, used in _links(home):
        if not used.endswith(f"-cuda{sorts(gpus)}"):
            link.unlink()


def _links(home: Home) -> Iterator[tuple[Path, str]]:
    """Every link that `place_kernels` made, and the key of the cache that it leads to."""
    for data in home.engines.glob(f"*/*/lib/python3*/site-packages/{AOT.parent}"):
        if _is_ours(data / AOT.name, home):
            yield data / AOT.name, _aim(data / AOT.name).relative_to(home.engine_caches.resolve()).parts[0]
