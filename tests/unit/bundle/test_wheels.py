"""Wheels rewritten are wheels: RECORD agrees with what is in them."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import zipfile
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from llmhost.bundle.own_wheel import _repacked
from llmhost.bundle.slim import read_slimming
from llmhost.bundle.wheels import MARKER, requirements_of, rewrite, stripped_of, unpacked_size
from tests.integration.env.wheels import make_wheel


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    modules = {"vllm/__init__.py": "", "vllm/_fa2_C.abi3.so": "x" * 5000, "vllm/deep/gemm.h": "y"}
    return make_wheel(tmp_path / "in", "vllm", "0.26.0", modules, ("torch==2.11.0", "pillow; extra == 'image'"))


def check_record(wheel: Path) -> set[str]:
    """Every file but RECORD and the marker is listed with its digest; nothing else is."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("/RECORD"))
        rows = {row[0]: row[1:] for row in csv.reader(io.StringIO(archive.read(name).decode()))}
        assert set(rows) == set(archive.namelist())
        for path, (digest, size) in rows.items():
            if digest:
                content = archive.read(path)
                plain = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                assert (digest, size) == (f"sha256={plain}", str(len(content)))
        assert {path for path, (digest, _) in rows.items() if not digest} <= {name, name.replace("RECORD", MARKER)}
    return set(rows)


def test_without_compression_it_is_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.getinfo("vllm/__init__.py").external_attr = 0o100755 << 16
    new = rewrite(wheel, tmp_path, stored=True)
    assert new.name == wheel.name
    with zipfile.ZipFile(wheel) as before, zipfile.ZipFile(new) as after:
        assert {i.filename: before.read(i) for i in before.infolist()} == {
            i.filename: after.read(i) for i in after.infolist()
        }
        assert {i.compress_type for i in after.infolist()} == {zipfile.ZIP_STORED}
        assert {i.filename: i.external_attr for i in before.infolist()} == {
            i.filename: i.external_attr for i in after.infolist()
        }
    assert stripped_of(new) == {}


def test_a_stripped_wheel_says_what_it_lost(wheel: Path, tmp_path: Path) -> None:
    new = rewrite(wheel, tmp_path, stored=False, strip={"vllm/_fa2_C*.so": "not on Hopper", "vllm/none*": "?"})
    assert new.name == "vllm-0.26.0-1stripped-py3-none-any.whl"
    assert stripped_of(new) == {"vllm/_fa2_C.abi3.so": "not on Hopper"}
    assert "vllm/_fa2_C.abi3.so" not in check_record(new)
    assert unpacked_size(new) < 5000


def test_patterns_reach_below_directories(wheel: Path, tmp_path: Path) -> None:
    assert set(stripped_of(rewrite(wheel, tmp_path, stored=True, strip={"vllm/deep/*": "?"}))) == {"vllm/deep/gemm.h"}


def test_requirements_are_those_without_extras(wheel: Path) -> None:
    assert requirements_of(wheel) == ("torch==2.11.0",)


def test_an_installation_becomes_a_wheel_again(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (info,) = site.glob("*.dist-info")
    (info / "INSTALLER").write_text("pip")
    (site / "vllm/__pycache__").mkdir()
    (site / "vllm/__pycache__/__init__.cpython-311.pyc").write_bytes(b"")
    with (info / "RECORD").open("a") as record:
        record.write(f"{info.name}/INSTALLER,,\nvllm/__pycache__/__init__.cpython-311.pyc,,\n../../../bin/vllm,,\n")
    again = _repacked(Distribution.at(info), tmp_path)
    assert check_record(again) == check_record(wheel)
    with zipfile.ZipFile(wheel) as before, zipfile.ZipFile(again) as after:
        assert before.read("vllm/deep/gemm.h") == after.read("vllm/deep/gemm.h")


def test_what_gpus_cannot_use() -> None:
    hopper, blackwell = read_slimming([(9, 0)]), read_slimming([(10, 0)])
    assert any("fa2" in pattern for pattern in hopper.files["vllm"])
    assert not any("fa3" in pattern for pattern in hopper.files["vllm"])
    assert any("fa3" in pattern for pattern in blackwell.files["vllm"])
    assert "nvidia-cutlass-dsl-libs-cu13" in hopper.packages
    assert "nvidia-cutlass-dsl-libs-cu13" not in blackwell.packages


def test_a_mixed_machine_keeps_what_one_of_its_gpus_uses() -> None:
    mixed = read_slimming([(8, 0), (9, 0)])
    assert not any("_fa" in pattern for pattern in mixed.files["vllm"])


def test_unknown_gpus_keep_everything() -> None:
    nothing = read_slimming([])
    assert not nothing.packages
    assert not nothing.files


def test_what_the_machine_has_of_its_own() -> None:
    plain = read_slimming([(9, 0)]).packages
    assert not {"numba", "nvidia-cuda-nvcc"} & set(plain)
    assert "nvidia-cuda-nvcc" in read_slimming([(9, 0)], toolkit=True).packages
    assert "numba" in read_slimming([(9, 0)], there={"numba": "unknown"}).packages
