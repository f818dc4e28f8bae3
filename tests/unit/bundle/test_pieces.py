"""Files -> pieces -> files; what is missing, cut or altered is named."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from llmhost.bundle import carried, pack
from llmhost.bundle.pack import Pieces, pack_pieces
from llmhost.bundle.show import check_bundle, read_bundle
from llmhost.errors import BundleError

LIMIT = 100_000


def make_files(root: Path, sizes: dict[str, int]) -> list[dict[str, Any]]:
    entries = []
    for name, size in sizes.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(random.Random(name).randbytes(size))
        kind = "model" if name.startswith("models/") else "engine"
        entries.append({"path": name, "size": size, "sha256": carried.file_sha256(root / name), "kind": kind})
    return entries


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Three pieces of compressed files and two of a model."""
    directory, root = tmp_path / "bundle", tmp_path / "root"
    directory.mkdir()
    files = make_files(
        root, {"wheels/a.whl": 150_000, "wheels/empty.whl": 0, "wheels/b.whl": 90_000, "models/o/n/w": 120_000}
    )
    pieces, streams = [], []
    for stream, level in (("bundle", 1), ("models", None)):
        paths = [f["path"] for f in files if (f["kind"] == "model") == (stream == "models")]
        pieces += pack_pieces(root, paths, Pieces(directory, LIMIT, stream), level, lambda _: None)
        streams.append({"name": stream, "compression": "xz" if level else "none"})
    manifest = {
        "format": 1, "llmhost": "0", "id": "0123456789ab", "files": files, "pieces": pieces,
        "streams": streams, "engine": None,
        "for": {"machine": "x86_64", "python": "3.12", "glibc": [2, 28], "system": "Debian"},
    }  # fmt: skip
    carried.write_manifest(directory, manifest)
    return directory


def problems(directory: Path) -> dict[str, str]:
    return dict(carried.problems(directory, carried.read_manifest(directory)))


def unpack(bundle: Path, target: Path) -> None:
    carried.unpack(bundle, carried.read_manifest(bundle), target, lambda _: None)


def test_pieces_are_no_larger_than_the_limit_and_join_to_what_went_in(bundle: Path, tmp_path: Path) -> None:
    manifest = read_bundle(bundle)
    assert [p["name"] for p in manifest["pieces"]] == [
        "bundle.000",
        "bundle.001",
        "bundle.002",
        "models.000",
        "models.001",
    ]
    assert all(p["size"] <= LIMIT and p["size"] == (bundle / p["name"]).stat().st_size for p in manifest["pieces"])
    unpack(bundle, tmp_path / "out")
    assert problems(tmp_path / "out") == {}
    assert not carried.read_manifest(tmp_path / "out")["pieces"]


def test_a_stream_of_several_compressed_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "BLOCK", 20_000)
    files = make_files(tmp_path / "root", {"x": 95_000, "y": 10})
    pieces = pack_pieces(tmp_path / "root", ["x", "y"], Pieces(tmp_path, 10**9, "bundle"), 0, lambda _: None)
    manifest = {
        "format": 1, "files": files, "pieces": pieces, "streams": [{"name": "bundle", "compression": "xz"}],
    }  # fmt: skip
    carried.unpack(tmp_path, manifest, tmp_path / "out", lambda _: None)
    assert (tmp_path / "out/x").read_bytes() == (tmp_path / "root/x").read_bytes()


def test_the_first_piece_leaves_room_for_the_small_files(tmp_path: Path) -> None:
    make_files(tmp_path / "root", {"x": 250_000})
    pieces = pack_pieces(tmp_path / "root", ["x"], Pieces(tmp_path, LIMIT, "m", 30_000), None, lambda _: None)
    assert [p["size"] for p in pieces][:2] == [70_000, 100_000]


def test_an_interrupted_unpacking_goes_on(bundle: Path, tmp_path: Path) -> None:
    unpack(bundle, tmp_path / "out")
    there = (tmp_path / "out/wheels/a.whl").stat().st_ino
    (tmp_path / "out/wheels/b.whl").write_bytes(b"half")
    (tmp_path / "out/bundle.json").unlink()
    unpack(bundle, tmp_path / "out")
    assert problems(tmp_path / "out") == {}
    assert (tmp_path / "out/wheels/a.whl").stat().st_ino == there


def test_what_is_wrong_is_named(bundle: Path) -> None:
    (bundle / "bundle.000").unlink()
    (bundle / "bundle.002").write_bytes((bundle / "bundle.002").read_bytes()[:-7])
    altered = bytearray((bundle / "models.001").read_bytes())
    altered[100] ^= 1
    (bundle / "models.001").write_bytes(altered)
    found = problems(bundle)
    assert list(found) == ["bundle.000", "bundle.002", "models.001"]
    assert found["bundle.000"] == "missing"
    assert found["bundle.002"].startswith("cut short: ")
    assert found["models.001"].startswith("altered")
    with pytest.raises(carried.BundleProblem, match=r"bundle.000 is missing; bundle.002 is cut short") as raised:
        carried.require_whole(bundle, carried.read_manifest(bundle))
    assert raised.value.hint == "copy again: bundle.000 bundle.002 models.001"
    assert [c.name for c in check_bundle(bundle) if not c.problem] == ["bundle.001", "models.000"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: f.unlink(), "is no bundle: it has no bundle.json"),
        (lambda f: f.write_text("{"), "is damaged"),
        (lambda f: f.write_text("[]"), "is damaged"),
        (lambda f: f.write_bytes(b"\xff"), "is damaged"),
        (lambda f: f.write_text(f.read_text().replace('"wheels/a.whl"', '"wheels/c.whl"')), "its own digest"),
        (lambda f: f.write_text(f.read_text().replace('"format": 1', '"format": 2')), "is of format 2"),
    ],
)
def test_a_damaged_manifest(bundle: Path, damage: Any, message: str) -> None:
    damage(bundle / "bundle.json")
    with pytest.raises(BundleError, match=message):
        read_bundle(bundle)


def test_a_manifest_that_would_write_elsewhere(bundle: Path, tmp_path: Path) -> None:
    manifest = carried.read_manifest(bundle)
    manifest["files"][0]["path"] = "../outside"
    with pytest.raises(carried.BundleProblem, match=r"\.\./outside would be written outside"):
        carried.unpack(bundle, manifest, tmp_path / "out", lambda _: None)


@pytest.mark.parametrize("pieces", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["files"][0].update(path="/etc/passwd"), "'/etc/passwd' cannot be in it"),
        (lambda m: m["files"][0].update(path="wheels/../../x.whl"), "cannot be in it"),
        (lambda m: m["files"][0].update(path="models/o/n/x.whl"), "cannot be in it"),
        (lambda m: m["files"][3].update(path="models/../../../x"), "cannot be in it"),
        (lambda m: m["files"][3].update(path="models/x"), "cannot be in it"),
        (lambda m: m["files"][0].update(kind="config", path="keys.json"), "cannot be in it"),
        (lambda m: m["files"][0].update(kind="other"), "other"),
        (lambda m: m["files"][0].update(size="1"), "is damaged"),
        (lambda m: m["files"][0].pop("sha256"), "sha256"),
        (lambda m: m.update(id="../../x"), "'../../x' cannot be in it"),
        (lambda m: m.update(llmhost="1/../../x"), "cannot be in it"),
        (lambda m: m.pop("for"), "'for'"),
        (lambda m: m.pop("files"), "'files'"),
        (lambda m: m["for"].pop("glibc"), "'glibc'"),
        (lambda m: m.update(files=None), "is damaged"),
        (lambda m: m.update(engine={"vllm": "1"}), "'device'"),
    ],
)
def test_a_manifest_that_leads_elsewhere_or_lacks_something(
    bundle: Path, change: Any, message: str, pieces: bool
) -> None:
    """Its digest is right: whoever altered it could calculate that as well."""
    manifest = carried.read_manifest(bundle)
    if not pieces:
        manifest |= {"pieces": [], "streams": []}
    change(manifest)
    carried.write_manifest(bundle, manifest)
    with pytest.raises(BundleError, match="is damaged") as raised:
        read_bundle(bundle)
    assert message in raised.value.message


def test_a_piece_that_lies_elsewhere(bundle: Path) -> None:
    manifest = carried.read_manifest(bundle)
    manifest["pieces"][0]["name"] = "../bundle.000"
    carried.write_manifest(bundle, manifest)
    with pytest.raises(BundleError, match=r"'\.\./bundle\.000' cannot be in it"):
        read_bundle(bundle)


def test_content_that_is_not_what_the_manifest_says(bundle: Path, tmp_path: Path) -> None:
    manifest = carried.read_manifest(bundle)
    manifest["files"][0]["sha256"] = "0" * 64
    with pytest.raises(carried.BundleProblem, match="is not what its SHA-256 says"):
        carried.unpack(bundle, manifest, tmp_path / "out", lambda _: None)
    manifest["files"].append({"path": "wheels/lost.whl", "size": 1, "sha256": "0"})
    manifest["files"][0] = dict(carried.read_manifest(bundle)["files"][0])
    with pytest.raises(carried.BundleProblem, match=r"do not hold wheels/lost\.whl"):
        carried.unpack(bundle, manifest, tmp_path / "out", lambda _: None)


def test_another_machine_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = carried.read_manifest(bundle)
    monkeypatch.setattr(carried.platform, "machine", lambda: "aarch64")
    with pytest.raises(carried.BundleProblem, match="is for x86_64 machines with Debian, and this one is aarch64"):
        carried.require_machine(manifest)
    monkeypatch.setattr(carried.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(carried.platform, "libc_ver", lambda: ("glibc", "2.17"))
    with pytest.raises(carried.BundleProblem, match=r"\(glibc 2\.28\), and this one has glibc 2\.17"):
        carried.require_machine(manifest)


def test_another_python_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = carried.read_manifest(bundle)
    monkeypatch.setattr(carried.sys, "version_info", (3, 13, 1))
    with pytest.raises(carried.BundleProblem, match=r"is for Python 3\.12, and .* is Python 3\.13\.1"):
        carried.require_python(manifest)
    monkeypatch.setattr(carried.sys, "version_info", (3, 10, 2))
    with pytest.raises(carried.BundleProblem, match=r"is Python 3\.10\.2, and llmhost needs 3\.11") as raised:
        carried.require_python(manifest)
    assert raised.value.hint == "run this with python3.12"


def test_too_small_a_disk_is_told_before_anything_is_written(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(carried.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(carried.BundleProblem, match="not enough disk space to unpack the bundle"):
        unpack(bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()
