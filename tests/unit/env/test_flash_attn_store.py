"""Wheels that are kept: which of them fits an engine and its GPUs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llmhost.env.flash_attn.plan import WheelSpec
from llmhost.env.flash_attn.store import RECORD, find_wheel, keep_wheel, kept_wheels, record_check, remove_wheel
from llmhost.errors import EngineError
from tests.unit.env.test_flash_attn_plan import TARGET

SPEC = WheelSpec("2.8.3.post2", TARGET, (80, 90))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    wheel = tmp_path / "flash_attn-2.8.3.post2-cp312-cp312-linux_x86_64.whl"
    wheel.write_bytes(b"a wheel")
    keep_wheel(tmp_path / "wheels", wheel, SPEC, 990.0)
    return tmp_path / "wheels"


def test_what_was_kept_is_found_and_says_what_it_is(store: Path) -> None:
    kept = find_wheel(store, SPEC)
    assert kept is not None
    assert kept.path.read_bytes() == b"a wheel"
    assert (kept.folder.name, kept.seconds) == (SPEC.key, 990.0)
    assert {file.name for file in kept.folder.iterdir()} == {RECORD, kept.file}


@pytest.mark.parametrize("archs", [(80,), (90,), (80, 90)])
def test_a_wheel_for_more_gpus_does(store: Path, archs: tuple[int, ...]) -> None:
    assert find_wheel(store, replace(SPEC, archs=archs)) is not None


@pytest.mark.parametrize(
    "wanted",
    [
        replace(SPEC, archs=(90, 120)),
        replace(SPEC, version="2.8.1"),
        replace(SPEC, target=replace(TARGET, torch="2.14.0")),
        replace(SPEC, target=replace(TARGET, cuda=(13, 1))),
        replace(SPEC, target=replace(TARGET, python_tag="cp311")),
        replace(SPEC, target=replace(TARGET, cxx11_abi=False)),
        replace(SPEC, target=replace(TARGET, machine="aarch64")),
    ],
)
def test_one_for_anything_else_does_not(store: Path, wanted: WheelSpec) -> None:
    assert find_wheel(store, wanted) is None
    assert wanted.key != SPEC.key


@pytest.mark.parametrize(
    "change", [{"format": 9}, {"file": "../../x.whl"}, {"archs": None}, {"more": 1}, {"verified": 1}]
)
def test_a_record_that_is_not_understood_is_none(store: Path, change: dict[str, object]) -> None:
    record = store / SPEC.key / RECORD
    record.write_text(json.dumps(json.loads(record.read_text()) | change))
    assert kept_wheels(store) == ()


def test_half_a_record_is_none(store: Path) -> None:
    record = store / SPEC.key / RECORD
    record.write_text(record.read_text()[:40])
    assert kept_wheels(store) == ()


def test_an_altered_wheel_is_refused_with_both_digests(store: Path) -> None:
    kept = kept_wheels(store)[0]
    kept.path.write_bytes(b"another")
    with pytest.raises(EngineError, match=f"not {kept.sha256[:24]}") as error:
        find_wheel(store, SPEC)
    assert str(kept.folder) in error.value.hint


def test_one_that_awaits_its_check_is_for_who_checks_it(store: Path) -> None:
    (old,) = kept_wheels(store)
    kept = keep_wheel(store, old.path, replace(SPEC, archs=(80, 90, 120)), 1.0, awaits_check=True)
    assert find_wheel(store, SPEC, unverified=True) == old, "one that was checked comes first"
    remove_wheel(old)
    assert find_wheel(store, SPEC) is None
    assert find_wheel(store, SPEC, unverified=True) == kept
    checked = record_check(kept, {"forward": 2e-3})
    assert find_wheel(store, SPEC) == checked
    assert json.loads(checked.record.read_text())["verified"] == {"forward": 2e-3}


def test_a_record_that_says_nothing_of_a_check(store: Path) -> None:
    """An older llmhost wrote it, before its check: whether that went well nobody knows."""
    record = store / SPEC.key / RECORD
    data = json.loads(record.read_text())
    del data["verified"]
    record.write_text(json.dumps(data))
    assert find_wheel(store, SPEC) is None
    assert find_wheel(store, SPEC, unverified=True) == kept_wheels(store)[0]


def test_removing_one_leaves_what_else_lies_there(store: Path) -> None:
    (kept,) = kept_wheels(store)
    notes = kept.folder / "notes.txt"
    notes.write_text("ours")
    remove_wheel(kept)
    assert list(kept.folder.iterdir()) == [notes]
    notes.unlink()
    remove_wheel(kept)
    assert not kept.folder.exists()
