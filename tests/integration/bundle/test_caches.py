"""Compile caches through a bundle, as FlashInfer's JIT judges them: by ninja, and by what was compiled beforehand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import ninja
import pytest

from llmhost.bundle import Wish, carried, create_bundle, install_bundle
from llmhost.bundle import install as installing
from llmhost.bundle import target as targets
from llmhost.bundle.gather import cache_items
from llmhost.bundle.target import make_target
from llmhost.config import Config, Engine
from llmhost.engines import clear_caches
from llmhost.env.flashinfer import AOT, withdraw_unfit
from llmhost.env.manifest import Manifest, Spec, write_manifest
from llmhost.env.uv import find_uv
from llmhost.errors import BundleError
from llmhost.facts import Gpu
from llmhost.homedir import claim
from llmhost.paths import Home
from llmhost.plan.caches import PRELOADED
from tests.integration.bundle.test_bundle import BOX, SMALL
from tests.integration.env.conftest import home, own_configuration, progress, wheels, work
from tests.integration.env.recorder import Recorder

__all__ = ["home", "own_configuration", "progress", "wheels", "work"]
pytestmark = pytest.mark.integration

KEY = "0.26.0-cuda-sm90"
FACTS = replace(BOX, gpus=(Gpu(0, "NVIDIA H200", 1, 1, (9, 0)),))
WORKSPACE = f"{KEY}/flashinfer/.cache/flashinfer/0.6.14/90a"
NINJA = Path(ninja.BIN_DIR) / "ninja"
RULES = """\
ninja_required_version = 1.3
rule compile
  command = cp $in $out && echo "$out: $in {header}" > $out.d
  depfile = $out.d
  deps = gcc
rule link
  command = cp $in $out && chmod 755 $out
build {build}/norm.o: compile {source}
build {build}/norm.so: link {build}/norm.o
default {build}/norm.so
"""
"""As FlashInfer 0.6.14 writes them (flashinfer/jit/cpp_ext.py), with another compiler."""


@pytest.fixture(autouse=True)
def same_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "choose_release", lambda *_: replace(SMALL[0], vllm="0.26.0", device="cuda"))
    monkeypatch.setattr(carried, "MARGIN", 0)


def run_ninja(build: Path, *options: str) -> str:
    argv = [NINJA, "-v", "-C", build, "-f", build / "build.ninja", *options]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def is_up_to_date(build: Path) -> bool:
    return "no work to do" in run_ninja(build, "-n")


def compile_one(home: Home, headers: Path) -> Path:
    """What FlashInfer leaves of one kernel; its header is older, as an engine is when it compiles."""
    claim(home)
    workspace = home.engine_caches / WORKSPACE
    build, source, header = workspace / "cached_ops/norm", workspace / "generated/norm/norm.cu", headers / "norm.cuh"
    for path in (build / "build.ninja", source, header):
        path.parent.mkdir(parents=True, exist_ok=True)
    header.write_text("// header\n")
    os.utime(header, (1_700_000_000, 1_700_000_000))
    source.write_text("// kernel\n")
    (build / "build.ninja").write_text(RULES.format(build=build, source=source, header=header))
    run_ninja(build)
    assert is_up_to_date(build)
    return build


def carry(home: Home, work: Path, progress: Recorder, split: int | None = None) -> Path:
    wish = Wish(work / "b", ("caches",), split=split, level=0)
    create_bundle(home, FACTS, Config(engine=Engine()), None, wish, progress)
    return work / "b"


@pytest.mark.parametrize("split", [None, 1_000_000])
def test_ninja_finds_nothing_to_do(home: Home, work: Path, progress: Recorder, split: int | None) -> None:
    build = compile_one(home, work / "engine")
    files = [f for f in (home.engine_caches / KEY).rglob("*") if f.is_file()]
    before = {f: (f.stat().st_mtime_ns, f.stat().st_mode & 0o777, f.read_bytes()) for f in files}
    assert {".ninja_log", ".ninja_deps", "norm.so", "norm.cu"} <= {f.name for f in before}
    bundle = carry(home, work, progress, split)
    if split is None:
        for file in bundle.rglob("*"):  # as a copy that keeps no times leaves them
            os.utime(file)
    assert [c.key for c in clear_caches(home, ())] == [KEY]
    assert not build.exists()
    assert install_bundle(home, bundle, progress).caches == len(before)
    assert {f: (f.stat().st_mtime_ns, f.stat().st_mode & 0o777, f.read_bytes()) for f in before} == before
    assert is_up_to_date(build)
    for file in before:
        os.utime(file)
    assert not is_up_to_date(build)  # so it was the times
    install_bundle(home, bundle, progress)
    assert is_up_to_date(build)  # also of files that were there with that content


def test_nobody_else_may_write_to_a_cache(home: Home, work: Path, progress: Recorder) -> None:
    build = compile_one(home, work / "engine")
    (build / "norm.so").chmod(0o4777)
    (build / "norm.o").chmod(0o440)
    bundle = carry(home, work, progress)
    clear_caches(home, ())
    install_bundle(home, bundle, progress)
    assert [(build / name).stat().st_mode & 0o7777 for name in ("norm.so", "norm.o")] == [0o755, 0o640]


@pytest.mark.parametrize("wrong", ["soon", 1 << 63, -1, None])
def test_a_time_that_is_none(home: Home, work: Path, progress: Recorder, wrong: object) -> None:
    compile_one(home, work / "engine")
    bundle = carry(home, work, progress)
    manifest = json.loads((bundle / carried.MANIFEST).read_text())
    manifest["files"][0]["mtime_ns"] = wrong
    carried.write_manifest(bundle, manifest)
    with pytest.raises(BundleError, match=r"bundle\.json is damaged: it does not say what cache/engines/"):
        install_bundle(home, bundle, progress)


def test_a_bundle_of_an_older_llmhost(home: Home, work: Path, progress: Recorder) -> None:
    build = compile_one(home, work / "engine")
    bundle = carry(home, work, progress)
    manifest = json.loads((bundle / carried.MANIFEST).read_text())
    manifest["files"] = [{k: v for k, v in f.items() if k not in ("mtime_ns", "mode")} for f in manifest["files"]]
    carried.write_manifest(bundle, manifest)
    shutil.rmtree(home.engine_caches)
    install_bundle(home, bundle, progress)
    assert (build / "norm.so").is_file()
    assert not is_up_to_date(build)


ENGINE = "1.2.3-build"
LOADER = "import ctypes\ndef load_module(path): return ctypes.CDLL(path)\n"
IS_AOT = """
import pathlib, sys, flashinfer.jit.env as jit_env
print((jit_env.FLASHINFER_AOT_DIR / sys.argv[1] / f"{sys.argv[1]}.so").exists())
"""
"""JitSpec.is_aot and aot_path of FlashInfer 0.6.14; build_and_load() then loads that file, and runs no ninja."""

JIT_ENV = """
import pathlib
_package_root = pathlib.Path(__file__).resolve().parents[1]
FLASHINFER_AOT_DIR = _package_root / "data" / "aot"
"""
"""The part of flashinfer/jit/env.py that counts, word for word; the package itself imports torch and needs a GPU."""


@pytest.fixture
def a_library() -> bytes:
    """Something that the loader loads."""
    return Path(str(import_module("psutil._psutil_linux").__file__)).read_bytes()


def make_engine(home: Home, version: str = "0.6.14", kind: str = "venv", vllm: str = "0.26.0") -> Path:
    """An engine with what FlashInfer's wheel has, as far as it looks for kernels; its site-packages."""
    build = home.engine_dir("default") / ENGINE
    subprocess.run([find_uv(), "venv", "--quiet", build, "--python", sys.executable], check=True)
    (site,) = build.glob("lib/python3*/site-packages")
    files = {
        "flashinfer/__init__.py": "", "flashinfer/jit/__init__.py": "", "flashinfer/jit/env.py": JIT_ENV,
        "flashinfer/_build_meta.py": f'"""Build metadata."""\n__version__ = "{version}"\n__git_version__ = "19f"\n',
        "flashinfer/data/include/norm.cuh": "", "torch.py": "", "tvm_ffi.py": LOADER,
    }  # fmt: skip
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
    spec = Spec(kind, "cuda", None, None)
    python = str(build / "bin/python") if kind == "existing" else ""
    packages = {"vllm": vllm, "torch": "2.11.0"}
    made = Manifest(spec, ENGINE, "3.12.1", packages, {}, (), (), "", 1.0, device="cuda", python=python)
    write_manifest(home.engine_dir("default"), made)
    return site


def is_aot(site: Path, name: str) -> bool:
    python = site.parents[2] / "bin/python"
    return subprocess.run([python, "-c", IS_AOT, name], check=True, capture_output=True, text=True).stdout == "True\n"


@pytest.fixture
def other(work: Path, home: Home, a_library: bytes, progress: Recorder) -> Home:
    """A home on another machine; the bundle for it (``work/b``) has a kernel that loads there and one that does not."""
    build = compile_one(home, work / "engine")
    (build / "norm.so").write_bytes(a_library)
    (build.parent / "rope").mkdir()
    (build.parent / "rope/rope.so").write_bytes(b"for another C library")
    carry(home, work, progress)
    there = Home(work / "other")
    claim(there)
    return there


@pytest.fixture
def h200(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installing, "read_essentials", lambda _: FACTS)


@pytest.mark.usefixtures("h200")
def test_an_engine_elsewhere_loads_what_was_compiled(other: Home, work: Path, progress: Recorder) -> None:
    site = make_engine(other)
    before = sorted(site.rglob("*"))
    assert not is_aot(site, "norm")
    install_bundle(other, work / "b", progress)
    assert (is_aot(site, "norm"), is_aot(site, "rope")) == (True, False)
    assert ("finished", "place FlashInfer's kernels", "1 of 2 for the engine default") in progress.events
    assert {p for p in site.rglob("*") if "__pycache__" not in p.parts} - set(before) == {site / AOT}
    install_bundle(other, work / "b", progress)
    assert is_aot(site, "norm")
    again = make_target(FACTS, Engine())
    assert not [item for item in cache_items(other, again) if PRELOADED in item.path]
    clear_caches(other, ())
    assert not os.path.lexists(site / AOT)
    assert sorted(p for p in site.rglob("*") if "__pycache__" not in p.parts) == before


@pytest.mark.usefixtures("h200")
def test_caches_deleted_by_hand(other: Home, work: Path, progress: Recorder) -> None:
    """FlashInfer compiles again, also what it compiles itself later is not taken for it."""
    site = make_engine(other)
    install_bundle(other, work / "b", progress)
    shutil.rmtree(other.cache)
    assert not is_aot(site, "norm")
    own = other.engine_caches / WORKSPACE / "cached_ops/norm/norm.so"
    own.parent.mkdir(parents=True)
    own.touch()
    assert not is_aot(site, "norm")
    install_bundle(other, work / "b", progress)
    assert is_aot(site, "norm")


@pytest.mark.usefixtures("h200")
@pytest.mark.parametrize("other_engine", [{"version": "0.6.15"}, {"kind": "existing"}, {"vllm": "0.27.0"}])
def test_engines_that_are_left_alone(other: Home, work: Path, progress: Recorder, other_engine: dict[str, str]) -> None:
    site = make_engine(other, **other_engine)
    install_bundle(other, work / "b", progress)
    assert not os.path.lexists(site / AOT)


@pytest.mark.usefixtures("h200")
def test_kernels_of_somebody_else_stay(other: Home, work: Path, progress: Recorder) -> None:
    site = make_engine(other)
    (site / AOT / "norm").mkdir(parents=True)
    install_bundle(other, work / "b", progress)
    clear_caches(other, ())
    assert (site / AOT / "norm").is_dir()
    assert not (site / AOT).is_symlink()


@pytest.mark.usefixtures("h200")
@pytest.mark.parametrize("broken", ["import os; os.abort()\n", "raise ImportError('no tvm_ffi')\n"])
def test_an_engine_that_cannot_try_them(other: Home, work: Path, progress: Recorder, broken: str) -> None:
    site = make_engine(other)
    (site / "tvm_ffi.py").write_text(broken)
    assert install_bundle(other, work / "b", progress).caches
    assert any("FlashInfer will compile its kernels again in the engine default" in n for n in progress.notes)
    assert not os.path.lexists(site / AOT)


@pytest.mark.parametrize("capabilities", [[], [(8, 0)], [(9, 0), (10, 0)], [None]])
def test_another_sort_of_gpu(
    other: Home,
    work: Path,
    progress: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    capabilities: list[tuple[int, int] | None],
) -> None:
    gpus = tuple(Gpu(n, "GPU", 1, 1, capability) for n, capability in enumerate(capabilities))
    monkeypatch.setattr(installing, "read_essentials", lambda _: replace(FACTS, gpus=gpus))
    site = make_engine(other)
    install_bundle(other, work / "b", progress)
    assert not os.path.lexists(site / AOT)


@pytest.mark.usefixtures("h200")
def test_other_gpus_in_this_machine(other: Home, work: Path, progress: Recorder) -> None:
    site = make_engine(other)
    install_bundle(other, work / "b", progress)
    unknown = (replace(FACTS.gpus[0], capability=None),)
    for unchanged in (FACTS.gpus, (), unknown):  # also when the driver does not answer for once
        withdraw_unfit(other, unchanged)
        assert is_aot(site, "norm")
    withdraw_unfit(other, (Gpu(0, "NVIDIA B200", 1, 1, (10, 0)),))
    assert not os.path.lexists(site / AOT)
