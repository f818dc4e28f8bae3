"""Compile caches through a bundle, as FlashInfer's JIT judges them: by ninja, and by what was compiled beforehand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import ninja
import pytest

from llmhost.bundle import Wish, carried, create_bundle, install_bundle
from llmhost.bundle import target as targets
from llmhost.config import Config, Engine
from llmhost.engines import clear_caches
from llmhost.errors import BundleError
from llmhost.facts import Gpu
from llmhost.homedir import claim
from llmhost.paths import Home
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
